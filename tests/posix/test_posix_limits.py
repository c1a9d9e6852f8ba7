"""What FUSE or pyfuse3 cannot carry, and what users see instead: every line of the second table of docs/posix.md.

A test that fails here because something works now is good news: move its line to the first table.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mount_tools import Mounted

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        os.geteuid() != 0, reason="root (uid 0) is missing: the calls must not be refused for want of permission"
    ),
]

LIBC = ctypes.CDLL(None, use_errno=True)
MIB = 1 << 20
AT_FDCWD = -100


def refused(number: int, call: Callable[..., Any], *args: Any) -> None:
    with pytest.raises(OSError) as caught:
        call(*args)
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


def checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


@pytest.fixture
def file(here: Path) -> int:
    number = os.open(here / "f", os.O_CREAT | os.O_RDWR, 0o644)
    os.write(number, b"x" * 3 * 4096)
    return number


@pytest.mark.parametrize("mode", [0, 1, 2 | 1, 8, 16, 32, 64], ids=lambda mode: f"mode {mode}")
def test_fallocate_is_refused_in_every_mode(file: int, mode: int) -> None:
    call = LIBC.fallocate
    refused(errno.EOPNOTSUPP, lambda: checked(call(file, mode, ctypes.c_long(0), ctypes.c_long(4096))))
    os.close(file)


def test_posix_fallocate_is_emulated_by_the_c_library(file: int) -> None:
    os.posix_fallocate(file, 0, 200_000)
    assert os.fstat(file).st_size == 200_000
    assert os.pread(file, 4, 3 * 4096 - 2) == b"xx\0\0"
    os.close(file)


def test_copy_file_range_copies_through_the_kernel(here: Path, file: int) -> None:
    other = os.open(here / "g", os.O_CREAT | os.O_RDWR)
    assert os.copy_file_range(file, other, 8192, 0, 5) == 8192
    assert os.pread(other, 9000, 0) == bytes(5) + b"x" * 8192
    os.close(other)
    os.close(file)


def test_reflinks_are_refused(here: Path, file: int) -> None:
    other = os.open(here / "g", os.O_CREAT | os.O_RDWR)
    refused(errno.EOPNOTSUPP, fcntl.ioctl, other, 0x40049409, file)
    os.close(other)
    os.close(file)
    always = subprocess.run(["cp", "--reflink=always", here / "f", here / "h"], capture_output=True, check=False)
    assert always.returncode == 1
    subprocess.run(["cp", "--reflink=auto", here / "f", here / "h"], check=True)
    assert (here / "h").read_bytes() == (here / "f").read_bytes()


def test_holes_are_not_shown(here: Path) -> None:
    with (here / "f").open("wb", buffering=0) as file:
        os.pwrite(file.fileno(), b"x", 5 * MIB)
        size = 5 * MIB + 1
        for at in (0, MIB, 5 * MIB):
            assert os.lseek(file.fileno(), at, os.SEEK_DATA) == at
            assert os.lseek(file.fileno(), at, os.SEEK_HOLE) == size
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            refused(errno.ENXIO, os.lseek, file.fileno(), size, whence)
    subprocess.run(["cp", "--sparse=always", here / "f", here / "g"], check=True)
    assert (here / "g").read_bytes() == (here / "f").read_bytes()
    assert (here / "g").stat().st_blocks * 512 <= 2 * MIB


def test_files_without_a_name_are_refused(here: Path) -> None:
    refused(errno.EOPNOTSUPP, os.open, here, os.O_TMPFILE | os.O_RDWR, 0o600)


def test_direct_access_takes_sizes_that_a_disk_would_refuse(here: Path, file: int) -> None:
    os.close(file)
    direct = os.open(here / "f", os.O_RDWR | os.O_DIRECT)
    buffer = mmap.mmap(-1, 8192)
    for size, at in ((4096, 0), (512, 512), (100, 7)):
        view = memoryview(buffer)[:size]
        assert os.pwritev(direct, [view], at) == size
        assert os.preadv(direct, [view], at) == size
        view.release()
    os.close(direct)


@pytest.mark.parametrize(
    ("name", "number", "size"),
    [
        ("FS_IOC_GETFLAGS", 0x80086601, 8),
        ("FS_IOC_FSGETXATTR", 0x801C581F, 28),
        ("FS_IOC_GETVERSION", 0x80087601, 8),
        ("FITRIM", 0xC0185879, 24),
        ("FIFREEZE", 0xC0045877, 4),
    ],
)
def test_controls_of_other_file_systems_are_refused(file: int, name: str, number: int, size: int) -> None:
    with pytest.raises(OSError) as caught:
        fcntl.ioctl(file, number, bytes(size))
    assert caught.value.errno in (errno.ENOTTY, errno.EOPNOTSUPP), name
    os.close(file)


def test_extents_are_not_shown(file: int) -> None:
    refused(errno.EOPNOTSUPP, fcntl.ioctl, file, 0xC020660B, struct.pack("QQIIII", 0, MIB, 0, 0, 0, 0))
    os.close(file)


def test_a_swap_file_is_refused(here: Path) -> None:
    program = shutil.which("mkswap")
    if program is None:
        pytest.skip("the program mkswap is missing (package util-linux)")
    path = here / "swap"
    path.write_bytes(bytes(2 * MIB))
    path.chmod(0o600)
    subprocess.run([program, path], capture_output=True, check=True)
    refused(errno.EINVAL, lambda: checked(LIBC.swapon(os.fsencode(path), 0)))


def test_quotas_are_refused(here: Path) -> None:
    file = os.open(here, os.O_RDONLY)
    answer = ctypes.create_string_buffer(128)
    quotactl_fd, get_quota = 443, 0x80000700
    refused(errno.ENOSYS, lambda: checked(LIBC.syscall(quotactl_fd, file, get_quota, 0, answer)))
    os.close(file)


def test_set_id_programs_run_without_it_and_devices_do_not_open(here: Path) -> None:
    program = here / "id"
    shutil.copy(shutil.which("id") or "/usr/bin/id", program)
    os.chown(program, 1234, 1234)
    program.chmod(0o6755)
    assert stat.S_IMODE(program.stat().st_mode) == 0o6755
    assert subprocess.run([program, "-u"], capture_output=True, check=True).stdout.strip() == b"0"
    device = here / "null"
    os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert device.stat().st_rdev == os.makedev(1, 3)
    refused(errno.EACCES, os.open, device, os.O_RDONLY)


def test_whiteouts_and_unknown_rename_flags_are_refused(here: Path) -> None:
    (here / "f").touch()

    def rename(flags: int) -> None:
        checked(LIBC.renameat2(AT_FDCWD, os.fsencode(here / "f"), AT_FDCWD, os.fsencode(here / "g"), flags))

    for flags in (3, 4, 8):
        refused(errno.EINVAL, rename, flags)


def test_an_overlay_takes_the_drive_as_its_lower_directory_only(here: Path, tmp_path: Path) -> None:
    said = ""

    def overlay(lower: Path, upper: Path, name: str) -> int:
        nonlocal said
        for directory in (lower, upper / "up", upper / "work", tmp_path / name):
            directory.mkdir(parents=True, exist_ok=True)
        choice = f"lowerdir={lower},upperdir={upper / 'up'},workdir={upper / 'work'}"
        command = ["mount", "-t", "overlay", "overlay", "-o", choice, str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = done.stderr.strip()
        if not done.returncode:
            subprocess.run(["umount", tmp_path / name], check=True)
        return done.returncode

    if overlay(tmp_path / "lower", tmp_path / "upper", "plain"):
        pytest.skip(f"overlayfs (CONFIG_OVERLAY_FS) over the directory of temporary files is missing: {said}")
    assert overlay(here / "lower", tmp_path / "upper2", "below") == 0
    assert overlay(tmp_path / "lower", here / "upper", "above") != 0


def test_both_flags_of_setxattr_are_not_told_apart(here: Path) -> None:
    """CREATE and REPLACE at once can never hold. pyfuse3 looks at CREATE only."""
    (here / "f").touch()
    os.setxattr(here / "f", "user.a", b"1", os.XATTR_CREATE | os.XATTR_REPLACE)
    refused(errno.EEXIST, os.setxattr, here / "f", "user.a", b"2", os.XATTR_CREATE | os.XATTR_REPLACE)


def test_the_same_attribute_again_moves_ctime_of_files(here: Path) -> None:
    path = here / "f"
    path.touch()
    os.setxattr(path, "user.a", b"1")
    before = path.stat().st_ctime_ns
    while time.clock_gettime_ns(5) <= before:  # the coarse clock
        time.sleep(0.001)
    os.setxattr(path, "user.a", b"1")
    assert path.stat().st_ctime_ns > before


def test_truncating_to_the_same_size_shows_no_new_times(here: Path) -> None:
    path = here / "f"
    path.write_bytes(b"1234")
    os.utime(path, ns=(1, 1))
    os.truncate(path, 4)
    assert path.stat().st_mtime_ns == 1


def test_a_nearly_full_hive_shows_new_times_late_and_takes_set_id_all_the_same(here: Path, mount: Mounted) -> None:
    """Its files are opened past the write-back cache; times are the kernel's, which does not move them there."""
    path = here / "f"
    path.write_bytes(b"old")
    mount.call("set_capacity", {"total": 10 << 30, "free": 64 << 20})
    try:
        os.utime(path, ns=(5, 5))
        path.chmod(0o6777)
        with path.open("ab", buffering=0) as file:
            file.write(b"new")
        assert path.read_bytes() == b"oldnew"
        assert (path.stat().st_mtime_ns, stat.S_IMODE(path.stat().st_mode)) == (5, 0o6777)
        program = "import os, sys; os.setgid(65534); os.setuid(65534); os.write(os.open(sys.argv[1], os.O_WRONLY), b'z')"
        subprocess.run([sys.executable, "-c", program, path], check=True)
        assert stat.S_IMODE(path.stat().st_mode) == 0o777
    finally:
        mount.call("set_capacity", {"total": 10 << 30, "free": 8 << 30})
    mount.unmount()
    mount.mount(allow_other=True)
    assert path.stat().st_mtime_ns > 5


def test_handles_of_files_work_while_the_drive_knows_them(here: Path, mount: Mounted) -> None:
    (here / "f").write_text("x")
    handle = ctypes.create_string_buffer(struct.pack("I", 128) + bytes(132))
    number = ctypes.c_int()
    checked(LIBC.name_to_handle_at(AT_FDCWD, os.fsencode(here / "f"), handle, ctypes.byref(number), 0))
    top = os.open(mount.path, os.O_RDONLY)
    opened = checked(LIBC.open_by_handle_at(top, handle, os.O_RDONLY))
    assert os.read(opened, 9) == b"x"
    os.close(opened)
    os.close(top)
    mount.unmount()
    mount.mount(allow_other=True)
    top = os.open(mount.path, os.O_RDONLY)
    refused(errno.ESTALE, lambda: checked(LIBC.open_by_handle_at(top, handle, os.O_RDONLY)))
    os.close(top)


def test_paths_without_access_and_watches_work(here: Path) -> None:
    path = here / "f"
    path.write_text("x")
    place = os.open(path, os.O_PATH)
    assert os.fstat(place).st_size == 1
    refused(errno.EBADF, os.read, place, 1)
    os.close(place)
    watch = LIBC.inotify_init1(os.O_NONBLOCK)
    checked(LIBC.inotify_add_watch(watch, os.fsencode(here), 0x100 | 0x200 | 0x2))
    (here / "g").write_text("new")
    path.unlink()
    seen = [mask for mask, *_ in struct.iter_unpack("=I", os.read(watch, 4096)[4:8])]
    assert seen == [0x100]
    os.close(watch)


def test_fanotify_marks_the_mount_but_not_by_handles(here: Path) -> None:
    group = LIBC.fanotify_init(0x2, 0)  # FAN_NONBLOCK
    if group < 0:
        pytest.skip(f"fanotify is missing (CONFIG_FANOTIFY): fanotify_init says {os.strerror(ctypes.get_errno())}")
    mark = LIBC.fanotify_mark
    checked(mark(group, 1, ctypes.c_uint64(0x20), AT_FDCWD, os.fsencode(here)))  # FAN_OPEN
    os.close(group)


def test_access_by_cached_reads_is_not_seen(here: Path) -> None:
    path = here / "f"
    path.write_bytes(b"data")
    os.utime(path, ns=(1, 2))
    assert path.read_bytes() == b"data"
    assert path.stat().st_atime_ns == 1, "the drive was not asked: the bytes were in the page cache"


def test_syncfs_and_sync_range_are_taken(file: int) -> None:
    checked(LIBC.syncfs(file))
    checked(LIBC.sync_file_range(file, ctypes.c_long(0), ctypes.c_long(0), 7))
    os.close(file)


def test_a_write_beyond_one_exbibyte_is_refused_late(file: int) -> None:
    assert os.pwrite(file, b"x", 1 << 60) == 1
    refused(errno.EFBIG, os.fsync, file)
    os.ftruncate(file, 0)
    os.close(file)

"""Times on a real mount: exact through the write-back cache, access as relatime, changes where ext4 has them."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mount_tools import Mounted, run, tree

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(300)]

PAST_NS = 1_500_000_000_123_456_789
_COARSE = 5


def next_tick() -> None:
    """Wait until the clock that stamps files has moved on (a few milliseconds)."""
    before = time.clock_gettime_ns(_COARSE)
    while time.clock_gettime_ns(_COARSE) <= before:
        time.sleep(0.001)


def moved(path: Path, call: Callable[[], object]) -> set[str]:
    """Which of mtime and ctime a call changes."""
    before = path.lstat()
    next_tick()
    next_tick()  # with one, a run on a busy machine has once seen the stamp of the tick before
    call()
    after = path.lstat()
    names = {"mtime": "st_mtime_ns", "ctime": "st_ctime_ns"}
    return {name for name, field in names.items() if getattr(before, field) < getattr(after, field)}


def cold_read(path: Path) -> bytes:
    """Read past the page cache: only such a read reaches the drive."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.read(file, 100)
    finally:
        os.close(file)


def test_what_utimens_set_stays_after_write_close_and_a_new_mount(mount: Mounted, here: Path) -> None:
    """cp -a and tar write, set the times, and close: bytes that are still in the kernel must not move them later."""
    for index in range(20):
        file = os.open(here / f"f{index}", os.O_CREAT | os.O_WRONLY)
        os.write(file, bytes(300_000))
        os.utime(file, ns=(PAST_NS + index, PAST_NS - index))
        os.close(file)
    status = [os.stat(here / f"f{index}") for index in range(20)]
    mount.unmount()
    mount.mount(allow_other=True)
    for index, before in enumerate(status):
        after = os.stat(here / f"f{index}")
        assert (after.st_atime_ns, after.st_mtime_ns) == (PAST_NS + index, PAST_NS - index)
        assert after.st_ctime_ns == before.st_ctime_ns


def test_the_time_of_a_write_is_the_time_of_the_call_not_of_the_write_back(mount: Mounted, here: Path) -> None:
    path = here / "f"
    path.write_bytes(b"x" * 10_000)
    before = path.stat()
    next_tick()
    mount.call("flush")
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.close(file)
    mount.unmount()
    mount.mount(allow_other=True)
    after = path.stat()
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)


def test_a_file_that_is_written_within_the_tick_of_its_birth_keeps_that_time(mount: Mounted, here: Path) -> None:
    """The kernel corrects our time only when its own moved after the birth: bytes that come later must not move ours."""
    files = [os.open(here / f"f{index}", os.O_CREAT | os.O_WRONLY) for index in range(20)]
    for file in files:
        os.write(file, b"x")
    shown = [(os.fstat(file).st_mtime_ns, os.fstat(file).st_ctime_ns) for file in files]
    next_tick()
    for file in files:
        os.close(file)
    mount.unmount()
    mount.mount(allow_other=True)
    assert [(s.st_mtime_ns, s.st_ctime_ns) for s in (os.stat(here / f"f{index}") for index in range(20))] == shown


def test_an_attribute_that_is_set_after_writing_outlives_the_write_back(here: Path) -> None:
    """tar and rsync write, set security.capability, and close: the bytes come to the drive last."""
    if os.geteuid():
        pytest.skip("root (uid 0) is missing: trusted and security attributes are set")
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    file = os.open(here / "f", os.O_CREAT | os.O_RDWR)
    os.write(file, b"program")
    os.setxattr(file, "security.capability", capability)
    os.fsync(file)
    assert os.getxattr(file, "security.capability") == capability
    os.write(file, b"changed")
    os.fsync(file)
    assert os.listxattr(file) == []
    os.close(file)


def test_copies_keep_their_times(here: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    for index, size in enumerate((0, 1, 5000, 1 << 20, 3_000_000)):
        (source / "d" / f"f{index}").write_bytes(os.urandom(size))
        os.utime(source / "d" / f"f{index}", ns=(PAST_NS, PAST_NS + index))
    os.utime(source / "d", ns=(PAST_NS, -PAST_NS))
    run("cp", "-a", source, here / "copy")
    assert tree(here / "copy") == tree(source)


def test_which_calls_move_mtime_and_ctime(here: Path) -> None:
    path = here / "f"
    path.write_bytes(b"data")
    both, ctime = {"mtime", "ctime"}, {"ctime"}
    assert moved(path, lambda: path.chmod(0o600)) == ctime
    assert moved(path, lambda: os.chown(path, -1, -1)) == ctime
    assert moved(path, lambda: os.setxattr(path, "user.a", b"1")) == ctime
    assert moved(path, lambda: os.link(path, here / "g")) == ctime
    assert moved(path, lambda: os.unlink(here / "g")) == ctime
    assert moved(here, lambda: (here / "g").touch()) == both
    assert moved(path, lambda: os.rename(path, here / "h") or os.rename(here / "h", path)) == ctime
    assert moved(path, lambda: os.truncate(path, 10)) == both
    assert moved(path, lambda: path.open("r+b").close()) == set()
    assert moved(path, lambda: path.write_bytes(b"")) == both
    with path.open("r+b", buffering=0) as file:
        assert moved(path, lambda: os.ftruncate(file.fileno(), 0)) == both
        assert moved(path, lambda: file.write(b"")) == set()
        assert moved(path, lambda: file.write(b"x")) == both
    assert moved(here, lambda: path.write_bytes(b"more")) == set()


def test_access_times_follow_as_relatime(here: Path) -> None:
    path = here / "f"
    path.write_bytes(b"data")
    link = here / "l"
    link.symlink_to("f")
    day = 86_400 * 10**9
    now = time.time_ns()
    os.utime(path, ns=(now - 10 * 10**9, now - 20 * 10**9))
    # ctime is always now, so the first read after any change is an access; the second is not.
    next_tick()
    assert cold_read(path) == b"data"
    first = path.stat().st_atime_ns
    assert first > now
    next_tick()
    assert cold_read(path) == b"data"
    assert path.stat().st_atime_ns == first
    os.utime(path, ns=(now - 2 * day, now - 3 * day))
    assert cold_read(path) == b"data"
    assert path.stat().st_atime_ns > now
    for reading, what in ((lambda: os.listdir(here), here), (lambda: os.readlink(link), link)):
        before = what.lstat().st_atime_ns
        os.utime(what, ns=(before - 10**9, before - 10**9), follow_symlinks=False)
        next_tick()
        reading()
        shown = what.lstat().st_atime_ns
        assert shown > before
        next_tick()
        reading()
        assert what.lstat().st_atime_ns == shown


@pytest.mark.parametrize("time_ns", [-1, 1, -2_000_000_000_999_999_999, (1 << 31) * 10**9, 9_000_000_000_000_000_001])
def test_times_before_1970_and_long_after(mount: Mounted, here: Path, time_ns: int) -> None:
    for path in (here / "f", here / "d"):
        path.mkdir() if path.name == "d" else path.touch()
        os.utime(path, ns=(time_ns, time_ns))
    status = (here / "f").stat()
    assert (status.st_atime_ns, status.st_mtime_ns) == (time_ns, time_ns)
    assert (here / "d").stat().st_mtime_ns == time_ns


def test_a_time_beyond_2262_becomes_the_last_one_and_the_drive_lives(mount: Mounted, here: Path) -> None:
    path = here / "d"
    path.mkdir()
    os.utime(path, ns=(PAST_NS, (1 << 34) * 10**9))
    mount.call("flush")
    assert path.stat().st_mtime_ns == (1 << 63) - 1
    os.utime(path, ns=(PAST_NS, -(1 << 34) * 10**9))
    mount.call("flush")
    assert path.stat().st_mtime_ns == -(1 << 63)


def test_a_birth_time_is_not_shown(here: Path) -> None:
    (here / "f").touch()
    assert subprocess.run(["stat", "-c", "%W", here / "f"], capture_output=True, check=True).stdout.strip() in (b"0", b"-")


def test_an_access_time_that_would_need_the_owner(here: Path) -> None:
    if os.geteuid():
        pytest.skip("root (uid 0) is missing: the test becomes another user")
    path = here / "f"
    path.touch()
    path.chmod(0o666)
    program = (
        "import os, sys; os.setgid(65534); os.setuid(65534)\n"
        "os.utime(sys.argv[1])\n"
        "try: os.utime(sys.argv[1], (1, 1))\n"
        "except OSError as error: print(error.errno)"
    )
    assert run("python3", "-c", program, path).strip() == str(errno.EPERM)

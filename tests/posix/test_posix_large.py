"""What is large: directories, sparse files; and what df and du say."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount_tools import Mounted, run

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(900)]

LIBC = ctypes.CDLL(None, use_errno=True)
MIB = 1 << 20
TIB = 1 << 40


class Listing:
    """getdents64(2) with the offsets that telldir(3) gives and seekdir(3) takes."""

    def __init__(self, path: Path) -> None:
        self.file = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self._buffer = ctypes.create_string_buffer(32_768)

    def seek(self, offset: int) -> None:
        os.lseek(self.file, offset, os.SEEK_SET)

    def some(self) -> list[tuple[str, int]]:
        """The next few names, each with the offset behind it; "." and ".." are left out."""
        count = LIBC.syscall(217 if os.uname().machine == "x86_64" else 61, self.file, self._buffer, len(self._buffer))
        assert count >= 0, os.strerror(ctypes.get_errno())
        found, at = [], 0
        while at < count:
            _, offset, length, _ = struct.unpack_from("=QqHB", self._buffer, at)
            name = self._buffer.raw[at + 19 : at + length].split(b"\0", 1)[0].decode()
            if name not in (".", ".."):
                found.append((name, offset))
            at += length
        return found

    def rest(self) -> Iterator[tuple[str, int]]:
        while found := self.some():
            yield from found


def make(directory: Path, count: int) -> set[str]:
    """So many empty files."""
    top = os.open(directory, os.O_RDONLY)
    names = {f"{number:06}" for number in range(count)}
    for name in names:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=top))
    os.close(top)
    return names


def walk(here: Path, count: int) -> None:
    """List, go back to every remembered place, delete and make while listing."""
    names = make(here, count)
    assert here.stat().st_nlink == 2
    assert set(os.listdir(here)) == names
    listing = Listing(here)
    order = list(listing.rest())
    assert len(order) == count
    assert {name for name, _ in order} == names
    assert len({offset for _, offset in order}) == count, "an offset leads to two places"
    for at in range(0, count, max(1, count // 50)):
        listing.seek(order[at][1])
        assert [name for name, _ in listing.some()][:5] == [name for name, _ in order[at + 1 : at + 6]]
    # Every second name goes while the directory is listed: what stays is met exactly once.
    listing.seek(0)
    seen = []
    for number, (name, _) in enumerate(listing.rest()):
        seen.append(name)
        if number % 2:
            os.unlink(here / name)
        elif number % 10 == 0:
            (here / f"new {name}").touch()
    old = [name for name in seen if not name.startswith("new")]
    assert sorted(old) == sorted(names)
    assert len(seen) == len(set(seen))
    # An offset behind a name that is gone by now still leads to the names that came after it.
    left = set(os.listdir(here))
    places = {name: number for number, (name, _) in enumerate(order)}
    for at in range(1, count, max(2, count // 20)):
        listing.seek(order[at][1])
        found = [name for name, _ in listing.some() if name in places]
        assert all(places[name] > at for name in found)
        assert found[:3] == [name for name, _ in order[at + 1 :] if name in left][: len(found[:3])]
    os.close(listing.file)
    for name in left:
        os.unlink(here / name)
    assert os.listdir(here) == []
    here.rmdir()


def test_offsets_of_a_directory_stay_right(here: Path) -> None:
    walk(here, 3000)


@pytest.mark.slow
def test_a_directory_of_200_000_names(here: Path) -> None:
    walk(here, 200_000)


def test_a_sparse_file_of_one_tebibyte(mount: Mounted, here: Path) -> None:
    path = here / "f"
    with path.open("wb", buffering=0) as file:
        assert file.truncate(TIB) == TIB
        assert path.stat().st_blocks == 0
        places = (0, MIB - 2, 5 * MIB + 17, TIB // 2 - 1, TIB - 6)
        for at in places:
            assert os.pwrite(file.fileno(), b"marked", at) == 6
    mount.unmount()
    mount.mount(allow_other=True)
    with path.open("rb", buffering=0) as file:
        assert path.stat().st_size == TIB
        for at in places:
            assert os.pread(file.fileno(), 6, at) == b"marked"
        for at in (100, 9 * MIB, TIB // 3, TIB - MIB):
            assert os.pread(file.fileno(), 4096, at) == bytes(4096)
        assert os.pread(file.fileno(), 10, TIB - 2) == b"ed"
        assert os.pread(file.fileno(), 10, TIB + 5) == b""
    shown = int(run("du", "-B1", path).split()[0])
    assert 5 * 4096 <= shown <= 7 * MIB, "du counts slots of 1 MiB that hold something"
    os.truncate(path, TIB // 2)
    assert path.stat().st_blocks * 512 < shown
    os.truncate(path, 0)
    assert (path.stat().st_size, path.stat().st_blocks) == (0, 0)
    path.unlink()


def test_the_largest_file(here: Path) -> None:
    path = here / "f"
    path.touch()
    os.truncate(path, 1 << 60)
    assert path.stat().st_size == 1 << 60
    with pytest.raises(OSError, match="too large"):
        os.truncate(path, (1 << 60) + 1)
    with path.open("r+b", buffering=0) as file:
        assert os.pwrite(file.fileno(), b"end", (1 << 60) - 3) == 3
        assert os.pread(file.fileno(), 9, (1 << 60) - 6) == b"\0\0\0end"
    os.truncate(path, 0)


def test_what_du_says_of_plain_files(mount: Mounted, here: Path) -> None:
    (here / "d").mkdir()
    for index, size in enumerate((0, 1, 5000, MIB, 3 * MIB + 1)):
        (here / "d" / f"f{index}").write_bytes(bytes([index + 1]) * size)
        mount.call("flush")
        blocks = (here / "d" / f"f{index}").stat().st_blocks * 512
        assert size <= blocks <= size + MIB if size else blocks == 0
    apparent = int(run("du", "-sb", here / "d").split()[0])
    assert apparent == sum((0, 1, 5000, MIB, 3 * MIB + 1)) + 4096


def df(path: Path) -> tuple[int, int, int]:
    """Bytes in all, free, and free for users."""
    status = os.statvfs(path)
    return status.f_blocks * status.f_frsize, status.f_bfree * status.f_frsize, status.f_bavail * status.f_frsize


def test_df_follows_the_hive_and_what_waits_here(mount: Mounted, here: Path) -> None:
    total, free, available = df(here)
    assert 0 < available <= free <= total
    mount.call("set_capacity", {"total": 10 << 30, "free": 4 << 30})
    assert df(here)[0] == 10 << 30
    before = df(here)[1]
    assert before <= 4 << 30
    file = os.open(here / "f", os.O_CREAT | os.O_WRONLY)
    os.write(file, os.urandom(8 * MIB))
    os.fsync(file)
    assert 8 * MIB <= before - df(here)[1] <= 9 * MIB, "what is written here takes room of the hive"
    os.ftruncate(file, 0)
    os.close(file)
    assert abs(df(here)[1] - before) <= MIB
    for given, shown in ((0, 0), (1, 0), (1 << 50, None)):
        mount.call("set_capacity", {"total": 10 << 30, "free": given})
        seen = df(here)
        assert 0 <= seen[2] <= seen[1] or shown is None
        assert shown is None or seen[1] == shown
        assert min(seen) >= 0
    mount.call("set_capacity", {"total": 10 << 30, "free": 4 << 30})
    lines = subprocess.run(["df", "-P", here], capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[1].split()[1] == str((10 << 30) // 1024)
    status = os.statvfs(here)
    assert status.f_namemax == 255
    assert status.f_files - status.f_ffree >= 2

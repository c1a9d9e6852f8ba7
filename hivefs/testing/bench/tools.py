"""Small tools of the workloads: caches, hashes, whole trees, commands."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

MIB = 1 << 20
_libc = ctypes.CDLL(None, use_errno=True)


class Differs(Exception):
    """What was read is not what was written."""


def drop_caches() -> bool:
    """Empty the kernel's caches of pages, names and inodes. False where only root may."""
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def forget_pages(path: Path) -> None:
    """The kernel gives up the clean pages of one file; anybody may ask for that."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def sync_filesystem(path: Path) -> None:
    """syncfs(2) of the file system that ``path`` lies in."""
    fd = os.open(path, os.O_RDONLY)
    try:
        if _libc.syncfs(fd):
            raise OSError(ctypes.get_errno(), "syncfs")
    finally:
        os.close(fd)


def sync_directory(path: Path) -> None:
    """fsync(2) of a directory. A file system that has none for directories (ENOSYS) is taken as it is."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | memoryview, call: int = MIB) -> None:
    """write(2) everything in pieces of ``call`` bytes."""
    view = memoryview(data)
    for start in range(0, len(view), call):
        piece = view[start : start + call]
        while piece:
            piece = piece[os.write(fd, piece) :]


def read_file(path: Path, size: int) -> bytearray:
    """``size`` bytes in reads of 1 MiB into one buffer; raises Differs when the file is shorter or longer."""
    buffer = bytearray(size)
    view, done = memoryview(buffer), 0
    with path.open("rb", buffering=0) as file:
        while done < size:
            count = file.readinto(view[done : done + MIB])
            if not count:
                raise Differs(f"{path.name} ends after {done} of {size} bytes")
            done += count
        if file.read(1):
            raise Differs(f"{path.name} is longer than {size} bytes")
    return buffer


def digest(data: bytes | bytearray | memoryview) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def files_below(top: Path) -> Iterator[Path]:
    """Every file below, in the order of names."""
    for directory, directories, files in os.walk(top):
        directories.sort()
        yield from (Path(directory, name) for name in sorted(files))


def tree_digests(top: Path) -> dict[str, str]:
    """SHA-256 of every file below, by its relative path; a link by its target."""
    found = {}
    for path in files_below(top):
        name = str(path.relative_to(top))
        if path.is_symlink():
            found[name] = "-> " + str(path.readlink())
        else:
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def same_trees(wanted: Mapping[str, str], top: Path) -> None:
    """Raises Differs unless the files below ``top`` are exactly those of ``wanted`` (from tree_digests)."""
    found = tree_digests(top)
    if found != wanted:
        wrong = [name for name in {*found, *wanted} if found.get(name) != wanted.get(name)]
        raise Differs(f"{len(wrong)} of {len(wanted)} files differ, such as {sorted(wrong)[0]}")


def command(*words: str, environment: Mapping[str, str] | None = None) -> str:
    """Run a program, bounded by the step around it; its output. Raises RuntimeError with the end of what it said."""
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=None if environment is None else dict(environment),
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words[:3])} ended with {done.returncode}: {done.stdout[-300:].strip()}")
    return done.stdout

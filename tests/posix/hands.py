"""System calls by name, made on one of two directories, and users who make them on both.

``Hands`` knows one directory and the files opened in it by number. A ``User`` has two of them, one for the drive and one
for the plain directory. Other users than the one who runs the tests are processes of their own, because a changed user id
in a thread is changed for only a part of what the C library and the kernel do: this file is also their program.

Paths are bytes, relative to the directory. What a call returns can be compared and pickled; an error is ("errno", name).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import pickle
import signal
import stat
import struct
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
OPEN_SECONDS = 10
_LENGTH = struct.Struct("=I")
_TIMES = struct.Struct("=qqqq")
_FORCE_SYNC = 0x2000


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def status_of(status: os.stat_result) -> tuple[int, ...]:
    """What must be the same on both sides whenever it is asked for; of directories and devices what can be."""
    mode = status.st_mode
    size = -1 if stat.S_ISDIR(mode) else status.st_size
    return (mode, status.st_nlink, status.st_uid, status.st_gid, size, status.st_rdev)


class Hands:
    """See the head of the file."""

    def __init__(self, base: bytes) -> None:
        self.base = base
        self.files: dict[int, int] = {}

    def call(self, name: str, args: Sequence[Any]) -> Any:
        """Make one call; its result, or its error."""
        try:
            return getattr(self, name)(*args)
        except OSError as error:
            return ("errno", errno.errorcode[error.errno or 0])
        except KeyError:
            return ("errno", "no such handle")

    def at(self, path: bytes) -> bytes:
        """The real path."""
        return self.base + b"/" + path

    def move(self, base: bytes) -> None:
        """Begin anew in another directory."""
        self.close_all()
        self.base = base

    def close_all(self) -> None:
        """Close every file."""
        while self.files:
            os.close(self.files.popitem()[1])

    def umask(self, mask: int) -> None:
        """Set the umask of this process."""
        os.umask(mask)

    # ---- open files -------------------------------------------------------------------------------------------------

    def open(self, slot: int, path: bytes, flags: int, mode: int) -> None:
        """Open a file as number ``slot``. Devices are left alone: where they may be opened is a choice of the mount."""
        try:
            if stat.S_IFMT(os.stat(self.at(path)).st_mode) in (stat.S_IFCHR, stat.S_IFBLK):
                return
        except OSError:
            pass
        opened = os.open(self.at(path), flags | os.O_NONBLOCK | os.O_CLOEXEC, mode)
        if slot in self.files:
            os.close(self.files[slot])
        self.files[slot] = opened

    def close(self, slot: int) -> None:
        os.close(self.files.pop(slot))

    def read(self, slot: int, size: int) -> bytes:
        return os.read(self.files[slot], size)

    def pread(self, slot: int, size: int, offset: int) -> bytes:
        return os.pread(self.files[slot], size, offset)

    def write(self, slot: int, data: bytes) -> int:
        return os.write(self.files[slot], data)

    def pwrite(self, slot: int, data: bytes, offset: int) -> int:
        return os.pwrite(self.files[slot], data, offset)

    def writev(self, slot: int, parts: Sequence[bytes]) -> int:
        return os.writev(self.files[slot], parts)

    def lseek(self, slot: int, offset: int, whence: int) -> int:
        file = self.files[slot]
        if stat.S_ISDIR(os.fstat(file).st_mode):
            return 0  # what counts there is the file system's own affair
        return os.lseek(file, offset, whence)

    def ftruncate(self, slot: int, size: int) -> None:
        os.ftruncate(self.files[slot], size)

    def fsync(self, slot: int) -> None:
        os.fsync(self.files[slot])

    def fstat(self, slot: int) -> tuple[int, ...]:
        return status_of(os.fstat(self.files[slot]))

    def fchmod(self, slot: int, mode: int) -> None:
        os.fchmod(self.files[slot], mode)

    def fchown(self, slot: int, uid: int, gid: int) -> None:
        os.fchown(self.files[slot], uid, gid)

    def futimens(self, slot: int, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
        _checked(LIBC.futimens(self.files[slot], _TIMES.pack(*atime, *mtime)))

    def store(self, slot: int, offset: int, data: bytes, shared: bool) -> bytes:
        """Write through a mapping of the whole file; what the mapping then shows around it."""
        file = self.files[slot]
        size = os.fstat(file).st_size
        if not stat.S_ISREG(os.fstat(file).st_mode) or offset + len(data) > size or size > 1 << 26:
            return b""
        with mmap.mmap(file, size, mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE) as view:
            view[offset : offset + len(data)] = data
            return view[max(0, offset - 10) : offset + len(data) + 10]

    def load(self, slot: int, offset: int, size: int) -> bytes:
        """Read through a shared mapping."""
        file = self.files[slot]
        if not stat.S_ISREG(os.fstat(file).st_mode) or not (end := os.fstat(file).st_size):
            return b""
        with mmap.mmap(file, min(end, 1 << 26), mmap.MAP_SHARED, mmap.PROT_READ) as view:
            return view[offset : offset + size]

    def copy_range(self, source: int, target: int, at: int, to: int, size: int) -> int:
        return os.copy_file_range(self.files[source], self.files[target], size, at, to)

    def sendfile(self, source: int, target: int, at: int, size: int) -> int:
        return os.sendfile(self.files[target], self.files[source], at, size)

    def flock(self, slot: int, kind: int) -> None:
        fcntl.flock(self.files[slot], kind | fcntl.LOCK_NB)

    def lockf(self, slot: int, kind: int, start: int, length: int) -> None:
        fcntl.lockf(self.files[slot], kind if kind == fcntl.LOCK_UN else kind | fcntl.LOCK_NB, length, start)

    # ---- names ------------------------------------------------------------------------------------------------------

    def mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(self.at(path), mode)

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self.at(path))

    def unlink(self, path: bytes) -> None:
        os.unlink(self.at(path))

    def mknod(self, path: bytes, mode: int, device: int) -> None:
        os.mknod(self.at(path), mode, device)

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, self.at(path))

    def link(self, path: bytes, new: bytes, follow: bool) -> None:
        _checked(LIBC.linkat(AT_FDCWD, self.at(path), AT_FDCWD, self.at(new), 0x400 if follow else 0))

    def rename(self, path: bytes, new: bytes, flags: int) -> None:
        _checked(LIBC.renameat2(AT_FDCWD, self.at(path), AT_FDCWD, self.at(new), flags))

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(self.at(path))

    def listdir(self, path: bytes) -> list[bytes]:
        return sorted(os.listdir(self.at(path)))

    def access(self, path: bytes, mode: int) -> bool:
        return os.access(self.at(path), mode)

    # ---- attributes -------------------------------------------------------------------------------------------------

    def stat(self, path: bytes) -> tuple[int, ...]:
        return status_of(os.stat(self.at(path)))

    def lstat(self, path: bytes) -> tuple[int, ...]:
        return status_of(os.lstat(self.at(path)))

    def ask(self, path: bytes) -> tuple[int, ...]:
        """The same from the file system itself, past what the kernel has cached."""
        answer = ctypes.create_string_buffer(256)
        _checked(LIBC.statx(AT_FDCWD, self.at(path), AT_SYMLINK_NOFOLLOW | _FORCE_SYNC, 0x7FF, answer))
        nlink, uid, gid, mode = struct.unpack_from("=IIIH", answer, 16)
        (size,) = struct.unpack_from("=Q", answer, 40)
        return (mode, nlink, uid, gid, -1 if stat.S_ISDIR(mode) else size)

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self.at(path), mode)

    def chown(self, path: bytes, uid: int, gid: int, follow: bool) -> None:
        os.chown(self.at(path), uid, gid, follow_symlinks=follow)

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(self.at(path), size)

    def utimens(self, path: bytes, atime: tuple[int, int], mtime: tuple[int, int], follow: bool) -> None:
        flags = 0 if follow else AT_SYMLINK_NOFOLLOW
        _checked(LIBC.utimensat(AT_FDCWD, self.at(path), _TIMES.pack(*atime, *mtime), flags))

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int, follow: bool) -> None:
        os.setxattr(self.at(path), name, value, flags, follow_symlinks=follow)

    def getxattr(self, path: bytes, name: bytes, follow: bool) -> bytes:
        return os.getxattr(self.at(path), name, follow_symlinks=follow)

    def listxattr(self, path: bytes, follow: bool) -> list[str]:
        return sorted(os.listxattr(self.at(path), follow_symlinks=follow))

    def removexattr(self, path: bytes, name: bytes, follow: bool) -> None:
        os.removexattr(self.at(path), name, follow_symlinks=follow)


class Root:
    """Whoever runs the tests: both directories from this process."""

    def __init__(self) -> None:
        self.drive, self.plain = Hands(b""), Hands(b"")

    def begin(self, drive: bytes, plain: bytes) -> None:
        """Go to two other directories, with nothing open."""
        self.drive.move(drive)
        self.plain.move(plain)

    def both(self, name: str, *args: Any) -> tuple[Any, Any]:
        """The result on the drive, and on the plain directory."""
        return self.drive.call(name, args), self.plain.call(name, args)

    def end(self) -> None:
        """Close what is open."""
        self.drive.close_all()
        self.plain.close_all()


class Other:
    """Another user: the same, in a process that has become that user."""

    def __init__(self, uid: int, gid: int, groups: Sequence[int]) -> None:
        words = [sys.executable, __file__, str(uid), str(gid), ",".join(map(str, groups))]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def _ask(self, name: str, args: Sequence[Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        data = pickle.dumps((name, args))
        self._process.stdin.write(_LENGTH.pack(len(data)) + data)
        self._process.stdin.flush()
        return _received(self._process.stdout)

    def begin(self, drive: bytes, plain: bytes) -> None:
        """See Root.begin."""
        self._ask("begin", (drive, plain))

    def both(self, name: str, *args: Any) -> tuple[Any, Any]:
        """See Root.both."""
        drive, plain = self._ask(name, args)
        return drive, plain

    def end(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(OPEN_SECONDS)
        assert self._process.stdout is not None
        self._process.stdout.close()


def _received(stream: Any) -> Any:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    return pickle.loads(stream.read(_LENGTH.unpack(head)[0]))


def main() -> None:
    """The process of another user: UID GID GROUP,GROUP; calls come on standard input until it is closed."""
    uid, gid = int(sys.argv[1]), int(sys.argv[2])
    os.setgroups([int(group) for group in sys.argv[3].split(",") if group])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    os.umask(0o022)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    root = Root()
    while True:
        try:
            name, args = _received(sys.stdin.buffer)
        except EOFError:
            return
        answer = root.begin(*args) if name == "begin" else root.both(name, *args)
        data = pickle.dumps(answer)
        sys.stdout.buffer.write(_LENGTH.pack(len(data)) + data)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()

"""The cache: data shares of stripes, sealed as they are, one file each below ``cache/``.

The engine writes (when it places a stripe, and when it fetches a share) and evicts; the mount reads. Nothing here is
needed for durability, so nothing is fsynced: a torn file after a crash does not open (AEAD) and is fetched again.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from hivefs.chunkstore.disk import WINDOW, read_now
from hivefs.chunkstore.openings import Openings, open_to_read
from hivefs.model.ids import CHUNK_BYTES, StripeId

_BUFFER_BYTES = CHUNK_BYTES + (64 << 10)
"""A whole sealed chunk."""


@lru_cache(maxsize=1024)
def share_path(root: Path, stripe_id: StripeId, index: int) -> Path:
    """The file of one data share. Directories are cut from the random end of the id, so that they fill evenly."""
    name = stripe_id.hex()
    return root / name[-2:] / f"{name}-{index}"


def _in_memory(fd: int) -> bool:
    """Whether some bytes of the file can be read without the disk, one of each window that disk.py would have brought."""
    one = bytearray(1)
    try:
        for position in range(0, CHUNK_BYTES, WINDOW):
            os.preadv(fd, [one], position, os.RWF_NOWAIT)
    except OSError:
        return False
    return True


class CacheReader:
    """Reads ranges of cached shares; keeps some files open. One thread at a time."""

    def __init__(self, root: Path, open_files: int = 128) -> None:
        self.root = root
        self._limit = open_files
        self._files: OrderedDict[tuple[StripeId, int], int] = OrderedDict()
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._openings: Openings[tuple[StripeId, int]] = Openings()

    def begin(self, stripe_id: StripeId, index: int) -> None:
        """This share will be read soon: have it opened and brought into memory, if it is here. Returns at once."""
        key = (stripe_id, index)
        fd = self._files.get(key)
        if fd is None or not _in_memory(fd):
            self._openings.begin(key, share_path(self.root, stripe_id, index))

    def read(
        self, stripe_id: StripeId, index: int, offset: int, length: int, wait: bool = True
    ) -> bytes | memoryview | None:
        """``length`` bytes of a data share, or None when that is not here (whole). They are good until the next read.

        Raises NotInMemory without ``wait``, when the disk would have to be waited for.
        """
        key = (stripe_id, index)
        fd = self._files.get(key)
        if fd is None:
            for opened, descriptor in self._openings.take():
                if opened in self._files:  # opened here meanwhile, perhaps after the share was put anew
                    os.close(descriptor)
                else:
                    self._keep(opened, descriptor)
            fd = self._files.get(key)
        if fd is None:
            fd = open_to_read(share_path(self.root, stripe_id, index))
            if fd is None:  # the nodes still have it
                return None
            self._keep(key, fd)
        else:
            self._files.move_to_end(key)
        data: bytes | memoryview = b""
        with suppress(OSError):  # what this disk does not read, the nodes still have
            if wait or length > _BUFFER_BYTES:
                data = os.pread(fd, length, offset)
            else:
                into = self._buffer[:length]
                data = into[: read_now(fd, share_path(self.root, stripe_id, index), into, offset, True)]
        if len(data) == length:
            return data
        # Torn by a crash: the whole one will be another file of that name, so this one must not stay open.
        self.forget(stripe_id, index)
        return None

    def _keep(self, key: tuple[StripeId, int], fd: int) -> None:
        self._files[key] = fd
        if len(self._files) > self._limit:
            os.close(self._files.popitem(last=False)[1])

    def forget(self, stripe_id: StripeId, index: int) -> None:
        """Close the file of a share, because it was damaged or replaced."""
        self._openings.forget((stripe_id, index))
        fd = self._files.pop((stripe_id, index), None)
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        """Close all files."""
        self._openings.close()
        while self._files:
            os.close(self._files.popitem()[1])


class Cache:
    """The engine's side: put, get whole shares, remove, evict. ``budget`` in bytes."""

    def __init__(self, root: Path, budget: int) -> None:
        self.root = root
        self.budget = budget
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for i in range(256):
            (root / f"{i:02x}").mkdir(mode=0o700, exist_ok=True)
        self.usage = sum(size for _, size, _ in self._entries(clean=True))

    def _entries(self, clean: bool = False) -> list[tuple[int, int, str]]:
        """(modified, size, path) of all shares. With ``clean`` what a crash left half written is removed; later such a
        file is a put that is going on, as shares come and go while this runs in a worker thread.
        """
        found = []
        for i in range(256):
            with os.scandir(self.root / f"{i:02x}") as names:
                for entry in names:
                    if not entry.name.endswith(".tmp"):
                        with suppress(FileNotFoundError):
                            about = entry.stat()
                            found.append((about.st_mtime_ns, about.st_size, entry.path))
                    elif clean:
                        os.unlink(entry.path)
        return found

    def has(self, stripe_id: StripeId, index: int) -> bool:
        """Whether the file is there."""
        return share_path(self.root, stripe_id, index).exists()

    def get(self, stripe_id: StripeId, index: int) -> bytes | None:
        """A whole share, unchecked, or None."""
        try:
            return share_path(self.root, stripe_id, index).read_bytes()
        except OSError:  # not there, or this disk does not read it: the nodes still have it
            return None

    def put(self, stripe_id: StripeId, index: int, data: bytes) -> bool:
        """Keep a share; False when the disk is too full for a cache."""
        path = share_path(self.root, stripe_id, index)
        temporary = path.with_suffix(".tmp")
        try:
            with temporary.open("wb") as file:
                file.write(data)
            temporary.replace(path)
        except OSError:
            with suppress(OSError):  # a disk that takes nothing (read-only, broken) may not let it be removed either
                temporary.unlink(missing_ok=True)
            return False
        self.usage += len(data)
        return True

    def remove(self, stripe_id: StripeId, index: int) -> None:
        """Forget a share (the stripe is gone, or the file is damaged)."""
        path = share_path(self.root, stripe_id, index)
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return
        self.usage -= size

    def evict(self) -> int:
        """Remove the shares not read for longest until usage is below 90 % of the budget; bytes freed. Slow (scans)."""
        if self.usage <= self.budget:
            return 0
        sizes = sorted(self._entries())
        self.usage = sum(size for _, size, _ in sizes)
        freed = 0
        for _, size, path in sizes:
            if self.usage - freed <= self.budget * 9 // 10:
                break
            Path(path).unlink(missing_ok=True)
            freed += size
        self.usage -= freed
        return freed

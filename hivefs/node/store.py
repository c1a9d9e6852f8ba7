"""The node's shares: one file each, an index entry for each, and an order of steps that survives a kill at any point.

Keeping: check the hash, write to ``tmp/``, fdatasync, rename to ``shares/xx/``, fsync the directories, commit the index,
acknowledge. Forgetting: commit the index, unlink. So at any moment a file without an index entry is one that nobody was
promised, or was asked to forget: ``sweep`` removes it at the next start. An index entry without its file can only come
from a damaged disk: it is dropped and counted, and whoever asks learns that the share is gone.

All methods block and belong into worker threads. Hashing, writing and fdatasync run in several threads at once; the
renames, commits and unlinks do not: ``lock`` makes forgetting a share and keeping it again two events, one after the
other. Batches exist because a commit and the fsync of a directory cost the same for one share as for sixteen.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hivefs.content import merkle
from hivefs.errors import NO_ROOM, DiskFull, NodeProblem
from hivefs.model.ids import ShareId, VaultId
from hivefs.node.index import NodeIndex
from hivefs.node.reserve import Reserve
from hivefs.node.threads import Together
from hivefs.protocol.failures import Code, Refusal

T = TypeVar("T")

FANOUT = 256
SYNC_THREADS = 16
_NOT_OF_THE_FILE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM})
"""What says that we cannot look now, and nothing of the share: it is not dropped."""
_SWEEP_PAGE = 4096


@dataclass(frozen=True, slots=True)
class PutJob:
    """A share to keep for a vault until ``lease_ns``."""

    vault: VaultId
    share_id: ShareId
    lease_ns: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ReadJob:
    """Bytes of a share: ``length`` from ``offset``."""

    share_id: ShareId
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a start found: files that no entry names (removed), entries without their file (dropped)."""

    orphans: int
    lost: int


class ShareStore:
    """Opens the store in ``directory``; raises NodeProblem when another process has it, StoreDamaged, DiskFull."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._shares = directory / "shares"
        self._tmp = directory / "tmp"
        self.lock = threading.Lock()
        self._syncers = Together(SYNC_THREADS, "sync")
        self._names = itertools.count()
        self.reserve = Reserve(directory)
        self.dropped = 0
        try:
            for path in (self._shares, self._tmp, directory / "index"):
                path.mkdir(mode=0o700, exist_ok=True)
            for i in range(FANOUT):
                (self._shares / f"{i:02x}").mkdir(mode=0o700, exist_ok=True)
            self._sync_places()  # each time: who made them may have been killed before this
            self._flock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise NodeProblem(path=directory, reason=error.strerror or str(error)) from error
        try:
            fcntl.flock(self._flock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._flock)
            raise NodeProblem(path=directory, reason="it is running already") from None
        try:
            self.index = NodeIndex(directory / "index", self.reserve.give)
        except BaseException:  # whatever it is, the lock must be let go; raised again
            os.close(self._flock)
            raise

    def close(self) -> None:
        """Close everything; this object is dead afterwards."""
        self._syncers.close()
        self.index.close()
        os.close(self._flock)

    def _path(self, share_id: ShareId) -> Path:
        name = share_id.hex()
        return self._shares / name[:2] / name

    def has_place(self, share_id: ShareId) -> bool:
        """Whether the directory of this share is there, as it always is unless somebody removed it."""
        return self._path(share_id).parent.is_dir()

    # ---- at the start -----------------------------------------------------------------------------------------------

    def clear_tmp(self) -> None:
        """Remove what a dead process had half written. Only before anything is put."""
        for entry in os.scandir(self._tmp):
            os.unlink(entry.path)

    def sweep(self) -> Sweep:
        """Bring files and index together, all at once. Takes about 4 s for a million shares in the page cache."""
        self.clear_tmp()
        found = [self.sweep_some(number) for number in range(FANOUT)]
        return Sweep(sum(s.orphans for s in found), sum(s.lost for s in found))

    def sweep_some(self, number: int) -> Sweep:
        """The same for one of the FANOUT directories. May run while the node serves: what seems wrong is looked at again
        under the lock, and shares come and go under it: no file between its rename and its commit is taken for an orphan.
        """
        missing: list[ShareId] = []
        prefix = bytes([number])
        try:
            with os.scandir(self._shares / f"{number:02x}") as found:
                files = {entry.name: entry.stat().st_size for entry in found}
        except FileNotFoundError:  # somebody removed it while the node runs
            files = {}
        after = bytes([number - 1]) + b"\xff" * 31 if number else b""
        while page := self.index.shares(after, _SWEEP_PAGE):
            mine = [row for row in page if row[0].startswith(prefix)]
            missing += [share_id for share_id, size in mine if files.pop(share_id.hex(), None) != size]
            if len(mine) < len(page):
                break
            after = page[-1][0]
        if not files and not missing:
            return Sweep(0, 0)
        with self.lock:
            lost = [share_id for share_id in missing if self._size_on_disk(share_id) != self.index.size(share_id)]
            self._drop(lost)
            orphans = [name for name in files if not self._has_entry(name)]
            for name in orphans:
                (self._shares / f"{number:02x}" / name).unlink(missing_ok=True)
        return Sweep(len(orphans), len(lost))

    def _size_on_disk(self, share_id: ShareId) -> int | None:
        try:
            return self._path(share_id).stat().st_size
        except FileNotFoundError:
            return None

    def _has_entry(self, name: str) -> bool:
        try:
            return self.index.size(ShareId(bytes.fromhex(name))) is not None
        except ValueError:
            return False

    def _drop(self, share_ids: Sequence[ShareId]) -> None:
        """Forget damaged shares. The caller holds the lock, or is alone."""
        if not share_ids:
            return
        with self.index.writing() as change:
            for share_id in share_ids:
                change.drop(share_id)
        for share_id in share_ids:
            self._path(share_id).unlink(missing_ok=True)
        self.dropped += len(share_ids)

    # ---- keeping ----------------------------------------------------------------------------------------------------

    def put_many(self, jobs: Sequence[PutJob], now_ns: int) -> list[int | Refusal]:
        """Keep shares; of each the end of its lease, on disk when this returns, or why not."""
        results: list[int | Refusal | None] = [None] * len(jobs)
        written: list[tuple[int, Path, int, bytes]] = []
        for number, job in enumerate(jobs):
            if hashlib.sha256(job.data).digest() != job.share_id:
                results[number] = Refusal(Code.WRONG_HASH, "the bytes are not those of the share that was named")
                continue
            leaves = b"".join(merkle.leaf_hashes(job.data))
            try:
                path, handle = self._write(job.data)
                written.append((number, path, handle, leaves))
            except OSError as error:
                results[number] = _refusal(error)
        synced: list[tuple[int, Path, bytes]] = []
        problems = self._all_at_once(_sync_file, [handle for _, _, handle, _ in written])
        for (number, path, handle, leaves), problem in zip(written, problems, strict=True):
            os.close(handle)
            if problem is None:
                synced.append((number, path, leaves))
            else:
                path.unlink(missing_ok=True)
                results[number] = _refusal(problem)
        if synced:
            try:
                with self.lock:
                    self._commit(jobs, synced, results, now_ns)
            except (OSError, DiskFull) as error:
                refusal = _refusal(error)
                results = [refusal if result is None else result for result in results]
        return [Refusal(Code.BUSY, "it was not kept") if result is None else result for result in results]

    def _all_at_once(self, sync: Callable[[T], OSError | None], items: Sequence[T]) -> list[OSError | None]:
        """``sync`` for each, in SYNC_THREADS threads: waiting together costs the disk one flush and the file system one
        commit where waiting one after the other costs one each.
        """
        if len(items) < 2:
            return [sync(item) for item in items]
        return self._syncers.all_at_once(sync, items)

    def _write(self, data: bytes) -> tuple[Path, int]:
        path = self._tmp / str(next(self._names))
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]
        except BaseException:  # whatever it is, half a share must not stay; raised again
            os.close(handle)
            path.unlink(missing_ok=True)
            raise
        return path, handle

    def _commit(
        self,
        jobs: Sequence[PutJob],
        synced: list[tuple[int, Path, bytes]],
        results: list[int | Refusal | None],
        now_ns: int,
    ) -> None:
        fresh = [jobs[number].share_id for number, _, _ in synced if self.index.size(jobs[number].share_id) is None]
        granted: dict[int, int] = {}
        try:
            places = {jobs[number].share_id[0]: self._shares / f"{jobs[number].share_id[0]:02x}" for number, _, _ in synced}
            for place in places.values():
                if not place.is_dir():
                    self._make_again(place)
            for number, path, _ in synced:
                path.rename(self._path(jobs[number].share_id))
            for problem in self._all_at_once(_sync_directory, list(places.values())):
                if problem is not None:
                    raise problem
            with self.index.writing() as change:
                for number, _, leaves in synced:
                    job = jobs[number]
                    granted[number] = change.keep(job.share_id, len(job.data), leaves, job.vault, job.lease_ns, now_ns)
        except BaseException:  # whatever it is, files that the index does not name must not stay; raised again
            for _, path, _ in synced:
                path.unlink(missing_ok=True)
            for share_id in fresh:
                self._path(share_id).unlink(missing_ok=True)
            raise
        for number, until in granted.items():
            results[number] = until

    def _make_again(self, place: Path) -> None:
        """A directory of shares that somebody removed while the node runs: what comes from now on is kept all the same. It
        is on disk before its first share is.
        """
        self._shares.mkdir(mode=0o700, exist_ok=True)
        place.mkdir(mode=0o700, exist_ok=True)
        try:
            self._sync_places()
        except OSError:
            place.rmdir()  # it is made and synced anew for the next share; else that one would find it there
            raise

    def _sync_places(self) -> None:
        """The names of the directories of shares are on disk; a share is only as durable as they are."""
        for directory in (self._shares, self.directory):
            if (problem := _sync_directory(directory)) is not None:
                raise problem

    # ---- reading ----------------------------------------------------------------------------------------------------

    def read_many(self, jobs: Sequence[ReadJob]) -> list[bytes | Refusal]:
        """The bytes asked for, unchecked (who asks checks them), or why not."""
        return [self._read(job) for job in jobs]

    def _read(self, job: ReadJob) -> bytes | Refusal:
        data = b""
        try:
            handle = os.open(self._path(job.share_id), os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = os.pread(handle, job.length, job.offset)
            finally:
                os.close(handle)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno != errno.EIO:
                return Refusal(Code.BUSY, "the disk of this node does not answer")
        if len(data) == job.length:
            return data
        with self.lock:
            size = self.index.size(job.share_id)
            if size is not None and not self._intact(job.share_id, size):
                self._drop([job.share_id])
        return Refusal(Code.MISSING, "this node does not hold that share")

    def _intact(self, share_id: ShareId, size: int) -> bool:
        try:
            with self._path(share_id).open("rb") as file:
                data = file.read(size + 1)
        except OSError as error:
            return error.errno in _NOT_OF_THE_FILE
        return len(data) == size and hashlib.sha256(data).digest() == share_id

    def scrub(self, share_id: ShareId, size: int) -> bool:
        """Reread one share. False when it was damaged and dropped; True also when it has gone meanwhile."""
        if self._intact(share_id, size):
            return True
        with self.lock:
            if self.index.size(share_id) is None or self._intact(share_id, size):
                return True
            self._drop([share_id])
            return False

    # ---- leases -----------------------------------------------------------------------------------------------------

    def renew(self, vault: VaultId, share_ids: Sequence[ShareId], until: int) -> list[bool]:
        """Prolong leases; for each share whether the vault has one."""
        with self.lock, self.index.writing() as change:
            return [change.renew(share_id, vault, until) for share_id in share_ids]

    def release(self, leases: Sequence[tuple[ShareId, VaultId]]) -> list[bool]:
        """End leases, and forget shares without any; for each whether there was one."""
        with self.lock:
            with self.index.writing() as change:
                ended = [(share_id, *change.release(share_id, vault)) for share_id, vault in leases]
            for share_id, _, last in ended:
                if last:
                    self._path(share_id).unlink(missing_ok=True)
        return [held for _, held, _ in ended]

    def collect(self, before_ns: int, wanted: int, limit: int = 1024) -> int:
        """Forget shares whose leases ended before a time until ``wanted`` bytes are free; how many bytes became so."""
        start = self.index.used
        while start - self.index.used < wanted:
            ended = self.index.ended(before_ns, min(limit, 64))
            if not ended or limit <= 0:
                break
            self.release(ended)
            limit -= len(ended)
        return start - self.index.used

    def free_on_disk(self) -> int:
        """Bytes that the file system has left for us; 0 when the node's directory is not there any more or its disk does
        not answer: then nothing can be kept, and the node says so instead of failing.
        """
        for place in (self._shares, self.directory):
            try:
                status = os.statvfs(place)
            except OSError:
                continue
            return status.f_bavail * status.f_frsize
        return 0


def _sync_file(handle: int) -> OSError | None:
    try:
        os.fdatasync(handle)
        # Nobody reads it soon, and pages that are free again at once are cheaper than new ones (in a virtual machine a
        # page that the host must bring first costs ten times as much as one that was just in use).
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        return error
    return None


def _sync_directory(path: Path) -> OSError | None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        return error
    return None


def _refusal(error: OSError | DiskFull) -> Refusal:
    if isinstance(error, DiskFull) or error.errno in NO_ROOM:
        return Refusal(Code.FULL, "the disk of this node is full")
    return Refusal(Code.BUSY, "the disk of this node does not take it")

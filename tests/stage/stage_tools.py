"""Tools of the stage's tests: a log on a temporary directory, a file model, and ways to damage a copy."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from hivefs.content.extents import SlotExtents
from hivefs.errors import Corrupt
from hivefs.model.ids import CHUNK_BYTES
from hivefs.model.staged import StagedExtent
from hivefs.stage.files import segment_path
from hivefs.stage.log import StageLog
from hivefs.stage.reader import StageReader

KEY = bytes(range(32))
PLENTY = 1 << 40


def counted_random(seed: bytes = b"stage") -> Callable[[int], bytes]:
    """Bytes that look random and are the same in every run: SHA-256 of a seed and a counter."""
    state = {"n": 0}

    def random(count: int) -> bytes:
        out = b""
        while len(out) < count:
            out += hashlib.sha256(seed + state["n"].to_bytes(8, "big")).digest()
            state["n"] += 1
        return out[:count]

    return random


def pattern(count: int, seed: int = 1) -> bytes:
    """``count`` bytes in which no two parts are alike."""
    return hashlib.shake_128(seed.to_bytes(8, "big")).digest(count)


def make_log(directory: Path, *, random: Callable[[int], bytes] = os.urandom, **options: object) -> StageLog:
    options.setdefault("reserve_bytes", 0)
    return StageLog(directory, KEY, random, **options)  # type: ignore[arg-type]


def file_of(directory: Path, extent: StagedExtent) -> Path:
    return segment_path(directory, extent.segment)


def copy_of(directory: Path, name: str = "copy") -> Path:
    """A copy of a stage directory beside it."""
    target = directory.parent / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(directory, target)
    return target


def read_or_none(directory: Path, ino: int, slot: int, extent: StagedExtent) -> bytes | None:
    """What a new reader says of an extent; None when it is Corrupt."""
    reader = StageReader(directory, KEY)
    try:
        return reader.read(ino, slot, extent, extent.start, extent.length)
    except Corrupt:
        return None
    finally:
        reader.close()


def open_files(directory: Path) -> list[str]:
    """Segments of the directory that this process has open (deleted ones too)."""
    names = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
        if target.startswith(f"{directory}/"):
            names.append(target)
    return names


class StagedFile:
    """One file as the filesystem room keeps it: extents per slot, every byte accounted for."""

    def __init__(self, log: StageLog, ino: int) -> None:
        self.log = log
        self.ino = ino
        self.slots: dict[int, SlotExtents] = {}

    def write(self, offset: int, data: bytes) -> None:
        for slot, extent in self.log.write(self.ino, offset, data):
            for part in self.slots.setdefault(slot, SlotExtents()).insert(extent):
                self.log.release(part)

    def truncate(self, size: int) -> None:
        for slot, extents in self.slots.items():
            for part in extents.cut(max(0, size - slot * CHUNK_BYTES)):
                self.log.release(part)

    def read(self, start: int, end: int, reader: StageLog | StageReader | None = None) -> bytes:
        """Zeros where nothing is staged."""
        out = bytearray()
        at = start
        while at < end:
            slot, begin = divmod(at, CHUNK_BYTES)
            stop = min(CHUNK_BYTES, begin + end - at)
            for low, high, extent in self.slots.get(slot, SlotExtents()).cover(begin, stop):
                if extent is None:
                    out += bytes(high - low)
                else:
                    data = (reader or self.log).read(self.ino, slot, extent, low, high - low)
                    assert data is not None
                    out += data
            at += stop - begin
        return bytes(out)

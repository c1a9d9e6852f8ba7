"""What a process keeps of memory: buffers of malloc are kept, pages of mapped LMDB files are let go.

LMDB reads through a shared mapping of its file, so every page that was ever looked at counts as this process's memory
until the kernel needs it: with a million files that is a gigabyte that is nobody's. The pages belong to the page cache;
letting go of them (madvise(2), MADV_DONTNEED, which of a shared file mapping drops nothing but the page table) takes a
millisecond for 100 MiB, and looking at one again a fault without I/O.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Final

import trio

MOST_BYTES: Final = 24 << 20
"""So much more of mapped files in memory than when it was last little is let go."""

EVERY: Final = 0.2
OLDER_EVERY: Final = 8
LITTLE_S: Final = 0.01
"""Processor time of the process in which little is made or mapped, a twentieth of what EVERY may bring: an
idle one looks once a second or two.
"""
_NAME: Final = "/data.mdb"
_DONTNEED: Final = 4
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_MMAP_FROM: Final = 16 << 20


class _Work:
    """How much this process did: by that it is decided whether there is anything to look at."""

    def __init__(self) -> None:
        self._upto = time.process_time()

    def was_little(self) -> bool:
        """Less than LITTLE_S since this last was no; costs half a microsecond."""
        now = time.process_time()
        if now - self._upto < LITTLE_S:
            return True
        self._upto = now
        return False


def settled() -> None:
    """What was made so far lives as long as the process: the collector need not look at it again and again. (With a
    process of this size each of its long looks is some 50 ms in which nothing else happens.)
    """
    gc.enable()
    gc.collect()
    gc.freeze()


def collect_nothing() -> None:
    """Until ``settled``: what is read at the start stays, and the collector would look at all of it again and again, with
    320 000 nodes for 200 ms at once.
    """
    gc.disable()


def collect_often() -> None:
    """Let the collector look at what is new when it is little: some 0.3 ms in which nothing else happens each time, where
    700 new objects of conversations that failed (frames, tracebacks) took 5 ms. What is old is looked at as seldom.
    """
    gc.set_threshold(150, 40, 50)


def collect_seldom() -> None:
    """Look at what is old a hundredth as often as the interpreter would: with 20 000 inodes in memory that takes 20 to 60
    ms, and while very many files are walked through it would be done every few seconds, for nothing (they have no cycles).
    """
    gc.set_threshold(700, 10, 1000)


def switch_often() -> None:
    """Let a thread that runs Python give way to the loop's after half a millisecond. The interpreter's own 5 ms are what
    each turn of the loop may have to wait for a thread that computes (what fails together, a question that the child of
    thinker.py does not answer).
    """
    sys.setswitchinterval(0.0005)


async def keep_small() -> None:
    """Look at new objects and mapped files as below, in one task: an idle process is woken once for both."""
    await _look([_Maps().look, _New().look])


async def _look(looks: Sequence[Callable[[], None]]) -> None:
    work = _Work()
    while True:
        await trio.sleep(EVERY)
        if not work.was_little():
            for look in looks:
                look()


class _New:
    """Has the collector look at what is new. It is called by itself when more was made than let go, by number. Where old
    objects are replaced by new ones (what is remembered of nodes and stripes) these are equal: it is not called for an
    hour, and then looks at all that came in that hour at once. What got old meanwhile it looks at by its own rule, when
    that is a quarter more than was left of it last.
    """

    def __init__(self) -> None:
        self._turns = count(1)

    def look(self) -> None:
        if next(self._turns) % OLDER_EVERY:
            gc.collect(0)
        else:
            gc.collect(1)
            _by_its_rule()


def _by_its_rule() -> None:
    """Have the collector called as if by itself. With each call as above it counts from zero again: it would never come to
    its own rule, and cycles that lived for two seconds (a dial that waited for a node) would stay for ever.
    """
    _kept = [_Counted() for _ in range(gc.get_threshold()[0] + 1)]


class _Counted:
    """Each one counts for the collector (lists and the like may not: Python has some ready)."""


def keep_buffers(most: int, arenas: int = 0) -> None:
    """Let malloc keep up to ``most`` bytes of free memory for buffers of 1 MiB, instead of giving it back to the kernel
    after each of them; glibc only, elsewhere nothing is changed. To be called before there are threads.

    Otherwise each buffer of that size costs some 250 page faults, more than everything else that is done with it. malloc
    counts for each arena, and threads get arenas of their own: ``arenas`` bounds how many (0: as the system has it).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in (
            (_M_MMAP_THRESHOLD, _MMAP_FROM),
            (_M_TRIM_THRESHOLD, most),
            (_M_TOP_PAD, min(4 << 20, most // 4)),
        ):
            mallopt(parameter, value)
        if arenas:
            mallopt(_M_ARENA_MAX, arenas)


async def keep_maps_small() -> None:
    """Look five times a second, and seldom while the process does little, until cancelled."""
    await _look([_Maps().look])


class _Maps:
    def __init__(self) -> None:
        self._least = file_bytes()

    def look(self) -> None:
        now = file_bytes()
        if now - self._least > MOST_BYTES:
            let_go()
            now = file_bytes()
        self._least = min(self._least, now)


def file_bytes() -> int:
    """Bytes of mapped files that are in memory; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[2]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0


def let_go() -> None:
    """Drop the page tables of every mapped LMDB file."""
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for low, high in _mappings():
        madvise(low, high - low, _DONTNEED)


def _mappings() -> list[tuple[int, int]]:
    found = []
    try:
        for line in Path("/proc/self/maps").read_text().splitlines():
            span, kind, *_ = line.split(maxsplit=2)
            if line.endswith(_NAME) and kind == "r--s":  # shared and read-only: nothing in it is only in memory
                low, high = span.split("-")
                found.append((int(low, 16), int(high, 16)))
    except (OSError, ValueError):
        return []
    return found

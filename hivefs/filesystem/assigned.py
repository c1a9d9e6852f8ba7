"""Which policy a file has: that of the longest path in the [paths] of the policies' text that leads to it *now*.

A path names a place in the drive and not what lies there: who renames /Photos takes its files out of the policy of /Photos,
and what is moved to a place gets the policy of that place. A path that does not exist yet begins to count when it is made.
Symbolic links are not followed. A file with several names belongs where its inode says that its parent is: the directory
of the name it was made with or last renamed to.

Paths are resolved to inodes again and again (``refresh``), a lookup for each part of each path, and a file is found under
one of them by going up its parents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio.lowlevel

from hivefs.errors import NotLoaded, PosixError
from hivefs.filesystem.inodes import Inodes
from hivefs.filesystem.names import Names
from hivefs.filesystem.ports import Placements
from hivefs.model.ids import ROOT_INO
from hivefs.placement.policy import DEFAULT

KEPT_NS = 10**9
"""For so long (nanoseconds) what paths lead to is taken as it was, by who only wants to show it."""

_SLICE = 16
_DEEPEST = 1 << 16


class Assigned:
    """See the head of the file. Everything has the default policy without ``book``, and when its text names no paths."""

    def __init__(self, inodes: Inodes, names: Names, book: Placements | None, clock: Callable[[], int]) -> None:
        self._inodes = inodes
        self._names = names
        self._book = book
        self._clock = clock
        self._found: dict[int, str] = {}
        self._paths: Mapping[str, str] = {}
        self._parts: frozenset[bytes] = frozenset()
        self._at = 0
        self.moves = 0
        """How often a rename may have given files another policy."""

    async def refresh(self) -> None:
        """Look where all paths lead to now, a few at a time. Raises NotLoaded for what is not on this machine yet."""
        paths = {} if self._book is None else self._book.paths()
        found: dict[int, str] = {}
        for number, (path, name) in enumerate(_shortest_first(paths), 1):
            self._resolve(path, name, found)
            if not number % _SLICE:
                await trio.lowlevel.checkpoint()
        self._keep(paths, found)

    def of(self, ino: int) -> str:
        """The name of an inode's policy as of the last ``refresh``. PosixError when it is not there; raises NotLoaded."""
        if not self._found:
            return DEFAULT
        at = ino
        for _ in range(_DEEPEST):
            name = self._found.get(at)
            if name is not None:
                return name
            if at == ROOT_INO:
                break
            at = self._inodes.get(at).parent
            if not at:
                break
        return DEFAULT

    def shown(self, ino: int) -> str:
        """The same as of at most KEPT_NS ago. Raises NotLoaded."""
        paths = {} if self._book is None else self._book.paths()
        if paths != self._paths or (paths and not 0 <= self._clock() - self._at <= KEPT_NS):
            found: dict[int, str] = {}
            for path, name in _shortest_first(paths):
                self._resolve(path, name, found)
            self._keep(paths, found)
        return self.of(ino)

    def renamed(self, parent: int, name: bytes, new_parent: int, new_name: bytes) -> None:
        """Count a rename that may have changed policies, as of the last ``refresh``: between places of different ones, or
        with a name that is part of a path. No other can, since no path leads through what has another name.
        """
        if not self._paths:
            return
        try:
            other = parent != new_parent and self.of(parent) != self.of(new_parent)
        except (NotLoaded, PosixError):
            other = True  # not known now; counting one too many costs a look
        if other or name in self._parts or new_name in self._parts:
            self.moves += 1

    def _keep(self, paths: Mapping[str, str], found: dict[int, str]) -> None:
        if paths != self._paths:
            self._parts = frozenset(part for path in paths for part in _parts(path))
        self._paths, self._found, self._at = paths, found, self._clock()

    def _resolve(self, path: str, name: str, found: dict[int, str]) -> None:
        at = ROOT_INO
        for part in _parts(path):
            try:
                entry = self._names.place(at, part).entry
            except PosixError:  # damaged, which is in the log: what is below has no place to belong to
                return
            if entry is None:
                return
            at = entry.ino
        found[at] = name


def _parts(path: str) -> list[bytes]:
    return [part for part in path.encode("utf-8", "surrogateescape").split(b"/") if part]


def _shortest_first(paths: Mapping[str, str]) -> list[tuple[str, str]]:
    """By depth, which makes no difference but for what is read first: the deepest one above a file wins in any case."""
    return sorted(paths.items(), key=lambda item: item[0].count("/"))

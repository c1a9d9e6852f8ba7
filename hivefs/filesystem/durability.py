"""How safe a file is now: local, remote or guaranteed; and what of it lies on which nodes.

A file is past ``local`` only when a published checkpoint holds everything of it: nothing is staged, its own last change
and the last change of every name on the way to it are in that checkpoint. Then its level is the lowest among the stripes
of its chunks, judged by the policy that the file has now, and the metadata itself.
"""

from __future__ import annotations

import json
import stat
from array import array
from collections.abc import Iterator
from typing import Any, TypeAlias

from hivefs.errors import NotLoaded, PosixError
from hivefs.filesystem.assigned import Assigned
from hivefs.filesystem.filemap import FileMaps
from hivefs.filesystem.inodes import Inodes, Live
from hivefs.filesystem.names import Names
from hivefs.filesystem.overlay import Overlay
from hivefs.filesystem.ports import Placements, Store
from hivefs.model.ids import ROOT_INO, ChunkId, StripeId
from hivefs.model.inode import SlotKind
from hivefs.model.stripe import Level

Levels: TypeAlias = dict[tuple[StripeId, str], Level]
"""By stripe and the name of the policy that it is judged by: that of the file."""

MAX_PLACEMENT_BYTES = 60_000
"""user.hivefs.placement is cut to what getxattr(2) can hand out."""


class Durability:
    """See the head of the file. Without ``placements`` everything is local."""

    def __init__(
        self,
        store: Store,
        inodes: Inodes,
        names: Names,
        maps: FileMaps,
        overlay: Overlay,
        placements: Placements | None,
        assigned: Assigned,
    ) -> None:
        self._store = store
        self._inodes = inodes
        self._names = names
        self._maps = maps
        self._overlay = overlay
        self._placements = placements
        self._assigned = assigned

    def level(self, ino: int, stripes: Levels | None = None) -> Level:
        """The level of one inode; ``stripes`` remembers levels between calls that belong together."""
        book = self._placements
        live = self._inodes.get(ino)
        if book is None or not self._published(live):
            return Level.LOCAL
        level = book.metadata_level()
        if not stat.S_ISREG(live.mode):
            return level
        if self._overlay.has(ino):
            return Level.LOCAL
        known = {} if stripes is None else stripes
        policy = self._assigned.shown(ino)
        for extent in self._maps.scan(ino):
            if level == Level.LOCAL or extent is None or extent.kind == SlotKind.PENDING:
                return Level.LOCAL
            if extent.chunk is not None:
                level = min(level, self._chunk_level(book, extent.chunk.chunk_id, policy, known))
        return level

    @staticmethod
    def _chunk_level(book: Placements, chunk_id: ChunkId, policy: str, known: Levels) -> Level:
        place = book.place(chunk_id)
        if place is None:
            return Level.LOCAL
        key = place.stripe_id, policy
        level = known.get(key)
        if level is None:
            level = known[key] = book.stripe_level(place.stripe_id, policy)
        return level

    def _published(self, live: Live) -> bool:
        published = self._store.published
        if not live.saved or (live.dirty and not live.quiet) or live.changed_seq > published:
            return False
        at = live
        for _ in range(1 << 20):
            if at.link_seq > published:
                return False
            if at.ino == ROOT_INO or not at.parent:
                return True
            at = self._inodes.get(at.parent)
        return False

    def placement(self, ino: int) -> list[dict[str, Any]]:
        """The stripes of a file, in the order of their first chunk, with how many chunks of it they hold."""
        found: dict[StripeId, dict[str, Any]] = {}
        book = self._placements
        if book is None or not stat.S_ISREG(self._inodes.get(ino).mode):
            return []
        policy = self._assigned.shown(ino)
        for extent in self._maps.scan(ino):
            place = None if extent is None or extent.chunk is None else book.place(extent.chunk.chunk_id)
            if place is None:
                continue
            row = found.get(place.stripe_id)
            if row is None:
                stripe = book.stripe(place.stripe_id)
                row = found[place.stripe_id] = {
                    "stripe": place.stripe_id.hex(),
                    "needed": stripe.needed if stripe else 0,
                    "total": stripe.total if stripe else 0,
                    "level": book.stripe_level(place.stripe_id, policy).name.lower(),
                    "nodes": [share.node.hex() if share.node else None for share in stripe.shares] if stripe else [],
                    "chunks": 0,
                    **book.explained(place.stripe_id),
                }
            row["chunks"] += 1
        return list(found.values())

    def virtual(self, ino: int, name: bytes) -> bytes | None:
        """The value of a user.hivefs.* attribute."""
        if name == b"user.hivefs.durability":
            return self.level(ino).name.lower().encode()
        if name == b"user.hivefs.policy":
            return self._assigned.shown(ino).encode()
        if name == b"user.hivefs.placement":
            rows = self.placement(ino)
            while len(value := json.dumps(rows).encode()) > MAX_PLACEMENT_BYTES:
                rows = rows[: len(rows) * MAX_PLACEMENT_BYTES // len(value)]
            return value
        return None

    def below(self, ino: int) -> Iterator[int]:
        """Every inode in a tree, once per name, ``ino`` first. What is added or removed meanwhile may be met or not."""
        waiting = [ino]
        while waiting:
            at = waiting.pop()
            yield at
            try:
                if stat.S_ISDIR(self._inodes.get(at).mode):
                    for _, _, inode in self._names.listing(at, 2):
                        if stat.S_ISDIR(inode.mode):
                            waiting.append(inode.ino)
                        else:
                            yield inode.ino
            except (PosixError, NotLoaded):
                continue


class Watch:
    """How many inodes of a tree have reached a level, asked again and again while someone waits.

    The first count goes through the tree; the next ones look only at those that were below the level, until all are at
    it: then the tree is counted anew, because files may have come meanwhile.
    """

    def __init__(self, durability: Durability, ino: int, level: Level) -> None:
        self._durability = durability
        self._ino = ino
        self._level = level
        self._lagging: array[int] | None = None
        self._total = 0
        self.seen = (0, 0)
        """The result as far as the count that is going on has come."""

    def count(self) -> Iterator[None]:
        """Yields after every inode looked at; ``result`` is right at the end."""
        stripes: Levels = {}
        if not self._lagging:
            self._lagging, self._total = _inode_numbers(), 0
            lagging = _inode_numbers()
            for ino in self._durability.below(self._ino):
                self._total += 1
                if not self._reached(ino, stripes):
                    lagging.append(ino)
                self.seen = self._total, self._total - len(lagging)
                yield
        else:
            lagging = _inode_numbers()
            left = len(self._lagging)
            for ino in self._lagging:
                if not self._reached(ino, stripes):
                    lagging.append(ino)
                left -= 1
                self.seen = self._total, self._total - len(lagging) - left
                yield
        self._lagging = lagging

    def _reached(self, ino: int, stripes: Levels) -> bool:
        try:
            return self._durability.level(ino, stripes) >= self._level
        except PosixError as error:
            return error.errno == 2  # removed meanwhile
        except NotLoaded:
            return True  # not touched since it came back from the hive: it was published there

    @property
    def result(self) -> tuple[int, int]:
        """(inodes, those of them at the level)."""
        return self._total, self._total - len(self._lagging or ())


def _inode_numbers() -> array[int]:
    """Eight bytes each: there may be millions."""
    return array("Q")

"""All nodes that are known, in an order in which a stripe draws some of hundreds of thousands without looking at all. Pure.

Nodes under the same jurisdictions are a class; a class keeps its nodes in buckets by a hash of their id, some sixteen in
each. A draw picks a class by the room of its nodes (a class that can take no more is closed and not drawn again), a bucket
of it, accepted with the part that its room is of the roomiest bucket's, and in the bucket the node with the best lot
(lots.py). So a node's chance is as its room, a draw costs the same whatever the number of nodes, and when a node comes or
goes only draws that met its bucket change.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from itertools import accumulate
from math import inf, log
from typing import Protocol

import blake3

from hivefs.model.ids import NodeId
from hivefs.model.node import UNKNOWN, Candidate
from hivefs.placement.attributes import NOBODY_SAID, eligible
from hivefs.placement.limits import over
from hivefs.placement.lots import room
from hivefs.placement.policy import Policy

SAMPLE = 600
"""Nodes of a field that the exact search looks at when the first sample does not do."""

BUCKET = 16
_UNIT = 1 << 64
_MASK = _UNIT - 1


_Entry = tuple[int, float, Candidate]
"""64 bits of the hash of its id, one by its room (0: not usable now), the node."""


class Others(Protocol):
    """Nodes that are known, and not looked at for placing: they cannot be asked now."""

    def get(self, node_id: NodeId) -> Candidate | None: ...

    def known(self) -> int: ...


class Part(list[Candidate]):
    """Some nodes of a field: what is not possible with them may be with others."""


class _Class:
    """The nodes under the same jurisdictions. A node's bucket is in the first ``bits`` bits of its hash."""

    def __init__(self, bits: int = 0) -> None:
        self.bits = bits
        self.buckets: list[dict[NodeId, _Entry]] = [{} for _ in range(1 << bits)]
        self.rooms = [0.0] * (1 << bits)
        self.widest = 0.0
        self.room = 0.0
        self.count = 0

    def bucket(self, node_id: NodeId) -> dict[NodeId, _Entry]:
        return self.buckets[_hashed(node_id) >> (64 - self.bits)]

    def put(self, node: Candidate, hashed: int) -> None:
        self.take(node.node_id, hashed)
        at = hashed >> (64 - self.bits)
        has = room(node) if node.usable else 0.0
        self.buckets[at][node.node_id] = hashed, 1 / has if has else 0.0, node
        self.count += 1
        self.rooms[at] += has
        self.room += has
        self.widest = max(self.widest, self.rooms[at])

    def take(self, node_id: NodeId, hashed: int) -> None:
        at = hashed >> (64 - self.bits)
        before = self.buckets[at].pop(node_id, None)
        if before is not None:
            self.count -= 1
            has = 1 / before[1] if before[1] else 0.0
            self.rooms[at] = max(0.0, self.rooms[at] - has) if self.buckets[at] else 0.0
            self.room = max(0.0, self.room - has) if self.count else 0.0

    def grown(self) -> _Class:
        """The same with buckets for its number of nodes."""
        bits = max(0, (self.count // BUCKET).bit_length())
        made = _Class(bits)
        for bucket in self.buckets:
            for hashed, _, node in bucket.values():
                made.put(node, hashed)
        return made

    @property
    def crowded(self) -> bool:
        return self.count > 2 * BUCKET << self.bits


class Field:
    """See the head of the file. Changes are put() and remove(): there is nothing to build anew. ``others`` knows the nodes
    that are not in here (and those that are).
    """

    def __init__(self, candidates: Iterable[Candidate] = (), others: Others | None = None) -> None:
        self._others = others
        self._nodes: dict[NodeId, frozenset[str]] = {}
        self._classes: dict[frozenset[str], _Class] = {}
        self._names: list[frozenset[str]] = []
        self._stating = dict.fromkeys(NOBODY_SAID, 0)
        for candidate in candidates:
            self.put(candidate)

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Candidate]:
        for found in self._classes.values():
            for bucket in found.buckets:
                yield from (node for _, _, node in bucket.values())

    @property
    def known(self) -> int:
        """How many nodes there are, in here or not."""
        return len(self) if self._others is None else self._others.known()

    def get(self, node_id: NodeId) -> Candidate | None:
        """What is known of a node, be it in here or not."""
        if node_id not in self._nodes:
            return None if self._others is None else self._others.get(node_id)
        return self._listed(node_id)

    def _listed(self, node_id: NodeId) -> Candidate | None:
        name = self._nodes.get(node_id)
        if name is None:
            return None
        entry = self._classes[name].bucket(node_id).get(node_id)
        return None if entry is None else entry[2]

    def put(self, node: Candidate) -> None:
        """Take in a node, or what is new of it."""
        name = over(node, "jurisdiction")
        before = self._nodes.get(node.node_id)
        if before is not None and before != name:
            self.remove(node.node_id)
        if name not in self._classes:
            self._classes[name] = _Class()
            self._names = sorted(self._classes, key=sorted)
        self._count(self._listed(node.node_id), -1)
        self._count(node, 1)
        self._nodes[node.node_id] = name
        found = self._classes[name]
        found.put(node, _hashed(node.node_id))
        if found.crowded:
            self._classes[name] = found.grown()

    def remove(self, node_id: NodeId) -> None:
        """Forget a node."""
        self._count(self._listed(node_id), -1)
        name = self._nodes.pop(node_id, None)
        if name is not None:
            self._classes[name].take(node_id, _hashed(node_id))

    def _count(self, node: Candidate | None, sign: int) -> None:
        if node is not None:
            for family in self._stating:
                self._stating[family] += sign * (UNKNOWN not in over(node, family))

    def states(self, family: str) -> bool:
        """Whether any node states an authority of this family (one of attributes.NOBODY_SAID)."""
        return self._stating[family] > 0

    @staticmethod
    def shared(node: Candidate) -> dict[str, frozenset[str]]:
        """What all nodes of a node's class are under."""
        return {family: node.authorities.get(family, frozenset()) for family in ("jurisdiction", "bloc")}

    def draws(self, key: bytes, most: int) -> Draws:
        """Nodes in the order in which a stripe with this key prefers them; the same may come again."""
        return Draws(self._names, self._classes, key, most)

    def part(self, policy: Policy, key: bytes, share_bytes: int, without: Collection[NodeId]) -> list[Candidate]:
        """What the exact search looks at: all, or a list that says that it is not all."""
        found = self.sample(policy, key, share_bytes, without, SAMPLE)
        return Part(found) if len(self) > SAMPLE else found

    def sample(
        self, policy: Policy, key: bytes, share_bytes: int, without: Collection[NodeId], most: int
    ) -> list[Candidate]:
        """About ``most`` nodes that a policy accepts, as many of each class as of the others, all when there are fewer."""
        if len(self) <= most:
            return list(self)
        classes = [self._classes[name] for name in self._names if self._classes[name].count]
        each = max(2 * BUCKET, most // max(1, len(classes)))
        found: list[Candidate] = []
        for one in classes:
            mine: list[Candidate] = []
            start = int.from_bytes(key[:4], "big")
            for number in range(len(one.buckets)):
                for _, _, node in one.buckets[(start + number) % len(one.buckets)].values():
                    good = node.usable and node.free_bytes >= share_bytes and node.node_id not in without
                    if good and not eligible(policy, node.authorities):
                        mine.append(node)
                if len(mine) >= each:
                    break
            found += mine
        return found


class Draws:
    """An iterator over drawn nodes."""

    def __init__(self, names: list[frozenset[str]], classes: dict[frozenset[str], _Class], key: bytes, most: int) -> None:
        self._open = [name for name in names if classes[name].room > 0]
        self._classes = classes
        self._key = key
        self._left = most
        self._number = 0
        self._sums = list(accumulate(classes[name].room for name in self._open))

    def close_class(self, node: Candidate) -> None:
        """Draw no more nodes of this one's class."""
        name = over(node, "jurisdiction")
        if name in self._open:
            self._open.remove(name)
            self._sums = list(accumulate(self._classes[n].room for n in self._open))

    def __iter__(self) -> Draws:
        return self

    def __next__(self) -> Candidate:
        for _ in range(32 * max(1, self._left)):
            if self._left <= 0 or not self._open:
                raise StopIteration
            self._number += 1
            draw = blake3.blake3(self._number.to_bytes(8, "big"), key=self._key).digest(length=32)
            at = int.from_bytes(draw[:8], "big") / _UNIT * self._sums[-1]
            found = self._classes[self._open[min(bisect_right(self._sums, at), len(self._open) - 1)]]
            bucket = int.from_bytes(draw[8:16], "big") % len(found.buckets)
            if int.from_bytes(draw[16:24], "big") / _UNIT * found.widest >= found.rooms[bucket]:
                continue
            best = _best(found.buckets[bucket].values(), int.from_bytes(draw[24:32], "big"))
            if best is None:
                continue
            self._left -= 1
            return best
        raise StopIteration


def _hashed(node_id: NodeId) -> int:
    return int.from_bytes(blake3.blake3(node_id).digest(length=8), "big")


def _best(entries: Iterable[_Entry], draw: int) -> Candidate | None:
    """The node with the best lot, as in lots.py, but from a mixed number in place of a hash: what is mixed in is secret
    already. (The mixer is one of those found by Wellons, "Prospecting for hash functions", 2018, for 64 bits.)
    """
    best, least = None, inf
    for hashed, one_by_room, node in entries:
        if one_by_room:
            mixed = (hashed ^ draw) * 0xD6E8FEB86659FD93 & _MASK
            mixed ^= mixed >> 32
            mixed = mixed * 0xD6E8FEB86659FD93 & _MASK
            mixed ^= mixed >> 32
            score = -log((mixed + 1) / _UNIT) * one_by_room
            if score < least:
                best, least = node, score
    return best

"""Some of very many nodes, as many of each jurisdiction as of the others, found in one look at each. Pure.

A field (field.py) draws such a sample too, but is made of all nodes: with 10 000 that is 20 MiB, and to let go of it 18 ms.
"""

from __future__ import annotations

import heapq
from typing import Final

from hivefs.model.ids import NodeId
from hivefs.model.node import Candidate
from hivefs.placement.attributes import eligible
from hivefs.placement.field import SAMPLE, Part
from hivefs.placement.limits import over
from hivefs.placement.lots import key, uniform
from hivefs.placement.policy import Policy

LEAST: Final = 32
"""Of each class at least, when it has so many."""


class Gathering:
    """``count`` nodes were looked at. Up to SAMPLE of them all are found; of more those that the policy accepts, of each
    class (nodes under the same jurisdictions) some that a hash of their ids picks, the same whenever it is looked.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.count = 0
        self._all: list[Candidate] = []
        self._classes: dict[frozenset[str], list[tuple[float, NodeId, Candidate]]] = {}

    def add(self, node: Candidate) -> None:
        """Look at one more."""
        self.count += 1
        if self.count <= SAMPLE:
            self._all.append(node)
        elif self._all:
            self._all = []
        if eligible(self._policy, node.authorities):
            return
        best = self._classes.setdefault(over(node, "jurisdiction"), [])
        heapq.heappush(best, (uniform(_KEY, node.node_id), node.node_id, node))
        while len(best) > self._each():
            heapq.heappop(best)

    def _each(self) -> int:
        return max(LEAST, SAMPLE // max(1, len(self._classes)))

    def found(self) -> list[Candidate]:
        """All, or a list that says that it is not all."""
        if self.count <= SAMPLE:
            return list(self._all)
        each = self._each()
        return Part(node for best in self._classes.values() for _, _, node in heapq.nlargest(each, best))


_KEY: Final = key(0)

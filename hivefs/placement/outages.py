"""Which nodes fail together: domains learnt from outages that nodes had at the same times. Pure.

A power line, a rack, a provider or a release that several nodes share shows in that they go and come back together. Two
outages are **together** when they began within WINDOW_S of each other and ended so too (or within a tenth of their length).
Of two nodes with a and b outages in a time T, chance alone makes about a*b*2*WINDOW_S/T of their outages begin together
(independent Poisson processes). They are linked when theirs were together at least LEAST times and in at least half of the
outages of the steadier one, and when so many would come by chance with a probability below DOUBT for any pair of all nodes
(Bonferroni's correction; Poisson tail). Nodes linked directly or through others are one domain, named by its smallest node.

It is a soft cap for placement, never a part of a guarantee: what was learnt may be wrong, and what never failed is unknown.
An absence during which this machine itself was cut off is no outage (maintenance/trust.py), so it teaches nothing.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import Final

from hivefs.model.ids import NodeId

WINDOW_S: Final = 180
"""A node that vanishes without a word is noticed after up to a minute and a half (keepalive)."""
LEAST: Final = 3
DOUBT: Final = 0.001
NEIGHBOURS: Final = 32
"""In a crowd an outage is compared with those of so many nodes before and after its own in the order of their ids, which
are the same ones each time; links through others do the rest.
"""


@dataclass(frozen=True, slots=True)
class History:
    """``outages`` are (begin, length) in seconds; ``span_s`` is the time in which they were."""

    outages: Sequence[tuple[int, int]]
    span_s: float


def domains(nodes: Mapping[NodeId, History]) -> dict[NodeId, str]:
    """The domain of each node that is in one; others are left out. Time grows with the outages, times NEIGHBOURS."""
    together = _together(nodes)
    pairs = max(1, len(nodes) * (len(nodes) - 1) // 2)
    leader: dict[NodeId, NodeId] = {}

    def root(node: NodeId) -> NodeId:
        while (up := leader.get(node, node)) != node:
            node = up
        return node

    for (one, other), count in together.items():
        if count >= LEAST and _is_linked(nodes[one], nodes[other], count, pairs):
            first, second = sorted((root(one), root(other)))
            if first != second:
                leader[second] = first
                leader.setdefault(first, first)
    return {node: "outage-" + root(node).hex()[:12] for node in leader}


def _together(nodes: Mapping[NodeId, History]) -> Counter[tuple[NodeId, NodeId]]:
    events = sorted((begin, begin + length, node) for node, history in nodes.items() for begin, length in history.outages)
    found: Counter[tuple[NodeId, NodeId]] = Counter()
    window: list[tuple[NodeId, int, int]] = []  # those that begin within WINDOW_S after the present one, by node
    ahead = 0
    for begin, end, node in events:
        while ahead < len(events) and events[ahead][0] - begin <= WINDOW_S:
            insort(window, (events[ahead][2], events[ahead][0], events[ahead][1]))
            ahead += 1
        place = bisect_left(window, (node, begin, end))
        del window[place]
        beside = window[max(0, place - NEIGHBOURS) : place + NEIGHBOURS]
        seen: set[NodeId] = {node}
        for other, other_begin, other_end in beside:
            near = max(WINDOW_S, min(end - begin, other_end - other_begin) // 10)
            if other not in seen and abs(other_end - end) <= near:
                seen.add(other)
                found[(node, other) if node < other else (other, node)] += 1
    return found


def _is_linked(one: History, other: History, count: int, pairs: int) -> bool:
    fewer = min(len(one.outages), len(other.outages))
    if 2 * count < fewer:
        return False
    span = max(1.0, min(one.span_s, other.span_s))
    expected = len(one.outages) * len(other.outages) * 2 * WINDOW_S / span
    return at_least(count, expected) * pairs < DOUBT


def at_least(count: int, expected: float) -> float:
    """P[X >= count] of a Poisson variable."""
    if expected <= 0:
        return float(count <= 0)
    if count > expected:  # the tail itself, since 1 minus the rest would lose what matters
        term = exp(-expected)
        for number in range(1, count + 1):
            term *= expected / number
        total, number = 0.0, count
        while term > 1e-18 * max(total, 1e-300) and term > 0:
            total += term
            number += 1
            term *= expected / number
        return total
    term = rest = exp(-expected)
    for number in range(1, count):
        term *= expected / number
        rest += term
    return max(0.0, 1.0 - rest) if count > 0 else 1.0

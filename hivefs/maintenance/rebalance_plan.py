"""Which shares move so that all nodes are about equally full. Pure.

The fill of a node is used over capacity; the mean is that of the hive. A node is *over* when it is fuller than the
mean by more than ``width``, *under* when it is emptier by more. Moving a byte takes at most one byte off what is
over, and adds at most one to what is under, so at least max(sum of what is over, sum of what is under) bytes must
move: the lower bound. The plan moves from over to under while there are both, then from what is over to wherever
there is room inside the band, or to what is under from wherever there is something above the band's lower edge. No
move makes a node leave the band at its other edge, so each one makes the sum of what is over and under smaller: it
comes to an end, and there is nothing to move back. With shares of one size, and policies that leave room, the plan
has exactly the lower bound of moves.

Every vault of a hive does this by itself. So that all of them together do not move too much, each does its part: of
what is over at a node the part of the node's bytes that are its own, of what is under the part of the hive's bytes
that are its own.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hivefs.model.ids import NodeId, StripeId

WIDTH: Final = 0.10
"""Half of the band in which nodes are left alone once they are there."""
BEGIN: Final = 0.20
"""How far from the mean a node must be for moving to begin: a wide gap between both, so that it does not begin anew
at once.
"""
MOST_MOVES: Final = 64
MOST_NODES: Final = 256
"""Nodes that one plan thinks of giving to: the emptiest."""


@dataclass(frozen=True, slots=True)
class Fill:
    """A node: bytes that it offers, that are used, and that are used by this vault."""

    node_id: NodeId
    capacity: int
    used: int
    own: int


@dataclass(frozen=True, slots=True)
class Held:
    """A share of this vault at some node."""

    stripe_id: StripeId
    index: int
    size: int


@dataclass(frozen=True, slots=True)
class Move:
    """A share, from where to where."""

    held: Held
    source: NodeId
    target: NodeId


def mean(nodes: Sequence[Fill]) -> float:
    """The fill of all nodes together; 0 when they offer nothing."""
    capacity = sum(node.capacity for node in nodes)
    return sum(node.used for node in nodes) / capacity if capacity else 0.0


def farthest(nodes: Sequence[Fill]) -> float:
    """How far from the mean the farthest node is."""
    middle = mean(nodes)
    return max((abs(node.used / node.capacity - middle) for node in nodes if node.capacity), default=0.0)


def bound(nodes: Sequence[Fill], width: float = WIDTH) -> float:
    """The fewest bytes that must move to bring all nodes into the band."""
    middle = mean(nodes)
    over = sum(max(0.0, node.used - (middle + width) * node.capacity) for node in nodes)
    under = sum(max(0.0, (middle - width) * node.capacity - node.used) for node in nodes)
    return max(over, under)


class _Node:
    """A node while the plan is made. All numbers are bytes of this vault's part."""

    def __init__(self, fill: Fill, middle: float, width: float, part: float) -> None:
        self.node_id = fill.node_id
        mine = fill.own / fill.used if fill.used else 0.0
        high, low = (middle + width) * fill.capacity, (middle - width) * fill.capacity
        self.over = max(0.0, fill.used - high - 1) * mine  # a byte is left to what rounding does
        self.under = max(0.0, low - fill.used - 1) * part
        self.spare = (fill.used - low) * mine
        """What it may give and stay above the lower edge; less than nothing when it is under."""
        self.room = (high - fill.used) * part
        """What it may take and stay below the upper edge; less than nothing when it is over."""

    def give(self, size: int) -> None:
        self.over = max(0.0, self.over - size)
        self.spare -= size
        self.room += size

    def take(self, size: int) -> None:
        self.under = max(0.0, self.under - size)
        self.room -= size
        self.spare += size


def sources(nodes: Sequence[Fill], width: float = WIDTH) -> list[NodeId]:
    """The nodes that may have to give shares, those that are over first."""
    made = _made(nodes, width)
    return [node.node_id for node in _givers(made) if node.spare > 0]


def _made(nodes: Sequence[Fill], width: float) -> list[_Node]:
    used = sum(node.used for node in nodes)
    part = sum(node.own for node in nodes) / used if used else 0.0
    middle = mean(nodes)
    return [_Node(node, middle, width, part) for node in nodes if node.capacity]


def _taking(node: _Node) -> tuple[float, float, NodeId]:
    return -node.under, -node.room, node.node_id


def _givers(made: Sequence[_Node]) -> list[_Node]:
    return sorted(made, key=lambda node: (-node.over, -node.spare, node.node_id))


def plan(
    nodes: Sequence[Fill],
    shares: Mapping[NodeId, Sequence[Held]],
    allowed: Callable[[Held, NodeId, NodeId], bool],
    width: float = WIDTH,
    most: int = MOST_MOVES,
) -> list[Move]:
    """At most ``most`` moves. ``shares`` are (some of) those that each node has, ``allowed(held, source, target)`` says
    whether a share may go there. A share moves once, and two shares of a stripe do not move in one plan.
    """
    return [move for move in steps(nodes, shares, allowed, width, most) if move is not None]


def steps(
    nodes: Sequence[Fill],
    shares: Mapping[NodeId, Sequence[Held]],
    allowed: Callable[[Held, NodeId, NodeId], bool],
    width: float = WIDTH,
    most: int = MOST_MOVES,
) -> Iterator[Move | None]:
    """The moves of ``plan`` one by one; None before each share is looked at, and after each question to ``allowed`` that
    was answered with no, so that whoever waits for the moves can do something else in between.
    """
    made = _made(nodes, width)
    if len(made) > MOST_NODES:
        emptiest = heapq.nsmallest(MOST_NODES, made, key=_taking)
        made = [*emptiest, *(node for node in made if node.node_id in shares and node not in emptiest)]
    moves = 0
    touched: set[StripeId] = set()
    stuck: set[tuple[NodeId, bool]] = set()
    while moves < most:
        over = any(node.over > 0 and (node.node_id, True) not in stuck for node in made)
        under = any(node.under > 0 for node in made)
        if not over and not under:
            break
        move = None
        for giver in _givers(made):
            must = giver.over > 0
            if (giver.node_id, must) in stuck or not (must or under):
                continue
            for move in _from(giver, must, made, shares.get(giver.node_id, ()), allowed, touched):
                if move is not None:
                    break
                yield None
            if move is not None:
                break
            stuck.add((giver.node_id, must))
        if move is None:
            break
        moves += 1
        touched.add(move.held.stripe_id)
        yield move


def _from(
    giver: _Node,
    must: bool,
    made: Sequence[_Node],
    held: Sequence[Held],
    allowed: Callable[[Held, NodeId, NodeId], bool],
    touched: set[StripeId],
) -> Iterator[Move | None]:
    takers = sorted(made, key=_taking)
    for share in held:
        yield None
        if share.stripe_id in touched or share.size > giver.spare:
            continue
        for taker in takers:
            if taker is giver or share.size > taker.room or not (must or taker.under > 0):
                continue
            if allowed(share, giver.node_id, taker.node_id):
                giver.give(share.size)
                taker.take(share.size)
                yield Move(share, giver.node_id, taker.node_id)
                return
            yield None

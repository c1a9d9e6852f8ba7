"""Moving shares between nodes: the least that does, never too much, and an end."""

from __future__ import annotations

import random
from collections import Counter
from math import ceil

from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.maintenance.rebalance_plan import WIDTH, Fill, Held, Move, bound, farthest, mean, plan
from hivefs.model.ids import NodeId, StripeId

SHARE = 1000


def node(number: int) -> NodeId:
    return NodeId(number.to_bytes(32, "big"))


def hive(fills: list[tuple[int, int]]) -> tuple[list[Fill], dict[NodeId, list[Held]]]:
    """Nodes of (capacity, used) in shares, all of one vault, each share of a stripe of its own."""
    nodes = [Fill(node(i), cap * SHARE, used * SHARE, used * SHARE) for i, (cap, used) in enumerate(fills)]
    shares = {
        node(i): [Held(StripeId((i * 10_000 + n).to_bytes(16, "big")), 0, SHARE) for n in range(used)]
        for i, (_, used) in enumerate(fills)
    }
    return nodes, shares


def anywhere(held: Held, source: NodeId, target: NodeId) -> bool:
    return True


def after(nodes: list[Fill], moves: list[Move]) -> list[Fill]:
    change: Counter[NodeId] = Counter()
    for move in moves:
        change[move.source] -= move.held.size
        change[move.target] += move.held.size
    return [Fill(n.node_id, n.capacity, n.used + change[n.node_id], n.own + change[n.node_id]) for n in nodes]


fills_of = st.lists(
    st.tuples(st.integers(100, 1000), st.integers(0, 100)).map(lambda row: (row[0], row[0] * row[1] // 100)),
    min_size=2,
    max_size=12,
)


roomy = st.lists(
    st.tuples(st.integers(300, 1500), st.integers(0, 90)).map(lambda row: (row[0], row[0] * row[1] // 100)),
    min_size=3,
    max_size=12,
)
"""Nodes that hold many shares, so that a part of one does not matter."""


@given(roomy)
@settings(max_examples=60, deadline=None)
def test_the_plan_has_the_lower_bound_of_moves_and_ends_in_the_band(fills: list[tuple[int, int]]) -> None:
    nodes, shares = hive(fills)
    middle = mean(nodes)
    over = sum(ceil(max(0.0, n.used - (middle + WIDTH) * n.capacity) / SHARE - 1e-9) for n in nodes)
    under = sum(ceil(max(0.0, (middle - WIDTH) * n.capacity - n.used) / SHARE - 1e-9) for n in nodes)
    moves: list[Move] = []
    done = nodes
    while more := plan(done, shares, anywhere, most=100_000):
        moves += more
        done = after(nodes, moves)
        gone = {move.held for move in more}
        shares = {node_id: [held for held in row if held not in gone] for node_id, row in shares.items()}
    assert farthest(done) <= WIDTH + 2 / 300
    assert len(moves) <= max(over, under)
    assert bound(nodes) <= (len(moves) + 1) * SHARE  # the last share of a node may only be needed in part
    assert len({move.held for move in moves}) == len(moves)


@given(fills_of, st.integers(0, 2**32), st.integers(0, 90))
@settings(max_examples=25, deadline=None)
def test_what_the_policy_forbids_does_not_move_and_nothing_gets_worse(
    fills: list[tuple[int, int]], seed: int, forbidden: int
) -> None:
    nodes, shares = hive(fills)

    def allowed(held: Held, source: NodeId, target: NodeId) -> bool:
        return random.Random(f"{seed}{held.stripe_id.hex()}{target.hex()}").random() * 100 >= forbidden

    moves = plan(nodes, shares, allowed, most=100_000)
    assert all(allowed(move.held, move.source, move.target) for move in moves)
    done = after(nodes, moves)
    middle = mean(nodes)
    for old, new in zip(nodes, done, strict=True):
        before, now = old.used / old.capacity - middle, new.used / new.capacity - middle
        assert abs(now) <= max(abs(before), WIDTH) + 1e-9
        assert now >= -WIDTH - 1e-9 or before < -WIDTH  # none goes through the band to its other side
    assert bound(done) <= bound(nodes) + 1e-6


def test_a_new_empty_node_is_filled_to_the_edge_of_the_band_and_no_more() -> None:
    nodes, shares = hive([(1000, 600)] * 9 + [(1000, 0)])
    moves = plan(nodes, shares, anywhere, most=100_000)
    assert {move.target for move in moves} == {node(9)}
    assert len(moves) == 440  # the mean is 0.54, the band begins at 0.44
    assert max(Counter(move.source for move in moves).values()) <= 100


def test_many_vaults_each_by_itself_reach_a_fixed_point_together_without_going_to_and_fro() -> None:
    """Twenty vaults plan at the same time from the same figures, round after round."""
    rng = random.Random(5)
    capacity = [1000 * SHARE] * 11
    held: list[dict[NodeId, list[Held]]] = []
    for vault in range(20):
        held.append(
            {
                node(i): [
                    Held(StripeId((vault * 1_000_000 + i * 1000 + n).to_bytes(16, "big")), 0, SHARE)
                    for n in range(rng.randrange(0, 90) if i < 10 else 0)
                ]
                for i in range(11)
            }
        )
    moved = 0
    sides: dict[NodeId, list[bool]] = {}
    first: float | None = None
    for _ in range(60):
        used = [sum(len(v[node(i)]) for v in held) * SHARE for i in range(11)]
        plans = []
        for vault in held:
            nodes = [Fill(node(i), capacity[i], used[i], len(vault[node(i)]) * SHARE) for i in range(11)]
            first = bound(nodes) if first is None else first
            plans.append(plan(nodes, vault, anywhere))
        if not any(plans):
            break
        for vault, moves in zip(held, plans, strict=True):
            for move in moves:
                vault[move.source].remove(move.held)
                vault[move.target].append(move.held)
                sides.setdefault(move.source, []).append(False)
                sides.setdefault(move.target, []).append(True)
                moved += SHARE
    else:
        raise AssertionError("they go on for ever")
    assert first is not None and farthest(nodes) <= WIDTH + 0.01
    assert moved <= first + 11 * 20 * SHARE  # each vault may be a share beyond its part at each node
    assert all(len(set(seen)) == 1 for seen in sides.values())  # no node gave what it took

"""The selector: which nodes get the shares of a stripe. Pure: the same input and seed give the same answer.

Shares of a stripe are interchangeable, so a *set* of nodes is chosen, under the limits that the policy makes (limits.py).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from hivefs.errors import PolicyInfeasible, TooFewNodes
from hivefs.model.ids import NodeId
from hivefs.model.node import UNKNOWN, Candidate
from hivefs.placement.attributes import eligible
from hivefs.placement.limits import Limit, Load, modes
from hivefs.placement.lots import key, lot
from hivefs.placement.policy import Policy
from hivefs.placement.settlement import Settlement


def choose(
    policy: Policy,
    candidates: Sequence[Candidate],
    seed: int,
    *,
    kept: Sequence[Candidate] = (),
    count: int | None = None,
    share_bytes: int = 0,
    avoid: Collection[NodeId] = (),
) -> list[NodeId]:
    """``count`` (default n - len(kept)) nodes for the shares that have none, beside the nodes in ``kept``.

    Raises TooFewNodes when there are not enough usable nodes at all, PolicyInfeasible with the binding constraint in
    words when there are but the rules forbid every set that was found.
    """
    wanted = policy.total - len(kept) if count is None else count
    taken = {node.node_id for node in kept} | set(avoid)
    usable = [c for c in candidates if c.usable and c.node_id not in taken and c.free_bytes >= share_bytes]
    pool = [c for c in usable if not eligible(policy, c.authorities)]
    if len(pool) < wanted:
        raise _too_few(policy, len(pool) + len(kept), len(usable) - len(pool))
    draw = key(seed)
    ordered = sorted(pool, key=lambda c: lot(draw, c), reverse=True)
    for mode in modes(policy, pool, kept):
        found = _greedy(mode.limits, kept, [c for c in ordered if mode.admits(c)], wanted)
        if found is not None:
            return [c.node_id for c in found]
    limits = next(modes(policy, pool, kept)).limits
    raise PolicyInfeasible(reason=_explain(policy, limits, pool))


def settle(
    policy: Policy,
    holders: Sequence[Candidate | None],
    candidates: Sequence[Candidate],
    seed: int,
    *,
    share_bytes: int = 0,
    avoid: Collection[NodeId] = (),
) -> Settlement:
    """The fewest moves after which the policy holds. ``holders[i]`` holds share i (None: nobody does).

    Raises TooFewNodes and PolicyInfeasible as choose() does.
    """
    missing = tuple(i for i, holder in enumerate(holders) if holder is None)
    keep: list[int] = []
    kept: list[Candidate] = []
    seen: set[NodeId] = set()
    load = Load(next(modes(policy, [], [h for h in holders if h is not None])).limits)
    for i, holder in enumerate(holders):
        if holder is None or holder.node_id in seen or eligible(policy, holder.authorities) or not load.accepts(holder):
            continue
        keep.append(i)
        kept.append(holder)
        seen.add(holder.node_id)
        load.add(holder)
    move = tuple(i for i, holder in enumerate(holders) if holder is not None and i not in keep)
    wanted = sorted(move + missing)
    away = {h.node_id for h in holders if h is not None} | set(avoid)
    nodes = choose(policy, candidates, seed, kept=kept, count=len(wanted), share_bytes=share_bytes, avoid=away)
    return Settlement(tuple(keep), move, missing, dict(zip(wanted, nodes, strict=True)))


def _too_few(policy: Policy, available: int, refused: int) -> TooFewNodes:
    reason = "others are offline, full or hold a share already"
    if refused:
        reason = f"{refused} more are there that the policy refuses; " + reason
    return TooFewNodes(total=policy.total, available=available, reason=reason)


def _greedy(
    limits: Sequence[Limit], kept: Sequence[Candidate], ordered: Sequence[Candidate], wanted: int
) -> list[Candidate] | None:
    load = Load(limits)
    for node in kept:
        load.add(node)
    if not load.holds():
        return None
    chosen: list[Candidate] = []
    rest = list(ordered)
    while len(chosen) < wanted:
        best = min((c for c in rest if load.accepts(c)), key=load.weight, default=None)
        if best is None:
            if not _swap(load, chosen, rest):
                return None
            continue
        chosen.append(best)
        load.add(best)
        rest = [c for c in rest if c is not best]
    return chosen


def _swap(load: Load, chosen: list[Candidate], rest: list[Candidate]) -> bool:
    """Exchange one chosen node for two unchosen ones; True when the set grew."""
    for out in chosen:
        load.add(out, -1)
        for first in rest:
            if not load.accepts(first):
                continue
            load.add(first)
            second = next((c for c in [*rest, out] if c is not first and load.accepts(c)), None)
            if second is not None:
                load.add(second)
                chosen.remove(out)
                chosen += [first, second]
                rest.append(out)
                for node in (first, second):
                    rest.remove(node)
                return True
            load.add(first, -1)
        load.add(out)
    return False


def _explain(policy: Policy, limits: Sequence[Limit], pool: Sequence[Candidate]) -> str:
    first = min(limits, key=lambda limit: limit.most // limit.size)
    names = sorted({n for c in pool for n in c.authorities.get(first.family, frozenset()) if n != UNKNOWN})
    unknown = sum(1 for c in pool if UNKNOWN in c.authorities.get(first.family, frozenset()))
    words = (
        f"at most {first.most} of the {policy.total} shares may lie under one {first.family}, "
        f"and the nodes with room are under {len(names)} ({', '.join(names[:8])})"
    )
    if unknown:
        words += f"; {unknown} nodes have an unknown {first.family}, which counts against every one"
    return words + f"; a node under another {first.family} is needed"

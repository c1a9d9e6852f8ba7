"""The selector beside old copies: where shares go when other nodes may still have shares of the stripe. Pure.

``copies`` are pairs (share number, node) that may be there beside the holders: what a crash or a move left, what waits to
be deleted, what a node that is away may come back with. No coalition may come to k distinct shares by them and what is
placed now (exposure.py); all other limits are about holders only. Without copies it is what selector.py does, and with them
the answer is exact within the search's budget (assign.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations

from hivefs.errors import PolicyInfeasible, TooFewNodes
from hivefs.model.ids import NodeId
from hivefs.model.node import Candidate
from hivefs.placement.assign import BUDGET, Assigned, assign
from hivefs.placement.explain import Remedy
from hivefs.placement.exposure import Exposure
from hivefs.placement.field import SAMPLE, Field, Part
from hivefs.placement.limits import Limit, binding, modes, wishes
from hivefs.placement.lots import key
from hivefs.placement.policy import Policy
from hivefs.placement.selector import Places, choose, pool_of, settlement, standing_of
from hivefs.placement.settlement import Settlement

Copies = Collection[tuple[int, Candidate]]
Pairs = Collection[tuple[int, NodeId]]

SOFT_BUDGET = 60
SETTLE_BUDGET = 4 * BUDGET
A_SET = 4
"""Steps that looking at another set of holders costs at least."""
SETS = 4000
"""The most sets of holders that are thought of."""


def place(
    policy: Policy,
    candidates: Sequence[Candidate] | Field,
    seed: int,
    kept: Mapping[int, Candidate],
    wanted: Sequence[int],
    copies: Copies,
    *,
    share_bytes: int = 0,
    avoid: Collection[NodeId] = (),
    refused: Pairs = (),
) -> dict[int, NodeId]:
    """A node for each of the shares ``wanted``, beside the holders ``kept`` and the copies. No pair of ``refused`` is made.

    Raises TooFewNodes and PolicyInfeasible as choose() does, with what can be placed now as ``placed``, and ``old_copies``
    True when it is the copies that forbid more, so that waiting for their deletion helps.
    """
    if not wanted:
        return {}
    if not copies and not refused:
        chosen = choose(
            policy, candidates, seed, kept=list(kept.values()), count=len(wanted), share_bytes=share_bytes, avoid=avoid
        )
        return dict(zip(wanted, chosen, strict=True))
    away = {node.node_id for node in kept.values()}.union(avoid)
    pool, whole = _pool(policy, candidates, seed, share_bytes, away)
    found = _assigned(policy, pool, list(kept.values()), exposure_of(policy, kept, copies), wanted, refused, BUDGET)
    if found.complete:
        return {number: node.node_id for number, node in found.nodes.items()}
    placed = {number: node.node_id for number, node in found.nodes.items()}
    try:
        choose(policy, candidates, seed, kept=list(kept.values()), count=len(wanted), share_bytes=share_bytes, avoid=avoid)
    except (TooFewNodes, PolicyInfeasible) as error:
        error.data |= {"placed": placed, "old_copies": int(error.data["most"]) > len(placed), "most": len(placed)}
        raise
    raise _waiting(copies, placed, proved=found.exact and whole)


def settle(
    policy: Policy,
    holders: Sequence[Candidate | None],
    candidates: Sequence[Candidate] | Field,
    seed: int,
    copies: Copies,
    *,
    share_bytes: int = 0,
    avoid: Collection[NodeId] = (),
    refused: Pairs = (),
) -> Settlement:
    """selector.settle() beside copies. A share that moves is still at its holder when it arrives elsewhere, so all holders
    count; a holder that is gone or leaves is a copy. Raises as settle() does, and as place() does.
    """
    missing = tuple(i for i, holder in enumerate(holders) if holder is None)
    standing = standing_of(policy, holders)
    away = {h.node_id for h in holders if h is not None}.union(avoid)
    places = Places(policy, candidates, seed, share_bytes, away)
    exposure = exposure_of(policy, {i: holder for i, holder in enumerate(holders) if holder is not None}, copies)
    pool, whole = _pool(policy, candidates, seed, share_bytes, away)

    def others(keep: Collection[int]) -> list[int]:
        return [*missing, *(i for i, holder in enumerate(holders) if holder is not None and i not in keep)]

    def attempt(keep: Collection[int], budget: int) -> Assigned:
        return _assigned(policy, pool, [standing[i] for i in keep], exposure, others(keep), refused, budget)

    def partial(keep: Sequence[int]) -> Settlement:
        # Missing ones first: what moves is there at least.
        some = _assigned(policy, pool, [standing[i] for i in keep], exposure, missing, refused, BUDGET).nodes
        if len(some) == len(missing):
            more = attempt(keep, BUDGET).nodes
            some = more if all(i in more for i in missing) else some
        return settlement(holders, missing, keep, {i: node.node_id for i, node in some.items()}, fewest=False)

    try:
        keep, fewest, _ = places.settle(standing)
    except (TooFewNodes, PolicyInfeasible) as error:
        keep, free = places.partly(standing)
        part = partial(keep)
        error.data |= {"partial": part, "old_copies": len(free) > len(part.nodes)}
        raise
    budget, exact = SETTLE_BUDGET, True
    for stay in _smaller(standing, keep, exposure, {number for number, _ in refused}):
        if stay is None:
            exact = False
            break
        found = attempt(stay, min(budget, BUDGET))
        budget -= found.steps + A_SET
        if found.complete:
            nodes = {i: node.node_id for i, node in found.nodes.items()}
            return settlement(holders, missing, stay, nodes, fewest=fewest and exact and whole)
        exact = exact and found.exact
        if budget <= 0:
            exact = False
            break
        if tuple(stay) == tuple(keep):
            alone = assign((), (), exposure, missing, pool, refused)
            if not alone.complete and alone.exact:  # whoever stays: the missing ones have no place
                exact = True
                break
    raise _waiting(copies, {}, proved=exact and whole, partial=partial(keep))


def exposure_of(policy: Policy, holders: Mapping[int, Candidate], copies: Copies) -> Exposure:
    """All that may be anywhere."""
    there: dict[int, list[Candidate]] = {number: [node] for number, node in holders.items()}
    for number, node in copies:
        there.setdefault(number, []).append(node)
    return Exposure(policy, there)


def _smaller(
    standing: Mapping[int, Candidate], first: Sequence[int], exposure: Exposure, special: Collection[int]
) -> Iterator[tuple[int, ...] | None]:
    """Sets of holders that stay: first the one that is best without copies, then all others of its size, then fewer. Of
    sets that differ only in nodes under the same authorities one is enough. None instead of the rest when it is too many.
    """
    yield tuple(first)
    left = SETS
    for size in range(len(first), -1, -1):
        seen = set()
        for stay in combinations(standing, size):
            left -= 1
            if left < 0:
                yield None
                return
            kinds = (tuple(sorted(standing[i].authorities.items())) for i in stay)
            types = ((exposure.type(i), i if i in special else -1) for i in stay)
            alike = frozenset(Counter(zip(kinds, types, strict=True)).items())
            if alike not in seen:
                seen.add(alike)
                yield stay


def _pool(
    policy: Policy, candidates: Sequence[Candidate] | Field, seed: int, share_bytes: int, away: Collection[NodeId]
) -> tuple[list[Candidate], bool]:
    """The nodes that could be chosen by their lots, and whether these are all that there are."""
    draw, whole = key(seed), not isinstance(candidates, Part)
    if isinstance(candidates, Field):
        whole, candidates = len(candidates) <= SAMPLE, candidates.sample(policy, draw, share_bytes, away, SAMPLE)
    return pool_of(policy, candidates, draw, share_bytes, away)[0], whole


def _assigned(
    policy: Policy,
    pool: Sequence[Candidate],
    kept: Sequence[Candidate],
    exposure: Exposure,
    wanted: Collection[int],
    refused: Pairs,
    budget: int,
) -> Assigned:
    best, exact, steps = Assigned({}, not wanted, True), True, 0
    for mode in modes(policy, pool, kept):
        some = [node for node in pool if mode.admits(node)]
        everyone = [*kept, *some]
        hard = binding(mode.limits, everyone, len(wanted) + len(kept))
        soft = binding(wishes(policy), everyone, len(wanted) + len(kept))
        tries: list[tuple[tuple[Limit, ...], int]] = [((*hard, *soft[:n]), SOFT_BUDGET) for n in range(len(soft), 0, -1)]
        for limits, most in [*tries, (hard, budget)]:
            found = assign(limits, kept, exposure, wanted, some, refused, most)
            steps += found.steps
            if found.complete:
                return found
            if len(found.nodes) > len(best.nodes):
                best = found
        exact = exact and found.exact
    return Assigned(best.nodes, best.complete, exact, steps)


def _waiting(copies: Copies, placed: dict[int, NodeId], *, proved: bool, **more: object) -> PolicyInfeasible:
    nodes = len({node.node_id for _, node in copies})
    reason = (
        f"old copies of this stripe's shares, which {nodes} nodes may still have, would come together with new ones under"
        " one coalition; waiting until they are deleted, or for another node"
    )
    return PolicyInfeasible(
        reason=reason, most=len(placed), placed=placed, remedy=Remedy(), proved=proved, old_copies=True, **more
    )

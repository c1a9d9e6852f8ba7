"""The selector: which nodes get the shares of a stripe. Pure: the same input and seed give the same answer.

Shares of a stripe are interchangeable, so a *set* of nodes is chosen, under the limits that the policy makes (limits.py).
Nodes are taken in the order of their lots as far as the limits allow; when that does not end well the least loaded
authorities come first; when that does not either, the exact search decides (search.py). Where one family binds, taking
whatever still fits is already exact (a partition matroid). What search.py could not decide within its budget is said as
such: "no placement was found".
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from hivefs.errors import HivefsError, PolicyInfeasible, TooFewNodes
from hivefs.model.ids import NodeId
from hivefs.model.node import UNKNOWN, Candidate
from hivefs.placement.attributes import eligible
from hivefs.placement.explain import explain
from hivefs.placement.field import SAMPLE, Field, Part
from hivefs.placement.limits import Limit, Load, Mode, binding, limits_of, modes, only_caps, over, wishes
from hivefs.placement.lots import key, lot
from hivefs.placement.policy import Policy
from hivefs.placement.search import solve
from hivefs.placement.settlement import Settlement

SMALL = 400
"""Up to so many nodes all of them draw; of more, a field gives samples."""


def choose(
    policy: Policy,
    candidates: Sequence[Candidate] | Field,
    seed: int,
    *,
    kept: Sequence[Candidate] = (),
    count: int | None = None,
    share_bytes: int = 0,
    avoid: Collection[NodeId] = (),
) -> list[NodeId]:
    """``count`` (default n - len(kept)) nodes for the shares that have none, beside the nodes in ``kept``.

    Raises TooFewNodes when there are not enough usable nodes at all, PolicyInfeasible with the binding constraint in
    words when there are but the rules forbid every set. Both have ``most``, for how many a set was found, and ``remedy``
    (explain.Remedy): what to add so that it becomes feasible.
    """
    wanted = policy.total - len(kept) if count is None else count
    if wanted <= 0:
        return []
    taken = {node.node_id for node in kept}.union(avoid)
    draw, there = key(seed), len(candidates)
    if isinstance(candidates, Field):
        if len(candidates) > SMALL:
            found = _from_field(policy, candidates, draw, kept, wanted, share_bytes, taken)
            if found is not None:
                return [c.node_id for c in found]
        whole, candidates = len(candidates) <= SAMPLE, candidates.sample(policy, draw, share_bytes, taken, SAMPLE)
    else:
        whole = not isinstance(candidates, Part)
    pool, refused = pool_of(policy, candidates, draw, share_bytes, taken)
    others = there > len(pool) + refused + len(kept)
    return [c.node_id for c in _choose(policy, pool, refused, kept, wanted, whole=whole, others=others)]


def settle(
    policy: Policy,
    holders: Sequence[Candidate | None],
    candidates: Sequence[Candidate] | Field,
    seed: int,
    *,
    share_bytes: int = 0,
    avoid: Collection[NodeId] = (),
) -> Settlement:
    """The fewest moves after which the policy holds. ``holders[i]`` holds share i (None: nobody does; give None for a node
    that is gone or leaves). A holder stays whether it is usable now or not, unless the policy refuses it.

    Raises TooFewNodes and PolicyInfeasible as choose() does, with what can be done now as ``partial``: a Settlement whose
    ``nodes`` are not all that are needed (missing shares first). A share that is to move and has no node there stays.
    """
    missing = tuple(i for i, holder in enumerate(holders) if holder is None)
    standing = standing_of(policy, holders)
    places = Places(policy, candidates, seed, share_bytes, {h.node_id for h in holders if h is not None}.union(avoid))
    try:
        keep, fewest, nodes = places.settle(standing)
    except (TooFewNodes, PolicyInfeasible) as error:
        keep, nodes = places.partly(standing)
        error.data["partial"] = settlement(holders, missing, keep, nodes, fewest=False)
        raise
    return settlement(holders, missing, keep, nodes, fewest=fewest)


def standing_of(policy: Policy, holders: Sequence[Candidate | None]) -> dict[int, Candidate]:
    """The holders that may stay, by share number: one share a node, and only nodes that the policy does not refuse."""
    standing: dict[int, Candidate] = {}
    seen: set[NodeId] = set()
    for i, holder in enumerate(holders):
        if holder is not None and holder.node_id not in seen and not eligible(policy, holder.authorities):
            standing[i] = holder
            seen.add(holder.node_id)
    return standing


def settlement(
    holders: Sequence[Candidate | None],
    missing: tuple[int, ...],
    keep: Sequence[int],
    nodes: Sequence[NodeId] | Mapping[int, NodeId],
    *,
    fewest: bool,
) -> Settlement:
    """``nodes`` by share number, or in order for the missing ones and then those that move."""
    move = tuple(i for i, holder in enumerate(holders) if holder is not None and i not in keep)
    if not isinstance(nodes, Mapping):
        nodes = dict(zip((*missing, *move), nodes, strict=False))
    return Settlement(tuple(keep), move, missing, nodes, fewest)


@dataclass(frozen=True, slots=True)
class Places:
    """Where shares that need another node could go."""

    policy: Policy
    candidates: Sequence[Candidate] | Field
    seed: int
    share_bytes: int
    away: Collection[NodeId]

    def fill(self, kept: Sequence[Candidate], count: int) -> list[NodeId]:
        """Nodes beside ``kept``; raises as choose() does."""
        return choose(
            self.policy,
            self.candidates,
            self.seed,
            kept=kept,
            count=count,
            share_bytes=self.share_bytes,
            avoid=self.away,
        )

    def settle(self, standing: Mapping[int, Candidate]) -> tuple[list[int], bool, list[NodeId]]:
        """Which holders stay, whether that is proved to be the most that can, and the nodes for all other shares."""
        numbers, nodes = list(standing), list(standing.values())
        for mode in modes(self.policy, nodes, ()):
            load = Load(mode.limits)
            for node in nodes:
                load.add(node)
            if load.holds() and all(map(mode.admits, nodes)):
                # What is there is good, and most often the rest can be added.
                with contextlib.suppress(TooFewNodes, PolicyInfeasible):
                    return numbers, True, self.fill(nodes, self.policy.total - len(nodes))
                break
        return self._searched(standing)

    def _searched(self, standing: Mapping[int, Candidate]) -> tuple[list[int], bool, list[NodeId]]:
        numbers, nodes, draw = list(standing), list(standing.values()), key(self.seed)
        proved, some = not isinstance(self.candidates, Part), self.candidates
        if isinstance(some, Field):
            proved = len(some) <= SAMPLE
            some = some.sample(self.policy, draw, self.share_bytes, self.away, SAMPLE)
        pool, refused = pool_of(self.policy, some, draw, self.share_bytes, self.away)
        best: tuple[list[int], list[NodeId]] | None = None
        for mode in modes(self.policy, [*pool, *nodes], ()):
            old = [i for i, node in enumerate(nodes) if mode.admits(node)]
            new = [node for node in pool if mode.admits(node)]
            found = solve(mode.limits, (), [nodes[i] for i in old], new, self.policy.total)
            proved = proved and found.exact
            if found.complete and (best is None or len(found.kept) > len(best[0])):
                best = [old[i] for i in found.kept], [new[i].node_id for i in found.new]
        if best is not None:
            kept = [nodes[i] for i in best[0]]
            try:
                filled = self.fill(kept, len(best[1]))  # as good, and the wishes are looked at
            except PolicyInfeasible:
                filled = best[1]
            return [numbers[i] for i in best[0]], proved, filled
        if not proved:  # keep what can be kept one by one
            keep, kept = self._one_by_one(standing)
            return keep, False, self.fill(kept, self.policy.total - len(keep))
        if len(pool) + len(nodes) < self.policy.total:
            others = len(self.candidates) > len(pool) + refused + len(nodes)
            raise _too_few(self.policy, pool, refused, nodes, self.policy.total - len(nodes), others)
        raise _infeasible(self.policy, [*pool, *nodes], (), self.policy.total, proved=True)

    def _one_by_one(self, standing: Mapping[int, Candidate]) -> tuple[list[int], list[Candidate]]:
        load = Load(next(modes(self.policy, list(standing.values()), ())).limits)
        keep = []
        for i, node in standing.items():
            if load.accepts(node):
                load.add(node)
                keep.append(i)
        return keep, [standing[i] for i in keep]

    def partly(self, standing: Mapping[int, Candidate]) -> tuple[list[int], list[NodeId]]:
        """What can be kept and filled at all when not everything can be."""
        keep, kept = self._one_by_one(standing)
        count = self.policy.total - len(keep)
        try:
            return keep, self.fill(kept, count)
        except (TooFewNodes, PolicyInfeasible) as error:
            most = min(count, int(error.data.get("most", 0)))
            with contextlib.suppress(TooFewNodes, PolicyInfeasible):
                return keep, self.fill(kept, most)
        return keep, []


# ---- choosing -------------------------------------------------------------------------------------------------------


def pool_of(
    policy: Policy, candidates: Iterable[Candidate], draw: bytes, share_bytes: int, taken: Collection[NodeId]
) -> tuple[list[Candidate], int]:
    """The nodes that could be chosen in the order of their lots, and how many the policy refuses."""
    usable = [c for c in candidates if c.usable and c.free_bytes >= share_bytes and c.node_id not in taken]
    picky = bool(policy.allow or policy.deny)
    pool = [c for c in usable if not eligible(policy, c.authorities)] if picky else usable
    return sorted(pool, key=lambda c: lot(draw, c), reverse=True), len(usable) - len(pool)


def _choose(
    policy: Policy,
    pool: list[Candidate],
    refused: int,
    kept: Sequence[Candidate],
    wanted: int,
    *,
    whole: bool,
    others: bool,
) -> list[Candidate]:
    if len(pool) < wanted:
        raise _too_few(policy, pool, refused, kept, wanted, others)
    proved = whole
    for mode in modes(policy, pool, kept):
        found, exact = _in_mode(policy, mode, [c for c in pool if mode.admits(c)], kept, wanted)
        if found is not None:
            return found
        proved = proved and exact
    raise _infeasible(policy, pool, kept, wanted, proved=proved)


def _in_mode(
    policy: Policy, mode: Mode, pool: list[Candidate], kept: Sequence[Candidate], wanted: int
) -> tuple[list[Candidate] | None, bool]:
    if len(pool) < wanted:
        return None, True
    everyone = [*kept, *pool]
    hard = binding(mode.limits, everyone, wanted + len(kept))
    soft = binding(wishes(policy), everyone, wanted + len(kept))
    for number in range(len(soft), 0, -1):
        found = _fit((*hard, *soft[:number]), kept, pool, wanted) or _searched((*hard, *soft[:number]), kept, pool, wanted)
        if found is not None:
            return found, True
    found = _fit(hard, kept, pool, wanted)
    if found is not None:
        return found, True
    answer = solve(hard, kept, (), pool, wanted)
    return ([pool[i] for i in answer.new], True) if answer.complete else (None, answer.exact)


def _searched(
    limits: Sequence[Limit], kept: Sequence[Candidate], pool: list[Candidate], wanted: int
) -> list[Candidate] | None:
    answer = solve(limits, kept, (), pool, wanted, budget=200)
    return [pool[i] for i in answer.new] if answer.complete else None


def _fit(
    limits: Sequence[Limit], kept: Sequence[Candidate], ordered: Sequence[Candidate], wanted: int
) -> list[Candidate] | None:
    """First by lots alone, then by the least loaded authority; None when neither comes to ``wanted``."""
    for levelled in (False, True):
        load = Load(limits)
        for node in kept:
            load.add(node)
        if not load.holds():
            return None
        chosen = _levelled(load, ordered, wanted) if levelled else _first(load, ordered, wanted)
        if len(chosen) == wanted:
            return chosen
        if len(load.limits) == 1 and not load.wide and all(len(o) <= 1 for o in load.authorities(ordered)):
            return None  # one partition: what does not fit so does not fit
    return None


def _first(load: Load, ordered: Iterable[Candidate], wanted: int) -> list[Candidate]:
    chosen: list[Candidate] = []
    for node in ordered:
        if load.accepts(node):
            load.add(node)
            chosen.append(node)
            if len(chosen) == wanted:
                break
    return chosen


def _levelled(load: Load, ordered: Sequence[Candidate], wanted: int) -> list[Candidate]:
    """Always a node of the least loaded authorities. Nodes under the same ones are looked at together."""
    kinds: dict[tuple[frozenset[str], ...], list[Candidate]] = {}
    for node in reversed(ordered):
        kinds.setdefault(load.kind(node), []).append(node)
    chosen: list[Candidate] = []
    while len(chosen) < wanted:
        fitting = [nodes for nodes in kinds.values() if load.accepts(nodes[-1])]
        if not fitting:
            break
        best = min(fitting, key=lambda nodes: load.weight(nodes[-1]))
        node = best.pop()
        if not best:
            del kinds[load.kind(node)]
        load.add(node)
        chosen.append(node)
    return chosen


def _from_field(
    policy: Policy,
    field: Field,
    draw: bytes,
    kept: Sequence[Candidate],
    wanted: int,
    share_bytes: int,
    taken: Collection[NodeId],
) -> list[Candidate] | None:
    """Nodes as the field draws them, as long as limits and wishes allow; None when too few of them fit."""
    silent = {family for family in only_caps(policy) if not field.states(family)}
    silent = {family for family in silent if all(UNKNOWN in over(node, family) for node in kept)}
    load = Load((*(limit for limit in limits_of(policy) if limit.family not in silent), *wishes(policy)))
    for node in kept:
        load.add(node)
    if not load.holds():
        return None
    chosen: list[Candidate] = []
    seen = set(taken)
    picky = bool(policy.allow or policy.deny)
    draws = field.draws(draw, 12 * wanted + 60)
    for node in draws:
        if node.node_id in seen or not node.usable or node.free_bytes < share_bytes:
            continue
        if not load.accepts(node) or (picky and eligible(policy, node.authorities)):
            if not load.accepts(node, "jurisdiction", "bloc") or (picky and eligible(policy, field.shared(node))):
                draws.close_class(node)
            continue
        seen.add(node.node_id)
        load.add(node)
        chosen.append(node)
        if len(chosen) == wanted:
            return chosen
    return None


# ---- when it cannot be ----------------------------------------------------------------------------------------------


def _too_few(
    policy: Policy, pool: Sequence[Candidate], refused: int, kept: Sequence[Candidate], wanted: int, others: bool
) -> HivefsError:
    """``others``: there are nodes that could not be taken into the pool, whatever the policy."""
    answer = explain(policy, pool, kept, wanted)
    words = []
    if refused:
        words.append(f"{refused} more {'are' if refused > 1 else 'is'} there that the policy refuses")
    if others:
        words.append("others are offline, full or hold a share already")
    if answer.advice:
        words.append(answer.advice)
    return TooFewNodes(
        total=policy.total,
        available=len(pool) + len(kept),
        reason="; ".join(words) or "no other is known",
        most=answer.most,
        remedy=answer.remedy,
    )


def _infeasible(
    policy: Policy, pool: Sequence[Candidate], kept: Sequence[Candidate], wanted: int, *, proved: bool
) -> HivefsError:
    answer = explain(policy, pool, kept, wanted)
    reason = answer.words if proved else "no placement was found (nor was it proved that there is none); " + answer.words
    return PolicyInfeasible(reason=reason, most=answer.most, remedy=answer.remedy, proved=proved)

"""The selector: which nodes get the shares of a stripe. Pure: the same input and seed give the same answer.

Shares of a stripe are interchangeable, so a *set* of nodes is chosen. A node is under a set of authorities (machine,
operator, parent), so the caps cross; this selector is greedy by the least loaded authority, then mends by swapping, and
asks the verifier's question (not its code) through plain counts. Later work puts exact methods behind the same call.

The bound per authority, for single authorities (c = a = 1), is u = min(k-1, n-k-s): with at most u shares under each,
G1 and G2 hold. For larger coalitions the bound applies to the sum of the c (or a) fullest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import log

import blake3

from hivefs.errors import PolicyInfeasible, TooFewNodes
from hivefs.model.ids import NodeId
from hivefs.model.node import UNKNOWN, Candidate


@dataclass(frozen=True, slots=True)
class Need:
    """The code and the rules of one family: k, n, c, a, s, and how many shares one operator may hold (0: no cap)."""

    needed: int
    total: int
    family: str = "jurisdiction"
    coalition: int = 1
    lose: int = 1
    slack: int = 0
    max_per_operator: int = 0


def _fits(need: Need, counts: Mapping[str, int], unknown: int) -> bool:
    """Whether the fullest coalitions stay below the bounds of G1 and G2, counting each share once per authority.

    A share under two members of a coalition is counted twice here, so this may refuse what the verifier would prove,
    never the other way round.
    """
    full = sorted(counts.values(), reverse=True)
    if need.coalition and unknown + sum(full[: need.coalition]) > need.needed - 1:
        return False
    return not need.lose or unknown + sum(full[: need.lose]) <= need.total - need.needed - need.slack


class _Load:
    def __init__(self, need: Need, kept: Sequence[Candidate]) -> None:
        self.need = need
        self.counts: dict[str, int] = {}
        self.operators: dict[str, int] = {}
        self.unknown = 0
        for node in kept:
            self.add(node, 1)

    def add(self, node: Candidate, sign: int) -> None:
        for name in node.authorities.get(self.need.family, frozenset({UNKNOWN})):
            if name == UNKNOWN:
                self.unknown += sign
            else:
                self.counts[name] = self.counts.get(name, 0) + sign
        for name in node.authorities.get("operator", frozenset()):
            self.operators[name] = self.operators.get(name, 0) + sign

    def accepts(self, node: Candidate) -> bool:
        self.add(node, 1)
        good = _fits(self.need, self.counts, self.unknown)
        if good and self.need.max_per_operator:
            mine = node.authorities.get("operator", frozenset())
            good = all(self.operators[o] <= self.need.max_per_operator for o in mine if o != UNKNOWN)
        self.add(node, -1)
        return good

    def weight(self, node: Candidate) -> tuple[int, int]:
        mine = node.authorities.get(self.need.family, frozenset())
        return (
            max((self.counts.get(name, 0) for name in mine), default=0),
            sum(self.operators.get(name, 0) for name in node.authorities.get("operator", frozenset())),
        )


def choose(
    need: Need,
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
    wanted = need.total - len(kept) if count is None else count
    taken = {node.node_id for node in kept} | set(avoid)
    pool = [c for c in candidates if c.usable and c.node_id not in taken and c.free_bytes >= share_bytes]
    if len(pool) < wanted:
        raise TooFewNodes(
            total=need.total, available=len(pool) + len(kept), reason="others are offline, full or hold a share already"
        )
    keyed = sorted(pool, key=lambda c: _lot(seed, c), reverse=True)
    load = _Load(need, kept)
    chosen: list[Candidate] = []
    rest = keyed
    while len(chosen) < wanted:
        best = min((c for c in rest if load.accepts(c)), key=load.weight, default=None)
        if best is None:
            if not _swap(load, chosen, rest):
                raise PolicyInfeasible(reason=_explain(need, load, pool))
            continue
        chosen.append(best)
        load.add(best, 1)
        rest = [c for c in rest if c is not best]
    return [c.node_id for c in chosen]


def _lot(seed: int, node: Candidate) -> float:
    """A draw weighted by free space (Efraimidis and Spirakis 2006, in logarithms), from a hash of seed and node."""
    digest = blake3.blake3(seed.to_bytes(16, "big", signed=True) + node.node_id).digest(length=8)
    uniform = (int.from_bytes(digest, "big") + 1) / (1 << 64)
    return log(uniform) / max(node.free_bytes, 1)


def _swap(load: _Load, chosen: list[Candidate], rest: list[Candidate]) -> bool:
    """Exchange one chosen node for two unchosen ones; True when the set grew."""
    for out in chosen:
        load.add(out, -1)
        for first in rest:
            if not load.accepts(first):
                continue
            load.add(first, 1)
            second = next((c for c in [*rest, out] if c is not first and load.accepts(c)), None)
            if second is not None:
                load.add(second, 1)
                chosen.remove(out)
                chosen += [first, second]
                rest.append(out)
                for node in (first, second):
                    rest.remove(node)
                return True
            load.add(first, -1)
        load.add(out, 1)
    return False


def _explain(need: Need, load: _Load, pool: Sequence[Candidate]) -> str:
    names = sorted({n for c in pool for n in c.authorities.get(need.family, frozenset()) if n != UNKNOWN})
    bound = min(need.needed - 1, need.total - need.needed - need.slack)
    unknown = sum(1 for c in pool if UNKNOWN in c.authorities.get(need.family, frozenset()))
    words = (
        f"at most {bound} of the {need.total} shares may lie under one {need.family}, "
        f"and the nodes with room are under {len(names)} ({', '.join(names[:8])})"
    )
    if unknown:
        words += f"; {unknown} nodes have an unknown {need.family}, which counts against every one"
    return words + f"; a node under another {need.family} is needed"

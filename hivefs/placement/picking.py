"""Nodes for the missing shares of one stripe, as many as can be: the whole question of the writer, as one call. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from hivefs.errors import HivefsError, PolicyInfeasible, TooFewNodes
from hivefs.model.ids import NodeId
from hivefs.model.node import Candidate
from hivefs.placement import copysets
from hivefs.placement.beside import place
from hivefs.placement.field import Field
from hivefs.placement.policy import Policy


@dataclass(frozen=True, slots=True)
class Missing:
    """``numbers`` are the shares without a node, ``kept`` the holders of others; ``copies`` are where shares may be beside
    them, ``refused`` the pairs that are not to be chosen; nodes in ``away`` get nothing. ``both`` are the two seeds of a
    stripe that shares its set of nodes with others (copysets.py), or None.
    """

    numbers: tuple[int, ...]
    kept: Mapping[int, Candidate]
    copies: Sequence[tuple[int, Candidate]]
    refused: Sequence[tuple[int, NodeId]]
    away: Collection[NodeId]
    share_bytes: int
    seed: int
    both: tuple[int, int] | None = None


def pick(policy: Policy, candidates: Sequence[Candidate] | Field, missing: Missing) -> dict[int, NodeId]:
    """A node for each of the missing shares; for fewer when the rules or the nodes do not allow all. Raises TooFewNodes or
    PolicyInfeasible, as place() does, when it is none.
    """
    seed, size, away = missing.seed, missing.share_bytes, missing.away
    if missing.both is not None:
        if not missing.kept and not missing.copies:
            with contextlib.suppress(TooFewNodes, PolicyInfeasible):  # fewer are looked for below
                chosen = copysets.choose_set(policy, candidates, missing.both, share_bytes=size, avoid=away)
                return dict(zip(missing.numbers, chosen, strict=False))
        kept = [c.node_id for c in missing.kept.values()]
        seed = copysets.seed_of(policy, candidates, missing.both, kept, share_bytes=size)
    problem: HivefsError | None = None
    wanted = list(missing.numbers)
    while wanted:
        try:
            return place(
                policy,
                candidates,
                seed,
                missing.kept,
                wanted,
                missing.copies,
                share_bytes=size,
                avoid=away,
                refused=missing.refused,
            )
        except (TooFewNodes, PolicyInfeasible) as error:
            problem = problem or error
            if missing.copies:
                if error.data["placed"]:
                    return dict(error.data["placed"])
                break
            wanted = wanted[: min(len(wanted) - 1, int(error.data["most"]))]
    if problem is None:
        raise AssertionError("nothing was missing")
    raise problem

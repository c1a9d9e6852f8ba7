"""Why a policy cannot be kept by the nodes there are, in words, and what would make it possible, as data. Pure.

The remedy is tried before it is told: the nodes that it asks for are added to those there are and the search must find
a placement; the words say all that matters of these nodes. What binds comes from the minimum cut of the flow where a
flow decided (search.py), and otherwise from leaving out the limits one at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hivefs.model.ids import NodeId
from hivefs.model.node import UNKNOWN, Candidate
from hivefs.placement.attributes import FAMILIES, eligible
from hivefs.placement.blocs import blocs_of
from hivefs.placement.conjunction import split
from hivefs.placement.effort import spend
from hivefs.placement.limits import Limit, limits_of, modes, only_caps, over
from hivefs.placement.policy import Policy
from hivefs.placement.search import Found, solve

BUDGET = 300
LONG = 100_000
"""What an explanation costs, in units of effort.py."""

ENOUGH = 600
"""Of more nodes the first ones are looked at: what helps them helps all."""


LISTED = 8
"""So many names are listed in words."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """``nodes``: the authorities of nodes whose addition makes it possible; () when none are enough. ``policy``: a weaker
    policy that the nodes there are can keep (None when none of the simple ones does), and in words how it is ``weaker``.
    """

    nodes: tuple[Mapping[str, frozenset[str]], ...] = ()
    policy: Policy | None = None
    weaker: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The binding constraint and the remedy in words, the remedy alone in words ("" when there is none), how many shares
    could be placed now at ``most``, the remedy.
    """

    words: str
    advice: str
    most: int
    remedy: Remedy


def explain(policy: Policy, pool: Sequence[Candidate], kept: Sequence[Candidate], wanted: int) -> Explanation:
    """For ``wanted`` nodes of ``pool`` beside ``kept``, when there is no such set."""
    spend(LONG)
    pool = pool[:ENOUGH]
    mode = next(modes(policy, pool, kept))
    most, found = max(
        (_most(m.limits, [c for c in pool if m.admits(c)], kept, wanted) for m in modes(policy, pool, kept)),
        key=lambda tried: tried[0],
    )
    nodes = _added(policy, pool, kept, wanted, wanted - most)
    weaker, said = _weaker(policy, pool, kept, wanted)
    binding = _binding(policy, mode.limits, pool, kept, wanted, found)
    words = []
    never = next((limit for limit in mode.limits if limit.most < limit.size), None)
    if never is not None:
        words.append(
            f"no nodes whatever make {policy.needed}/{policy.total} possible under this rule: already one share each would "
            f"put {never.size} shares under {never.size} of family {never.family}, and {max(0, never.most)} may be"
        )
    elif nodes:
        words.append(asked(policy, nodes, [*pool, *kept]))
    if said:
        words.append(f"or {said}" if words else said)
    return Explanation("; ".join([binding, *words]), "; ".join(words), most, Remedy(tuple(nodes), weaker, said))


def _most(limits: Sequence[Limit], pool: Sequence[Candidate], kept: Sequence[Candidate], wanted: int) -> tuple[int, Found]:
    """The most nodes for which a set is found, and what the search said of one more."""
    found = solve(limits, kept, (), pool, min(wanted, len(pool)), BUDGET)
    if found.complete:
        return min(wanted, len(pool)), found
    low, high = len(found.new), min(wanted, len(pool)) - 1
    if found.cut or low:
        return low, found
    while low < high:
        middle = (low + high + 1) // 2
        if solve(limits, kept, (), pool, middle, BUDGET).complete:
            low = middle
        else:
            high = middle - 1
    return low, found


def _added(
    policy: Policy, pool: Sequence[Candidate], kept: Sequence[Candidate], wanted: int, least: int
) -> list[Mapping[str, frozenset[str]]]:
    """The fewest new nodes, under as few new authorities as the limits let them share, that make it possible."""
    share = {family: policy.total for family in FAMILIES}
    for limit in limits_of(policy):
        share[limit.family] = min(share.get(limit.family, policy.total), limit.most // limit.size)
    if min(share.values()) < 1:
        return []
    there = (*pool, *kept)
    silent = silent_families(policy, there)
    tries = [
        (together, quiet) for together in (share, dict.fromkeys(share, 1)) for quiet in ((silent, []) if silent else ([],))
    ]
    for count in range(max(1, least), wanted + 1):
        for together, quiet in tries:
            new = [new_node(policy, there, {f: i // each for f, each in together.items()}, quiet) for i in range(count)]
            if any(eligible(policy, node) for node in new):
                continue
            more = [Candidate(NodeId(b"new " + i.to_bytes(28, "big")), node) for i, node in enumerate(new)]
            if _possible(policy, [*pool, *more], kept, wanted):
                return list(new)
    return []


def silent_families(policy: Policy, there: Sequence[Candidate]) -> list[str]:
    """Families in which no node states an authority and a cap says nothing for that reason."""
    return [f for f in sorted(only_caps(policy)) if there and all(UNKNOWN in over(node, f) for node in there)]


def new_node(
    policy: Policy, there: Sequence[Candidate], numbers: Mapping[str, int], quiet: Sequence[str]
) -> dict[str, frozenset[str]]:
    """A node under authorities that no node is under yet; where only some are allowed, under the least used of them."""
    made = {family: frozenset({f"new {family} {number + 1}"}) for family, number in numbers.items()}
    made |= {family: frozenset({UNKNOWN}) for family in quiet}
    for family, names in _allowed(policy).items():
        used = Counter(name for node in there for name in over(node, family))
        order = sorted(names, key=lambda name, used=used: (used[name], name))  # type: ignore[misc]
        made[family] = frozenset({order[numbers.get(family, 0) % len(order)]})
        if family == "jurisdiction":
            made["bloc"] = blocs_of(made[family])
    return made


def _allowed(policy: Policy) -> dict[str, frozenset[str]]:
    """What is allowed and not denied, of families of which only some authorities are."""
    denied = split(policy.deny)
    return {f: left for f, names in split(policy.allow).items() if (left := names - denied.get(f, frozenset()))}


def _weaker(policy: Policy, pool: Sequence[Candidate], kept: Sequence[Candidate], wanted: int) -> tuple[Policy | None, str]:
    """The first of some weaker policies that the nodes there are can keep."""
    tries: list[tuple[Policy, str]] = []
    for i, rule in enumerate(policy.rules):
        alone = sum(1 for other in policy.rules if other.lose) == 1
        without = "set no_hostage = false" if alone else f"leave the family {rule.family} out of no_hostage"
        for changed, said in (
            (replace(rule, slack=0), f"set slack = 0 in no_hostage of family {rule.family}"),
            (replace(rule, lose=0, slack=0), without),
        ):
            if rule.lose and changed != rule:
                tries.append((replace(policy, rules=(*policy.rules[:i], changed, *policy.rules[i + 1 :])), said))
    for family, cap in policy.max_per:
        others = tuple(entry for entry in policy.max_per if entry[0] != family)
        tries.append((replace(policy, max_per=others), f"give up the cap of {cap} on family {family} in max_per"))
    for weaker, said in tries:
        if _possible(weaker, pool, kept, wanted):
            return weaker, said
    return None, ""


def _possible(policy: Policy, pool: Sequence[Candidate], kept: Sequence[Candidate], wanted: int) -> bool:
    for mode in modes(policy, pool, kept):
        some = [node for node in pool if mode.admits(node)]
        if len(some) >= wanted and solve(mode.limits, kept, (), some, wanted, BUDGET).complete:
            return True
    return False


def _binding(
    policy: Policy,
    limits: Sequence[Limit],
    pool: Sequence[Candidate],
    kept: Sequence[Candidate],
    wanted: int,
    found: Found,
) -> str:
    if not limits:
        return f"{wanted} nodes are needed and {len(pool)} have room"
    alone = [
        limit
        for limit in limits
        if len(pool) >= wanted and solve([x for x in limits if x != limit], kept, (), pool, wanted, BUDGET).complete
    ]
    first = alone or [limit for limit in limits if limit.family in {f for f, _ in found.cut}] or list(limits)
    limit = min(first, key=lambda x: x.most // x.size)
    names = sorted({n for c in (*pool, *kept) for n in over(c, limit.family) if n != UNKNOWN})
    unknown = sum(1 for c in pool if UNKNOWN in over(c, limit.family))
    who = f"one {limit.family}" if limit.size == 1 else f"any {limit.size} of family {limit.family} together"
    listed = ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
    words = (
        f"at most {max(0, limit.most)} of the {policy.total} shares may lie under {who}, "
        f"and the nodes with room are under {len(names)}{f' ({listed})' if names else ''}"
    )
    if unknown:
        words += f"; {unknown} nodes have an unknown {limit.family}, which counts against every one"
    others = sorted({x.family for x in first if x.family != limit.family})
    if others and not alone:
        words += f"; together with the limits on family {' and '.join(others)} they leave too few"
    return words


def asked(policy: Policy, nodes: Sequence[Mapping[str, frozenset[str]]], there: Sequence[Candidate]) -> str:
    """What is asked for: "3 more nodes are needed, under 2 other jurisdictions, at most 2 under each". Only families are
    named of which the policy says something: under which others the nodes are does not matter.
    """
    allowed = _allowed(policy)
    said = {limit.family for limit in limits_of(policy)} | allowed.keys()
    shown, silent = [], []
    for family in ("jurisdiction", "bloc", "operator", "hoster", "asn", "subnet"):
        under = Counter(name for node in nodes for name in node.get(family, ())) if family in said else Counter[str]()
        if UNKNOWN in under:
            silent.append(family)
        elif under:
            used = {name for node in there for name in over(node, family)}
            # Countries are not alike when their blocs count.
            free = (
                allowed.get(family, frozenset()) - used if family != "jurisdiction" or "bloc" not in said else frozenset()
            )
            shown.append(_under(family, under, len(nodes), free))
    words = f"{len(nodes)} more nodes are needed" if len(nodes) > 1 else "1 more node is needed"
    if shown:
        words += f", under {shown[0]}" + (f" (and {', and '.join(shown[1:])})" if shown[1:] else "")
    if silent:
        words += f", of which no {' and no '.join(silent)} is stated, as of the others"
    return words


def _under(family: str, under: Counter[str], count: int, free: frozenset[str]) -> str:
    """Which authorities of a family ``count`` nodes are to be under; of ``free`` ones, each is as good as another."""
    many = f"{family}s" if len(under) > 1 else family
    each = f", at most {max(under.values())} under each" if 1 < len(under) < count else ""
    if all(name.startswith("new ") for name in under):
        return f"{len(under)} other {many}{each}"
    if under.keys() < free:
        listed = ", ".join(sorted(free)[:LISTED]) + (", ..." if len(free) > LISTED else "")
        return f"{len(under)} of the allowed {family}s under which none is yet ({listed}){each}"
    if len(under) == 1:
        return f"{family} {next(iter(under))}"
    return f"{many} {' and '.join(f'{name} ({number})' for name, number in sorted(under.items()))}"

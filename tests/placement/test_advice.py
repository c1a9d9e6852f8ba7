"""What an infeasible policy is answered with is right: who does what the sentence says, and no more, has a placement. The
sentence is read here as a user reads it; what it leaves open is done in the worst way.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivefs.errors import PolicyInfeasible, TooFewNodes
from hivefs.model.ids import NodeId
from hivefs.model.node import UNKNOWN, Candidate
from hivefs.placement.code import auto
from hivefs.placement.language import parse
from hivefs.placement.language_text import default_text
from hivefs.placement.policy import Policy
from hivefs.placement.selector import choose
from hivefs.placement.verifier import Rules
from tests.placement import brute

few = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
many = settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))

FAMILY = r"(jurisdiction|bloc|operator|hoster|asn|subnet)s?"
ASKED = re.compile(r"(\d+) more nodes? (?:is|are) needed([^;]*)")
EACH = r"(?:, at most (\d+) under each)?"
OTHERS = re.compile(rf"(\d+) other {FAMILY}{EACH}")
ALLOWED = re.compile(rf"(\d+) of the allowed {FAMILY} under which none is yet \(([^)]*)\){EACH}")
NAMED = re.compile(rf"{FAMILY} (\w+(?: \(\d+\))?(?: and \w+ \(\d+\))*)(?![\w)]* ?other)")


def spread(names: Sequence[str], count: int, each: str | None) -> list[str]:
    """A name for each of ``count`` nodes: every name at least once, and as many as may be under the first ones."""
    most = int(each) if each else count
    made: list[str] = []
    for i, name in enumerate(names):
        made += [name] * min(most, count - len(made) - (len(names) - i - 1))
    assert len(made) == count, (names, count, each)
    return made


def done(words: str, number: int = 1000) -> list[Candidate]:
    """The nodes that a sentence asks for."""
    found = ASKED.search(words)
    if found is None:
        return []
    count, rest = int(found[1]), found[2].rstrip(".")
    whatever = frozenset({"whatever"})
    nodes: list[dict[str, frozenset[str]]] = [
        dict.fromkeys(("jurisdiction", "operator", "asn"), whatever) for _ in range(count)
    ]
    if silent := re.search(r", of which no (.+) is stated, as of the others", rest):
        for family in silent[1].split(" and no "):
            for node in nodes:
                node[family] = frozenset({UNKNOWN})
        rest = rest.replace(silent[0], "")
    under: dict[str, list[str]] = {}
    for one in ALLOWED.finditer(rest):
        under[one[2]] = spread(one[3].split(", ")[-int(one[1]) :], count, one[4])
    rest = ALLOWED.sub("", rest)
    for one in OTHERS.finditer(rest):
        under[one[2]] = spread([f"other {i}" for i in range(int(one[1]))], count, one[3])
    rest = OTHERS.sub("", rest)
    for one in NAMED.finditer(rest):
        said = [re.fullmatch(r"(\w+)(?: \((\d+)\))?", part) for part in one[2].split(" and ")]
        under[one[1]] = [s[1] for s in said if s is not None for _ in range(int(s[2] or count))]
    assert under or not rest.replace(", under ", "").strip(" ()"), rest
    for family, names in under.items():
        assert len(names) == count, (words, family, names)
        for node, name in zip(nodes, names, strict=True):
            node[family] = frozenset({name})
    return [Candidate(NodeId((number + i).to_bytes(32, "big")), node, 1 << 40) for i, node in enumerate(nodes)]


def stated(policy: Policy) -> set[Rules]:
    return {replace(rule, slack=rule.slack if rule.lose else 0) for rule in policy.rules if rule.coalition or rule.lose}


def check(policy: Policy, nodes: list[Candidate], seed: int) -> str:
    """The kind of what was asked for, "" for nothing."""
    try:
        coded = policy.resolved(*auto(policy, nodes)) if policy.auto else policy
        choose(coded, nodes, seed)
        return ""
    except (TooFewNodes, PolicyInfeasible) as error:
        words, remedy = str(error), error.remedy
    assert "()" not in words and "lose = 0" not in words and "others are offline" not in words
    more = done(words)
    assert bool(more) == bool(remedy.nodes), words
    if more:
        there = [*nodes, *more]
        coded = policy.resolved(*auto(policy, there)) if policy.auto else policy
        assert len(choose(coded, there, seed)) == coded.total, words
    if remedy.policy is not None:
        said = words.rstrip(".").split("; ")[-1].removeprefix("or ")
        assert remedy.weaker in said
        allow = tuple(name for name in policy.allow if name not in policy.deny)  # in a text that is a contradiction
        policy, weaker = replace(policy, allow=allow), replace(remedy.policy, allow=allow)
        if said.endswith("set no_hostage = false"):
            text = re.sub(r"(?m)^no_hostage = .*$", "no_hostage = false", default_text(policy))
            assert stated(parse(text, policy).policies["default"]) == stated(weaker), text
        assert stated(parse(default_text(weaker), policy).policies["default"]) == stated(weaker), "it can be written"
        assert len(choose(weaker, nodes, seed)) == weaker.total
    return "nodes" if more else "policy" if remedy.policy is not None else "neither"


@st.composite
def demands(draw: st.DrawFn, *, families: int = 3) -> Policy:
    """With lists of who is allowed and denied, and without a code."""
    policy = draw(brute.policies(families=families, coalitions=2))
    if draw(st.booleans()):
        some = draw(st.sets(st.sampled_from([*brute.COUNTRIES, "NO", "SE"]), min_size=3))
        policy = replace(policy, allow=tuple(sorted(some)))
    if draw(st.booleans()):
        policy = replace(policy, deny=draw(st.sampled_from([("US",), ("NO",), ("NO", "US")])))
    if draw(st.integers(0, 3)) == 0:
        policy = replace(policy, needed=0, total=0, auto=True)
    return policy


crowds = st.one_of(brute.crossing(most=9), brute.tangled(most=9), st.just([]))


@few
@given(demands(), crowds, st.integers(0, 99))
def test_who_does_what_is_said_has_a_placement(policy: Policy, nodes: list[Candidate], seed: int) -> None:
    check(policy, nodes, seed)


@pytest.mark.slow
@many
@given(demands(), crowds, st.integers(0, 99))
def test_who_does_what_is_said_has_a_placement_at_length(policy: Policy, nodes: list[Candidate], seed: int) -> None:
    check(policy, nodes, seed)


def of(*countries: str) -> list[Candidate]:
    return [brute.node(i, jurisdiction=c, operator=f"op{i}") for i, c in enumerate(countries)]


def why(policy: Policy, nodes: Sequence[Candidate]) -> str:
    with pytest.raises((TooFewNodes, PolicyInfeasible)) as caught:
        choose(policy.resolved(*auto(policy, nodes)) if policy.auto else policy, nodes, 1)
    assert check(policy, list(nodes), 1) == "nodes"
    return str(caught.value)


def test_too_few_nodes_are_told_what_is_needed_and_not_that_one_more_would_do() -> None:
    words = why(Policy(6, 9), of(*("CH", "DE") * 4))
    assert words.startswith("The code needs 9 nodes that the policy accepts and only 8 are there: ")
    assert words.endswith("only 8 are there: 3 more nodes are needed, under 1 other jurisdiction.")
    words = why(Policy(6, 8), of(*("CH", "DE") * 4))
    assert (
        "; 4 more nodes are needed, under 2 other jurisdictions, at most 2 under each; or set no_hostage = false." in words
    )


def test_who_is_allowed_is_named_and_not_only_the_first() -> None:
    policy = Policy(4, 6, allow=("AT", "BE", "DE", "FR", "IT"), deny=("BE",))
    words = why(policy, of(*("DE", "FR") * 4))
    assert "under 1 of the allowed jurisdictions under which none is yet (AT, IT)" in words
    assert "others are offline" not in why(policy, of("DE", "FR", "US"))
    assert "1 more is there that the policy refuses" in why(policy, of("DE", "FR", "US"))


def test_others_are_offline_only_when_there_are_some() -> None:
    nodes = of("DE", "FR", "CH")
    away = replace(brute.node(9, jurisdiction="IS", operator="o"), usable=False)
    with pytest.raises(TooFewNodes, match="others are offline, full or hold a share already; 1 more node"):
        choose(Policy(3, 4, (Rules(),)), [*nodes, away], 1)
    assert "others" not in why(Policy(2, 4), nodes)


def test_an_automatic_code_says_what_to_add() -> None:
    words = why(Policy(0, 0, auto=True), of(*["DE"] * 4, *["FR"] * 3))
    assert "they are under 2 of family jurisdiction (DE, FR)" in words and "more nodes are needed, under" in words
    assert "more nodes are needed" in why(Policy(0, 0, auto=True), [])

"""The verdict on a policy against the definitions, from raw attributes; what the verifier may import."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.errors import PolicyInfeasible, TooFewNodes
from hivefs.model.ids import NodeId
from hivefs.model.node import UNKNOWN, Attribute, Candidate, Evidence
from hivefs.placement import verifier
from hivefs.placement.attributes import authorities, eligible
from hivefs.placement.blocs import BLOCS, blocs_of
from hivefs.placement.policy import Policy
from hivefs.placement.selector import choose
from hivefs.placement.verifier import Rules, verify
from tests.placement import brute

VALUES = {
    "country": ["DE", "de", "FR", "CH", "US", "UK", ""],
    "operator_country": ["DE", "FR", "US", ""],
    "parent": ["", "Holding", "red"],
    "parent_country": ["US", "JP", "XX", ""],
    "operator": ["red", "blue", "green", ""],
    "hoster": ["h1", "h2", ""],
    "asn": ["1", "2", "3", ""],
    "subnet": ["10.0.0.0/24", "10.0.1.0/24", ""],
}


@st.composite
def said(draw: st.DrawFn) -> tuple[Attribute, ...]:
    """What is known of a node, in any state: missing, empty, by any evidence."""
    names = draw(st.sets(st.sampled_from(sorted(VALUES))).map(lambda some: sorted(some | {"country", "operator_country"})))
    return tuple(
        Attribute(name, draw(st.sampled_from(VALUES[name])), draw(st.sampled_from(sorted(Evidence)))) for name in names
    )


@st.composite
def demands(draw: st.DrawFn) -> Policy:
    """Any policy."""
    families = draw(st.sets(st.sampled_from(["jurisdiction", "operator", "bloc", "asn"]), min_size=1, max_size=2))
    size = st.integers(0, 2)
    rules = tuple(Rules(f, draw(size), draw(size), draw(st.integers(0, 1))) for f in sorted(families))
    caps = draw(st.sets(st.sampled_from(["operator", "subnet", "hoster", "jurisdiction"]), max_size=2))
    needed = draw(st.integers(1, 4))
    return Policy(
        needed,
        needed + draw(st.integers(0, 3)),
        rules,
        tuple((family, draw(st.integers(1, 3))) for family in sorted(caps)),
        draw(st.sampled_from([Evidence.CLAIMED, Evidence.MEASURED])),
        tuple(sorted(draw(st.sets(st.sampled_from(["DE", "FR", "CH", "operator:red"]), max_size=3)))),
        tuple(sorted(draw(st.sets(st.sampled_from(["US", "JP", "asn:3"]), max_size=2)))),
    )


def naive_out(policy: Policy, over: dict[str, frozenset[str]]) -> bool:
    """Whether a node may hold nothing: one of its authorities is denied, or could be, or is not among those allowed."""

    def among(entry: str) -> tuple[str, str]:
        family, _, name = entry.rpartition(":")
        return family or "jurisdiction", name

    for family, name in map(among, policy.deny):
        if name in over[family] or UNKNOWN in over[family]:
            return True
    for family in {among(entry)[0] for entry in policy.allow}:
        allowed = {name for of, name in map(among, policy.allow) if of == family}
        if not over[family] <= allowed:
            return True
    return False


def naive_cap(policy: Policy, family: str, cap: int, over: list[dict[str, frozenset[str]]]) -> bool:
    """Whether a cap holds: UNKNOWN may be any authority, also one that nobody else is under."""
    sets = [o[family] for o in over]
    free = family in ("operator", "hoster", "asn", "subnet") and policy.evidence == Evidence.CLAIMED
    if free and all(UNKNOWN in s for s in sets) and not any(r.family == family for r in policy.rules):
        return True
    names = {n for s in sets for n in s if n != UNKNOWN} | {"nobody else"}
    return all(sum(1 for s in sets if name in s or UNKNOWN in s) <= cap for name in names)


def check_verdict(policy: Policy, holders: list[tuple[Attribute, ...] | None]) -> None:
    over = [authorities(h, policy.evidence) for h in holders if h is not None]
    sets = [[o[rule.family] for o in over] for rule in policy.rules]
    nodes = [
        [brute.node(i, **{r.family: s}) for i, s in enumerate(some)] for r, some in zip(policy.rules, sets, strict=True)
    ]
    verdict = verify(policy, policy.needed, holders)
    rules_hold = [
        brute.holds(Policy(policy.needed, policy.total, (rule,)), some)
        for rule, some in zip(policy.rules, nodes, strict=True)
    ]
    assert [proof.holds for proof in verdict.proofs] == rules_hold
    placed = [i for i, h in enumerate(holders) if h is not None]
    refused = {i for i, o in zip(placed, over, strict=True) if naive_out(policy, o)}
    assert refused == {i for i, o in zip(placed, over, strict=True) if eligible(policy, o)}
    assert refused <= set(verdict.out) <= set(placed)
    caps_hold = all(naive_cap(policy, family, cap, over) for family, cap in policy.max_per)
    assert verdict.holds == (all(rules_hold) and not refused and caps_hold)
    assert (verdict.words == "proved") == verdict.holds


whole = st.lists(st.one_of(st.none(), said(), said(), said()), min_size=1, max_size=7)


@settings(max_examples=150, deadline=None)
@given(demands(), whole)
def test_verdict_is_what_the_definitions_say(policy: Policy, holders: list[tuple[Attribute, ...] | None]) -> None:
    check_verdict(policy, holders)


@pytest.mark.slow
@settings(max_examples=8000, deadline=None)
@given(demands(), whole)
def test_verdict_at_length(policy: Policy, holders: list[tuple[Attribute, ...] | None]) -> None:
    check_verdict(policy, holders)


def check_selector(policy: Policy, nodes: list[tuple[Attribute, ...]], seed: int) -> bool:
    """What the selector gives, the verifier proves."""
    by_id = {NodeId(i.to_bytes(32, "big")): said for i, said in enumerate(nodes)}
    known = [Candidate(node_id, authorities(a, policy.evidence), 1 << 30) for node_id, a in by_id.items()]
    try:
        chosen = choose(policy, known, seed)
    except (PolicyInfeasible, TooFewNodes):
        return False
    verdict = verify(policy, policy.needed, [by_id[c] for c in chosen])
    assert verdict.holds, verdict.words
    return True


crowd = st.lists(said(), min_size=4, max_size=14)


@settings(max_examples=80, deadline=None)
@given(demands(), crowd, st.integers(0, 99))
def test_what_is_chosen_is_proved(policy: Policy, nodes: list[tuple[Attribute, ...]], seed: int) -> None:
    check_selector(policy, nodes, seed)


@pytest.mark.slow
@settings(max_examples=4000, deadline=None)
@given(demands(), crowd, st.integers(0, 99))
def test_what_is_chosen_is_proved_at_length(policy: Policy, nodes: list[tuple[Attribute, ...]], seed: int) -> None:
    check_selector(policy, nodes, seed)


def test_what_is_chosen_from_many_is_proved() -> None:
    """Not vacuous: a hive with all kinds of nodes, through a policy of each kind."""
    nodes = [
        (
            Attribute("country", c),
            Attribute("operator_country", "US" if i % 7 == 0 else c),
            Attribute("operator", f"op{i // 3}"),
            Attribute("asn", str(i % 11)),
            Attribute("subnet", f"10.0.{i}.0/24"),
        )
        for i, c in enumerate(["DE", "FR", "CH", "IS", "NL"] * 8)
    ]
    rules = Rules(), Rules("jurisdiction", 2, 1, 1), Rules("operator", 2, 2)
    for policy in (
        Policy(8, 14, rules[:1], (("operator", 1), ("subnet", 1))),
        Policy(8, 14, rules[1:2], (("asn", 2),)),
        Policy(8, 14, (rules[0], rules[2]), (("asn", 2), ("subnet", 1))),
        Policy(6, 10, deny=("US",), allow=("DE", "FR", "CH", "IS", "NL")),
    ):
        assert all(check_selector(policy, nodes, seed) for seed in range(20)), policy


def test_the_verifier_shares_no_code_with_the_selector() -> None:
    tree = ast.parse(Path(verifier.__file__).read_text())
    names = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    assert {name for name in names if name and name.startswith("hivefs")} == {
        *("hivefs.model.node", "hivefs.placement.blocs", "hivefs.placement.countries")  # the last two are tables
    }
    inner = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    outer = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    typing_only = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    assert len(inner) == len(outer) + sum(len(n.body) for n in typing_only), "no import hides in a function"


@pytest.mark.parametrize("code", ["UK", "uk", "XX", "EL", "EU", "D", "Germany", "ﬁ", " DE"])
@pytest.mark.parametrize("name", ["country", "operator_country", "parent_country"])
def test_a_country_that_is_none_counts_against_every_authority(name: str, code: str) -> None:
    """A certificate that a stripe was placed with, or the entry of a stranger, may say anything: under deny = ["GB"] a node
    in "UK" held shares, all proved.
    """
    good = {"country": "DE", "operator_country": "DE", "parent_country": "DE"}
    said = tuple(Attribute(n, v, Evidence.ATTESTED) for n, v in {**good, name: code}.items())
    others = [tuple(Attribute(n, c, Evidence.ATTESTED) for n in good) for c in ("FR", "CH", "IS")]
    over = authorities(said)
    assert over["jurisdiction"] == {"DE", UNKNOWN} and UNKNOWN in over["bloc"]
    for policy in (Policy(2, 4, (), deny=("GB",)), Policy(2, 4, (), allow=("DE", "FR", "CH", "IS"))):
        verdict = verify(policy, 2, [*others, said])
        assert list(verdict.out) == [3] and "known" in verdict.words and eligible(policy, over)
    proof = verify(Policy(2, 4, (Rules(),)), 2, [*others, said]).proofs[0]
    assert not proof.no_reassembly and proof.worst_shares == 2, "with each other one it can rebuild"
    assert not verify(Policy(3, 5, (Rules("bloc"),)), 2, [said, said]).holds


def test_reasons() -> None:
    german = (Attribute("country", "DE"), Attribute("operator_country", "DE"), Attribute("operator", "red"))
    owned = (Attribute("country", "DE"), Attribute("operator_country", "US"), Attribute("operator", "blue"))
    policy = Policy(1, 2, (), deny=("US",))
    verdict = verify(policy, 1, [german, owned, None])
    assert verdict.out == {1: "US is denied"} and "share 1: US is denied" in verdict.words
    verdict = verify(Policy(2, 3, (), (("operator", 1),)), 2, [german, german, owned])
    assert verdict.out == {1: "operator red would hold 2 shares and may hold 1"}
    assert eligible(policy, authorities(owned)) == "US is denied"
    assert eligible(Policy(1, 1, (), allow=("DE", "CH")), authorities(owned)) == "US is not allowed"
    assert "not known" in eligible(policy, authorities(german[:1]))
    assert not eligible(policy, authorities(german))


def test_blocs() -> None:
    assert blocs_of(frozenset({"DE"})) >= {"EU", "EEA"} and blocs_of(frozenset({"BR"})) == {"BR"}
    assert len(BLOCS["EU"]) == 27 and BLOCS["EEA"] - BLOCS["EU"] == {"IS", "LI", "NO"}
    assert all(len(c) == 2 and c.isupper() for members in BLOCS.values() for c in members)
    everywhere = authorities([Attribute("country", "DE"), Attribute("operator_country", "")])
    assert UNKNOWN in everywhere["bloc"] and "EU" in everywhere["bloc"]


def test_nobody_states_a_network() -> None:
    """The cap on subnets does not stop a small hive in which nobody states one; who states one makes it count."""
    quiet = [brute.node(i, jurisdiction=c) for i, c in enumerate(("DE", "FR", "CH", "IS"))]
    policy = Policy(2, 3, max_per=(("subnet", 1),))
    assert len(choose(policy, quiet, 1)) == 3
    one = brute.node(9, jurisdiction="US", subnet="10.0.0.0/24")
    chosen = choose(policy, [*quiet, one], 1)
    assert one.node_id not in chosen, "beside one that states it only one silent node may be"
    strict = Policy(2, 3, max_per=(("subnet", 1),), evidence=Evidence.MEASURED)
    with pytest.raises(PolicyInfeasible, match="unknown subnet"):
        choose(strict, quiet, 1)

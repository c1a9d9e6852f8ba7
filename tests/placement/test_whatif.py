"""What if: against naive enumeration of every set of nodes."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.errors import BadSetting
from hivefs.model.ids import NodeId
from hivefs.model.node import UNKNOWN
from hivefs.placement.whatif import (
    Authorities,
    chance_lost,
    independent,
    limits_in_words,
    named,
    simulate,
    under,
)

COUNTRIES = ("DE", "FR", "US", "CH", UNKNOWN)
Stripe = tuple[int, list[NodeId | None]]


def node(number: int) -> NodeId:
    return NodeId(bytes([number]) * 32)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[NodeId, Authorities], list[list[Stripe]]]:
    """A few nodes and files; some shares are nowhere, some nodes have two, some holders are given up."""
    nodes: dict[NodeId, Authorities] = {
        node(i): {"jurisdiction": frozenset(draw(st.sets(st.sampled_from(COUNTRIES), min_size=1, max_size=2)))}
        for i in range(draw(st.integers(1, 7)))
    }
    holder = st.none() | st.sampled_from([*nodes, node(99)])
    stripe = st.lists(holder, min_size=1, max_size=6).flatmap(lambda h: st.tuples(st.integers(1, len(h)), st.just(h)))
    files = draw(st.lists(st.lists(stripe, max_size=3), min_size=1, max_size=4))
    return nodes, files


@settings(max_examples=250, deadline=None)
@given(worlds(), st.sets(st.sampled_from(COUNTRIES[:4])), st.sets(st.sampled_from(COUNTRIES[:4])), st.integers(0, 4))
def test_against_all_sets_of_nodes(
    world: tuple[dict[NodeId, Authorities], list[list[Stripe]]], lose: set[str], seize: set[str], gone: int
) -> None:
    nodes, files = world
    outcome = simulate(files, nodes, named(sorted(lose), "x"), named(sorted(seize), "x"), gone)
    mighty = {n for n, over in nodes.items() if seize and over["jurisdiction"] & {*seize, UNKNOWN}}
    left = [n for n, over in nodes.items() if not (lose and over["jurisdiction"] & {*lose, UNKNOWN})]
    lost = endangered = whole = partly = 0
    chances = Fraction(0)
    single = all(len(stripes) <= 1 for stripes in files)
    for stripes in files:
        ways = [set(left) - set(taken) for taken in combinations(left, min(gone, len(left)))]
        remain = [[sum(h in there for h in holders) - needed for needed, holders in stripes] for there in ways]
        could = any(spare < 0 for way in remain for spare in way)
        lost += could
        endangered += not could and any(spare == 0 for way in remain for spare in way)
        chances += Fraction(sum(any(spare < 0 for spare in way) for way in remain), len(ways))
        had = [sum(h in mighty for h in holders) >= needed for needed, holders in stripes]
        whole += bool(had) and all(had)
        partly += any(had)
    assert (outcome.files, outcome.lost, outcome.readable) == (len(files), lost, len(files) - lost)
    assert (outcome.endangered, outcome.whole, outcome.partly) == (endangered, whole, partly)
    assert outcome.least_expected - 1e-9 <= float(chances) <= outcome.most_expected + 1e-9
    if single:
        assert outcome.most_expected == pytest.approx(float(chances))


def test_the_chance_is_the_hypergeometric_one() -> None:
    assert chance_lost((1, 1, 1), 2, 6, 2) == pytest.approx(3 / 15)
    assert chance_lost((2, 1), 2, 3, 1) == pytest.approx(1 / 3)
    assert chance_lost((1,) * 30, 16, 320_000, 0) == 0.0
    assert 0 < chance_lost((1,) * 30, 16, 1000, 500) < 1


def test_who_is_meant() -> None:
    assert named(["DE", "us"], "--lose") == {"jurisdiction": frozenset({"DE", "US"})}
    found = named(["EU", "operator:acme", "mine"], "--lose", {"mine": frozenset({"CH"})})
    assert "FR" in found["jurisdiction"] and "CH" in found["jurisdiction"] and found["operator"] == {"acme"}
    for word in ("XX", "", "owner:me", "operator:"):
        with pytest.raises(BadSetting, match="--lose"):
            named([word], "--lose")
    for word, meant in (("UK", "GB"), ("uk", "GB"), ("EL", "GR")):
        with pytest.raises(BadSetting, match=f"--seize.*'{word}' is not a country .*say {meant}"):
            named([word], "--seize")
    assert named(["asn:AS7", "subnet:192.0.2.0/24"], "--lose") == {"asn": {"7"}, "subnet": {"192.0.2.0/24"}}
    for word in ("asn:abc", "asn:", "asn:4294967296", "subnet:10.0.0.0/33", "subnet:hello", "subnet:10.0.0.0/8"):
        with pytest.raises(BadSetting, match=f"--lose.*'{word}' is no (network|subnet)"):
            named([word], "--lose")
    acme: Authorities = {"jurisdiction": frozenset({"DE"}), "operator": frozenset({UNKNOWN})}
    assert under({"operator": frozenset({"acme"})}, acme) and not under({"jurisdiction": frozenset({"FR"})}, acme)
    assert under({"hoster": frozenset({"h"})}, acme) and not under({}, acme)


def test_independent_nodes_share_no_authority() -> None:
    sets = [frozenset({"DE"}), frozenset({"DE", "US"}), frozenset({"FR"}), frozenset({UNKNOWN}), frozenset({"CH", "US"})]
    assert independent(sets) == 3 and independent([]) == 0 and independent([frozenset({UNKNOWN, "DE"})]) == 0


@pytest.mark.parametrize(
    ("jurisdictions", "coalition", "lose", "words"),
    [
        (2, 1, 1, "2 jurisdictions: withholding cannot be prevented where rebuilding is"),
        (1, 1, 1, "1 jurisdiction: neither rebuilding nor withholding can be prevented"),
        (1, 0, 1, "1 jurisdiction: withholding cannot be prevented"),
        (1, 1, 0, "1 jurisdiction: rebuilding cannot be prevented"),
        (3, 1, 1, ""),
        (1, 0, 0, ""),
    ],
)
def test_the_honest_words(jurisdictions: int, coalition: int, lose: int, words: str) -> None:
    assert limits_in_words(jurisdictions, coalition, lose) == words

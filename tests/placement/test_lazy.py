"""The threshold of lazy repair follows from the formulas, and small codes do not wait."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.model.ids import NodeId, ShareId, StripeId
from hivefs.model.node import Attribute
from hivefs.model.stripe import Level, Purpose, Share, Stripe
from hivefs.placement import durability
from hivefs.placement.health import Health, NodeState, NodeView, judge
from hivefs.placement.lazy import LAG_DAYS, LOSSES_A_YEAR, MONTHLY, SMALL, repair_at, threshold, waits, words
from hivefs.placement.policy import AT_ONCE, Policy
from hivefs.placement.verifier import Rules, verify

RATE = durability.daily_rate(MONTHLY)
COUNTRIES = ("AT", "BE", "CH", "DE", "ES", "FI", "GB", "HU")


def test_the_codes_of_the_design() -> None:
    assert {code: repair_at(*code) for code in ((2, 3), (3, 5), (4, 6), (4, 8), (5, 9), (8, 14))} == {
        (2, 3): 0, (3, 5): 0, (4, 6): 0, (4, 8): 0, (5, 9): 0, (8, 14): 0,
    }  # fmt: skip
    assert (repair_at(16, 30), repair_at(16, 40), repair_at(29, 80)) == (24, 24, 38)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 50))
def test_a_threshold_is_safe_and_the_next_lower_one_is_not(needed: int, parity: int) -> None:
    total = needed + parity
    at = repair_at(needed, total)
    if not at:
        if parity > 2 and total >= SMALL:
            assert durability.losses(needed, total, total - 2, LAG_DAYS, RATE) > LOSSES_A_YEAR
        return
    assert needed < at < total
    assert durability.losses(needed, total, at, LAG_DAYS, RATE) <= LOSSES_A_YEAR
    assert at == needed + 1 or durability.losses(needed, total, at - 1, LAG_DAYS, RATE) > LOSSES_A_YEAR


def test_hives_of_some_ten_nodes_repair_at_once() -> None:
    for total in range(2, SMALL):
        for needed in range(1, total):
            assert threshold(Policy(needed, total), Purpose.DATA) == AT_ONCE


def test_the_threshold_is_that_of_the_policy_or_by_the_code() -> None:
    assert threshold(Policy(16, 30), Purpose.DATA) == 24 and threshold(Policy(16, 30), Purpose.METADATA) == AT_ONCE
    assert threshold(Policy(16, 30, repair_at=20), Purpose.METADATA) == 20
    assert threshold(Policy(16, 30, repair_at=AT_ONCE), Purpose.DATA) == AT_ONCE
    assert threshold(Policy(4, 8, repair_at=6), Purpose.DATA) == 6
    for at in (6, 16, 30):  # the number is of another code that the policy has now: 16/30 would be lost before 6 are left
        assert threshold(Policy(16, 30, repair_at=at), Purpose.DATA) == 24
    assert "when 24 of 30 shares are left (a stripe is lost 4e-10 times a year" in words(Policy(16, 30))
    assert words(Policy(4, 6)) == "with the first missing share (with this code it is not safe enough to wait)"
    assert words(Policy(4, 8, repair_at=6)) == "when 6 of 8 shares are left (as the policy says)"
    assert words(Policy(16, 30, repair_at=AT_ONCE)) == "with the first missing share (as the policy says)"


@st.composite
def damaged(draw: st.DrawFn) -> tuple[Policy, Stripe, dict[NodeId, NodeView]]:
    """A stripe over some countries of which nodes are given up, away, untrusted, or hold two shares."""
    needed, total = draw(st.sampled_from([(16, 30), (10, 20), (4, 8)]))
    rule = Rules("jurisdiction", draw(st.integers(0, 1)), draw(st.integers(0, 1)), draw(st.integers(0, 2)))
    at = draw(st.sampled_from([0, AT_ONCE, needed + 1, total - 2]))
    policy = Policy(needed, total, (rule,), repair_at=at)
    countries = draw(st.integers(3, 8))
    views, shares = {}, []
    lost = draw(st.integers(0, total - needed))
    for i in range(total):
        node_id = NodeId(bytes([i + 1]) * 32)
        said = tuple(Attribute(name, COUNTRIES[i % countries]) for name in ("country", "operator_country"))
        views[node_id] = NodeView(NodeState.GONE if i < lost else NodeState.ONLINE, said)
        shares.append(Share(ShareId(bytes([i]) * 32), bytes(32), node_id))
    fault = draw(st.sampled_from(["", "", "untrusted", "double"]))
    if fault == "double" and total - lost > 1:
        shares[-1] = Share(shares[-1].share_id, bytes(32), shares[-2].node)
    elif fault == "untrusted":
        last = NodeId(bytes([total]) * 32)
        views[last] = NodeView(views[last].state, views[last].attributes, trusted=False)
    purpose = draw(st.sampled_from(Purpose))
    return policy, Stripe(StripeId(b"s" * 16), purpose, needed, 100, tuple(shares)), views


@settings(max_examples=400, deadline=None)
@given(damaged())
def test_what_waits_is_guaranteed_and_still_is_after_the_next_loss(
    world: tuple[Policy, Stripe, dict[NodeId, NodeView]],
) -> None:
    policy, stripe, views = world
    health = judge(stripe, policy, views.get)
    if health.counted < stripe.total:
        assert health.waits == (health.level == Level.GUARANTEED)
    if not health.waits:
        return
    assert threshold(policy, stripe.purpose) < health.counted < stripe.total
    there = [share.node for share in stripe.shares if share.node and views[share.node].state != NodeState.GONE]
    assert len(set(there)) == len(there) and all(views[node].trusted for node in there)
    for gone in there:  # as verify() proves it, without the next one
        said = [views[node].attributes for node in there if node != gone]
        assert verify(policy, stripe.needed, said).holds


def test_the_property_above_sees_stripes_that_wait() -> None:
    def health(lost: int, slack: int = 0, countries: int = 5, **more: int) -> Health:
        policy = Policy(16, 30, (Rules(slack=slack),), **more)
        views, shares = {}, []
        for i in range(30):
            node_id = NodeId(bytes([i + 1]) * 32)
            said = tuple(Attribute(n, COUNTRIES[i % countries]) for n in ("country", "operator_country"))
            views[node_id] = NodeView(NodeState.GONE if i < lost else NodeState.ONLINE, said)
            shares.append(Share(ShareId(bytes([i]) * 32), bytes(32), node_id))
        return judge(Stripe(StripeId(b"s" * 16), Purpose.DATA, 16, 100, tuple(shares)), policy, views.get)

    assert [health(lost).waits for lost in (0, 1, 5, 6)] == [False, True, True, False]
    assert health(5).level == Level.GUARANTEED and health(6).level == Level.REMOTE
    assert not health(1, repair_at=AT_ONCE).waits
    # 25 are left, 5 or 6 in each country: 19 or 20 without one of them. With slack 3, 19 must remain: the next loss counts.
    margins = [health(5, slack).waits for slack in range(6)]
    assert margins[0] and not margins[5] and margins == sorted(margins, reverse=True)
    assert health(5, 3).verdict.holds != health(5, 5).verdict.holds
    assert not waits(Policy(16, 30), Purpose.DATA, 29, verify(Policy(16, 30), 16, [()] * 29)), "unknown nodes prove nothing"

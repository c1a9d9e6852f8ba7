"""What is known of a node: who may say what, what is contradicted, what the addresses say."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.model.attestation import Attestation, Said
from hivefs.model.node import UNKNOWN, Attribute, Evidence, Invitation, Membership, Role
from hivefs.placement.attributes import authorities
from hivefs.placement.evidence import Address, Origin, known, public_addresses, subnet, weigh
from hivefs.placement.policy import Policy
from hivefs.placement.verifier import verify

HIVE, NODE, OTHER, NOTARY, STRANGER = (bytes([i]) * 32 for i in (1, 2, 3, 4, 5))
DAY = 86_400 * 10**9
NOW = 1_800_000_000 * 10**9
CLAIMED, REGISTRY, MEASURED, ATTESTED = Evidence.CLAIMED, Evidence.REGISTRY, Evidence.MEASURED, Evidence.ATTESTED


def member(*attributes: Attribute, fixed: tuple[Attribute, ...] | None = None) -> Membership:
    invitation = None if fixed is None else Invitation(HIVE, b"i" * 32, Role.NODE, fixed)
    return Membership(HIVE, NODE, Role.NODE, (*(fixed or ()), *attributes), invitation=invitation)


def says(attester: bytes = NOTARY, subject: bytes = NODE, issued: int = NOW, expires: int = 0, **said: str) -> Attestation:
    return Attestation(attester, subject, tuple(sorted(said.items())), issued, expires)


class Fake:
    """A table by address."""

    def __init__(self, **origins: Origin) -> None:
        self.origins = {ipaddress.ip_address(name.replace("_", ".")[1:]): origin for name, origin in origins.items()}

    def find(self, address: Address) -> Origin | None:
        return self.origins.get(address)


DE = member(Attribute("country", "DE"))
GERMAN = Fake(a8_8_8_8=Origin("DE", "24940", "Hetzner"), a9_9_9_9=Origin("US", "16509", "Amazon"))
AT_8, AT_9 = "/ip4/8.8.8.8/tcp/4001", "/ip4/9.9.9.9/tcp/4001"


def of(name: str, attributes: tuple[Attribute, ...]) -> tuple[str, Evidence] | None:
    found = [(a.value, a.evidence) for a in attributes if a.name == name]
    assert len(found) <= 1
    return found[0] if found else None


# ---- whose word counts for what -----------------------------------------------------------------------------------


@pytest.mark.parametrize("by_invitation", [False, True])
def test_what_the_owner_says_is_claimed_until_the_user_trusts_the_hives_key(by_invitation: bool) -> None:
    said = Attribute("country", "DE", ATTESTED)
    made = member(fixed=(said,)) if by_invitation else member(said)
    assert of("country", known(made)) == ("DE", CLAIMED)
    assert of("country", known(made, trusted={HIVE})) == ("DE", ATTESTED)


def test_what_the_owner_itself_calls_a_claim_stays_one_although_it_is_trusted() -> None:
    assert of("country", known(DE, trusted={HIVE})) == ("DE", CLAIMED)


def test_what_the_node_adds_to_an_invitation_is_claimed_whatever_it_writes() -> None:
    made = member(Attribute("hoster", "Rack", ATTESTED), fixed=(Attribute("country", "DE", ATTESTED),))
    assert of("hoster", known(made, trusted={HIVE})) == ("Rack", CLAIMED)
    assert of("country", known(made, trusted={HIVE})) == ("DE", ATTESTED)


def test_a_trusted_attester_makes_a_claim_attested_and_a_stranger_nothing() -> None:
    assert of("country", known(DE, [says(country="de")], {NOTARY}, now_ns=NOW)) == ("DE", ATTESTED)
    assert known(DE, [says(STRANGER, country="FR", operator="x")], {NOTARY}, now_ns=NOW) == known(DE)


def test_an_attestation_for_another_node_or_by_the_node_itself_counts_for_nothing() -> None:
    assert known(DE, [says(subject=OTHER, country="DE")], {NOTARY}, now_ns=NOW) == known(DE)
    assert known(DE, [says(NODE, country="DE")], {NODE}, now_ns=NOW) == known(DE), "also when the user trusts that key"


@pytest.mark.parametrize(
    ("issued", "expires", "counts"),
    [
        (NOW, 0, True),
        (NOW + DAY - 1, 0, True),  # our clock is a day behind
        (NOW + 2 * DAY, 0, False),
        (NOW - 9 * DAY, NOW - DAY + 1, True),  # or a day ahead
        (NOW - 9 * DAY, NOW - DAY, False),
    ],
)
def test_an_attestation_counts_in_its_time_and_a_day_of_skew_is_forgiven(issued: int, expires: int, counts: bool) -> None:
    found = of("country", known(DE, [says(issued=issued, expires=expires, country="DE")], {NOTARY}, now_ns=NOW))
    assert found == ("DE", ATTESTED if counts else CLAIMED)


def test_the_newest_of_an_attester_counts_also_when_it_takes_something_back() -> None:
    old, new = says(country="DE", operator="A", issued=NOW - DAY), says(operator="A", issued=NOW)
    for order in ([old, new], [new, old]):
        assert of("country", known(DE, order, {NOTARY}, now_ns=NOW)) == ("DE", CLAIMED)
    ended = says(country="FR", issued=NOW - 3 * DAY, expires=NOW - 2 * DAY)
    before = says(country="DE", issued=NOW - 9 * DAY)
    assert of("country", known(DE, [ended, before], {NOTARY}, now_ns=NOW)) == ("DE", CLAIMED), "the old one does not return"


def test_a_node_replaces_its_own_claims_but_not_the_owners_word() -> None:
    made = member(Attribute("hoster", "Rack"), fixed=(Attribute("country", "DE", ATTESTED),))
    assert of("hoster", known(made, claims=(("hoster", "Cloud"),))) == ("Cloud", CLAIMED)
    assert of("hoster", known(made, claims=(("hoster", ""),))) is None
    weighed = weigh(made, claims=(("country", "FR"), ("parent", "X"), ("parent_country", "us")))
    assert of("country", weighed.attributes) == ("", CLAIMED) and "the node says FR" in weighed.problems[0]
    assert authorities(weighed.attributes)["jurisdiction"] == {UNKNOWN, "US"}, "a new parent is heard at once"
    assert of("country", known(made, claims=(("country", ""),))) == ("DE", CLAIMED)


# ---- contradictions ---------------------------------------------------------------------------------------------------


def test_two_trusted_attesters_that_disagree_make_it_unknown_and_an_owner_who_lies_too() -> None:
    both = [says(country="DE"), says(OTHER, country="FR")]
    weighed = weigh(member(), both, {NOTARY, OTHER}, now_ns=NOW)
    assert of("country", weighed.attributes) == ("", ATTESTED) and "contradicted" in weighed.problems[0]
    liar = weigh(member(Attribute("country", "CH", ATTESTED)), [says(country="US")], {NOTARY}, now_ns=NOW)
    assert of("country", liar.attributes) == ("", ATTESTED)
    assert UNKNOWN in authorities(liar.attributes)["jurisdiction"]


def test_the_users_table_confirms_fills_in_and_contradicts() -> None:
    assert of("country", known(DE, registry=GERMAN, addresses=[AT_8])) == ("DE", REGISTRY)
    assert of("asn", known(DE, registry=GERMAN, addresses=[AT_8])) == ("24940", REGISTRY)
    weighed = weigh(DE, registry=GERMAN, addresses=[AT_9])
    assert of("country", weighed.attributes) == ("", REGISTRY) and "the table says US" in weighed.problems[0]
    two = weigh(DE, registry=GERMAN, addresses=[AT_8, AT_9])
    assert of("country", two.attributes) == ("", REGISTRY) and "lie in DE and US" in two.problems[0]
    assert of("country", known(DE, registry=GERMAN, addresses=["/ip4/127.0.0.1/tcp/1"])) == ("DE", CLAIMED)
    claim = member(Attribute("asn", "AS24940"), Attribute("hoster", "HETZNER"))
    assert of("asn", known(claim, registry=GERMAN, addresses=[AT_8])) == ("24940", REGISTRY), "as a rule names it"
    assert of("hoster", known(claim, registry=GERMAN, addresses=[AT_8])) == ("HETZNER", REGISTRY)


def test_what_is_attested_stands_against_the_table_and_it_is_said() -> None:
    weighed = weigh(DE, [says(country="DE")], {NOTARY}, registry=GERMAN, addresses=[AT_9], now_ns=NOW)
    assert of("country", weighed.attributes) == ("DE", ATTESTED)
    assert any("the table says country US" in problem for problem in weighed.problems)


def test_what_is_refuted_is_unknown_whoever_said_it() -> None:
    weighed = weigh(DE, [says(country="DE")], {NOTARY}, {"country": "too near"}, now_ns=NOW)
    assert of("country", weighed.attributes) == ("", MEASURED)
    assert weighed.problems == ("country DE is refuted: too near",)
    assert UNKNOWN in authorities(weighed.attributes)["jurisdiction"]
    assert known(member(), refuted={"country": "too near"}) == ()


SAYINGS = (
    st.lists(
        st.tuples(st.sampled_from(["country", "parent_country", "asn"]), st.sampled_from(["DE", "FR", ""])), max_size=4
    ),
    st.sampled_from(list(Evidence)),
    st.lists(
        st.tuples(
            st.sampled_from([NOTARY, OTHER, STRANGER, NODE]), st.sampled_from([NODE, OTHER]), st.sampled_from(["DE", "FR"])
        ),
        max_size=4,
    ),
    st.sets(st.sampled_from([NOTARY, OTHER, HIVE, NODE])),
)


@settings(max_examples=300, deadline=None)
@given(*SAYINGS)
def test_nothing_is_attested_but_by_who_is_trusted_and_strangers_change_nothing(
    said: list[tuple[str, str]], written: Evidence, words: list[tuple[bytes, bytes, str]], trusted: set[bytes]
) -> None:
    made = member(*(Attribute(n, v, written) for n, v in dict(said).items()))
    attestations = [says(by, about, country=value) for by, about, value in words]
    found = known(made, attestations, trusted, now_ns=NOW)
    good = [a for a in attestations if a.attester in trusted - {NODE} and a.subject == NODE]
    assert found == known(made, good, trusted, now_ns=NOW)
    for attribute in found:
        if attribute.evidence > CLAIMED and attribute.value:
            vouched = attribute.name == "country" and any(a.said == (("country", attribute.value),) for a in good)
            owner = HIVE in trusted and written == attribute.evidence and (attribute.name, attribute.value) in said
            assert vouched or owner
    names = {a.name for a in found}
    assert names == {name for name, _ in said} | ({"country"} if good else set())


@pytest.mark.slow
def test_the_same_with_many_examples() -> None:
    body = test_nothing_is_attested_but_by_who_is_trusted_and_strangers_change_nothing.hypothesis.inner_test
    settings(max_examples=20_000, deadline=None)(given(*SAYINGS)(body))()


# ---- addresses --------------------------------------------------------------------------------------------------------


def test_subnets_come_from_public_addresses_and_from_nobodys_word() -> None:
    told = [AT_8, "/ip4/8.8.8.9/tcp/1", "/ip6/2606:4700::1/tcp/1", "/dns4/example.org/tcp/1", "/hivefs-leaving/7"]
    found = [a for a in known(member(Attribute("subnet", "lie")), addresses=told) if a.name == "subnet"]
    assert [(a.value, a.evidence) for a in found] == [("8.8.8.0/24", MEASURED), ("2606:4700::/48", MEASURED)]


@pytest.mark.parametrize("text", ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.1.1", "100.64.0.1", "224.0.0.1"])
def test_private_addresses_give_no_subnet(text: str) -> None:
    assert public_addresses([f"/ip4/{text}/tcp/1", "/ip6/::1/tcp/1", "/ip6/fe80::1/tcp/1", "/ip4/nonsense/tcp/1"]) == []
    assert known(DE, addresses=[f"/ip4/{text}/tcp/1"]) == known(DE)


def test_an_address_of_version_4_in_one_of_version_6_is_that_address() -> None:
    (address,) = public_addresses(["/ip6/::ffff:8.8.8.8/tcp/1", AT_8])
    assert subnet(address) == "8.8.8.0/24"


def test_an_empty_word_is_unknown_and_does_not_contradict() -> None:
    empty: Said = (("country", "DE"),)
    made = member(Attribute("country", ""), Attribute("parent", ""))
    assert known(made) == (Attribute("country", ""), Attribute("parent", ""))
    assert of("country", known(made, [replace(says(), said=empty)], {NOTARY}, now_ns=NOW)) == ("DE", ATTESTED)


def test_a_node_at_addresses_in_two_subnets_is_under_both_for_the_selector_and_for_the_verifier() -> None:
    both, one = known(DE, addresses=[AT_8, AT_9]), known(DE, addresses=[AT_8])
    assert authorities(both)["subnet"] == {"8.8.8.0/24", "9.9.9.0/24"}
    policy = Policy(1, 2, (), (("subnet", 1),))
    assert not verify(policy, 1, [both, one]).holds and not verify(policy, 1, [one, both]).holds
    assert verify(policy, 1, [known(DE, addresses=[AT_9]), one]).holds


@pytest.mark.parametrize("said", ["ß" * 256, "Germany", "D", "1", "\x1b[2J", "DE\nINFO all is well", "UK", "xx", "EU"])
def test_a_country_that_is_no_code_is_unknown(said: str) -> None:
    assert of("country", known(member(Attribute("country", said)))) == ("", CLAIMED)
    assert UNKNOWN in authorities(known(member(Attribute("country", said))))["jurisdiction"]


def test_a_country_that_is_none_is_unknown_whoever_says_it_and_contradicts_what_others_say() -> None:
    """No rule can name UK: under deny = ["GB"] it would be allowed, and proved."""
    weighed = weigh(member(Attribute("country", "UK", ATTESTED)), (), {HIVE})
    assert of("country", weighed.attributes) == ("", ATTESTED)
    assert weighed.problems == ("country UK is no country (ISO 3166-1)",)
    assert of("parent_country", known(member(Attribute("parent_country", "EL")))) == ("", CLAIMED)
    assert of("country", known(member(), [says(country="UK")], {NOTARY}, now_ns=NOW)) == ("", ATTESTED)
    assert of("country", known(DE, [says(country="UK")], {NOTARY}, now_ns=NOW)) == ("", ATTESTED), "not what the node says"
    table = Fake(_8_8_8_8=Origin("EU", "1", "x"))
    assert of("country", known(member(), registry=table, addresses=[AT_8])) == ("", REGISTRY)
    assert of("country", known(DE, registry=table, addresses=[AT_8])) == ("", REGISTRY)


@pytest.mark.parametrize(
    ("said", "found"), [("AS64500", "64500"), ("as064500", "64500"), ("abc", ""), ("4294967296", ""), ("0", "")]
)
def test_the_number_of_a_network_is_known_as_rules_name_it(said: str, found: str) -> None:
    """Under deny = ["asn:64500"] a node in "AS64500" was allowed."""
    assert of("asn", known(member(Attribute("asn", said)))) == (found, CLAIMED)


def test_a_value_that_cannot_be_shown_is_unknown() -> None:
    for value in ("good\x1b[31m evil", "good\u2028evil", "good\u202elive", "good\u2066live", "\x85"):
        assert of("operator", known(member(Attribute("operator", value)))) == ("", CLAIMED)


@pytest.mark.parametrize(
    "name", ["山田\u3000商店", "می\u200cخواهم", "क्\u200dष", "\u200fשלום (1)", "Co\u00a0KG", "\U0001fae9"]
)
def test_names_of_all_scripts_are_names(name: str) -> None:
    """Also with characters that Python does not call printable."""
    assert of("operator", known(member(Attribute("operator", name)))) == (name, CLAIMED)
    assert authorities(known(member(Attribute("operator", name))))["operator"] != {UNKNOWN}

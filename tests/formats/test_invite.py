"""Invitations, certificates by invitation, revocation lists, announcements on a LAN: vectors, forgeries, garbage."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hivefs.crypto import keys
from hivefs.errors import BadInvitation, BadSetting, Corrupt, HivefsError
from hivefs.formats import invite, lan, member, revoked
from hivefs.model.ids import NodeId
from hivefs.model.node import Attribute, Evidence, Invitation, Membership, Revocations, Role, RosterEntry, Ticket

VECTORS = Path(__file__).parent.parent / "vectors" / "invite.json"
DAY = 86_400 * 10**9
NOW = 1_800_000_000 * 10**9

HIVE, OTHER_HIVE, SEED, NODE, CLIENT, THIEF = (bytes([i]) * 32 for i in (3, 33, 5, 4, 1, 66))
HIVE_KEY = keys.public_key(HIVE)
FIXED = (Attribute("country", "DE", Evidence.ATTESTED), Attribute("operator", "Müller", Evidence.REGISTRY))


def invitation(hive: bytes = HIVE, **changes: Any) -> Invitation:
    bare = Invitation(b"", keys.public_key(SEED), Role.NODE | Role.CLIENT, FIXED, NOW, NOW + 7 * DAY, 2, 0)
    return invite.sign_invitation(hive, replace(bare, **changes))


TICKET = Ticket(invitation(), SEED, ("/ip4/192.0.2.7/tcp/4001/p2p/12D3KooWA", "/ip4/192.0.2.8/tcp/4001/p2p/12D3KooWB"))
CLAIMED = (Attribute("hoster", "Rack & Co", Evidence.ATTESTED),)
MEMBER = member.accept(TICKET, NODE, Role.NODE, CLAIMED, NOW + DAY)
ENTRY = RosterEntry(MEMBER, member.sign_address(NODE, ("/ip4/127.0.0.1/tcp/4001",), 8))
LIST = revoked.sign_revocations(HIVE, 7, NOW, [keys.public_key(THIEF), keys.public_key(CLIENT)], [keys.public_key(SEED)])


def made() -> dict[str, str]:
    return {
        "invitation": invite.invitation_to_bytes(TICKET.invitation).hex(),
        "ticket": invite.ticket_to_bytes(TICKET).hex(),
        "ticket text": invite.ticket_to_text(TICKET),
        "certificate by invitation": member.member_to_bytes(MEMBER).hex(),
        "entry by invitation": member.entry_to_bytes(ENTRY).hex(),
        "revoked": revoked.revocations_to_bytes(LIST).hex(),
        "revoked nobody": revoked.revocations_to_bytes(revoked.sign_revocations(HIVE, 1, 0, [], [])).hex(),
        "lan tag": lan.tag(HIVE_KEY, NodeId(keys.public_key(NODE))).hex(),
    }


def test_vectors_are_written_and_read_the_same() -> None:
    """Never change a vector; add a version."""
    kept = json.loads(VECTORS.read_text())
    assert kept["version"] == 1 and kept["vectors"] == made()
    data = {name: bytes.fromhex(value) for name, value in kept["vectors"].items() if name != "ticket text"}
    assert invite.invitation_from_bytes(data["invitation"]) == TICKET.invitation
    assert invite.ticket_from_bytes(data["ticket"]) == TICKET
    assert invite.ticket_from_text(kept["vectors"]["ticket text"]) == TICKET
    assert member.member_from_bytes(data["certificate by invitation"]) == MEMBER
    assert member.entry_from_bytes(data["entry by invitation"]) == ENTRY
    assert member.entry_valid(ENTRY, HIVE_KEY, NOW)
    assert revoked.revocations_from_bytes(data["revoked"]) == LIST and revoked.revocations_valid(LIST, HIVE_KEY)


# ---- what a newcomer makes of an invitation ---------------------------------------------------------------------


def test_what_the_owner_fixed_keeps_its_evidence_and_what_the_node_says_is_claimed() -> None:
    assert MEMBER.attributes == (*FIXED, Attribute("hoster", "Rack & Co", Evidence.CLAIMED))
    assert member.member_valid(MEMBER, HIVE_KEY, NOW) and not member.member_valid(MEMBER, keys.public_key(OTHER_HIVE), NOW)


def test_joining_again_what_was_fixed_by_saying_the_same_is_no_contradiction() -> None:
    again = member.accept(TICKET, NODE, Role.NODE, (Attribute("country", "DE"),), NOW)
    assert again.attributes == FIXED
    with pytest.raises(BadInvitation, match="fixed country as 'DE'"):
        member.accept(TICKET, NODE, Role.NODE, (Attribute("country", "CH"),), NOW)


def test_expired_and_of_another_role_is_said_before_anything_is_signed() -> None:
    with pytest.raises(BadInvitation, match="expired"):
        member.accept(TICKET, NODE, Role.NODE, (), NOW + 9 * DAY)
    for roles, wrong, word in ((Role.CLIENT, Role.NODE, "clients"), (Role.NODE, Role.CLIENT, "nodes")):
        with pytest.raises(BadInvitation, match=word):
            member.accept(replace(TICKET, invitation=invitation(roles=roles)), NODE, wrong, (), NOW)


def test_a_clock_that_is_a_day_off_does_no_harm() -> None:
    early = member.accept(TICKET, NODE, Role.NODE, (), NOW - DAY + 1)
    late = member.accept(TICKET, NODE, Role.NODE, (), NOW + 8 * DAY - 1)
    assert member.member_valid(early, HIVE_KEY, NOW) and member.member_valid(late, HIVE_KEY, NOW)


def test_the_end_that_the_owner_set_is_the_end_of_the_membership() -> None:
    guest = member.accept(replace(TICKET, invitation=invitation(until_ns=NOW + 30 * DAY)), CLIENT, Role.CLIENT, (), NOW)
    assert guest.expires_ns == NOW + 30 * DAY
    assert member.member_valid(guest, HIVE_KEY, NOW + 31 * DAY - 1)
    assert not member.member_valid(guest, HIVE_KEY, NOW + 31 * DAY)


def signed(by: bytes = SEED, consent: bytes = NODE, **changes: Any) -> Membership:
    """A certificate whose signatures are right for what it says."""
    bare = replace(MEMBER, **changes)
    message = member._signed(bare)
    return replace(bare, signature=keys.sign(by, message), consent=keys.sign(consent, message))


FORGED: dict[str, Membership] = {
    "another signed in the invitation's name": signed(by=THIEF),
    "the subject did not agree": signed(consent=THIEF),
    "a stolen invitation changes a member": signed(consent=SEED, attributes=FIXED),
    "more roles than the invitation has": signed(invitation=invitation(roles=Role.CLIENT)),
    "a fixed attribute left out": signed(attributes=FIXED[1:]),
    "a fixed attribute changed": signed(attributes=(replace(FIXED[0], value="CH"), *FIXED[1:])),
    "a fixed attribute said twice": signed(attributes=(*FIXED, Attribute("country", "CH"))),
    "a claim that calls itself attested": signed(attributes=(*FIXED, Attribute("hoster", "x", Evidence.ATTESTED))),
    "no end": signed(invitation=invitation(until_ns=NOW + DAY)),
    "an epoch of its own": signed(epoch=1),
    "issued after the invitation ended": signed(issued_ns=NOW + 7 * DAY + 1),
    "issued before the invitation": signed(issued_ns=NOW - 1),
    "an invitation of another hive": signed(invitation=invitation(hive=OTHER_HIVE)),
    "an invitation that another hive signed for this one": signed(
        invitation=replace(invitation(hive=OTHER_HIVE), hive_key=HIVE_KEY)
    ),
    "an invitation with more uses than were signed": signed(invitation=replace(invitation(), uses=1000)),
    "an invitation that was prolonged": signed(invitation=replace(invitation(), expires_ns=NOW + 99 * DAY)),
    "an invitation without attributes": signed(attributes=(), invitation=replace(invitation(), attributes=())),
    "signed by the invitation as if it were the owner": replace(
        signed(), invitation=None, consent=b"", signature=keys.sign(SEED, member._signed(replace(MEMBER, invitation=None)))
    ),
}


def test_the_way_forgeries_are_made_makes_valid_ones_too() -> None:
    assert member.member_valid(signed(), HIVE_KEY, NOW)


@pytest.mark.parametrize("how", FORGED)
def test_forged_certificates_are_not_valid(how: str) -> None:
    forged = FORGED[how]
    assert not member.member_valid(forged, HIVE_KEY, NOW)
    assert not member.member_valid(member.member_from_bytes(member.member_to_bytes(forged)), HIVE_KEY, NOW)


def test_what_the_owner_signed_stands_above_what_an_invitation_did() -> None:
    own = member.sign_member(HIVE, Membership(b"", keys.public_key(NODE), Role.NODE, (Attribute("country", "DE"),), 1))
    entry = replace(ENTRY, membership=own)
    assert member.newest(entry, ENTRY, NOW).membership == member.newest(ENTRY, entry, NOW).membership == own


# ---- text -------------------------------------------------------------------------------------------------------


def test_mail_and_people_may_break_lines_and_change_case() -> None:
    text = invite.ticket_to_text(TICKET)
    broken = "\n".join(text[i : i + 60] for i in range(0, len(text), 60))
    for variant in (text, f"  {text}\n", text.lower(), broken, broken.replace("\n", "\r\n ")):
        assert invite.is_ticket(variant) and invite.ticket_from_text(variant) == TICKET


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "does not begin"),
        ("hello", "does not begin"),
        (invite.PREFIX, "cut off"),
        (invite.ticket_to_text(TICKET)[:-5], "cut off"),
        (invite.ticket_to_text(TICKET)[:-1] + "1", "cut off"),
        (invite.ticket_to_text(TICKET).replace("Q", "R", 1), "cut off"),
        (invite.ticket_to_text(TICKET) + "A" * (40 << 10), "does not begin"),
        (invite.ticket_to_text(replace(TICKET, seed=THIEF)), "another invitation"),
        (invite.ticket_to_text(replace(TICKET, invitation=replace(invitation(), uses=9))), "did not sign"),
    ],
)
def test_what_is_no_invitation_is_said_without_repeating_it(text: str, words: str) -> None:
    with pytest.raises(BadInvitation, match=words) as caught:
        invite.ticket_from_text(text)
    assert len(text) < 40 or text[20:60] not in str(caught.value)


def test_a_ticket_does_not_show_its_seed() -> None:
    assert SEED.hex() not in repr(TICKET) and repr(SEED)[2:20] not in repr(TICKET)


# ---- revocation lists -------------------------------------------------------------------------------------------


def test_a_list_covers_members_and_all_who_joined_by_an_invitation() -> None:
    by_owner = member.sign_member(HIVE, Membership(b"", keys.public_key(CLIENT), Role.CLIENT))
    other = replace(by_owner, subject=keys.public_key(NODE))
    assert LIST.covers(MEMBER) and LIST.covers(by_owner) and not LIST.covers(other)
    assert not revoked.sign_revocations(HIVE, 8, NOW, [], []).covers(MEMBER)


def test_lists_are_sorted_bounded_and_of_one_owner() -> None:
    assert list(LIST.members) == sorted(LIST.members)
    many = [i.to_bytes(32, "big") for i in range(revoked.MAX_KEYS)]
    full = revoked.revocations_to_bytes(revoked.sign_revocations(HIVE, 1, 0, many, []))
    assert len(full) < revoked.MAX_BYTES and len(revoked.revocations_from_bytes(full).members) == revoked.MAX_KEYS
    with pytest.raises(BadSetting):
        revoked.sign_revocations(HIVE, 1, 0, many, [b"x" * 32])
    for forged in (
        revoked.sign_revocations(OTHER_HIVE, 9, NOW, [], []),
        replace(LIST, sequence=8),
        replace(LIST, members=()),
        replace(revoked.sign_revocations(OTHER_HIVE, 9, NOW, [], []), hive_key=HIVE_KEY),
    ):
        assert not revoked.revocations_valid(forged, HIVE_KEY)
    unsorted = replace(LIST, members=LIST.members[::-1])
    with pytest.raises(Corrupt):
        revoked.revocations_from_bytes(revoked.revocations_to_bytes(unsorted))


def test_only_a_higher_number_is_newer_and_twins_have_one_winner() -> None:
    older = revoked.sign_revocations(HIVE, 6, NOW + DAY, [], [])
    assert revoked.newer(LIST, older) and not revoked.newer(older, LIST) and not revoked.newer(LIST, LIST)
    twin = revoked.sign_revocations(HIVE, 7, NOW, [keys.public_key(NODE)], [])
    assert revoked.newer(LIST, twin) != revoked.newer(twin, LIST)
    assert revoked.newer(LIST, None)


# ---- garbage ----------------------------------------------------------------------------------------------------

DECODERS: dict[str, tuple[Callable[[bytes], Any], Callable[[Any], bytes], bytes]] = {
    "invitation": (invite.invitation_from_bytes, invite.invitation_to_bytes, bytes.fromhex(made()["invitation"])),
    "ticket": (invite.ticket_from_bytes, invite.ticket_to_bytes, bytes.fromhex(made()["ticket"])),
    "member": (member.member_from_bytes, member.member_to_bytes, member.member_to_bytes(MEMBER)),
    "entry": (member.entry_from_bytes, member.entry_to_bytes, member.entry_to_bytes(ENTRY)),
    "revoked": (revoked.revocations_from_bytes, revoked.revocations_to_bytes, revoked.revocations_to_bytes(LIST)),
}


@pytest.mark.parametrize("name", DECODERS)
@given(st.binary(max_size=400))
@example(b"")
def test_garbage_is_refused(name: str, data: bytes) -> None:
    with pytest.raises(HivefsError):
        DECODERS[name][0](data)


@pytest.mark.parametrize("name", DECODERS)
@given(st.data())
def test_no_changed_byte_passes_unnoticed(name: str, data: st.DataObject) -> None:
    """It is refused, or it encodes to exactly those other bytes and is then not valid."""
    decode, encode, good = DECODERS[name]
    at = data.draw(st.integers(0, len(good) - 1))
    bad = good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :]
    cut = data.draw(st.booleans())
    bad = bad[: data.draw(st.integers(0, len(bad)))] if cut else bad
    try:
        value = decode(bad)
    except HivefsError:
        return
    assert encode(value) == bad
    match value:
        case Invitation():
            assert not invite.invitation_valid(value, HIVE_KEY)
        case Membership():
            assert not member.member_valid(value, HIVE_KEY, NOW)
        case RosterEntry():
            assert not member.entry_valid(value, HIVE_KEY, NOW)
        case Revocations():
            assert not revoked.revocations_valid(value, HIVE_KEY)


@given(st.text(max_size=200))
def test_any_text_is_an_invitation_or_one_sentence(text: str) -> None:
    for variant in (text, invite.PREFIX + text):
        with pytest.raises(BadInvitation):
            invite.ticket_from_text(variant)


@given(st.dictionaries(st.sampled_from([b"v", b"k", b"t", b"x"]), st.none() | st.binary(max_size=80)))
def test_strangers_on_the_lan_are_nobody(properties: dict[bytes, bytes | None]) -> None:
    assert lan.node_of(properties, HIVE_KEY) is None


def test_a_tag_holds_for_one_node_of_one_hive() -> None:
    node = NodeId(keys.public_key(NODE))
    told: dict[bytes, bytes | None] = {k.encode(): v.encode() for k, v in lan.to_properties(HIVE_KEY, node).items()}
    assert lan.node_of(told, HIVE_KEY) == node and lan.node_of(told, keys.public_key(OTHER_HIVE)) is None
    assert lan.node_of({**told, b"k": keys.public_key(THIEF).hex().encode()}, HIVE_KEY) is None
    assert lan.node_of({**told, b"v": b"2"}, HIVE_KEY) is None
    assert HIVE_KEY.hex() not in str(told)

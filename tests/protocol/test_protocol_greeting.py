"""The greeting, both halves joined by function calls: who gets in, and who does not."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from hivefs.crypto import keys
from hivefs.errors import HivefsError, Refused, UnknownVersion
from hivefs.formats.member import member_to_bytes, sign_member
from hivefs.model.node import Membership, Role
from hivefs.protocol import failures, frames, greeting
from hivefs.protocol.client_side import ClientHandshake, Credentials, Greeted, credentials
from hivefs.protocol.failures import Code, Refusal
from hivefs.protocol.frames import Frame, FrameDecoder, Kind, ProtocolViolation
from hivefs.protocol.node_side import NodeHandshake, Session
from hivefs.protocol.proofs import delete_message
from hivefs.protocol.requests import Delete, Get, Ping, Stat

NOW = 1_800_000_000 * 10**9


def seed(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def key(name: str) -> bytes:
    return keys.public_key(seed(name))


def certificate(subject: str, roles: Role, hive: str = "hive", **more: int) -> Membership:
    return sign_member(seed(hive), Membership(b"", key(subject), roles, (), **{"issued_ns": 1, **more}))


NODE = certificate("node", Role.NODE)
OWNER = certificate("owner", Role.CLIENT)


class Node:
    """A node that keeps certificates, and makes a new nonce for every greeting."""

    def __init__(self, membership: Membership = NODE) -> None:
        self.membership = membership
        self.known: dict[bytes, Membership] = {}
        self.greetings = 0

    def handshake(self, peer_key: bytes) -> NodeHandshake:
        self.greetings += 1
        return NodeHandshake(self.membership, peer_key, seed(f"nonce {self.greetings}"), self.known.get, 64)


def over_the_wire(frame: Frame, accept: frozenset[Kind]) -> Frame:
    decoder = FrameDecoder(accept)
    decoder.feed(frames.to_bytes(frame))
    got = decoder.next_frame()
    assert got is not None
    return got


def greet(
    who: Credentials, node: Node, client_peer: bytes | None = None, node_peer: bytes | None = None
) -> tuple[Greeted, Session]:
    """Join both halves. ``client_peer`` and ``node_peer`` are the keys that the transport proved to the other end."""
    theirs = node.handshake(client_peer or who.transport_key)
    mine = ClientHandshake(who, node_peer or node.membership.subject)
    outgoing: Frame | None = mine.hello()
    while outgoing is not None:
        frame = over_the_wire(outgoing, theirs.accept)
        try:
            answer = theirs.receive(frame, NOW)
        except Refusal as refusal:
            answer = Frame(Kind.FAILURE, 0, failures.to_header(refusal))
        outgoing = mine.receive(over_the_wire(answer, mine.accept), NOW)
    assert mine.greeted is not None and theirs.session is not None
    return mine.greeted, theirs.session


def owner(**changes: object) -> Credentials:
    return replace(credentials(seed("owner"), key("device"), key("hive"), OWNER), **changes)


def refused(who: Credentials, node: Node, **peers: bytes) -> HivefsError:
    with pytest.raises(HivefsError) as caught:
        greet(who, node, **peers)
    assert not caught.value.transient
    return caught.value


def test_a_member_gets_in_and_both_know_who_the_other_is() -> None:
    greeted, session = greet(owner(), Node())
    assert greeted.node_membership == NODE and greeted.membership == OWNER and greeted.hive_key == key("hive")
    assert session.subject == key("owner") and session.peer_key == key("device")
    assert session.vault_id == keys.vault_id_of(key("owner"))
    assert greeted.nonce == session.nonce


def test_an_owner_with_only_the_phrase_gets_certificate_and_hive_back() -> None:
    node = Node()
    node.known[key("owner")] = OWNER
    greeted, session = greet(owner(hive_key=None, membership=None), node)
    assert greeted.membership == OWNER and greeted.hive_key == key("hive")
    assert session.vault_id == keys.vault_id_of(key("owner"))


def test_an_owner_with_only_the_phrase_is_refused_where_nobody_knows_them() -> None:
    error = refused(owner(hive_key=None, membership=None), Node())
    assert isinstance(error, Refused) and error.code == Code.NOT_MEMBER


def test_another_node_gets_in_but_may_only_exchange_rosters() -> None:
    other = certificate("other", Role.NODE)
    who = credentials(seed("other"), key("other"), key("hive"), other)
    _, session = greet(who, Node())
    assert session.vault_id is None
    session.check(Stat())
    session.check(Ping())
    with pytest.raises(Refusal) as caught:
        session.check(Get(bytes(32)))
    assert caught.value.code == Code.FORBIDDEN


def test_a_node_certificate_cannot_be_used_under_another_transport_key() -> None:
    who = credentials(seed("other"), key("device"), key("hive"), certificate("other", Role.NODE))
    assert "own key" in str(refused(who, Node()))


@pytest.mark.parametrize(
    "forged",
    [
        certificate("owner", Role.CLIENT, hive="another hive"),
        replace(OWNER, epoch=5),
        replace(OWNER, roles=Role.CLIENT | Role.NODE),
        replace(certificate("owner", Role.CLIENT, hive="another hive"), hive_key=key("hive")),
        certificate("owner", Role.CLIENT, expires_ns=NOW - 3 * 86_400 * 10**9),
    ],
    ids=["other hive", "epoch", "roles", "hive key", "expired"],
)
def test_a_forged_or_ended_certificate_is_refused(forged: Membership) -> None:
    error = refused(owner(membership=forged), Node())
    assert isinstance(error, Refused) and error.code == Code.NOT_MEMBER


def test_somebody_elses_certificate_is_refused() -> None:
    thief = credentials(seed("thief"), key("device"), key("hive"), OWNER)
    assert "somebody else" in str(refused(thief, Node()))


def test_a_certificate_without_its_key_is_refused() -> None:
    thief = replace(owner(), sign=lambda message: keys.sign(seed("thief"), message))
    assert "not signed" in str(refused(thief, Node()))


def test_an_older_certificate_does_not_replace_a_newer_one() -> None:
    node = Node()
    newer = certificate("owner", Role.CLIENT, epoch=2)
    node.known[key("owner")] = newer
    greeted, session = greet(owner(), node)
    assert greeted.membership == newer and session.membership == newer


def test_a_recorded_login_does_not_work_again() -> None:
    node = Node()
    client, first = ClientHandshake(owner(), key("node")), node.handshake(key("device"))
    challenge = first.receive(client.hello(), NOW)
    login = client.receive(challenge, NOW)
    assert login is not None
    first.receive(login, NOW)
    assert first.session is not None
    again = node.handshake(key("device"))
    again.receive(owner_hello(), NOW)
    with pytest.raises(Refusal, match="not signed"):
        again.receive(login, NOW)
    assert again.session is None


def owner_hello() -> Frame:
    return greeting.hello_to_frame(greeting.Hello((1,), key("hive")))


def test_a_second_hello_is_out_of_place() -> None:
    handshake = Node().handshake(key("device"))
    handshake.receive(owner_hello(), NOW)
    with pytest.raises(ProtocolViolation):
        over_the_wire(owner_hello(), handshake.accept)


def test_a_request_before_the_greeting_is_out_of_place() -> None:
    handshake = Node().handshake(key("device"))
    for kind in Kind:
        if kind != Kind.HELLO:
            with pytest.raises(ProtocolViolation):
                over_the_wire(Frame(kind, 1), handshake.accept)


def test_a_hostile_node_cannot_pass_a_login_on_to_another_node() -> None:
    """The man in the middle: it takes the honest node's nonce for its own challenge and forwards the signature."""
    honest = Node()
    there = honest.handshake(key("mallory"))
    challenge = there.receive(owner_hello(), NOW)
    victim = ClientHandshake(owner(), key("mallory"))
    login = victim.receive(challenge, NOW)
    assert login is not None
    with pytest.raises(Refusal, match="not signed"):
        there.receive(login, NOW)


def test_a_login_holds_for_one_transport_key_of_the_client_only() -> None:
    assert "not signed" in str(refused(owner(), Node(), client_peer=key("mallory")))


def test_a_node_of_another_hive_refuses_and_is_refused() -> None:
    other = Node(certificate("node", Role.NODE, hive="another hive"))
    assert "another hive" in str(refused(owner(), other))


@pytest.mark.parametrize(
    "membership",
    [
        certificate("node", Role.CLIENT),
        replace(NODE, hive_key=key("another hive")),
        certificate("node", Role.NODE, expires_ns=NOW - 3 * 86_400 * 10**9),
    ],
    ids=["no node", "other hive", "expired"],
)
def test_a_node_that_does_not_belong_is_refused_by_the_client(membership: Membership) -> None:
    welcome = greeting.Welcome(NOW, 64, member_to_bytes(membership), member_to_bytes(OWNER))
    client = ClientHandshake(owner(), key("node"))
    challenge = greeting.challenge_to_frame(greeting.Challenge(1, bytes(32)))
    client.hello()
    client.receive(challenge, NOW)
    with pytest.raises(Refused) as caught:
        client.receive(greeting.welcome_to_frame(welcome), NOW)
    assert caught.value.code == Code.NOT_MEMBER


def test_a_node_with_another_nodes_certificate_is_refused_by_the_client() -> None:
    assert "another node's" in str(_welcome_error(key("mallory"), NODE, OWNER))


def test_a_node_that_gives_back_another_certificate_is_refused() -> None:
    assert "not this vault's" in str(_welcome_error(key("node"), NODE, certificate("thief", Role.CLIENT)))


def _welcome_error(node_peer: bytes, node: Membership, mine: Membership) -> HivefsError:
    client = ClientHandshake(owner(), node_peer)
    client.hello()
    client.receive(greeting.challenge_to_frame(greeting.Challenge(1, bytes(32))), NOW)
    with pytest.raises(Refused) as caught:
        client.receive(
            greeting.welcome_to_frame(greeting.Welcome(NOW, 64, member_to_bytes(node), member_to_bytes(mine))), NOW
        )
    assert client.greeted is None
    return caught.value


def test_unknown_versions_are_refused_in_words_on_both_sides() -> None:
    handshake = Node().handshake(key("device"))
    with pytest.raises(Refusal) as refusal:
        handshake.receive(greeting.hello_to_frame(greeting.Hello((7, 8), key("hive"))), NOW)
    assert refusal.value.code == Code.VERSION and "speaks version 1" in refusal.value.text and "7, 8" in refusal.value.text
    client = ClientHandshake(owner(), key("node"))
    with pytest.raises(UnknownVersion):
        client.receive(greeting.challenge_to_frame(greeting.Challenge(7, bytes(32))), NOW)


def deletion(session: Session, serial: int, signer: str = "owner", node: str = "node") -> Delete:
    ids = (bytes(32),)
    message = delete_message(key(node), session.subject, session.nonce, serial, ids)
    return Delete(serial, keys.sign(seed(signer), message), ids)


def test_a_deletion_counts_once_and_only_from_the_owner() -> None:
    node = Node()
    _, session = greet(owner(), node)
    session.check(deletion(session, 1))
    session.check(deletion(session, 3))
    for forged in (
        deletion(session, 3),
        deletion(session, 2),
        deletion(session, 4, signer="thief"),
        deletion(session, 4, node="other"),
    ):
        with pytest.raises(Refusal) as caught:
            session.check(forged)
        assert caught.value.code == Code.FORBIDDEN
    _, later = greet(owner(), node)
    with pytest.raises(Refusal):
        later.check(deletion(session, 5))
    later.check(deletion(later, 5))

"""The client's half of the conversation: proving who it is, and checking who the node is. Sans-I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hivefs.crypto import keys
from hivefs.errors import Corrupt, Refused, UnknownVersion
from hivefs.formats import member
from hivefs.model.node import Membership, Role
from hivefs.protocol import failures, greeting
from hivefs.protocol.frames import VERSION, Frame, Kind
from hivefs.protocol.proofs import login_message


def _nobody(membership: Membership) -> bool:
    return False


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """Who asks. ``subject`` is the vault's owner key (or, for a node that asks another one, its own key) and ``sign`` signs
    with it. ``transport_key`` is the public key under which this process dials. ``hive_key`` and ``membership`` are None
    when only the recovery phrase is known: then the node must already keep the certificate. ``revoked`` says of a node's
    certificate whether the hive's owner took it back.
    """

    subject: bytes
    sign: Callable[[bytes], bytes]
    transport_key: bytes
    hive_key: bytes | None = None
    membership: Membership | None = None
    revoked: Callable[[Membership], bool] = _nobody

    def __repr__(self) -> str:
        return f"Credentials(subject={self.subject.hex()[:12]})"


def credentials(
    seed: bytes,
    transport_key: bytes,
    hive_key: bytes | None = None,
    membership: Membership | None = None,
    revoked: Callable[[Membership], bool] = _nobody,
) -> Credentials:
    """Credentials that sign with a 32-byte Ed25519 seed."""

    def sign(message: bytes) -> bytes:
        return keys.sign(seed, message)

    return Credentials(keys.public_key(seed), sign, transport_key, hive_key, membership, revoked)


@dataclass(frozen=True, slots=True)
class Greeted:
    """What the client knows after WELCOME. ``membership`` is its own certificate as the node keeps it, checked."""

    node_key: bytes
    hive_key: bytes
    node_membership: Membership
    membership: Membership
    nonce: bytes
    node_time_ns: int
    in_flight: int


class ClientHandshake:
    """CHALLENGE and WELCOME in, HELLO and LOGIN out. ``greeted`` is set in the end.

    A wrong node raises Refused with a ``code`` of NOT_MEMBER: it must not be used.
    """

    def __init__(self, credentials: Credentials, node_key: bytes) -> None:
        self._me = credentials
        self._node_key = node_key
        self._nonce: bytes | None = None
        self.greeted: Greeted | None = None
        self.accept = frozenset({Kind.CHALLENGE, Kind.FAILURE})

    def hello(self) -> Frame:
        """The first message."""
        return greeting.hello_to_frame(greeting.Hello((VERSION,), self._me.hive_key or b""))

    def receive(self, frame: Frame, now_ns: int) -> Frame | None:
        """The next message to send, or None after WELCOME. Raises HivefsError."""
        if frame.kind == Kind.FAILURE:
            raise failures.to_error(failures.from_header(frame.header), self._peer)
        if self._nonce is None:
            return self._receive_challenge(greeting.challenge_from_frame(frame))
        self._receive_welcome(greeting.welcome_from_frame(frame), self._nonce, now_ns)
        return None

    @property
    def _peer(self) -> str:
        return self._node_key.hex()[:12]

    def _receive_challenge(self, challenge: greeting.Challenge) -> Frame:
        if challenge.version != VERSION:
            raise UnknownVersion(what=f"the conversation with node {self._peer}", version=challenge.version)
        self._nonce = challenge.nonce
        self.accept = frozenset({Kind.WELCOME, Kind.FAILURE})
        me = self._me
        certificate = b"" if me.membership is None else member.member_to_bytes(me.membership)
        message = login_message(
            me.transport_key, self._node_key, challenge.nonce, me.hive_key or b"", me.subject, certificate
        )
        return greeting.login_to_frame(greeting.Login(me.subject, me.sign(message), certificate))

    def _receive_welcome(self, welcome: greeting.Welcome, nonce: bytes, now_ns: int) -> None:
        try:
            node = member.member_from_bytes(welcome.node_certificate)
            mine = member.member_from_bytes(welcome.client_certificate)
        except (Corrupt, UnknownVersion) as error:
            raise self._not_member(str(error)) from None
        hive_key = self._me.hive_key or node.hive_key
        if not member.member_valid(node, hive_key, now_ns) or not node.roles & Role.NODE:
            raise self._not_member("its certificate is not that of a node of this hive")
        if node.subject != self._node_key:
            raise self._not_member("its certificate is another node's")
        if self._me.revoked(node):
            reason = "the hive's owner revoked its membership"
            raise Refused(peer=self._peer, reason=reason, code=failures.Code.REVOKED)
        if not member.member_valid(mine, hive_key, now_ns) or mine.subject != self._me.subject:
            raise self._not_member("the certificate it gave back is not this vault's")
        self.accept = frozenset()
        self.greeted = Greeted(self._node_key, hive_key, node, mine, nonce, welcome.time_ns, welcome.in_flight)

    def _not_member(self, reason: str) -> Refused:
        return Refused(peer=self._peer, reason=reason, code=failures.Code.NOT_MEMBER)

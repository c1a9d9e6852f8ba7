"""The node's half of the conversation: who is there, and what may they ask? Sans-I/O; time and nonce are arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hivefs.crypto import keys
from hivefs.errors import Corrupt, UnknownVersion
from hivefs.formats import member
from hivefs.model.ids import VaultId
from hivefs.model.node import Membership, Role
from hivefs.protocol import greeting
from hivefs.protocol.failures import Code, Refusal
from hivefs.protocol.frames import VERSION, Frame, Kind
from hivefs.protocol.proofs import delete_message, login_message
from hivefs.protocol.requests import (
    Delete,
    HiveStateGet,
    MembersGet,
    MembersPut,
    NewsGet,
    Ping,
    RangeGet,
    RangesGet,
    Request,
    RevokedGet,
    RevokedPut,
    RosterGet,
    RosterPut,
    Stat,
    StatementsGet,
    StatementsPut,
)

_OF_NODES = (
    RosterGet | RosterPut | Stat | Ping | HiveStateGet | MembersGet | MembersPut | RevokedGet | RevokedPut
    | NewsGet | StatementsGet | StatementsPut | RangesGet | RangeGet
)  # fmt: skip


@dataclass(slots=True)
class Session:
    """A peer that proved what it is. ``vault_id`` is None for another node."""

    node_key: bytes
    peer_key: bytes
    subject: bytes
    membership: Membership
    nonce: bytes
    vault_id: VaultId | None
    _last_serial: int = field(default=0, repr=False)

    def check(self, request: Request) -> None:
        """Raise Refusal unless this peer may ask this. To be called in the order in which requests came."""
        if self.vault_id is None and not isinstance(request, _OF_NODES):
            raise Refusal(Code.FORBIDDEN, "nodes may only exchange rosters with each other")
        if isinstance(request, MembersGet | MembersPut):
            owner_only = isinstance(request, MembersGet) and request.everyone
            if not (self.by_owner or (self.vault_id is None and not owner_only)):
                raise Refusal(Code.FORBIDDEN, "only nodes and the hive's owner exchange members")
        if isinstance(request, Delete):
            self._check_delete(request)

    def _check_delete(self, request: Delete) -> None:
        if request.serial <= self._last_serial:
            raise Refusal(Code.FORBIDDEN, "this deletion was asked for before")
        message = delete_message(self.node_key, self.subject, self.nonce, request.serial, request.share_ids)
        if not keys.verify(self.subject, request.signature, message):
            raise Refusal(Code.FORBIDDEN, "a deletion needs the owner's signature")
        self._last_serial = request.serial

    @property
    def by_owner(self) -> bool:
        """Whether this is the hive's owner itself."""
        return self.subject == self.membership.hive_key

    def owner(self) -> VaultId:
        """The vault; only for requests that passed ``check``."""
        if self.vault_id is None:
            raise Refusal(Code.FORBIDDEN, "only vaults keep shares")
        return self.vault_id


class NodeHandshake:
    """HELLO and LOGIN in, CHALLENGE and WELCOME out. ``nonce`` is 32 random bytes that were never used; ``known`` gives
    the certificate that this node keeps for a subject. ``admit`` raises Refusal for a valid certificate that does not let
    in now (revoked, an invitation that is used up). ``session`` is set after the second answer.
    """

    def __init__(
        self,
        membership: Membership,
        peer_key: bytes,
        nonce: bytes,
        known: Callable[[bytes], Membership | None],
        in_flight: int,
        admit: Callable[[Membership, int], None] = lambda membership, now_ns: None,
    ) -> None:
        self._admit = admit
        self._membership = membership
        self._peer_key = peer_key
        self._nonce = nonce
        self._known = known
        self._in_flight = in_flight
        self._hello: greeting.Hello | None = None
        self.session: Session | None = None
        self.accept = frozenset({Kind.HELLO})

    def receive(self, frame: Frame, now_ns: int) -> Frame:
        """The answer to the next message. Raises Refusal, Corrupt or UnknownVersion: then the conversation ends."""
        if self._hello is None:
            return self._receive_hello(frame)
        return self._receive_login(frame, self._hello, now_ns)

    def _receive_hello(self, frame: Frame) -> Frame:
        hello = greeting.hello_from_frame(frame)
        if VERSION not in hello.versions:
            theirs = ", ".join(map(str, hello.versions)) or "none"
            raise Refusal(
                Code.VERSION, f"this node speaks version {VERSION} of the node protocol, the client speaks {theirs}"
            )
        if hello.hive_key and hello.hive_key != self._membership.hive_key:
            raise Refusal(Code.NOT_MEMBER, "this node belongs to another hive")
        self._hello = hello
        self.accept = frozenset({Kind.LOGIN})
        return greeting.challenge_to_frame(greeting.Challenge(VERSION, self._nonce))

    def _receive_login(self, frame: Frame, hello: greeting.Hello, now_ns: int) -> Frame:
        login = greeting.login_from_frame(frame)
        node_key = self._membership.subject
        message = login_message(self._peer_key, node_key, self._nonce, hello.hive_key, login.subject, login.certificate)
        if not keys.verify(login.subject, login.signature, message):
            raise Refusal(Code.NOT_MEMBER, "the login is not signed by the key it names")
        membership = self._certificate_of(login, now_ns)
        if membership.roles & Role.CLIENT:
            vault_id = keys.vault_id_of(login.subject)
        elif login.subject == self._peer_key:
            vault_id = None
        else:
            raise Refusal(Code.NOT_MEMBER, "a node logs in under its own key only")
        self.session = Session(node_key, self._peer_key, login.subject, membership, self._nonce, vault_id)
        self.accept = frozenset()
        return greeting.welcome_to_frame(
            greeting.Welcome(
                now_ns,
                self._in_flight,
                member.member_to_bytes(self._membership),
                member.member_to_bytes(membership),
            )
        )

    def _certificate_of(self, login: greeting.Login, now_ns: int) -> Membership:
        """The newest valid certificate among the one presented and the one kept."""
        found = []
        if login.certificate:
            try:
                presented = member.member_from_bytes(login.certificate)
            except (Corrupt, UnknownVersion) as error:
                raise Refusal(Code.NOT_MEMBER, str(error)) from None
            if presented.subject != login.subject:
                raise Refusal(Code.NOT_MEMBER, "the certificate is somebody else's")
            found.append(presented)
        kept = self._known(login.subject)
        if kept is not None:
            found.append(kept)
        if not found:
            raise Refusal(Code.NOT_MEMBER, "this node does not know you; a membership certificate is needed")
        newest = max(found, key=member.age)
        if not member.member_valid(newest, self._membership.hive_key, now_ns):
            raise Refusal(Code.NOT_MEMBER, "the membership certificate is not valid in this hive, or has expired")
        self._admit(newest, now_ns)
        return newest

"""The four messages with which every conversation begins. See docs/formats/protocol.md.

    client  HELLO      versions it speaks, the hive it means (empty: it has only its recovery phrase)
    node    CHALLENGE  the version chosen, a nonce
    client  LOGIN      who it is, its certificate (empty: the node has it), a signature over both ends and the nonce
    node    WELCOME    the node's certificate, the client's, the node's clock

The form of HELLO never changes, so that any two versions can say to each other that they do not fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hivefs.formats import member, strict
from hivefs.model.ids import KEY_BYTES
from hivefs.protocol.frames import VERSION, Frame, Kind
from hivefs.protocol.proofs import NONCE_BYTES
from hivefs.protocol.requests import join_blobs, split_blobs

MAX_VERSIONS = 32


@dataclass(frozen=True, slots=True)
class Hello:
    """``hive_key`` is empty when the client does not know it."""

    versions: tuple[int, ...]
    hive_key: bytes


@dataclass(frozen=True, slots=True)
class Challenge:
    """``nonce`` is 32 random bytes."""

    version: int
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Login:
    """``subject`` is the key that the certificate names: a vault's owner key, or a node's own."""

    subject: bytes
    signature: bytes
    certificate: bytes


@dataclass(frozen=True, slots=True)
class Welcome:
    """Both certificates as bytes, the node's clock (ns since 1970), and how many requests it works on at a time."""

    time_ns: int
    in_flight: int
    node_certificate: bytes
    client_certificate: bytes


def _hello_header(hello: Hello) -> bytes:
    return strict.encode("hello", 1, list(hello.versions), hello.hive_key)


def hello_to_frame(hello: Hello) -> Frame:
    """HELLO."""
    return Frame(Kind.HELLO, 0, _hello_header(hello))


def hello_from_frame(frame: Frame) -> Hello:
    """Raises Corrupt or UnknownVersion."""
    parts = strict.items_of("a hello", "hello", 1, frame.header)

    def build() -> Hello:
        versions, hive_key = parts
        made = tuple(strict.number(v, 0, 65535) for v in strict.items(versions, MAX_VERSIONS))
        return Hello(made, _key_or_nothing(hive_key))

    return strict.exactly("a hello", frame.header, build, _hello_header)


def _key_or_nothing(value: Any) -> bytes:
    data = strict.blob(value)
    if len(data) not in (0, KEY_BYTES):
        raise ValueError("a key or nothing expected")
    return data


def _challenge_header(challenge: Challenge) -> bytes:
    return strict.encode("challenge", VERSION, challenge.version, challenge.nonce)


def challenge_to_frame(challenge: Challenge) -> Frame:
    """CHALLENGE."""
    return Frame(Kind.CHALLENGE, 0, _challenge_header(challenge))


def challenge_from_frame(frame: Frame) -> Challenge:
    """Raises Corrupt or UnknownVersion."""
    parts = strict.items_of("a challenge", "challenge", VERSION, frame.header)

    def build() -> Challenge:
        version, nonce = parts
        return Challenge(strict.number(version, 0, 65535), strict.blob(nonce, NONCE_BYTES))

    return strict.exactly("a challenge", frame.header, build, _challenge_header)


def _login_header(login: Login) -> bytes:
    return strict.encode("login", VERSION, login.subject, login.signature)


def login_to_frame(login: Login) -> Frame:
    """LOGIN."""
    return Frame(Kind.LOGIN, 0, _login_header(login), login.certificate)


def login_from_frame(frame: Frame) -> Login:
    """Raises Corrupt or UnknownVersion."""
    parts = strict.items_of("a login", "login", VERSION, frame.header)

    def build() -> Login:
        subject, signature = parts
        return Login(strict.blob(subject, KEY_BYTES), strict.blob(signature, 64), frame.payload)

    return strict.exactly("a login", frame.header, build, _login_header)


def _welcome_header(welcome: Welcome) -> bytes:
    return strict.encode("welcome", VERSION, welcome.time_ns, welcome.in_flight)


def welcome_to_frame(welcome: Welcome) -> Frame:
    """WELCOME."""
    certificates = join_blobs([welcome.node_certificate, welcome.client_certificate])
    return Frame(Kind.WELCOME, 0, _welcome_header(welcome), certificates)


def welcome_from_frame(frame: Frame) -> Welcome:
    """Raises Corrupt or UnknownVersion."""
    parts = strict.items_of("a welcome", "welcome", VERSION, frame.header)

    def build() -> Welcome:
        time_ns, in_flight = parts
        node, client = split_blobs(frame.payload, member.MAX_BYTES)
        return Welcome(strict.number(time_ns), strict.number(in_flight, 1, 65535), node, client)

    return strict.exactly("a welcome", frame.header, build, _welcome_header)

"""Refusals: what a node answers when it does not do what was asked, and which error that is for the client."""

from __future__ import annotations

import enum
from typing import Any

from hivefs.errors import HeadForked, HeadStale, HivefsError, NodeBusy, NodeFull, Refused, ShareMissing
from hivefs.formats import strict
from hivefs.model.words import shown
from hivefs.protocol.frames import VERSION

MAX_TEXT = 300


class Code(enum.IntEnum):
    """Reasons. The number is on the wire and never changes its meaning."""

    BAD_REQUEST = 1
    VERSION = 2
    NOT_MEMBER = 3
    FORBIDDEN = 4
    MISSING = 5
    WRONG_HASH = 6
    FULL = 7
    QUOTA = 8
    BUSY = 9
    STALE = 10
    FORKED = 11
    REVOKED = 12


TRANSIENT = frozenset({Code.FULL, Code.QUOTA, Code.BUSY})
"""Codes for which the same request may succeed later."""


class Refusal(Exception):
    """A node's no. ``text`` is short and meant for people."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text[:MAX_TEXT]


def to_header(refusal: Refusal) -> bytes:
    """The header of a FAILURE frame."""
    return strict.encode("failure", VERSION, int(refusal.code), refusal.code in TRANSIENT, refusal.text)


def from_header(header: bytes) -> Refusal:
    """Raises Corrupt. A code that is not known here becomes BUSY or FORBIDDEN, by what it says of trying again."""
    parts = strict.items_of("a refusal", "failure", VERSION, header)

    def build() -> tuple[int, bool, str]:
        code, transient, text = parts
        if type(transient) is not bool:
            raise TypeError("bool expected")
        return strict.number(code, 1, 255), transient, strict.text(text, MAX_TEXT)

    code, transient, text = strict.exactly(
        "a refusal", header, build, lambda fields: strict.encode("failure", VERSION, *fields)
    )
    try:
        return Refusal(Code(code), text)
    except ValueError:
        return Refusal(Code.BUSY if transient else Code.FORBIDDEN, text)


def to_error(refusal: Refusal, peer: str, **about: Any) -> HivefsError:
    """The client's error. ``about`` may hold ``share`` (hex), ``sequence`` and ``device`` (hex). ``code`` is kept."""
    data = {"peer": peer, "reason": printable(refusal.text), "code": refusal.code, **about}
    kinds: dict[Code, type[HivefsError]] = {
        Code.MISSING: ShareMissing,
        Code.FULL: NodeFull,
        Code.QUOTA: NodeFull,
        Code.BUSY: NodeBusy,
        Code.STALE: HeadStale,
        Code.FORKED: HeadForked,
    }
    return kinds.get(refusal.code, Refused)(**data)


def printable(text: str) -> str:
    """A node's words, without what could steer a terminal or forge a log line."""
    return shown(text)

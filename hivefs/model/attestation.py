"""What others, and a node itself, say of a node beside its membership."""

from __future__ import annotations

from dataclasses import dataclass

from hivefs.model.ids import NodeId

Said = tuple[tuple[str, str], ...]
"""(attribute name, value), sorted by name, each name once."""


@dataclass(frozen=True, slots=True)
class Attestation:
    """``attester`` (Ed25519 key) vouches for what is said of the node ``subject``. Times are nanoseconds since 1970;
    ``expires_ns`` 0 is no end. Who vouches for the operator or its country vouches for its parent too: one that is left out
    does not exist.
    """

    attester: bytes
    subject: bytes
    said: Said
    issued_ns: int
    expires_ns: int = 0
    signature: bytes = b""


@dataclass(frozen=True, slots=True)
class Statement:
    """What a node says of itself, signed by it: its own claims (an empty value takes an earlier claim of its own back), and
    attestations that it was given. It is whole: of two the higher sequence counts.
    """

    node_id: NodeId
    sequence: int
    claims: Said = ()
    attestations: tuple[Attestation, ...] = ()
    signature: bytes = b""


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A key whose attestations the user believes, under a name of the user's own. ``since_ns`` is when that was said."""

    key: bytes
    name: str
    since_ns: int

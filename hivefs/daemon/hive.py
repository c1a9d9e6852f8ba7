"""The hive's owner key: who holds it decides which nodes and clients belong. See docs/formats/hive-key.md.

It is a file of its own, 0600, that no node and no mount ever needs; keep it where only the hive's owner gets at it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from hivefs.crypto.keys import public_key
from hivefs.daemon.key_file import KeyFormat
from hivefs.formats.member import sign_member
from hivefs.model.node import Attribute, Membership, Role

FILE = KeyFormat(
    "hivefs-hive-key",
    1,
    "hive",
    "the hive's key file",
    "it is not a HiveFS hive key",
    "the key does not fit the hive",
)


@dataclass(frozen=True, repr=False)
class HiveKey:
    """The Ed25519 seed (32 bytes) of a hive's owner; ``public`` is the hive's id."""

    seed: bytes
    public: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "public", public_key(self.seed))

    def __repr__(self) -> str:
        return f"HiveKey({self.public.hex()})"

    def node(self, subject: bytes, attributes: tuple[Attribute, ...]) -> Membership:
        """The certificate of a node, with what its owner claims of it."""
        return sign_member(self.seed, Membership(self.public, subject, Role.NODE, attributes, issued_ns=time.time_ns()))


def to_bytes(key: HiveKey) -> bytes:
    """JSON on one line."""
    return FILE.to_bytes(key.seed)


def from_bytes(data: bytes) -> HiveKey:
    """Raises Corrupt or UnknownVersion."""
    return HiveKey(FILE.from_bytes(data))


def create(path: Path) -> HiveKey:
    """A new hive: a fresh key in ``path``, which must not exist. Raises KeyFileProblem."""
    return HiveKey(FILE.create(path))


def load(path: Path) -> HiveKey:
    """The key in ``path``. Raises KeyFileProblem, Corrupt, UnknownVersion."""
    return HiveKey(FILE.load(path))

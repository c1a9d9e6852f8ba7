"""The key of an attester: who holds it vouches for nodes, to those who trust it. See docs/formats/attestation.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hivefs.crypto.keys import public_key
from hivefs.daemon.key_file import KeyFormat

FILE = KeyFormat(
    "hivefs-attester-key",
    1,
    "key",
    "the attester's key file",
    "it is not the key of a HiveFS attester",
    "the seed does not fit the key",
)


@dataclass(frozen=True, repr=False)
class AttesterKey:
    """An Ed25519 seed (32 bytes); ``public`` is what users trust."""

    seed: bytes
    public: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "public", public_key(self.seed))

    def __repr__(self) -> str:
        return f"AttesterKey({self.public.hex()})"


def to_bytes(key: AttesterKey) -> bytes:
    """JSON on one line."""
    return FILE.to_bytes(key.seed)


def from_bytes(data: bytes) -> AttesterKey:
    """Raises Corrupt or UnknownVersion."""
    return AttesterKey(FILE.from_bytes(data))


def create(path: Path) -> AttesterKey:
    """A fresh key in ``path``, which must not exist. Raises KeyFileProblem."""
    return AttesterKey(FILE.create(path))


def load(path: Path) -> AttesterKey:
    """The key in ``path``. Raises KeyFileProblem, Corrupt, UnknownVersion."""
    return AttesterKey(FILE.load(path))

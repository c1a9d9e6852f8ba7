"""From one master secret to a key per purpose (HKDF-SHA256, RFC 5869, one label each), and Ed25519 signing.

The master is 32 random bytes, which the 24-word recovery phrase encodes. Everything that must come back from the
phrase alone (vault id, owner key, the keys of checkpoints and heads) is derived from it. Randomness is an argument:
this room is pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hivefs.model.ids import KEY_BYTES, VaultId

_SALT = b"hivefs/1"

LABELS = ("owner", "head", "metadata", "stage", "names", "engine", "vault-file", "vault-mac", "dedup")
"""Purposes of derived keys; a label is never used for two things."""


def derive(secret: bytes, label: str, length: int = KEY_BYTES) -> bytes:
    """``length`` bytes for the purpose ``label`` out of a 32-byte secret."""
    return HKDF(hashes.SHA256(), length, _SALT, b"hivefs/1/" + label.encode()).derive(secret)


def public_key(seed: bytes) -> bytes:
    """The 32-byte Ed25519 public key of a 32-byte seed."""
    return (
        Ed25519PrivateKey.from_private_bytes(seed)
        .public_key()
        .public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    )


def sign(seed: bytes, message: bytes) -> bytes:
    """A 64-byte Ed25519 signature (RFC 8032)."""
    return Ed25519PrivateKey.from_private_bytes(seed).sign(message)


def verify(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether ``signature`` is that of ``message`` under the 32-byte public key. False for malformed keys too."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def vault_id_of(owner_key: bytes) -> VaultId:
    """The 16-byte name under which nodes know a vault."""
    return VaultId(blake3.blake3(b"hivefs/1/vault" + owner_key).digest(length=16))


@dataclass(frozen=True, repr=False)
class ReadingKeys:
    """The keys with which both local stores are read (in which are the keys of chunks). Nothing can be signed with them."""

    metadata_key: bytes
    names_key: bytes
    engine_key: bytes

    def __repr__(self) -> str:
        return "ReadingKeys(...)"


@dataclass(frozen=True, repr=False)
class VaultKeys:
    """Every key of an unlocked vault. ``repr`` shows none of them."""

    master: bytes
    owner_seed: bytes = field(init=False)
    owner_key: bytes = field(init=False)
    vault_id: VaultId = field(init=False)
    head_key: bytes = field(init=False)
    metadata_key: bytes = field(init=False)
    names_key: bytes = field(init=False)
    stage_key: bytes = field(init=False)
    engine_key: bytes = field(init=False)

    def __post_init__(self) -> None:
        if len(self.master) != KEY_BYTES:
            raise ValueError("the master secret has 32 bytes")
        put = object.__setattr__
        put(self, "owner_seed", derive(self.master, "owner"))
        put(self, "owner_key", public_key(self.owner_seed))
        put(self, "vault_id", vault_id_of(self.owner_key))
        put(self, "head_key", derive(self.master, "head"))
        put(self, "metadata_key", derive(self.master, "metadata"))
        put(self, "names_key", derive(self.master, "names"))
        put(self, "stage_key", derive(self.master, "stage"))
        put(self, "engine_key", derive(self.master, "engine"))

    def reading(self) -> ReadingKeys:
        """What who only looks needs."""
        return ReadingKeys(self.metadata_key, self.names_key, self.engine_key)

    def __repr__(self) -> str:
        return f"VaultKeys(vault_id={self.vault_id.hex()})"

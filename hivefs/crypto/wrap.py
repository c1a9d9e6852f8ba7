"""Wrapping the master secret on this machine: by a password (Argon2id, RFC 9106), a key file, or not at all.

The parameters are part of the associated data, and refused below a floor, so that changing the file to cheaper ones
(a downgrade) gets an error and not a guessable wrap.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from hivefs.crypto.keys import derive

MIN_MEMORY_KIB = 19 << 10
MIN_ITERATIONS = 1
MAX_MEMORY_KIB = 4 << 20


@dataclass(frozen=True, slots=True)
class WrapParams:
    """How the wrapping key is made. ``method`` is "password", "keyfile" or "none"; salt is 16 bytes, hex."""

    method: str
    salt: str
    memory_kib: int = 64 << 10
    iterations: int = 3
    lanes: int = 1


class BadWrap(Exception):
    """The secret does not open the wrap, or the wrap was changed."""


def _wrapping_key(params: WrapParams, secret: bytes) -> bytes:
    salt = bytes.fromhex(params.salt)
    if len(salt) < 16:
        raise BadWrap("salt too short")
    if params.method == "password":
        if not (MIN_MEMORY_KIB <= params.memory_kib <= MAX_MEMORY_KIB) or not (
            MIN_ITERATIONS <= params.iterations <= 100 and 1 <= params.lanes <= 64
        ):
            raise BadWrap("key derivation parameters outside the accepted range")
        kdf = Argon2id(
            salt=salt, length=32, iterations=params.iterations, lanes=params.lanes, memory_cost=params.memory_kib
        )
        return kdf.derive(secret)
    if params.method in ("keyfile", "none"):
        return derive(secret + salt, "vault-file")
    raise BadWrap("unknown method")


def _context(params: WrapParams) -> bytes:
    return b"hivefs/wrap/1" + json.dumps(asdict(params), sort_keys=True).encode()


def wrap(params: WrapParams, secret: bytes, plain: bytes, nonce: bytes) -> bytes:
    """Seal ``plain`` under ``secret`` (password bytes, key file bytes, or empty); nonce is 12 fresh random bytes."""
    return nonce + AESGCM(_wrapping_key(params, secret)).encrypt(nonce, plain, _context(params))


def unwrap(params: WrapParams, secret: bytes, wrapped: bytes) -> bytes:
    """The inverse of wrap; raises BadWrap for a wrong secret or changed bytes or parameters."""
    try:
        return AESGCM(_wrapping_key(params, secret)).decrypt(wrapped[:12], wrapped[12:], _context(params))
    except (InvalidTag, ValueError):
        raise BadWrap("does not open") from None

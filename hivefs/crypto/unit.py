"""Sealing the units of the stage log: many small messages under the random key of one log segment (AES-256-GCM).

A segment of 64 MiB has at most some millions of units, so random 16-byte nonces never meet. A unit is
``nonce || ciphertext || tag``; what it belongs to is associated data and not stored (formats/staged.py). A unit of
32 KiB takes AES-NI 3 to 10 microseconds, as long as some ten lines of Python: the loop here does nothing but seal.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hivefs.crypto.seal import RECORD_NONCE_BYTES, RECORD_OVERHEAD
from hivefs.errors import Corrupt


class UnitSealer:
    """Seals and opens under one 32-byte key."""

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)

    def seal_into(
        self, out: memoryview, plain: memoryview, unit_bytes: int, contexts: Sequence[bytes], nonces: bytes
    ) -> int:
        """Cut ``plain`` into units of ``unit_bytes`` (the last may be shorter), one for each of ``contexts``, and
        write them one after the other into ``out``. ``nonces`` has 16 fresh random bytes for each. Returns the length.
        """
        seal = self._aead.encrypt_into
        at = 0
        total = len(plain)
        for index, context in enumerate(contexts):
            first = index * unit_bytes
            nonce = nonces[index * RECORD_NONCE_BYTES : (index + 1) * RECORD_NONCE_BYTES]
            body = at + RECORD_NONCE_BYTES
            end = at + RECORD_OVERHEAD + min(unit_bytes, total - first)
            out[at:body] = nonce
            seal(nonce, plain[first : first + unit_bytes], context, out[body:end])
            at = end
        return at

    def open(self, sealed: bytes | memoryview, context: bytes) -> bytes:
        """The plaintext of one unit; raises Corrupt when it was sealed for another place, or changed."""
        try:
            return self._aead.decrypt(sealed[:RECORD_NONCE_BYTES], sealed[RECORD_NONCE_BYTES:], context)
        except (InvalidTag, ValueError):
            raise Corrupt(what="a unit of the stage", reason="its seal does not open") from None

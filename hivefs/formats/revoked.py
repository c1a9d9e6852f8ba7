"""The list of who does not belong to a hive any more. See docs/formats/member.md."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise
from typing import Any

from hivefs.crypto import keys
from hivefs.errors import BadSetting
from hivefs.formats import strict
from hivefs.model.ids import KEY_BYTES
from hivefs.model.node import Revocations

VERSION = 1
MAX_KEYS = 10_000
MAX_BYTES = 512 << 10
_MAGIC, _WHAT = "HVrevoked", "a revocation list"


def _items(revoked: Revocations) -> list[Any]:
    return [revoked.hive_key, revoked.sequence, revoked.issued_ns, list(revoked.members), list(revoked.invitations)]


def sign_revocations(
    hive_seed: bytes, sequence: int, issued_ns: int, members: Collection[bytes], invitations: Collection[bytes]
) -> Revocations:
    """A list of at most MAX_KEYS keys, signed by the hive's owner. Raises BadSetting when there are more."""
    if len(members) + len(invitations) > MAX_KEYS:
        raise BadSetting(name="revocation list", reason=f"it holds at most {MAX_KEYS} members and invitations")
    ordered = tuple(sorted(set(members))), tuple(sorted(set(invitations)))
    bare = Revocations(keys.public_key(hive_seed), sequence, issued_ns, *ordered)
    return Revocations(
        bare.hive_key, sequence, issued_ns, *ordered, keys.sign(hive_seed, strict.encode(_MAGIC, VERSION, _items(bare)))
    )


def revocations_valid(revoked: Revocations, hive_key: bytes) -> bool:
    """Whether that hive's owner signed it."""
    message = strict.encode(_MAGIC, VERSION, _items(revoked))
    return revoked.hive_key == hive_key and keys.verify(hive_key, revoked.signature, message)


def newer(revoked: Revocations, known: Revocations | None) -> bool:
    """Whether ``revoked`` takes the place of ``known``. Of two with one number (the owner's key was used in two places)
    the same one wins everywhere.
    """
    return known is None or _order(revoked) > _order(known)


def _order(revoked: Revocations) -> tuple[int, int, bytes]:
    return revoked.sequence, len(revoked.members) + len(revoked.invitations), revoked.signature


def revocations_to_bytes(revoked: Revocations) -> bytes:
    """Canonical CBOR, signature last."""
    return strict.encode(_MAGIC, VERSION, _items(revoked), revoked.signature)


def revocations_from_bytes(data: bytes) -> Revocations:
    """Raises Corrupt or UnknownVersion; the signature is not checked here."""
    parts = strict.items_of(_WHAT, _MAGIC, VERSION, data)

    def build() -> Revocations:
        fields, signature = parts
        hive_key, sequence, issued, members, invitations = strict.items(fields, 5)
        made = _keys(members), _keys(invitations)
        if sum(map(len, made)) > MAX_KEYS:
            raise ValueError("too many keys")
        return Revocations(
            strict.blob(hive_key, KEY_BYTES),
            strict.number(sequence, 1),
            strict.number(issued),
            *made,
            strict.blob(signature, 64),
        )

    return strict.exactly(_WHAT, data, build, revocations_to_bytes)


def _keys(value: Any) -> tuple[bytes, ...]:
    made = tuple(strict.blob(key, KEY_BYTES) for key in strict.items(value, MAX_KEYS))
    if any(a >= b for a, b in pairwise(made)):
        raise ValueError("not sorted")
    return made

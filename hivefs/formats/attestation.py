"""Attestations, what a node says of itself, and trusted keys. See docs/formats/attestation.md."""

from __future__ import annotations

import base64
import binascii
from dataclasses import replace
from typing import Any

from hivefs.crypto import keys
from hivefs.errors import BadAttestation, Corrupt, UnknownVersion
from hivefs.formats import strict
from hivefs.formats.invite import SKEW_NS
from hivefs.model.attestation import Attestation, Said, Statement, TrustedKey
from hivefs.model.ids import KEY_BYTES, NodeId
from hivefs.model.node import ATTRIBUTE_NAMES

VERSION = 1
MAX_VALUE = 256
"""Characters of a value."""

MAX_BYTES = 10 << 10
"""Of an attestation: each name once, four bytes for a character at most."""

MAX_ATTESTATIONS = 8
"""That a node passes on of itself."""

MAX_STATEMENT_BYTES = (MAX_ATTESTATIONS + 1) * MAX_BYTES
MAX_NAME = 128
PREFIX = "HIVEFS-ATTEST:"
MAX_TEXT = 256 << 10
"""Characters of a file of attestations."""

_ATTEST, _STATEMENT, _TRUST = "HVattest", "HVstatement", "HVtrust"
_WHAT, _WHAT_STATEMENT, _WHAT_TRUST = "an attestation", "what a node says of itself", "a trusted key"


def said_to_items(said: Said) -> list[list[str]]:
    """For CBOR."""
    return [[name, value] for name, value in said]


def said_from_items(value: Any, *, empty: bool) -> Said:
    """The inverse; ValueError or TypeError when a name is unknown, twice or out of order, or a value is empty and may not
    be, or no UTF-8 can hold it. What may not be shown (model/words.py) is read all the same, since it may have been signed
    before there was that rule: placement/evidence.py takes it for unknown.
    """
    said = tuple(
        (strict.text(name, 64), strict.text(text, MAX_VALUE))
        for name, text in (strict.items(item, 2) for item in strict.items(value, len(ATTRIBUTE_NAMES)))
    )
    names = [name for name, _ in said]
    if names != sorted(set(names)) or not set(names) <= set(ATTRIBUTE_NAMES):
        raise ValueError("attribute names that are unknown, double or not sorted")
    for _, text in said:
        text.encode()
    if not empty and not all(text for _, text in said):
        raise ValueError("an empty value")
    return said


def _items(made: Attestation) -> list[Any]:
    return [made.attester, made.subject, said_to_items(made.said), made.issued_ns, made.expires_ns]


def sign_attestation(attester_seed: bytes, made: Attestation) -> Attestation:
    """The same, signed by the attester (whose key replaces ``attester``)."""
    bare = replace(made, attester=keys.public_key(attester_seed), said=tuple(sorted(made.said)), signature=b"")
    return replace(bare, signature=keys.sign(attester_seed, strict.encode(_ATTEST, VERSION, _items(bare))))


def signed(made: Attestation) -> bool:
    """Whether its attester signed it, and speaks of another than itself."""
    message = strict.encode(_ATTEST, VERSION, _items(made))
    return made.attester != made.subject and keys.verify(made.attester, made.signature, message)


def expired(made: Attestation, now_ns: int) -> bool:
    """Whether it has ended, more than a day ago."""
    return bool(made.expires_ns) and now_ns - SKEW_NS >= made.expires_ns


def early(made: Attestation, now_ns: int) -> bool:
    """Whether it was issued more than a day from now."""
    return made.issued_ns > now_ns + SKEW_NS


def problem(made: Attestation, now_ns: int) -> str:
    """Why it counts for nothing, in words; "" when it counts for who trusts its attester. A day of skew is forgiven."""
    if made.attester == made.subject:
        return "a node cannot attest itself"
    if not signed(made):
        return "its signature is not its attester's: it is forged or was changed"
    if expired(made, now_ns):
        return "it has expired"
    if early(made, now_ns):
        return "it is from the future; is the clock of this machine right?"
    return ""


def attestation_to_bytes(made: Attestation) -> bytes:
    """Canonical CBOR, signature last."""
    return strict.encode(_ATTEST, VERSION, _items(made), made.signature)


def attestation_from_bytes(data: bytes) -> Attestation:
    """Raises Corrupt or UnknownVersion; the signature is not checked here."""
    parts = strict.items_of(_WHAT, _ATTEST, VERSION, data)

    def build() -> Attestation:
        fields, signature = parts
        attester, subject, said, issued, expires = strict.items(fields, 5)
        return Attestation(
            strict.blob(attester, KEY_BYTES),
            strict.blob(subject, KEY_BYTES),
            said_from_items(said, empty=False),
            strict.number(issued),
            strict.number(expires),
            strict.blob(signature, 64),
        )

    return strict.exactly(_WHAT, data, build, attestation_to_bytes)


# ---- as text --------------------------------------------------------------------------------------------------------


def attestation_to_text(made: Attestation) -> str:
    """One line."""
    return PREFIX + base64.urlsafe_b64encode(attestation_to_bytes(made)).decode("ascii")


def attestations_from_text(text: str) -> list[Attestation]:
    """All lines of a file; empty ones and such that begin with # are passed over. Raises BadAttestation, which says the
    line. Signatures and times are not checked here.
    """
    if len(text) > MAX_TEXT:
        raise BadAttestation(reason=f"the file is longer than {MAX_TEXT} characters")
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if not line.startswith(PREFIX):
            raise BadAttestation(reason=f"line {number} does not begin with {PREFIX}")
        try:
            found.append(attestation_from_bytes(base64.b64decode(line[len(PREFIX) :], b"-_", validate=True)))
        except UnknownVersion:
            raise BadAttestation(reason=f"a newer HiveFS made the one in line {number}") from None
        except (binascii.Error, ValueError, Corrupt):
            raise BadAttestation(reason=f"line {number} is cut off or was changed on its way") from None
    if not found:
        raise BadAttestation(reason="there is none in the file")
    return found


# ---- what a node says of itself -------------------------------------------------------------------------------------


def _statement_items(made: Statement) -> list[Any]:
    attestations = [attestation_to_bytes(a) for a in made.attestations]
    return [made.node_id, made.sequence, said_to_items(made.claims), attestations]


def sign_statement(node_seed: bytes, made: Statement) -> Statement:
    """The same, signed by the node (whose key replaces ``node_id``)."""
    bare = replace(made, node_id=NodeId(keys.public_key(node_seed)), claims=tuple(sorted(made.claims)), signature=b"")
    return replace(bare, signature=keys.sign(node_seed, strict.encode(_STATEMENT, VERSION, _statement_items(bare))))


def statement_valid(made: Statement) -> bool:
    """Whether the node signed it and all attestations in it are signed and about this node. Times are not looked at."""
    message = strict.encode(_STATEMENT, VERSION, _statement_items(made))
    return keys.verify(made.node_id, made.signature, message) and all(
        a.subject == made.node_id and signed(a) for a in made.attestations
    )


def ahead(made: Statement, now_ns: int) -> bool:
    """Whether its number (seconds since 1970) is more than a day ahead. Such a one counts for nothing: whoever stole the
    node's key could otherwise silence its owner for ever.
    """
    return made.sequence > (now_ns + SKEW_NS) // 10**9


def newer(made: Statement, known: Statement | None, now_ns: int) -> bool:
    """Whether ``made`` takes the place of ``known``; of two with one number the same one wins everywhere. One that is
    ahead of the clock takes no place, and any other takes its place.
    """
    if ahead(made, now_ns):
        return False
    return known is None or ahead(known, now_ns) or (made.sequence, made.signature) > (known.sequence, known.signature)


def statement_to_bytes(made: Statement) -> bytes:
    """Canonical CBOR, signature last."""
    return strict.encode(_STATEMENT, VERSION, _statement_items(made), made.signature)


def statement_from_bytes(data: bytes) -> Statement:
    """Raises Corrupt or UnknownVersion; signatures are not checked here."""
    parts = strict.items_of(_WHAT_STATEMENT, _STATEMENT, VERSION, data)

    def build() -> Statement:
        fields, signature = parts
        node_id, sequence, claims, attestations = strict.items(fields, 4)
        return Statement(
            NodeId(strict.blob(node_id, KEY_BYTES)),
            strict.number(sequence),
            said_from_items(claims, empty=True),
            tuple(attestation_from_bytes(strict.blob(a)) for a in strict.items(attestations, MAX_ATTESTATIONS)),
            strict.blob(signature, 64),
        )

    return strict.exactly(_WHAT_STATEMENT, data, build, statement_to_bytes)


# ---- whom a user trusts ---------------------------------------------------------------------------------------------


def trusted_to_bytes(made: TrustedKey) -> bytes:
    """Canonical CBOR; a record of the vault's sealed metadata, so it is not signed."""
    return strict.encode(_TRUST, VERSION, made.key, made.name, made.since_ns)


def trusted_from_bytes(data: bytes) -> TrustedKey:
    """Raises Corrupt or UnknownVersion."""
    parts = strict.items_of(_WHAT_TRUST, _TRUST, VERSION, data)

    def build() -> TrustedKey:
        key, name, since = parts
        return TrustedKey(strict.blob(key, KEY_BYTES), strict.text(name, MAX_NAME), strict.number(since))

    return strict.exactly(_WHAT_TRUST, data, build, trusted_to_bytes)

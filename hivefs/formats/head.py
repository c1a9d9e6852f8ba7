"""Heads, device certificates and sealed roots. See docs/formats/head.md."""

from __future__ import annotations

import hashlib
from typing import Any

from hivefs.crypto import keys
from hivefs.crypto.seal import RecordSealer
from hivefs.errors import Corrupt
from hivefs.formats import strict
from hivefs.formats.stripe import (
    CERTIFIED,
    page_ref_from_items,
    page_ref_to_items,
    stripe_from_items,
    stripe_to_items,
    version_with,
)
from hivefs.model.head import DeviceCertificate, Head, Root
from hivefs.model.ids import ID_BYTES, KEY_BYTES, DeviceId, VaultId

VERSION = 1
MAX_BYTES = 256 << 10
"""A node refuses a longer head."""

_CERT, _HEAD, _ROOT = "HVdevice", "HVhead", "HVroot"
_FIRST = bytes(32)


def _certificate_items(certificate: DeviceCertificate) -> list[Any]:
    return [
        certificate.vault_id,
        certificate.owner_key,
        certificate.device,
        certificate.number,
        certificate.issued_ns,
    ]


def sign_certificate(owner_seed: bytes, device: DeviceId, number: int, issued_ns: int) -> DeviceCertificate:
    """Enrol a device (number 1 to 65 535) under the vault of ``owner_seed``."""
    owner_key = keys.public_key(owner_seed)
    bare = DeviceCertificate(keys.vault_id_of(owner_key), owner_key, device, number, issued_ns)
    signature = keys.sign(owner_seed, strict.encode(_CERT, VERSION, _certificate_items(bare)))
    return DeviceCertificate(bare.vault_id, owner_key, device, number, issued_ns, signature)


def certificate_valid(certificate: DeviceCertificate) -> bool:
    """Whether the vault's owner signed it and the vault id is that owner's."""
    message = strict.encode(_CERT, VERSION, _certificate_items(certificate))
    return keys.vault_id_of(certificate.owner_key) == certificate.vault_id and keys.verify(
        certificate.owner_key, certificate.signature, message
    )


def certificate_to_bytes(certificate: DeviceCertificate) -> bytes:
    """Canonical CBOR of a certificate by itself (it also stands inside every head)."""
    return strict.encode(_CERT, VERSION, _certificate_items(certificate), certificate.signature)


def certificate_from_bytes(data: bytes) -> DeviceCertificate:
    """Raises Corrupt or UnknownVersion. The signature is not checked here: call certificate_valid."""
    what = "a device certificate"
    parts = strict.items_of(what, _CERT, VERSION, data)

    def build() -> DeviceCertificate:
        fields, signature = parts
        vault_id, owner_key, device, device_number, issued_ns = strict.items(fields, 5)
        return DeviceCertificate(
            VaultId(strict.blob(vault_id, ID_BYTES)),
            strict.blob(owner_key, KEY_BYTES),
            DeviceId(strict.blob(device, KEY_BYTES)),
            strict.number(device_number, 1, 65535),
            strict.number(issued_ns),
            strict.blob(signature, 64),
        )

    return strict.exactly(what, data, build, certificate_to_bytes)


def _signed_part(head: Head) -> bytes:
    return strict.encode(
        _HEAD,
        VERSION,
        [*_certificate_items(head.certificate), head.certificate.signature],
        head.sequence,
        head.previous,
        head.time_ns,
        head.sealed_root,
    )


def sign_head(
    device_seed: bytes,
    certificate: DeviceCertificate,
    sequence: int,
    previous: Head | None,
    time_ns: int,
    sealed_root: bytes,
) -> Head:
    """The next head of a device; ``previous`` is its last one."""
    link = _FIRST if previous is None else head_hash(previous)
    bare = Head(certificate, sequence, link, time_ns, sealed_root)
    return Head(certificate, sequence, link, time_ns, sealed_root, keys.sign(device_seed, _signed_part(bare)))


def head_valid(head: Head, vault_id: VaultId) -> bool:
    """Whether an enrolled device of that vault signed this head."""
    return (
        head.certificate.vault_id == vault_id
        and certificate_valid(head.certificate)
        and keys.verify(head.certificate.device, head.signature, _signed_part(head))
    )


def head_hash(head: Head) -> bytes:
    """SHA-256 of the head's bytes, which the next head names."""
    return hashlib.sha256(to_bytes(head)).digest()


def to_bytes(head: Head) -> bytes:
    """Canonical CBOR, signature last."""
    return strict.encode(
        _HEAD,
        VERSION,
        [*_certificate_items(head.certificate), head.certificate.signature],
        head.sequence,
        head.previous,
        head.time_ns,
        head.sealed_root,
        head.signature,
    )


def from_bytes(data: bytes) -> Head:
    """Raises Corrupt or UnknownVersion. The signatures are not checked here: call head_valid."""
    what = "a head"
    if len(data) > MAX_BYTES:
        raise Corrupt(what=what, reason="it is too long")
    parts = strict.items_of(what, _HEAD, VERSION, data)

    def build() -> Head:
        certificate, sequence, previous, time_ns, sealed_root, signature = parts
        vault_id, owner_key, device, device_number, issued_ns, cert_signature = strict.items(certificate, 6)
        return Head(
            DeviceCertificate(
                VaultId(strict.blob(vault_id, ID_BYTES)),
                strict.blob(owner_key, KEY_BYTES),
                DeviceId(strict.blob(device, KEY_BYTES)),
                strict.number(device_number, 1, 65535),
                strict.number(issued_ns),
                strict.blob(cert_signature, 64),
            ),
            strict.number(sequence, 1),
            strict.blob(previous, 32),
            strict.number(time_ns),
            strict.blob(sealed_root),
            strict.blob(signature, 64),
        )

    return strict.exactly(what, data, build, to_bytes)


def root_to_bytes(root: Root) -> bytes:
    """Canonical CBOR, to be sealed."""
    page = None if root.page is None else page_ref_to_items(root.page)
    return strict.encode(
        _ROOT,
        version_with(root.stripes),
        page,
        root.height,
        root.records,
        [stripe_to_items(s) for s in root.stripes],
        root.next_counter,
        [[number, sequence] for number, sequence in root.seen],
        root.hive_key,
    )


def root_from_bytes(data: bytes) -> Root:
    """Raises Corrupt or UnknownVersion."""
    what = "the root of a checkpoint"
    parts = strict.items_of_any(what, _ROOT, (VERSION, CERTIFIED), data)

    def build() -> Root:
        page, height, records, stripes, counter, seen, hive_key = parts
        return Root(
            None if page is None else page_ref_from_items(page),
            strict.number(height),
            strict.number(records),
            tuple(stripe_from_items(item) for item in strict.items(stripes)),
            strict.number(counter),
            tuple((strict.number(n), strict.number(q)) for n, q in (strict.items(v, 2) for v in strict.items(seen))),
            strict.blob(hive_key, KEY_BYTES),
        )

    return strict.exactly(what, data, build, root_to_bytes)


def _root_place(device: bytes, sequence: int) -> bytes:
    return b"hivefs/root/1" + device + sequence.to_bytes(8, "big")


def seal_root(sealer: RecordSealer, device: bytes, sequence: int, root: Root) -> bytes:
    """Seal a root for one head; it opens only under that device and sequence."""
    return sealer.seal(_root_place(device, sequence), root_to_bytes(root))


def open_root(sealer: RecordSealer, head: Head) -> Root:
    """Raises Corrupt when the head carries a root that was sealed for another."""
    plain = sealer.open(_root_place(head.certificate.device, head.sequence), head.sealed_root)
    return root_from_bytes(plain)

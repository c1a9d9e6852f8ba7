"""Receipts: what a node holds for a vault, signed by the node and countersigned by the vault. See
docs/formats/receipt.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hivefs.crypto import keys
from hivefs.formats import strict
from hivefs.model.ids import KEY_BYTES, NodeId
from hivefs.model.receipt import Receipt

VERSION = 1
MAX_BYTES = 1024
NONCE_BYTES = 32
_MAGIC, _COUNTER, _WHAT = "HVreceipt", "HVcounter", "a receipt"


def _items(receipt: Receipt) -> list[Any]:
    r = receipt
    return [r.node_id, r.owner, r.sequence, r.time_ns, r.nonce, r.leases, r.size]


def _message(receipt: Receipt) -> bytes:
    return strict.encode(_MAGIC, VERSION, _items(receipt))


def _agreed(receipt: Receipt) -> bytes:
    return strict.encode(_COUNTER, VERSION, _items(receipt), receipt.signature)


def sign_receipt(receipt: Receipt, sign: Callable[[bytes], bytes]) -> Receipt:
    """The same, signed by the node."""
    return replace(receipt, signature=sign(_message(receipt)), counter=b"")


def countersign(receipt: Receipt, sign: Callable[[bytes], bytes]) -> Receipt:
    """The same, signed by the vault's owner key too, over what the node signed and its signature."""
    return replace(receipt, counter=sign(_agreed(receipt)))


def receipt_valid(receipt: Receipt) -> bool:
    """Whether the node that it names signed it."""
    return keys.verify(receipt.node_id, receipt.signature, _message(receipt))


def counter_valid(receipt: Receipt) -> bool:
    """Whether both signed it."""
    return receipt_valid(receipt) and keys.verify(receipt.owner, receipt.counter, _agreed(receipt))


def receipt_to_bytes(receipt: Receipt) -> bytes:
    """Canonical CBOR, signatures last."""
    return strict.encode(_MAGIC, VERSION, _items(receipt), receipt.signature, receipt.counter)


def receipt_from_bytes(data: bytes) -> Receipt:
    """Raises Corrupt or UnknownVersion; signatures are not checked here."""
    parts = strict.items_of(_WHAT, _MAGIC, VERSION, data)

    def build() -> Receipt:
        fields, signature, counter = parts
        node_id, owner, sequence, time_ns, nonce, leases, size = strict.items(fields, 7)
        if counter != b"":
            strict.blob(counter, 64)
        return Receipt(
            NodeId(strict.blob(node_id, KEY_BYTES)),
            strict.blob(owner, KEY_BYTES),
            strict.number(sequence, 1),
            strict.number(time_ns),
            strict.blob(nonce, NONCE_BYTES),
            strict.number(leases),
            strict.number(size),
            strict.blob(signature, 64),
            counter,
        )

    return strict.exactly(_WHAT, data, build, receipt_to_bytes)

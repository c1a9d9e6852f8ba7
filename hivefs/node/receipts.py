"""Receipts that this node gives: how many leases each vault has here, signed; and what vaults have countersigned.

The latest of both kinds is kept for each vault. The number of a receipt is on disk before the receipt goes out, so two
different ones never have the same, whatever crash comes between. See docs/formats/receipt.md.
"""

from __future__ import annotations

from collections.abc import Callable

from hivefs.errors import HivefsError
from hivefs.formats import receipt as receipt_format
from hivefs.model.ids import NodeId, VaultId
from hivefs.model.receipt import Receipt
from hivefs.node.store import ShareStore
from hivefs.protocol.failures import Code, Refusal

LEAST_NS = 10**9
"""Between two receipts for a vault."""

_ISSUED, _AGREED = "receipt-", "agreed-"
"""In the index: by vault, what was signed last, and the last one with both signatures."""


class Receipts:
    """Of one node. ``sign`` signs with its key. Everything blocks and belongs into worker threads."""

    def __init__(
        self, store: ShareStore, node_id: NodeId, sign: Callable[[bytes], bytes], clock: Callable[[], int]
    ) -> None:
        self._store = store
        self._node_id = node_id
        self._sign = sign
        self._clock = clock

    def issue(self, vault: VaultId, owner: bytes, nonce: bytes) -> list[bytes]:
        """A new receipt, and the last one that has both signatures, if there is one. Each is a write to the disk, so a
        vault gets one in a second: the same again for the same nonce, else this raises Refusal (BUSY).
        """
        with self._store.lock:
            now = self._clock()
            last = self._kept(_ISSUED, vault)
            agreed = self._kept(_AGREED, vault)
            if last is not None and 0 <= now - last.time_ns < LEAST_NS:
                if last.nonce != nonce or last.owner != owner:
                    raise Refusal(Code.BUSY, "this node gives a vault one receipt in a second")
                return [receipt_format.receipt_to_bytes(r) for r in (last, agreed) if r is not None]
            size, leases = self._store.index.totals_of(vault)
            # Also a node that lost its store goes on with a higher number than any before.
            number = max(now, 1 + max((r.sequence for r in (last, agreed) if r is not None), default=0))
            made = Receipt(self._node_id, owner, number, now, nonce, leases, size)
            data = receipt_format.receipt_to_bytes(receipt_format.sign_receipt(made, self._sign))
            with self._store.index.writing() as change:
                change.save_info(_ISSUED + vault.hex(), data)
        return [data] if agreed is None else [data, receipt_format.receipt_to_bytes(agreed)]

    def take(self, vault: VaultId, owner: bytes, data: bytes) -> bool:
        """Keep a receipt of ours that the vault countersigned; whether it was news. Raises Refusal for any other."""
        try:
            given = receipt_format.receipt_from_bytes(data)
        except HivefsError as error:
            raise Refusal(Code.BAD_REQUEST, str(error)) from None
        if given.node_id != self._node_id or given.owner != owner:
            raise Refusal(Code.FORBIDDEN, "the receipt is of another node or vault")
        if not receipt_format.counter_valid(given):
            raise Refusal(Code.FORBIDDEN, "the receipt was not signed by this node and by the vault")
        with self._store.lock:
            agreed = self._kept(_AGREED, vault)
            if agreed is not None and given.sequence <= agreed.sequence:
                if given == agreed:
                    return False
                raise Refusal(Code.FORBIDDEN, f"receipt {agreed.sequence} is kept here, {given.sequence} is older")
            with self._store.index.writing() as change:
                change.save_info(_AGREED + vault.hex(), data)
        return True

    def _kept(self, kind: str, vault: VaultId) -> Receipt | None:
        data = self._store.index.info(kind + vault.hex())
        return None if data is None else receipt_format.receipt_from_bytes(data)

"""What is signed during a conversation. Every message begins with its own magic, so none can pass for another."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from hivefs.formats import strict
from hivefs.model.ids import ShareId
from hivefs.protocol.frames import VERSION

NONCE_BYTES = 32


def login_message(
    client_key: bytes, node_key: bytes, nonce: bytes, hive_key: bytes, subject: bytes, certificate: bytes
) -> bytes:
    """What the subject signs to log in. Both transport keys are in it, so a node that is asked to log a client in cannot
    pass the signature on to another node, and the node's nonce, so it is good for one conversation only. ``hive_key``
    and ``certificate`` are empty when the client knows neither (recovery).
    """
    return strict.encode(
        "HVlogin", VERSION, client_key, node_key, nonce, hive_key, subject, hashlib.sha256(certificate).digest()
    )


def delete_message(node_key: bytes, subject: bytes, nonce: bytes, serial: int, share_ids: Sequence[ShareId]) -> bytes:
    """What the owner signs to delete: this node, this conversation (its nonce), and a serial that only grows in it."""
    return strict.encode(
        "HVdelete", VERSION, node_key, subject, nonce, serial, hashlib.sha256(b"".join(share_ids)).digest()
    )

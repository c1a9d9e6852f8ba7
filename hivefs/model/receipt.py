"""What a node says that it holds for a vault, signed by both."""

from __future__ import annotations

from dataclasses import dataclass

from hivefs.model.ids import NodeId, ShareId


@dataclass(frozen=True, slots=True)
class Receipt:
    """At ``time_ns`` (since 1970, the node's clock) the node had ``leases`` leases of the vault of the key ``owner``,
    on as many shares with ``size`` bytes together. ``sequence`` grows with each receipt that the node makes for a
    vault; ``nonce`` are 32 bytes that the vault chose when it asked. The vault's signature (``counter``) is empty
    until it has agreed.
    """

    node_id: NodeId
    owner: bytes
    sequence: int
    time_ns: int
    nonce: bytes
    leases: int
    size: int
    signature: bytes = b""
    counter: bytes = b""


@dataclass(frozen=True, slots=True)
class Listed:
    """A share that a node holds for a vault: until when the lease runs (ns since 1970), and its bytes."""

    share_id: ShareId
    lease_ns: int
    size: int

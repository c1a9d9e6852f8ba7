"""The signed pointer to a vault's newest metadata checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from hivefs.model.ids import DeviceId, StripeId, VaultId
from hivefs.model.stripe import PageRef, Stripe


@dataclass(frozen=True, slots=True)
class DeviceCertificate:
    """The vault's owner key says that ``device`` may sign heads as device number ``number``."""

    vault_id: VaultId
    owner_key: bytes
    device: DeviceId
    number: int
    issued_ns: int
    signature: bytes = b""


@dataclass(frozen=True, slots=True)
class Root:
    """What a head points to, sealed inside it: the tree's top page and the stripes that hold it.

    ``seen`` is a version vector: the highest head sequence of every device, by device number and sorted by it, whose
    changes this tree contains (its own included). A head that dominates all others is the newest; if none does, devices
    wrote apart from each other. ``hive_key`` is the hive that the vault lives in: a node that is asked during a
    recovery cannot pass another hive, of its own making, for it.
    """

    page: PageRef | None
    height: int
    records: int
    stripes: tuple[Stripe, ...] = ()
    next_counter: int = 2
    seen: tuple[tuple[int, int], ...] = ()
    hive_key: bytes = bytes(32)


@dataclass(frozen=True, slots=True)
class Head:
    """One signed step in the history of one device's view of a vault.

    ``sequence`` counts from 1; ``previous`` is the SHA-256 of the head before (32 zero bytes for the first) and
    ``sealed_root`` opens to a Root with the vault's head key. Nodes can verify all of it but the root.
    """

    certificate: DeviceCertificate
    sequence: int
    previous: bytes
    time_ns: int
    sealed_root: bytes
    signature: bytes = b""


__all__ = ["DeviceCertificate", "Head", "Root", "StripeId"]

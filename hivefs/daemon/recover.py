"""Bringing a vault back on a machine that has nothing: the phrase gives the keys, any node gives the rest.

The node lets the owner key in (it kept the vault's membership), tells of all other nodes, and all of them are asked for
heads. Only heads that an enrolled device of this very vault signed count; of those the newest is the one whose version
vector contains all others. The tree it points to is not read here: the drive and the engine load pages as they are
needed, so that the time this takes does not grow with the number of files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import trio

from hivefs.chunkstore.node_client import NodeClient
from hivefs.crypto.keys import VaultKeys, public_key
from hivefs.crypto.seal import RecordSealer
from hivefs.daemon.home import Home
from hivefs.daemon.network import Conversations
from hivefs.errors import BadAddress, HeadForked, HivefsError, NoHeadFound, PeerIdentityMismatch
from hivefs.formats import head as head_format
from hivefs.formats import member
from hivefs.formats.member import entry_valid
from hivefs.formats.revoked import newer, revocations_from_bytes, revocations_to_bytes, revocations_valid
from hivefs.metadata.engine_store import EngineStore
from hivefs.metadata.store import MetadataStore
from hivefs.model.head import Head, Root
from hivefs.model.ids import DeviceId, NodeId
from hivefs.model.node import UNKNOWN, Membership, Revocations, RosterEntry
from hivefs.placement.attributes import authorities
from hivefs.placement.evidence import known
from hivefs.placement.heads import FRESH, beyond
from hivefs.placement.health import NodeRow, NodeState
from hivefs.placement.policy import Policy

ASK_SECONDS = 15.0


class _Found:
    """What the nodes said."""

    def __init__(self) -> None:
        self.roster: dict[NodeId, RosterEntry] = {}
        self.heads: dict[tuple[bytes, int], Head] = {}
        self.answered: set[NodeId] = set()
        self.membership: Membership | None = None
        self.forked: Head | None = None
        self.revoked: Revocations | None = None

    def take(self, head: Head, keys: VaultKeys) -> None:
        """Count a head, unless it is not this vault's. Two for one number of one device are a fork."""
        if not head_format.head_valid(head, keys.vault_id):
            return
        known = self.heads.setdefault((head.certificate.device, head.sequence), head)
        if head_format.to_bytes(known) != head_format.to_bytes(head):
            self.forked = head


async def recover(home: Home, keys: VaultKeys, address: str, report: Callable[[str], None]) -> None:
    """Fill a prepared home. Raises PeerUnreachable, Refused, NoHeadFound, HeadForked, Corrupt and BadAddress."""
    async with Conversations.open(home.pending.device_seed, keys, None, None) as conversations:
        report(f"Asking {address} ...")
        found = _Found()
        async with conversations.with_address(address) as client:
            await _ask(client, keys, found)
            found.membership = client.greeted.membership
        await _ask_others(conversations, keys, found)
    head, root, number = newest(found.heads.values(), keys, found.forked, len(found.answered))
    if found.membership is None or root.hive_key != found.membership.hive_key:
        # The head is this vault's own, so it knows its hive; a node that names another made that one up.
        told = b"" if found.membership is None else found.membership.hive_key
        raise PeerIdentityMismatch(
            address=address, expected=f"hive {root.hive_key.hex()[:12]}", found=f"hive {told.hex()[:12]}"
        )
    where = {c for n in found.answered for c in _countries(found.roster.get(n))}
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(head.time_ns / 1e9))
    report(f"Newest head: number {head.sequence} of device {head.certificate.number}, made {when}, {root.records} records.")
    answered = f"{len(found.answered)} of {len(found.roster)} nodes under {len(where)} jurisdictions answered"
    over = [_countries(found.roster.get(n)) for n in found.answered]
    report(f"{answered}; {freshness(over)}")
    _write(home, keys, found, root, number + 1, address)


def freshness(over: Iterable[frozenset[str]]) -> str:
    """What a fresh device can say of how new the head is: when no three jurisdictions are over all nodes that answered
    (``over``, each node's), one may lie and be outvoted.
    """
    if beyond([names or frozenset({UNKNOWN}) for names in over], FRESH):
        return "no single jurisdiction can have hidden a newer head."
    return "freshness: unknown (to be sure that none hides a newer head, no three jurisdictions may be over all of them)."


def _countries(entry: RosterEntry | None) -> frozenset[str]:
    if entry is None:
        return frozenset()
    return authorities(known(entry.membership, addresses=entry.address.telling))["jurisdiction"]


async def _ask(client: NodeClient, keys: VaultKeys, found: _Found) -> None:
    now = time.time_ns()
    for entry in await client.get_roster():
        if entry_valid(entry, client.greeted.hive_key, now):
            node_id = NodeId(entry.membership.subject)
            found.roster[node_id] = member.newest(found.roster.get(node_id), entry, now)
    for head in await client.get_heads():
        found.take(head, keys)
    if (await client.hive_state()).revoked:
        data = await client.get_revoked()
        made = None if data is None else revocations_from_bytes(data)
        if made is not None and newer(made, found.revoked) and revocations_valid(made, client.greeted.hive_key):
            found.revoked = made
    found.answered.add(client.node_id)


async def _ask_others(conversations: Conversations, keys: VaultKeys, found: _Found) -> None:
    async def ask(entry: RosterEntry) -> None:
        try:
            with trio.move_on_after(ASK_SECONDS):
                async with conversations.with_node(entry) as client:
                    await _ask(client, keys, found)
        except HivefsError:
            return  # counted as not having answered

    # Twice: a node that was busy, or was just reached by another way, may answer now, and each answer counts.
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            for node_id, entry in list(found.roster.items()):
                if node_id not in found.answered:
                    nursery.start_soon(ask, entry)


def newest(heads: Iterable[Head], keys: VaultKeys, forked: Head | None, answered: int) -> tuple[Head, Root, int]:
    """The head that contains all others, its root, and the highest device number seen. Raises NoHeadFound, HeadForked."""
    if forked is not None:
        raise HeadForked(sequence=forked.sequence, device=forked.certificate.number)
    sealer = RecordSealer(keys.head_key, bytes)
    last: dict[int, Head] = {}
    for head in heads:
        number = head.certificate.number
        known = last.get(number)
        if known is not None and known.certificate.device != head.certificate.device:
            # Two machines were brought back from the same head and know nothing of each other.
            raise HeadForked(sequence=max(known.sequence, head.sequence), device=number)
        if known is None or known.sequence < head.sequence:
            last[number] = head
    if not last:
        raise NoHeadFound(answered=answered)
    roots = {number: head_format.open_root(sealer, head) for number, head in last.items()}
    for number, root in roots.items():
        seen = dict(root.seen)
        if all(seen.get(other, 0) >= head.sequence for other, head in last.items()):
            return last[number], root, max(last)
    number = max(last, key=lambda n: last[n].time_ns)
    raise HeadForked(sequence=last[number].sequence, device=number)


def _write(home: Home, keys: VaultKeys, found: _Found, root: Root, number: int, address: str) -> None:
    if found.membership is None:
        raise BadAddress(address=address)
    now = time.time_ns()
    needed, total = _code(root, found)
    device_seed = home.pending.device_seed
    certificate = head_format.sign_certificate(keys.owner_seed, DeviceId(public_key(device_seed)), number, now)
    store = EngineStore(home.engine, keys.engine_key, Policy(needed, total))
    try:
        with store.writing():
            store.save_info("root", head_format.root_to_bytes(root))
            store.save_info("hydrating", root.page is not None)
            store.save_info("head_out", False)
            if found.revoked is not None:
                store.save_info("revoked", revocations_to_bytes(found.revoked))
            for node_id, entry in found.roster.items():
                store.save_node(entry, now)
                store.save_node_row(node_id, NodeRow(NodeState.OFFLINE, now))
    finally:
        store.close()
    metadata = MetadataStore(
        home.metadata,
        keys,
        create=True,
        device=number,
        next_counter=root.next_counter,
        hydrating=root.page is not None,
    )
    metadata.close()
    addresses = tuple(dict.fromkeys([address, *(a for e in found.roster.values() for a in e.address.reachable)]))
    home.finish(certificate, found.membership, addresses[:64], needed, total)


def _code(root: Root, found: _Found) -> tuple[int, int]:
    """The code of the vault, as its own metadata is coded; for an empty vault one that suits the nodes."""
    if root.stripes:
        return root.stripes[0].needed, root.stripes[0].total
    from hivefs.placement.code import for_counts

    counts: dict[str, int] = {}
    for entry in found.roster.values():
        country = min(_countries(entry), default="?")
        counts[country] = counts.get(country, 0) + 1
    return for_counts(sorted(counts.values()), 1 if len(found.roster) > 3 else 0) or (1, 1)

"""What the hive's owner asks nodes with its key: who belongs, and to take a revocation list.

The list is kept beside the key (``FILE.revoked``), and the newest that a node has counts too: its number only grows, also
when the owner works from a copy of the key.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio

from hivefs.chunkstore.node_client import PROTOCOL, NodeClient, converse, credentials
from hivefs.daemon.hive import HiveKey
from hivefs.daemon.home import write_file
from hivefs.errors import BadSetting, HivefsError, KeyFileProblem
from hivefs.formats import member, revoked
from hivefs.formats.member import sign_member
from hivefs.model.ids import KEY_BYTES
from hivefs.model.node import ATTRIBUTE_NAMES, Attribute, Membership, Revocations, Role, RosterEntry
from hivefs.transport import Host, open_host

ASK_SECONDS = 10.0
AT_A_TIME = 16
MAX_LIST_BYTES = revoked.MAX_BYTES


@dataclass
class Known:
    """What the nodes that answered say. ``failed`` has the reason by address of those that did not."""

    members: dict[bytes, Membership] = field(default_factory=dict)
    entries: dict[bytes, RosterEntry] = field(default_factory=dict)
    revoked: Revocations | None = None
    answered: set[bytes] = field(default_factory=set)
    failed: dict[str, HivefsError] = field(default_factory=dict)


def list_file(key_file: Path) -> Path:
    """Where the owner's copy of the revocation list lies."""
    return key_file.with_name(key_file.name + ".revoked")


def load_list(key_file: Path, key: HiveKey) -> Revocations | None:
    """The owner's copy; None when there is none. Raises KeyFileProblem, Corrupt, UnknownVersion."""
    path = list_file(key_file)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_LIST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeyFileProblem(path=path, reason=error.strerror or str(error)) from error
    made = revoked.revocations_from_bytes(data)
    if not revoked.revocations_valid(made, key.public):
        raise KeyFileProblem(path=path, reason="it is not the list of this hive")
    return made


def save_list(key_file: Path, made: Revocations) -> None:
    """Replace the owner's copy. Raises KeyFileProblem."""
    path = list_file(key_file)
    try:
        write_file(path, revoked.revocations_to_bytes(made))
    except OSError as error:
        raise KeyFileProblem(path=path, reason=error.strerror or str(error)) from error


async def ask(key: HiveKey, addresses: Sequence[str], known: Known) -> None:
    """Ask the nodes at these addresses for members, roster and revocation list."""

    async def one(client: NodeClient) -> None:
        now = time.time_ns()
        for made in await client.get_members(everyone=True, timeout=ASK_SECONDS):
            before = known.members.get(made.subject)
            if member.member_valid(made, key.public, now) and (before is None or member.age(made) > member.age(before)):
                known.members[made.subject] = made
        for entry in await client.get_roster(timeout=ASK_SECONDS):
            if member.entry_valid(entry, key.public, now):
                subject = entry.membership.subject
                known.entries[subject] = member.newest(known.entries.get(subject), entry, now)
        data = await client.get_revoked(timeout=ASK_SECONDS)
        if data is not None:
            made_list = revoked.revocations_from_bytes(data)
            if revoked.revocations_valid(made_list, key.public) and revoked.newer(made_list, known.revoked):
                known.revoked = made_list

    await _each(key, [(address,) for address in addresses], one, known)


async def tell(key: HiveKey, addresses: Sequence[str], made: Revocations, known: Known) -> int:
    """Give the list to the nodes at these addresses and to all others that are known; how many have it now."""
    blob = revoked.revocations_to_bytes(made)
    told: set[bytes] = set()

    async def one(client: NodeClient) -> None:
        await client.put_revoked(blob, timeout=ASK_SECONDS)
        told.add(client.node_id)

    others = [e.address.reachable for e in known.entries.values() if not made.covers(e.membership) and e.address.reachable]
    said = {address for addresses_of in others for address in addresses_of}
    await _each(key, [*others, *((a,) for a in addresses if a not in said)], one, known)
    return len(told)


async def give_entry(key: HiveKey, addresses: Sequence[str], entry: RosterEntry, known: Known) -> int:
    """Give a roster entry to the nodes at these addresses and to all others that are known; how many were told."""
    told: set[bytes] = set()

    async def one(client: NodeClient) -> None:
        await client.put_roster([entry], timeout=ASK_SECONDS)
        told.add(client.node_id)

    others = [e.address.reachable for e in known.entries.values() if e.address.reachable]
    said = {address for addresses_of in others for address in addresses_of}
    await _each(key, [*others, *((a,) for a in addresses if a not in said)], one, known)
    return len(told)


def relabelled(
    key: HiveKey, before: Membership, said: Sequence[Attribute], dropped: Collection[str], now_ns: int
) -> Membership:
    """The certificate of a member with other attributes and the next epoch, signed by the owner. What is neither said nor
    dropped stays as it is. Raises BadSetting when nothing would change.
    """
    kept = [a for a in before.attributes if a.name not in dropped and a.name not in {new.name for new in said}]
    attributes = tuple(sorted([*kept, *said], key=lambda a: ATTRIBUTE_NAMES.index(a.name)))
    if set(attributes) == set(before.attributes):
        raise BadSetting(name="NODE", reason="nothing would change; say a label, such as --parent NAME or --drop parent")
    made = Membership(key.public, before.subject, before.roles, attributes, now_ns, before.expires_ns, before.epoch + 1)
    return sign_member(key.seed, made)


async def _each(
    key: HiveKey, targets: Sequence[tuple[str, ...]], work: Callable[[NodeClient], Awaitable[None]], known: Known
) -> None:
    """Work with each node at the first of its addresses that answers, some at a time."""
    slots = trio.CapacityLimiter(AT_A_TIME)
    async with open_host(os.urandom(KEY_BYTES)) as host, trio.open_nursery() as nursery:

        async def one(addresses: tuple[str, ...]) -> None:
            async with slots:
                for address in addresses:
                    try:
                        await _converse(host, key, address, work, known)
                        return
                    except HivefsError as error:
                        known.failed[address] = error

        for addresses in targets:
            nursery.start_soon(one, addresses)


async def _converse(
    host: Host, key: HiveKey, address: str, work: Callable[[NodeClient], Awaitable[None]], known: Known
) -> None:
    # The same certificate every time: nodes keep one of each client.
    own = sign_member(key.seed, Membership(key.public, key.public, Role.CLIENT))
    connection = await host.dial(address, timeout=ASK_SECONDS)
    try:
        stream = await connection.open_stream(PROTOCOL)
        who = credentials(key.seed, host.peer_key, key.public, own)
        async with converse(stream, who, time.time_ns()) as client:
            await work(client)
            known.answered.add(client.node_id)
            known.failed.pop(address, None)
    finally:
        with trio.CancelScope(shield=True):
            await connection.aclose()


def resolve(said: str, known: Known, made: Revocations | None = None) -> tuple[bytes, bool]:
    """(key, whether it is an invitation's) of an id in hex, which may be cut to eight digits or more where the members are
    known. Raises BadSetting.
    """
    text = said.strip().lower()
    if len(text) < 8 or len(text) > 2 * KEY_BYTES or text.strip("0123456789abcdef"):
        raise BadSetting(name="ID", reason=f"'{said[:80]}' is not the id of a member or an invitation")
    invitations = {m.invitation.key for m in known.members.values() if m.invitation is not None}
    members = set(known.members)
    if made is not None:
        invitations |= set(made.invitations)
        members |= set(made.members)
    found = {(key, False) for key in members if key.hex().startswith(text)}
    found |= {(key, True) for key in invitations if key.hex().startswith(text)}
    if len(found) > 1:
        raise BadSetting(name="ID", reason=f"'{said}' is the beginning of more than one id; say more of it")
    if not found:
        raise BadSetting(
            name="ID",
            reason=f"no node that answered knows a member or invitation '{said}'; say --member or --invitation with the "
            "whole id to revoke it all the same",
        )
    return found.pop()


def holds(made: Revocations, other: Revocations) -> bool:
    """Whether all that ``other`` revokes is in ``made``."""
    return set(made.members) >= set(other.members) and set(made.invitations) >= set(other.invitations)


def changed(
    key: HiveKey,
    before: Sequence[Revocations | None],
    members: set[bytes],
    invitations: set[bytes],
    lift: bool,
) -> Revocations:
    """The next list: all that the lists before hold, with these added (or taken out). Where the owner worked from two
    copies of the key, both lists are united: rather one too many than one too few.
    """
    lists = [made for made in before if made is not None]
    old_members = {k for made in lists for k in made.members}
    old_invitations = {k for made in lists for k in made.invitations}
    sequence = max((made.sequence for made in lists), default=0) + 1
    if lift:
        return revoked.sign_revocations(
            key.seed, sequence, time.time_ns(), old_members - members, old_invitations - invitations
        )
    return revoked.sign_revocations(
        key.seed, sequence, time.time_ns(), old_members | members, old_invitations | invitations
    )

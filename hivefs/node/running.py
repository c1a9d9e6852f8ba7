"""What can be asked of a running node by its operator, and changed while it runs: settings, leaving, counts."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from hivefs import __version__
from hivefs.errors import NodeProblem
from hivefs.formats import member
from hivefs.formats.meter import PEERS, Day
from hivefs.model.ids import KEY_BYTES, NodeId
from hivefs.model.node import CREDITS_MARK, LEAVING_MARK, RELAY_MARK, Role, RosterEntry
from hivefs.node.addresses import beyond_this_machine
from hivefs.node.answering import Answerer
from hivefs.node.caps import NO_CAP, Caps
from hivefs.node.config import NodeConfig, load_node, set_membership
from hivefs.node.drain import Drain
from hivefs.node.events import Events
from hivefs.node.gossip import Gossip
from hivefs.node.index import NodeIndex
from hivefs.node.meter import Meter, days
from hivefs.node.session import Streams
from hivefs.node.threads import in_thread
from hivefs.node.upkeep import Upkeep
from hivefs.protocol.failures import Code
from hivefs.protocol.frames import Kind

SOON_NS = 7 * 86_400 * 10**9
MOST_COUNTED = 10_000
"""Leases that end soon are counted so far: a status is asked for often, and takes milliseconds."""

STATUS_DAYS = 14
MOST_ADDRESSES = 14
"""In one record, with the relays, beside two marks."""

SAMPLE_SECONDS = 5.0
RESIGN_S = 200 * 86_400
"""Half of the time after which engines forget nodes (maintenance/forgetting.py)."""

_STARTED_WITH = "leaving"
"""In the index: since when the node leaves (u64 ns) and how many leases there were then (u64)."""


def own_entry(
    index: NodeIndex, config: NodeConfig, seed: bytes, node_id: NodeId, addresses: tuple[str, ...], now_ns: int
) -> RosterEntry:
    """Our roster entry. It changes only with the addresses and the mark of a node that leaves, and when it is RESIGN_S old:
    who forgot a node that was away for long learns so that it is back. Its sequence is the time in seconds when that was,
    so that it grows also when the store was lost.
    """
    if config.membership is None:
        raise AssertionError("checked by the caller")
    if config.relays:
        addresses = beyond_this_machine(addresses)
    addresses = addresses[: MOST_ADDRESSES - len(config.relays)]
    addresses += tuple(RELAY_MARK + relay for relay in config.relays)
    if config.leaving_ns:
        addresses = (*addresses, LEAVING_MARK + str(config.leaving_ns // 10**9))
    if config.credits:
        addresses = (*addresses, CREDITS_MARK + config.credits)
    kept = index.entry(node_id)
    sequence = now_ns // 10**9
    if kept is not None:
        before = member.entry_from_bytes(kept).address
        if not member.ahead(before, now_ns):  # else somebody who stole the key signed it, or the clock was wrong then
            if before.addresses == addresses and sequence - before.sequence < RESIGN_S:
                return RosterEntry(config.membership, before)
            sequence = max(sequence, before.sequence + 1)
    return RosterEntry(config.membership, member.sign_address(seed, addresses, sequence))


class Running:
    """One node while it serves. ``addresses`` are those that it tells others; ``clock`` gives ns since 1970."""

    def __init__(
        self,
        directory: Path,
        config: NodeConfig,
        seed: bytes,
        node_id: NodeId,
        addresses: tuple[str, ...],
        answerer: Answerer,
        streams: Streams,
        meter: Meter,
        upkeep: Upkeep,
        events: Events,
        clock: Callable[[], int],
    ) -> None:
        self.node_id = node_id
        self.addresses = addresses
        self.config = config
        self.streams = streams
        self.meter = meter
        self.answerer = answerer
        self.gossip: Gossip | None = None
        self._directory = directory
        self._seed = seed
        self._upkeep = upkeep
        self._events = events
        self._clock = clock
        self._drain = Drain()
        self._began = 0
        self._started_s = trio.current_time()
        self._reloading = trio.Lock()
        self._heard = trio.Event()
        self.entry: RosterEntry = own_entry(answerer.store.index, config, seed, node_id, addresses, self._now_ns())

    def _now_ns(self) -> int:
        """The time by the clock, or by the node's own count when the clock has been set back (a machine without one that
        keeps going starts years ago): what we signed before must not look as if it came from the future.
        """
        return max(self._clock(), self.answerer.lease_clock.now_ns)

    async def begin(self) -> None:
        """Take the settings as they are, and note our own entry. Before anybody is served."""
        await self._apply(self.config)
        self.answerer.on_news = self._hear

    def _hear(self) -> None:
        self._heard.set()
        if self.gossip is not None:
            self.gossip.push()

    async def adopt(self) -> None:
        """Take the certificate that the hive's owner signed anew for this node and gave to some node, until cancelled."""
        while True:
            self._heard = trio.Event()
            heard = self.answerer.roster.certificate(self.node_id)
            own = self.config.membership
            if heard is not None and own is not None and member.age(heard) > member.age(own):
                try:
                    await in_thread(set_membership, self._directory, heard)
                    await self.reload()
                    self._events.say("membership", "the hive's owner signed it anew; it was taken", logging.WARNING)
                except NodeProblem as error:
                    self._events.say("membership", f"a new one cannot be taken: {error}", logging.ERROR)
            await self._heard.wait()

    async def reload(self) -> None:
        """Read the settings again and take those that can change while the node runs: capacity, quota, caps, quiet hours,
        leaving. Raises NodeProblem; then they stay as they were.
        """
        async with self._reloading:
            config, _ = await in_thread(load_node, self._directory)
            if config.membership is None:
                raise NodeProblem(path=self._directory, reason="its settings have lost the membership certificate")
            changed = config != self.config
            await self._apply(config)
            if changed:
                self._events.say("settings", "taken as they are in node.json now")

    async def _apply(self, config: NodeConfig) -> None:
        self.config = config
        answerer = self.answerer
        if config.membership is not None:
            answerer.membership = config.membership
            if self.gossip is not None:
                self.gossip.renew(config.membership)
        answerer.space.capacity, answerer.space.vault_quota = config.capacity, config.vault_quota
        self.streams.line.caps = config.caps
        answerer.leaving = self._upkeep.leaving = bool(config.leaving_ns)
        await in_thread(self._note_leaving)
        index = answerer.store.index
        entry = own_entry(index, config, self._seed, self.node_id, self.addresses, self._now_ns())
        left, self.entry = self.entry.address.leaving_s, entry
        if index.entry(self.node_id) != member.entry_to_bytes(entry):
            await in_thread(answerer.roster.take, [member.entry_to_bytes(entry)], self._clock())
            if self.gossip is not None:
                self.gossip.tell()
                if left != entry.address.leaving_s:
                    words = "the node leaves" if config.leaving_ns else "the node stays"
                    self._events.say("roster", words, logging.WARNING)
        said = await in_thread(
            answerer.statements.say, self._seed, self.node_id, config.claims, config.attestations, self._clock()
        )
        if said:
            self._events.say("statement", "what the node says of itself has changed", logging.WARNING)
            if self.gossip is not None:
                self.gossip.tell()

    def _note_leaving(self) -> None:
        """Remember what there was when it began to leave. Blocks."""
        store, since = self.answerer.store, self.config.leaving_ns
        kept = store.index.info(_STARTED_WITH) or bytes(16)
        if int.from_bytes(kept[:8], "big") != since:
            self._drain = Drain()
            kept = since.to_bytes(8, "big") + store.index.leases().to_bytes(8, "big")
            with store.lock, store.index.writing() as change:
                change.save_info(_STARTED_WITH, kept)
        self._began = int.from_bytes(kept[8:], "big")

    async def knows_node(self, key: bytes) -> bool:
        """Whether that is a node of this hive, as far as this node has heard: in its roster, valid and not revoked."""
        roster, now = self.answerer.roster, self._clock()

        def look() -> bool:
            made = roster.certificate(NodeId(key)) if roster.holds(NodeId(key)) else None
            return made is not None and bool(made.roles & Role.NODE) and member.member_valid(made, made.hive_key, now)

        return len(key) == KEY_BYTES and await in_thread(look)

    async def run(self) -> None:
        """Watch how the node empties while it leaves, until cancelled."""
        while True:
            if self.config.leaving_ns:
                self._drain.sample(trio.current_time(), self.answerer.store.index.leases())
            await trio.sleep(SAMPLE_SECONDS)

    def status(self) -> dict[str, Any]:
        """Counts for ``hivefs node status``; plain values."""
        index = self.answerer.store.index
        stat = self.answerer.stat()
        up, down = self.streams.line.rates()
        value = facts(index, self.config, self._clock(), self.meter.days(STATUS_DAYS))
        value |= {
            "running": True,
            "pid": os.getpid(),
            "version": __version__,
            "addresses": list(self.addresses),
            "free": stat.free_bytes,
            "dropped": stat.dropped,
            "up_seconds": round(trio.current_time() - self._started_s),
            "since_start": day_value(self.meter.since_start),
            "conversations": self.streams.conversations,
            "quiet": self.streams.line.quiet,
            "upload_now": None if up == NO_CAP else up,
            "download_now": None if down == NO_CAP else down,
        }
        if value["leaving"] is not None:
            left = value["leaving"]["leases"]
            now = trio.current_time()
            eta = self._drain.eta_s(now, left)
            value["leaving"] |= {
                "leases_at_start": self._began,
                "eta_s": None if eta is None else round(eta),
                "still_s": round(self._drain.still_s(now)),
            }
        return value


def facts(index: NodeIndex, config: NodeConfig, now_ns: int, measured: list[tuple[str, Day]]) -> dict[str, Any]:
    """What is known of a node whether it runs or not."""
    leases = index.leases()
    leaving = None
    if config.leaving_ns:
        leaving = {
            "since_ns": config.leaving_ns,
            "leases": leases,
            "vaults": sum(1 for size in index.by_vault.values() if size),
            "leases_at_start": int.from_bytes((index.info(_STARTED_WITH) or bytes(16))[8:], "big"),
            "eta_s": None,
            "still_s": 0,
            "done": not leases,
        }
    return {
        "running": False,
        "shares": index.count,
        "used": index.used,
        "capacity": config.capacity,
        "vaults": sum(1 for size in index.by_vault.values() if size),
        "leases": {
            "count": leases,
            "end_soon": index.ending(now_ns + SOON_NS, MOST_COUNTED),
            "soon_s": SOON_NS // 10**9,
            "last_end_ns": index.last_end(),
        },
        "caps": caps_value(config.caps),
        "leaving": leaving,
        "relays": list(config.relays),
        "days": [{"day": day, **day_value(traffic)} for day, traffic in measured],
    }


def caps_value(caps: Caps) -> dict[str, Any]:
    """The caps as set; None is no cap."""

    def rate(value: int, usual: int) -> int | None:
        value = usual if value < NO_CAP else value
        return None if value == NO_CAP else value

    return {
        "upload": rate(caps.upload, NO_CAP),
        "download": rate(caps.download, NO_CAP),
        "quiet_hours": ",".join(map(str, caps.quiet_hours)),
        "quiet_upload": rate(caps.quiet_upload, caps.upload),
        "quiet_download": rate(caps.quiet_download, caps.download),
    }


def day_value(day: Day) -> dict[str, Any]:
    """A day's counts by kind of peer, with words for numbers."""
    return {
        PEERS.get(peer, str(peer)): {
            "in": traffic.bytes_in,
            "out": traffic.bytes_out,
            "requests": {_word(Kind, kind): count for kind, count in sorted(traffic.requests.items())},
            "refusals": {_word(Code, code): count for code, count in sorted(traffic.refusals.items())},
        }
        for peer, traffic in sorted(day.items())
    }


def _word(words: type[Kind] | type[Code], number: int) -> str:
    try:
        return words(number).name.lower()
    except ValueError:
        return str(number)


def stopped_status(directory: Path, now_ns: int) -> dict[str, Any]:
    """The status of a node that does not run. Blocks. Raises NodeProblem, StoreDamaged, UnknownVersion."""
    config, _ = load_node(directory)
    path = directory / "index"
    if not (path / "data.mdb").exists():
        raise NodeProblem(path=directory, reason="it has never run yet")
    index = NodeIndex(path, readonly=True)
    try:
        return facts(index, config, now_ns, days(index.meter_days(STATUS_DAYS)))
    finally:
        index.close()

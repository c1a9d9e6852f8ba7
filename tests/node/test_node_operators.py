"""What operators get of a node: settings that change while it runs, counts that last, leaving, totals of the index."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import lmdb
import pytest
import trio
from hive_tools import DAY, lease, make, running, share, talking, within
from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.errors import Corrupt, NodeFull, NodeProblem, StoreDamaged, UnknownVersion
from hivefs.formats import meter as meter_format
from hivefs.formats.member import address_valid
from hivefs.formats.meter import NODE, VAULT, Traffic
from hivefs.model.ids import VaultId
from hivefs.model.node import RosterEntry
from hivefs.node import index as index_module
from hivefs.node.caps import Caps
from hivefs.node.config import NodeConfig, change_settings, load_node
from hivefs.node.drain import Drain
from hivefs.node.index import NodeIndex
from hivefs.node.running import stopped_status
from hivefs.node.service import run_node
from hivefs.node.store import PutJob, ShareStore
from hivefs.protocol.failures import Code
from hivefs.protocol.frames import Kind
from hivefs.testing.memory_net import MemoryNetwork

NOW = 1_800_000_000 * 10**9
ANN, BOB = VaultId(b"a" * 16), VaultId(b"b" * 16)
VECTORS = Path(__file__).parent.parent / "vectors" / "meter.json"

DAY_MEASURED = {
    VAULT: Traffic(2_000_000, 3_000_000, Counter({Kind.PUT: 2, Kind.GET: 3}), Counter({Code.BUSY: 1})),
    NODE: Traffic(100, 70_000, Counter({Kind.ROSTER_GET: 4}), Counter()),
}


def own(entries: list[RosterEntry], node_id: bytes) -> RosterEntry:
    return next(entry for entry in entries if entry.address.node_id == node_id)


# ---- settings -------------------------------------------------------------------------------------------------------


def test_a_running_node_takes_changed_settings_and_keeps_its_own_when_they_are_damaged(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n", capacity=1000)
        async with running(network, tmp_path / "n") as node, talking(network, node_id) as client:
            with pytest.raises(NodeFull):
                await client.put(*share(2000), lease())
            changed = change_settings(tmp_path / "n", lambda c: replace(c, capacity=5000, caps=Caps(upload=10 << 20)))
            await node.reload()
            await client.put(*share(2000), lease())
            assert node.streams.line.rates()[0] == 10 << 20
            assert load_node(tmp_path / "n")[0] == changed
            # Less than is used is no harm: nothing new is taken, nothing is lost.
            change_settings(tmp_path / "n", lambda c: replace(c, capacity=100))
            await node.reload()
            stat = await client.stat()
            assert (stat.free_bytes, stat.shares) == (0, 1)
            (tmp_path / "n" / "node.json").write_text('{"format": "hivefs-node", "ver')
            with pytest.raises(NodeProblem, match="damaged or was edited"):
                await node.reload()
            assert (await client.stat()).capacity == 100

    within(body)


def test_settings_from_before_there_were_caps_are_read(tmp_path: Path) -> None:
    make(tmp_path / "n")
    path = tmp_path / "n" / "node.json"
    value = json.loads(path.read_text())
    for name in ("upload", "download", "quiet_hours", "quiet_upload", "quiet_download", "leaving_ns"):
        del value[name]
    path.write_text(json.dumps(value))
    config, _ = load_node(tmp_path / "n")
    assert (config.caps, config.leaving_ns) == (Caps(), 0)
    for wrong in ({"upload": -5}, {"quiet_hours": "8-9"}, {"quiet_hours": 7}, {"leaving_ns": "x"}):
        path.write_text(json.dumps(value | wrong))
        with pytest.raises(NodeProblem):
            load_node(tmp_path / "n")


# ---- leaving --------------------------------------------------------------------------------------------------------


def test_a_node_that_leaves_gives_and_renews_but_takes_nothing_and_says_so_signed(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        directory, other = tmp_path / "n", tmp_path / "other"
        node_id = make(directory)
        other_id = make(other, "other", bootstrap=(network.address(node_id),))
        kept, fresh = share(3000), share(3000)

        def since(config: NodeConfig) -> NodeConfig:
            return replace(config, leaving_ns=NOW)

        async with running(network, directory) as node, running(network, other), talking(network, node_id) as client:
            await client.put(*kept, lease())
            before = own(await client.get_roster(), node_id)
            while len(await client.get_roster()) < 2:
                await trio.sleep(0.02)
            change_settings(directory, since)
            await node.reload()
            with pytest.raises(NodeFull, match="leaves"):
                await client.put(*fresh, lease())
            assert await client.get(kept[0]) == kept[1]
            assert await client.renew([kept[0]], lease()) == [True]
            assert (await client.stat()).free_bytes == 0
            entry = own(await client.get_roster(), node_id)
            assert entry.address.leaving_s == NOW // 10**9 and address_valid(entry.address)
            assert entry.address.reachable == before.address.reachable
            assert entry.address.sequence > before.address.sequence
            # It tells others at once, not only when it is time.
            async with talking(network, other_id) as there:
                while not any(e.address.leaving_s for e in await there.get_roster() if e.address.node_id == node_id):
                    await trio.sleep(0.02)
            state = node.status()["leaving"]
            assert (state["leases"], state["leases_at_start"], state["vaults"], state["done"]) == (1, 1, 1, False)
        # A restart changes nothing of it; in the end there is nothing left.
        async with running(network, directory) as node, talking(network, node_id) as client:
            again = own(await client.get_roster(), node_id)
            assert again.address == entry.address
            assert await client.delete([kept[0]]) == [True]
            state = node.status()["leaving"]
            assert (state["leases"], state["leases_at_start"], state["done"], state["eta_s"]) == (0, 1, True, 0)
            change_settings(directory, lambda c: replace(c, leaving_ns=0))
            await node.reload()
            await client.put(*fresh, lease())
            back = own(await client.get_roster(), node_id)
            assert not back.address.leaving_s and back.address.sequence > again.address.sequence
            assert node.status()["leaving"] is None

    within(body)


def test_what_a_node_says_with_a_clock_that_was_set_back_is_newer_all_the_same(tmp_path: Path) -> None:
    """A machine whose clock does not go on without power starts in 1970. What it signed before is not from the future then:
    with a lower number nobody would hear that it leaves, or where it is.
    """

    async def body() -> None:
        network, directory = MemoryNetwork(), tmp_path / "n"
        node_id = make(directory)
        async with running(network, directory) as node:
            before = node.entry.address
            while not node.answerer.store.index.info("clock"):  # written at once, and each minute
                await trio.sleep(0.02)
        change_settings(directory, lambda c: replace(c, leaving_ns=time.time_ns()))
        async with trio.open_nursery() as nursery:
            late = partial(run_node, directory, network.open_host, clock=lambda: 10**9)
            node = await nursery.start(late)
            assert node.entry.address.leaving_s and node.entry.address.sequence > before.sequence
            assert node.answerer.roster.entries()[0].address == node.entry.address
            assert node.node_id == node_id
            nursery.cancel_scope.cancel()

    within(body)


def test_how_long_leaving_may_take_is_told_from_what_went_of_late() -> None:
    drain = Drain()
    assert drain.eta_s(0, 100) is None and drain.eta_s(0, 0) == 0
    for second in range(0, 700, 5):
        drain.sample(second, 10_000 - second)
    assert drain.eta_s(700, 9300) == pytest.approx(9300, rel=0.02)
    drain.sample(701, 9_000)
    stuck = Drain()
    stuck.sample(0, 50)
    stuck.sample(300, 50)
    assert stuck.eta_s(300, 50) is None
    assert stuck.still_s(300) == 300
    stuck.sample(301, 40)
    assert stuck.eta_s(301, 40) == pytest.approx(40 * 301 / 10) and stuck.still_s(301) == 0
    stuck.sample(380, 40)
    assert stuck.eta_s(380, 40) is None, "none has gone for more than a minute"


# ---- the meter ------------------------------------------------------------------------------------------------------


def test_what_went_over_the_line_is_counted_by_peer_and_kept(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        make(tmp_path / "other", "other", bootstrap=(network.address(node_id),))
        share_id, data = share(300_000)
        async with running(network, tmp_path / "n") as node, running(network, tmp_path / "other"):
            async with talking(network, node_id) as client:
                await client.put(share_id, data, lease())
                await client.get(share_id)
                await client.get(share_id)
                with pytest.raises(Exception, match="does not hold"):
                    await client.get(share(5)[0])
                while len(node.answerer.roster.entries()) < 2:  # asked over the line, the waiting would be counted too
                    await trio.sleep(0.02)
                assert len(await client.get_roster()) == 2
            (_, day), *_ = node.meter.days(5)
            vault = day[VAULT]
            assert 300_000 < vault.bytes_in < 310_000 and 600_000 < vault.bytes_out < 640_000
            assert (vault.requests[Kind.PUT], vault.requests[Kind.GET]) == (1, 3)
            assert vault.refusals == {Code.MISSING: 1}
            assert day[NODE].requests[Kind.ROSTER_PUT] >= 1 and day[NODE].bytes_in > 0
            assert day[0].bytes_in > 0, "greetings"
            await node.meter.save()
            assert node.meter.days(5)[0][1][VAULT] == vault and node.meter.since_start[VAULT] == vault
        # Stopped: the same from the index. Started again: it goes on from there.
        stopped = stopped_status(tmp_path / "n", time.time_ns())
        assert stopped["days"][0]["vault"]["requests"] == {
            "put": 1,
            "get": 3,
            "roster_get": 1,
        }
        assert (stopped["shares"], stopped["used"], stopped["running"]) == (1, 300_000, False)
        async with running(network, tmp_path / "n") as node, talking(network, node_id) as client:
            await client.get(share_id)
            (_, day), *_ = node.meter.days(5)
            assert day[VAULT].requests[Kind.GET] == 4
            assert node.meter.since_start[VAULT].requests == {Kind.GET: 1}

    within(body)


def test_days_have_vectors_and_nothing_else_is_read_as_one() -> None:
    kept = json.loads(VECTORS.read_text())
    data = bytes.fromhex(kept["vectors"]["day"])
    assert kept["version"] == meter_format.VERSION and meter_format.to_bytes(DAY_MEASURED) == data
    assert meter_format.from_bytes(data) == DAY_MEASURED
    assert meter_format.from_bytes(bytes.fromhex(kept["vectors"]["empty"])) == {}
    for cut in range(len(data)):
        with pytest.raises((Corrupt, UnknownVersion)):
            meter_format.from_bytes(data[:cut])
    with pytest.raises(UnknownVersion):
        meter_format.from_bytes(data.replace(b"HVmeter\x01", b"HVmeter\x02"))


def test_a_damaged_day_begins_anew_and_old_days_go(tmp_path: Path) -> None:
    store = ShareStore(tmp_path)
    with store.index.writing() as change:
        for number in range(20):
            change.save_meter_day(f"2026-01-{number + 1:02}", b"rubbish", 5)
    assert [day for day, _ in store.index.meter_days(100)] == [f"2026-01-{n}" for n in range(20, 15, -1)]
    assert stopped_days(store) == [{}] * 5
    store.close()


def stopped_days(store: ShareStore) -> list[object]:
    from hivefs.node.meter import days

    return [day for _, day in days(store.index.meter_days(10))]


# ---- totals of the index --------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("prdc"), st.integers(0, 5), st.booleans()), max_size=25))
def test_the_totals_are_what_counting_gives(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, bool]]
) -> None:
    directory = tmp_path_factory.mktemp("totals")
    store = ShareStore(directory)
    shares = [share(100 * (n + 1), bytes([n + 1])) for n in range(6)]
    for step, number, first in steps:
        share_id, data = shares[number]
        vault = ANN if first else BOB
        if step == "p":
            store.put_many([PutJob(vault, share_id, NOW + number * DAY, data)], NOW)
        elif step == "r":
            store.release([(share_id, vault)])
        elif step == "d":
            store._drop([share_id])
        else:
            store.collect(NOW + 3 * DAY, 300)
    before = (store.index.used, store.index.count, +store.index.by_vault)
    store.close()
    store = ShareStore(directory)
    assert store.index.shares_read == 0, "opening reads no rows"
    assert (store.index.used, store.index.count, +store.index.by_vault) == before
    store.index._count_anew()
    assert (store.index.used, store.index.count, +store.index.by_vault) == before
    store.close()


def test_an_index_of_version_1_is_taken_over(tmp_path: Path) -> None:
    store = ShareStore(tmp_path)
    one, two = share(100), share(200)
    store.put_many([PutJob(ANN, *_job(one)), PutJob(ANN, *_job(two)), PutJob(BOB, *_job(one))], NOW)
    with store.index.writing() as change:  # as version 1 left it
        change._txn.drop(store.index._db["totals"], delete=False)
        change._txn.put(b"version", b"\x01", db=store.index._db["info"])
    store.close()
    with pytest.raises(UnknownVersion):
        NodeIndex(tmp_path / "index", readonly=True)
    store = ShareStore(tmp_path)
    assert (store.index.used, store.index.count, +store.index.by_vault) == (300, 2, {ANN: 300, BOB: 100})
    assert store.index.shares_read == 2 and store.index.info("version") == bytes([index_module.VERSION])
    store.close()
    only = NodeIndex(tmp_path / "index", readonly=True)
    assert (only.used, only.count) == (300, 2)
    only.close()


def _job(one: tuple[bytes, bytes]) -> tuple[object, int, bytes]:
    return one[0], NOW + DAY, one[1]


def test_an_index_with_tables_missing_is_not_read_but_named(tmp_path: Path) -> None:
    env = lmdb.open(str(tmp_path / "index"), max_dbs=4)
    env.open_db(b"shares")
    env.close()
    with pytest.raises(StoreDamaged, match="run the node once"):
        NodeIndex(tmp_path / "index", readonly=True)


def test_leases_that_end_soon_are_counted_and_the_last_is_known(tmp_path: Path) -> None:
    store = ShareStore(tmp_path)
    assert (store.index.last_end(), store.index.leases(), store.index.ending(NOW, 10)) == (0, 0, 0)
    shares = [share(10) for _ in range(6)]
    store.put_many([PutJob(ANN, share_id, NOW + n * DAY, data) for n, (share_id, data) in enumerate(shares)], NOW)
    assert store.index.leases() == 6 and store.index.last_end() == NOW + 5 * DAY
    assert store.index.ending(NOW + 3 * DAY, 10) == 3 and store.index.ending(NOW + 9 * DAY, 4) == 4
    store.close()

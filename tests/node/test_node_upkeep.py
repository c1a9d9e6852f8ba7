"""What a node does by itself, and when it may forget."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from hive_tools import DAY, HIVE, client_certificate, seed_of, share, within

from hivefs.crypto import keys
from hivefs.errors import DiskFull
from hivefs.formats.member import sign_member
from hivefs.model.ids import ShareId
from hivefs.model.node import Membership, Role
from hivefs.node import upkeep as upkeep_module
from hivefs.node.answering import Answerer
from hivefs.node.events import Events
from hivefs.node.leases import GRACE_NS, LeaseClock
from hivefs.node.store import PutJob, ShareStore
from hivefs.node.upkeep import Upkeep, open_lease_clock
from hivefs.protocol import answers, requests
from hivefs.protocol.failures import Code, Refusal
from hivefs.protocol.node_side import Session

NOW = 1_800_000_000 * 10**9
NODE = keys.public_key(seed_of("node"))
OWNER = keys.public_key(seed_of("owner"))
VAULT = keys.vault_id_of(OWNER)
SESSION = Session(NODE, b"p" * 32, OWNER, client_certificate(seed_of("owner")), bytes(32), VAULT)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ShareStore]:
    made = ShareStore(tmp_path)
    yield made
    made.close()


@contextlib.asynccontextmanager
async def answering(store: ShareStore, capacity: int) -> AsyncIterator[Answerer]:
    membership = sign_member(HIVE, Membership(b"", NODE, Role.NODE, (), 1))
    answerer = Answerer(store, membership, capacity, 0, LeaseClock(NOW, NOW, 0), lambda: NOW)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answerer.run)
        yield answerer
        nursery.cancel_scope.cancel()


def test_shares_whose_leases_ended_go_when_room_is_needed_and_not_before(store: ShareStore) -> None:
    old, other, new = share(6_000), share(3_000), share(4_000)

    async def body() -> None:
        async with answering(store, 10_000) as node:
            await node.answer(SESSION, requests.Put(old[0], NOW + 2 * DAY, old[1]))
            await node.answer(SESSION, requests.Put(other[0], NOW + 50 * DAY, other[1]))
            put = requests.Put(new[0], NOW + 50 * DAY, new[1])
            for day in (1, 2, 3):
                node.lease_clock.now_ns = NOW + day * DAY
                with pytest.raises(Refusal) as caught:
                    await node.answer(SESSION, put)
                assert caught.value.code == Code.FULL
            node.lease_clock.now_ns = NOW + 3 * DAY + 1  # a day of tolerance has passed too
            assert store.index.size(old[0]) == 6_000
            assert isinstance(await node.answer(SESSION, put), answers.Kept)
            assert [store.index.size(i) for i, _ in (old, other, new)] == [None, 3_000, 4_000]

    within(body)


def test_what_ended_a_month_ago_is_forgotten_without_need(store: ShareStore) -> None:
    fresh, stale = share(100), share(100)
    clock = LeaseClock(NOW, NOW, 0)
    store.put_many([PutJob(VAULT, *_job(fresh, NOW - GRACE_NS)), PutJob(VAULT, *_job(stale, NOW - GRACE_NS - 1))], NOW)

    async def body() -> None:
        upkeep = Upkeep(store, clock, lambda: NOW, Events(trio.current_time))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upkeep.run)
            while store.index.count == 2:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert store.index.size(fresh[0]) == 100 and store.index.size(stale[0]) is None

    within(body)


def _job(one: tuple[object, bytes], until: int) -> tuple[object, int, bytes]:
    return one[0], until, one[1]


def test_the_scrub_loop_finds_damage_reports_it_once_and_goes_round(
    store: ShareStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep_module, "CLOCK_SECONDS", 0.01)
    monkeypatch.setattr(upkeep_module, "SCRUB_SHARES_PER_SECOND", 1000.0)
    shares = [share(2_000) for _ in range(100)]  # more than a page
    store.put_many([PutJob(VAULT, *_job(one, NOW + 900 * DAY)) for one in shares], NOW)

    async def body() -> None:
        upkeep = Upkeep(store, LeaseClock(NOW, NOW, 0), lambda: NOW, Events(trio.current_time), scrub_rate=1e12)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upkeep.run)
            for number in (3, 77):
                path = store._path(shares[number][0])
                data = path.read_bytes()
                path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
                while store.index.size(shares[number][0]) is not None:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    with caplog.at_level(logging.INFO, logger="hivefs.node"):
        within(body)
    assert store.dropped == 2 and store.index.count == 98
    said = [r.message for r in caplog.records]
    assert said == [f"sweep: {upkeep_module.SWEPT}", "damaged share: a share was damaged on disk and dropped"]


def test_when_all_shares_were_removed_that_is_seen_with_the_first_and_not_share_by_share(
    store: ShareStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep_module, "CLOCK_SECONDS", 0.01)
    monkeypatch.setattr(upkeep_module, "SCRUB_SHARES_PER_SECOND", 1000.0)
    store.put_many([PutJob(VAULT, *_job(share(2_000), NOW + 900 * DAY)) for _ in range(30)], NOW)
    found: list[bool] = []
    scrub = store.scrub

    def counted(share_id: ShareId, size: int) -> bool:
        found.append(scrub(share_id, size))
        return found[-1]

    monkeypatch.setattr(store, "scrub", counted)

    async def body() -> None:
        upkeep = Upkeep(store, LeaseClock(NOW, NOW, 0), lambda: NOW, Events(trio.current_time), scrub_rate=1e12)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upkeep.run)
            while not found:  # the first look at everything is over
                await trio.sleep(0.01)
            (store.directory / "shares").rename(store.directory / "removed")  # all at once: a scrub reads meanwhile
            while store.index.count:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    within(body)
    assert store.dropped == 30 and found.count(False) <= 2


def test_the_lease_clock_is_saved_and_read_again(store: ShareStore) -> None:
    async def body() -> None:
        clock = open_lease_clock(store, NOW)
        assert clock.now_ns == NOW
        upkeep = Upkeep(store, clock, lambda: NOW + 5, Events(trio.current_time))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upkeep.run)
            while store.index.info("clock") is None:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        again = open_lease_clock(store, NOW + 4000 * DAY)
        assert again.now_ns == NOW + 5

    within(body)


def test_a_full_disk_does_not_end_the_upkeep(
    store: ShareStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> object:
        raise DiskFull(path="p", free=0)

    monkeypatch.setattr(store.index, "writing", full)

    async def body() -> None:
        upkeep = Upkeep(store, LeaseClock(NOW, NOW, 0), lambda: NOW, Events(trio.current_time))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upkeep.run)
            while not any("disk full" in record.message for record in caplog.records):
                await trio.sleep(1)
            await trio.sleep(1800)
            nursery.cancel_scope.cancel()

    with caplog.at_level(logging.INFO, logger="hivefs.node"):
        trio.run(body, clock=trio.testing.MockClock(autojump_threshold=0.01))


def test_a_client_comes_in_when_its_certificate_cannot_be_kept(store: ShareStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> object:
        raise DiskFull(path="p", free=0)

    async def body() -> None:
        async with answering(store, 1000) as node:
            with monkeypatch.context() as patch:
                patch.setattr(store.index, "writing", full)
                await node.welcome(SESSION)
            assert node.certificate(OWNER) is None
            await node.welcome(SESSION)
            assert node.certificate(OWNER) == SESSION.membership

    within(body)

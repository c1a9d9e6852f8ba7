"""Caps and quiet hours: the bucket under a clock of its own, the local wall clock with its jumps, and what peers see."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from hive_tools import lease, make, running, share, talking, within
from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.errors import BadSetting, NodeBusy
from hivefs.node import session as session_module
from hivefs.node.caps import NO_CAP, SAME, Caps, Hours, hours_from_text
from hivefs.node.pacing import BURST, MOST_WAIT, Bucket, Line, minute_of_day
from hivefs.testing.memory_net import MemoryNetwork

MIB = 1 << 20
FAST = 1 << 40


@settings(max_examples=60)
@given(
    st.integers(16 << 10, 100 * MIB),
    st.lists(st.tuples(st.integers(1, 2 * MIB), st.floats(0, 3)), min_size=1, max_size=60),
)
def test_no_window_has_more_than_the_rate_a_burst_and_one_share(rate: int, steps: list[tuple[int, float]]) -> None:
    bucket, now = Bucket(rate), 0.0
    gone: list[tuple[float, int]] = []
    for size, pause in steps:
        now += pause
        wait = bucket.take(size, now)
        assert wait is None or 0 <= wait <= MOST_WAIT
        if wait is not None:
            gone.append((now + wait, size))
    for i, (start, _) in enumerate(gone):
        for j in range(i, len(gone)):
            sent = sum(size for _, size in gone[i : j + 1])
            assert sent <= rate * (gone[j][0] - start + BURST) + 2 * 2 * MIB + 1


def test_an_idle_line_gives_one_share_at_once_however_slow_it_is() -> None:
    bucket = Bucket(16 << 10)
    assert bucket.take(2 * MIB, 100.0) == 0
    assert bucket.take(2 * MIB, 101.0) is None, "it is paid for after 128 s"
    assert bucket.take(2 * MIB, 100.0 + 128 - MOST_WAIT) == pytest.approx(MOST_WAIT - BURST)


def test_what_did_not_go_is_given_back_and_a_new_rate_counts_at_once() -> None:
    bucket = Bucket(MIB)
    assert [bucket.take(MIB, 0.0) for _ in range(4)] == [0, 0, 1, 2]
    bucket.give_back(MIB)
    assert bucket.take(MIB, 0.0) == 2
    bucket.set_rate(4 * MIB, 0.0)  # 4 MiB are owed
    assert bucket.take(MIB, 0.0) == 0
    bucket.set_rate(0, 0.0)
    assert bucket.take(1, 0.0) is None
    bucket.set_rate(NO_CAP, 0.0)
    assert bucket.take(FAST, 0.0) == 0


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("08:00-18:00", ["08:00", "17:59"], ["07:59", "18:00", "00:00"]),
        ("22:00-06:30", ["22:00", "23:59", "00:00", "06:29"], ["06:30", "21:59"]),
        ("12:00-13:00,23:30-00:30", ["12:30", "23:45", "00:15"], ["00:30", "13:00", "23:29"]),
        ("00:00-24:00", ["00:00", "23:59"], []),
        ("18:00-24:00", ["18:00", "23:59"], ["00:00", "17:59"]),
        ("", [], ["00:00", "12:00"]),
    ],
)
def test_ranges_of_hours(text: str, inside: list[str], outside: list[str]) -> None:
    caps = Caps(quiet_hours=hours_from_text(text))

    def minute(clock: str) -> int:
        return int(clock[:2]) * 60 + int(clock[3:])

    assert all(caps.quiet(minute(clock)) for clock in inside)
    assert not any(caps.quiet(minute(clock)) for clock in outside)
    assert hours_from_text(",".join(map(str, caps.quiet_hours))) == caps.quiet_hours


@pytest.mark.parametrize(
    "text", ["8-18", "08:00", "25:00-26:00", "08:00-08:00", "08:60-09:00", "a", "24:00-01:00", "08:00-18:00;"]
)
def test_bad_hours_are_refused(text: str) -> None:
    with pytest.raises(BadSetting, match="08:00-18:00"):
        hours_from_text(text)
    with pytest.raises(BadSetting, match="more than"):
        hours_from_text(",".join(["01:00-02:00"] * 30))


def test_quiet_caps_stand_for_the_usual_ones_only_where_they_say_something() -> None:
    caps = Caps(5, 6, (Hours(60, 120),), 0, SAME)
    assert caps.at(30) == (5, 6)
    assert caps.at(60) == (0, 6)


@pytest.fixture
def berlin() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "CET-1CEST,M3.5.0,M10.5.0/3"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


@pytest.mark.usefixtures("berlin")
def test_hours_that_the_clock_skips_are_not_quiet_and_those_it_shows_twice_are_quiet_twice() -> None:
    caps = Caps(quiet_hours=hours_from_text("02:15-02:45"))

    def quiet_minutes(midnight_utc: int) -> int:
        return sum(caps.quiet(minute_of_day((midnight_utc + 60 * m) * 10**9)) for m in range(-60, 6 * 60))

    spring, summer, autumn = 1_774_742_400, 1_782_000_000, 1_792_886_400  # 2026-03-29, an ordinary day, 2026-10-25
    assert time.localtime(spring + 3600).tm_hour == 3 and time.localtime(autumn + 3600).tm_hour == 2
    assert quiet_minutes(spring) == 0
    assert quiet_minutes(summer - summer % 86_400) == 30
    assert quiet_minutes(autumn) == 60


def test_the_line_follows_the_clock_also_when_it_is_put_right() -> None:
    now = [0]
    caps = Caps(10 * MIB, 10 * MIB, (Hours(480, 1080),), 0, MIB)
    line = Line(caps, lambda: now[0], lambda ns: ns // 60_000_000_000 % 1440)
    assert not line.quiet and line.rates() == (10 * MIB, 10 * MIB)
    now[0] = 500 * 60_000_000_000
    assert line.quiet and line.rates() == (0, MIB)
    now[0] = 1100 * 60_000_000_000
    assert not line.quiet
    now[0] = 600 * 60_000_000_000
    assert line.quiet


# ---- what peers see -------------------------------------------------------------------------------------------------


def test_small_requests_overtake_shares_that_wait_for_their_turn(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        shares = [share(500_000) for _ in range(8)]
        async with running(network, tmp_path / "n") as node, talking(network, node_id) as client:
            for share_id, data in shares:
                await client.put(share_id, data, lease())
            node.streams.line.caps = Caps(upload=200_000)
            order: list[str] = []

            async def get(share_id: object, data: bytes) -> None:
                try:
                    assert await client.get(share_id) == data  # type: ignore[arg-type]
                    order.append("share")
                except NodeBusy:
                    order.append("busy")

            async with trio.open_nursery() as nursery:
                for share_id, data in shares:
                    nursery.start_soon(get, share_id, data)
                await trio.sleep(0)
                assert await client.have([i for i, _ in shares]) == [500_000] * 8
                await client.stat()
                await client.renew([shares[0][0]], lease())
                await client.ping()
                order.append("small")
            # At once: the first; what would wait too long is refused; one or two come within MOST_WAIT seconds.
            assert order.index("small") < 8 and "share" in order[order.index("small") :]
            assert order.count("busy") >= 4 and order.count("share") >= 3
            assert node.meter.days(1)[0][1][1].refusals

    within(body)


def test_a_node_that_serves_no_bulk_says_so_at_once_and_does_all_else(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n", caps=Caps(quiet_hours=(Hours(0, 1440),), quiet_upload=0, quiet_download=0))
        share_id, data = share(100_000)
        async with running(network, tmp_path / "n") as node, talking(network, node_id) as client:
            with pytest.raises(NodeBusy):
                await client.put(share_id, data, lease())
            node.streams.line.caps = Caps()
            await client.put(share_id, data, lease())
            node.streams.line.caps = Caps(upload=0, download=0)
            began = trio.current_time()
            with pytest.raises(NodeBusy):
                await client.get(share_id)
            assert trio.current_time() - began < MOST_WAIT
            assert await client.have([share_id]) == [100_000]
            assert (await client.stat()).free_bytes > 0, "it is not full: clients may come back"
            assert await client.delete([share_id]) == [True]

    within(body)


def test_shares_taken_are_answered_no_faster_than_the_cap(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n", caps=Caps(download=1_000_000))
        async with running(network, tmp_path / "n") as node, talking(network, node_id) as client:
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                for share_id, data in (share(500_000) for _ in range(6)):
                    nursery.start_soon(client.put, share_id, data, lease())
            # Three seconds of line, one of them as burst, and the last share is not waited for.
            assert trio.current_time() - began >= 1.4
            assert (await client.stat()).shares == 6
            while node.streams.memory.free != node.streams.memory.total:
                await trio.sleep(0.01)

    within(body)


def test_a_read_that_is_cancelled_gives_its_turn_back(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        share_id, data = share(1_000_000)
        async with running(network, tmp_path / "n") as node, talking(network, node_id) as client:
            await client.put(share_id, data, lease())
            node.streams.line.caps = Caps(upload=200_000)
            assert await client.get(share_id) == data
            with trio.move_on_after(0.05):
                await client.get(share_id)
            await client.ping()
            bucket = node.streams.line._up
            wait = bucket.take(0, trio.current_time())
            assert wait is not None and wait <= 4.0, "one share is owed and not two"

    within(body)


def test_a_peer_that_does_not_listen_to_busy_is_read_slowly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends shares without end; what is read of it is a share for each pause, not all that it sends."""

    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n", caps=Caps(download=16 << 10))
        monkeypatch.setattr(session_module, "REFUSED_PAUSE", 0.2)
        async with running(network, tmp_path / "n") as node, talking(network, node_id) as client:
            refused = 0

            async def pushing() -> None:
                nonlocal refused
                while True:
                    try:
                        await client.put(*share(1 << 20), lease())
                    except NodeBusy:
                        refused += 1

            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(pushing)
                while refused < 5:
                    await trio.sleep(0.01)
                pauses = (trio.current_time() - began) / 0.2
                assert refused <= pauses + 2
                assert node.meter.days(1)[0][1][1].bytes_in < int(pauses + 6) << 20
                nursery.cancel_scope.cancel()
            while node.streams.memory.free != node.streams.memory.total:
                await trio.sleep(0.01)

    within(body)

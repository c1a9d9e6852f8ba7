"""Leases and their clock, quotas, batches, budgets, log lines, configuration, addresses."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing
from hive_tools import HIVE, client_certificate, make, seed_of, within
from hypothesis import given
from hypothesis import strategies as st

from hivefs.crypto import keys
from hivefs.errors import BadSetting, NodeProblem
from hivefs.formats.member import sign_member
from hivefs.model.node import Membership, Role
from hivefs.node.addresses import announced
from hivefs.node.batching import Batcher, Budget
from hivefs.node.config import create_node, load_node, set_membership
from hivefs.node.events import Events
from hivefs.node.leases import DAY_NS, GRACE_NS, LONGEST_NS, SKEW_NS, LeaseClock, grant
from hivefs.node.service import run_node
from hivefs.protocol.failures import Code, Refusal
from hivefs.testing.memory_net import MemoryNetwork

NOW = 1_800_000_000 * 10**9
HOUR = 3600 * 10**9


@given(st.integers(0, 2**63 - 1))
def test_leases_last_a_day_to_two_years(wanted: int) -> None:
    end = grant(wanted, NOW)
    assert NOW + DAY_NS <= end <= NOW + LONGEST_NS
    assert end == wanted or not NOW + DAY_NS <= wanted <= NOW + LONGEST_NS


@given(st.lists(st.tuples(st.integers(-(10**19), 10**19), st.integers(0, 3 * HOUR)), max_size=30))
def test_the_lease_clock_never_goes_back_and_no_sudden_jump_is_believed(steps: list[tuple[int, int]]) -> None:
    clock = LeaseClock(NOW, NOW, 0)
    running = 0
    for wrong, elapsed in steps:
        running += elapsed
        before = clock.now_ns
        after = clock.observe(NOW + wrong, running)
        assert before <= after <= NOW + running + (len(steps) + 1) * DAY_NS


def test_a_clock_that_jumps_into_2038_is_believed_only_after_a_week() -> None:
    clock = LeaseClock(NOW, NOW, 0)
    wrong = NOW + 4000 * DAY_NS
    for hour in range(1, 24 * 7):
        clock.observe(wrong + hour * HOUR, hour * HOUR)
        assert clock.doubtful and clock.now_ns == NOW + hour * HOUR
    assert clock.observe(wrong + 170 * HOUR, 170 * HOUR) == wrong + 170 * HOUR
    assert not clock.doubtful


def test_a_jump_that_is_put_right_again_leaves_no_trace() -> None:
    clock = LeaseClock(NOW, NOW, 0)
    clock.observe(NOW + 4000 * DAY_NS, HOUR)
    assert clock.observe(NOW + 2 * HOUR, 2 * HOUR) == NOW + 2 * HOUR
    assert not clock.doubtful
    clock.observe(NOW + 4000 * DAY_NS, 3 * HOUR)
    clock.observe(NOW + 4000 * DAY_NS, 4 * HOUR + 6 * DAY_NS)
    assert clock.doubtful, "the week counts from the second jump"


def test_tolerance_is_a_day_and_grace_a_month() -> None:
    assert SKEW_NS == DAY_NS and GRACE_NS == 30 * DAY_NS


def test_batches_gather_what_waits_and_give_each_its_own_result() -> None:
    async def body() -> None:
        sizes: list[int] = []
        gate = threading.Event()

        def work(jobs: Sequence[int]) -> list[int | Refusal]:
            sizes.append(len(jobs))
            assert gate.wait(100)
            return [Refusal(Code.FULL, str(job)) if job % 5 == 4 else job * 2 for job in jobs]

        batcher: Batcher[int, int] = Batcher(work, lanes=1, most=4)
        results: dict[int, int] = {}
        refused: list[str] = []

        async def do(job: int) -> None:
            try:
                results[job] = await batcher.do(job)
            except Refusal as refusal:
                refused.append(refusal.text)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(batcher.run)
            async with trio.open_nursery() as jobs:
                for job in range(10):
                    jobs.start_soon(do, job)
                await trio.testing.wait_all_tasks_blocked()
                gate.set()
            nursery.cancel_scope.cancel()
        assert results == {job: job * 2 for job in range(10) if job % 5 != 4}
        assert sorted(refused) == ["4", "9"]
        assert sum(sizes) == 10 and max(sizes) == 4

    within(body)


def test_a_batch_is_no_heavier_than_it_may_be_and_one_job_always_goes() -> None:
    async def body() -> None:
        batches: list[list[int]] = []
        gate = threading.Event()

        def work(jobs: Sequence[int]) -> list[int | Refusal]:
            assert gate.wait(100)
            batches.append(list(jobs))
            return list(jobs)

        batcher: Batcher[int, int] = Batcher(work, lanes=1, most=5, weigh=lambda job: job, heaviest=10)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(batcher.run)
            async with trio.open_nursery() as jobs:
                jobs.start_soon(batcher.do, 3)  # the lane takes it alone, and the others wait
                await trio.testing.wait_all_tasks_blocked()
                for job in (4, 6, 1, 99, 9, 2, 1, 1, 1, 1, 1, 1):
                    jobs.start_soon(batcher.do, job)
                    await trio.testing.wait_all_tasks_blocked()
                gate.set()
            nursery.cancel_scope.cancel()
        assert batches == [[3], [4, 6], [1], [99], [9], [2, 1, 1, 1, 1], [1, 1]]

    within(body)


def test_a_job_cancelled_in_the_queue_is_not_done() -> None:
    async def body() -> None:
        done: list[int] = []
        gate = threading.Event()

        def work(jobs: Sequence[int]) -> list[int | Refusal]:
            assert gate.wait(100)
            done.extend(jobs)
            return list(jobs)

        batcher: Batcher[int, int] = Batcher(work, lanes=1, most=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(batcher.run)
            nursery.start_soon(batcher.do, 1)
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0.01) as scope:
                await batcher.do(2)
            assert scope.cancelled_caught
            gate.set()
            assert await batcher.do(3) == 3
            nursery.cancel_scope.cancel()
        assert done == [1, 3]

    within(body)


def test_a_budget_is_never_exceeded_and_nobody_is_overtaken() -> None:
    async def body() -> None:
        budget = Budget(100)
        held = most = 0
        entered: list[int] = []

        async def hold(number: int, count: int) -> None:
            nonlocal held, most
            await budget.take(count)
            try:
                entered.append(number)
                held += count
                most = max(most, held)
                await trio.lowlevel.checkpoint()
            finally:
                held -= count
                budget.give(count)

        for number in range(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hold, 1, 90)
                nursery.start_soon(hold, 2, 20)
                nursery.start_soon(hold, 3, 100)
                for _ in range(number % 4):
                    await trio.lowlevel.checkpoint()
                if number % 2:
                    nursery.cancel_scope.cancel()
            assert budget.free == 100
        entered.clear()
        async with trio.open_nursery() as nursery:
            await budget.take(50)
            nursery.start_soon(hold, 0, 60)
            await trio.testing.wait_all_tasks_blocked()
            for number in range(1, 10):
                nursery.start_soon(hold, number, 5)
            await trio.testing.wait_all_tasks_blocked()
            assert entered == [], "the small ones would fit, but the large one came first"
            budget.give(50)
        assert sorted(entered) == list(range(10)) and most <= 100 and budget.free == 100
        with pytest.raises(ValueError, match="more than there is"):
            await budget.take(101)

    within(body)


def test_a_cancelled_wait_for_the_budget_gives_everything_back() -> None:
    async def body() -> None:
        budget = Budget(10)
        await budget.take(6)
        with trio.move_on_after(0.01):
            await budget.take(9)
        async with trio.open_nursery() as nursery:
            with trio.fail_after(100):
                nursery.start_soon(budget.take, 4)
        assert budget.free == 0
        budget.give(10)
        assert budget.free == 10

    within(body)


def test_one_line_per_class_of_event_and_a_count_of_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    events = Events(lambda: now)
    with caplog.at_level(logging.INFO, logger="hivefs.node"):
        for _ in range(1000):
            events.say("refused", "no certificate")
        events.say("other", "something else")
        now = 31.0
        events.say("refused", "no certificate")
    assert [r.message for r in caplog.records] == [
        "refused: no certificate",
        "other: something else",
        "refused: no certificate (999 more like this since the last line)",
    ]


# ---- configuration --------------------------------------------------------------------------------------------------


def test_a_node_is_made_once_with_secrets_for_its_owner_only(tmp_path: Path) -> None:
    directory = tmp_path / "n"
    node_id = make(directory, bootstrap=("/memory/1",), vault_quota=5)
    config, seed = load_node(directory)
    assert seed == seed_of("node") and keys.public_key(seed) == node_id
    assert config.membership is not None and config.membership.subject == node_id
    assert (config.bootstrap, config.vault_quota, config.capacity) == (("/memory/1",), 5, 1 << 30)
    assert (directory / "node.seed").stat().st_mode & 0o777 == 0o600
    assert (directory / "node.json").stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    assert seed.hex() not in (directory / "node.json").read_text()
    with pytest.raises(NodeProblem, match="already"):
        make(directory)
    assert load_node(directory)[1] == seed


def test_a_node_can_wait_for_its_certificate(tmp_path: Path) -> None:
    node_id = create_node(tmp_path / "n", listen=("/memory",), capacity=1)
    with pytest.raises(NodeProblem, match="not signed"):
        within(run_node, tmp_path / "n", MemoryNetwork().open_host)
    for wrong in (client_certificate(seed_of("x")), sign_member(HIVE, Membership(b"", b"x" * 32, Role.NODE))):
        with pytest.raises(NodeProblem, match="certificate"):
            set_membership(tmp_path / "n", wrong)
    set_membership(tmp_path / "n", sign_member(HIVE, Membership(b"", node_id, Role.NODE)))
    config, _ = load_node(tmp_path / "n")
    assert config.membership is not None


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("format", "other", "not the settings"),
        ("version", 2, "version 2"),
        ("capacity", -1, "damaged"),
        ("capacity", "1", "damaged"),
        ("listen", "x", "damaged"),
        ("membership", "00", "damaged"),
    ],
)
def test_settings_that_were_edited_wrongly_are_refused(tmp_path: Path, name: str, value: object, words: str) -> None:
    make(tmp_path / "n")
    path = tmp_path / "n" / "node.json"
    settings = json.loads(path.read_text())
    settings[name] = value
    path.write_text(json.dumps(settings))
    with pytest.raises(NodeProblem, match=words):
        load_node(tmp_path / "n")


def test_a_seed_that_others_can_read_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "n")
    (tmp_path / "n" / "node.seed").chmod(0o640)
    with pytest.raises(NodeProblem, match="chmod"):
        load_node(tmp_path / "n")


def test_missing_nodes_and_nonsense_are_named(tmp_path: Path) -> None:
    with pytest.raises(NodeProblem, match="node init"):
        load_node(tmp_path)
    with pytest.raises(BadSetting):
        make(tmp_path / "n", capacity=0)


def test_a_node_with_an_ended_certificate_does_not_run(tmp_path: Path) -> None:
    node_id = keys.public_key(seed_of("node"))
    ended = sign_member(HIVE, Membership(b"", node_id, Role.NODE, (), 1, expires_ns=2 * DAY_NS))
    create_node(tmp_path / "n", listen=("/memory",), capacity=1, membership=ended, seed=seed_of("node"))
    with pytest.raises(NodeProblem, match="expired"):
        within(run_node, tmp_path / "n", MemoryNetwork().open_host)


def test_addresses_that_others_are_told() -> None:
    listening = ["/ip4/127.0.0.1/tcp/4001/p2p/XYZ"]
    assert announced(listening, ()) == tuple(listening)
    assert announced(listening, ("/dns4/n.example/tcp/9", "/ip4/1.2.3.4/tcp/1/p2p/Q")) == (
        "/dns4/n.example/tcp/9/p2p/XYZ",
        "/ip4/1.2.3.4/tcp/1/p2p/Q",
    )
    (everywhere,) = announced(["/ip4/0.0.0.0/tcp/4001/p2p/XYZ"], ())
    assert everywhere.startswith("/ip4/") and everywhere.endswith("/tcp/4001/p2p/XYZ") and "0.0.0.0" not in everywhere

"""The engine's page for Prometheus: every queue, served over HTTP on loopback, and no reason to end when it cannot be."""

from __future__ import annotations

import os
import re
import urllib.request
from pathlib import Path

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from hivefs.cli.status import QUEUES, queue_words, trust_of, trust_words
from hivefs.daemon import engine_metrics
from hivefs.model.ids import CHUNK_BYTES
from hivefs.placement.health import NodeState
from hivefs.placement.reputation import Reputation, answered, answers_left
from hivefs.testing.memory_hive import MemoryHive
from hivefs.testing.ports import free_port

from .memory_vault import MemoryVault
from .test_engine import make_home, run, running, settle, until

METRICS = Path(__file__).parents[2] / "docs" / "metrics.md"


def samples(page: bytes) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            found[sample.name + "".join(f"/{value}" for value in sample.labels.values())] = sample.value
    return found


def test_every_queue_is_on_the_page_and_says_what_is_so(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(("DE", "FR", "CH"), 2), MemoryVault()
        async with running(make_home(tmp_path / "home", gone_after=1), hive, vault) as engine:
            for slot in range(4):
                vault.write(9, slot, os.urandom(CHUNK_BYTES))
            await settle(engine, vault)
            status = engine.status()
            found = samples(engine_metrics.page(status))
            assert status["queues"].keys() == QUEUES.keys(), "each has its words"
            assert {f"hivefs_engine_queue/{duty}" for duty in QUEUES} <= found.keys()
            (row,) = [line for line in METRICS.read_text().splitlines() if "hivefs_engine_queue" in line]
            assert {f"`{duty}`" for duty in QUEUES} <= set(re.findall(r"`[a-z_]+`", row))
            assert found["hivefs_engine_nodes/online"] == 6 and found["hivefs_engine_queue/repair"] == 0
            assert found["hivefs_engine_placed_bytes_total"] == status["placing"]["bytes"] > 4 * CHUNK_BYTES // 2
            node = hive.nodes[0]
            client = engine.pool.client(node.node_id)
            assert client is not None and found["hivefs_engine_nodes_relayed"] == 0
            client.relayed = True
            assert samples(engine_metrics.page(engine.status()))["hivefs_engine_nodes_relayed"] == 1
            assert await engine.audit.audit(node.node_id) is not None
            engine.trust.failed(node.node_id)
            node.stop()
            await until(lambda: engine.pool.members[node.node_id].row.state == NodeState.GONE and engine.repair.queue)
            said = "\n".join(queue_words(engine.status()["queues"]))
            assert " stripes to repair" in said and "\n0 " not in said
            found = samples(engine_metrics.page(engine.status()))
            assert found["hivefs_engine_queue/repair"] >= 1 and found["hivefs_engine_nodes/gone"] == 1
            assert found["hivefs_engine_audits_total/passed"] == 1
            assert found[f"hivefs_engine_node_score/{node.node_id.hex()[:12]}"] < 1
            words = trust_words(engine.status()["audit"] | {"owed": 2, "cut_off": True}, {"waiting": 3})
            assert words.startswith("1 audits passed") and "2 shares owed" in words and "3 old copies" in words

    run(test)


def test_of_a_node_out_of_trust_is_said_how_it_comes_back() -> None:
    row = Reputation(0, 1)
    for _ in range(5):
        row = answered(row, False, 1)
    assert row.suspended
    words = trust_of({"answers_left": answers_left(row)})
    assert words == f", out of trust until about {answers_left(row)} more right answers"
    assert trust_of({}) == ", out of trust", "an engine of an older release"


def test_a_port_that_is_taken_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        hive = MemoryHive()
        async with running(make_home(tmp_path / "home"), hive, None) as engine:
            await until(lambda: len(engine.pool.online()) == 8)
            monkeypatch.setattr(engine_metrics, "AGAIN", 0.1)
            port = free_port()  # not one that a connection of anybody may get as soon as it is free again
            (taken,) = await trio.open_tcp_listeners(port, host="127.0.0.1")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(engine_metrics.serve, port, engine.told)
                await trio.sleep(0.3)
                await taken.aclose()

                def get() -> bytes:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                        return bytes(answer.read())

                with trio.fail_after(60):
                    while True:
                        try:
                            page = await trio.to_thread.run_sync(get)
                            break
                        except OSError:
                            await trio.sleep(0.1)
                assert samples(page)["hivefs_engine_nodes/online"] == 8
                nursery.cancel_scope.cancel()

    run(test)

"""The engine's counts in the text format of Prometheus (docs/metrics.md), served on loopback by daemon/metrics.py.

Nodes are named by the first 12 hex digits of their ids. Nothing here names files or tells what is in them.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import trio
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest

from hivefs.daemon import metrics
from hivefs.errors import BadSetting

log = logging.getLogger(__name__)

AGAIN = 30.0
"""Seconds after which a port that somebody else has is tried again."""

STATES = ("online", "offline", "gone")


class _Engine:
    """A collector of prometheus_client over one status of the engine."""

    def __init__(self, status: dict[str, Any]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        s = self._status
        queue = GaugeMetricFamily("hivefs_engine_queue", "What waits, by duty", labels=["duty"])
        for duty, count in s["queues"].items():
            queue.add_metric([duty], count)
        yield queue
        waits = GaugeMetricFamily("hivefs_engine_waits", "1 while a duty waits for something", labels=["duty"])
        for duty in ("placing", "repair", "moving", "checkpoint"):
            waits.add_metric([duty], int(bool(s[duty]["waiting_for"])))
        yield waits
        yield GaugeMetricFamily(
            "hivefs_engine_disk_full", "1 while the engine cannot write to its disk", int(bool(s["disk"]["waiting_for"]))
        )
        levels = GaugeMetricFamily("hivefs_engine_data_bytes", "Bytes of data with padding, by level", labels=["level"])
        for level, count in s["levels"].items():
            levels.add_metric([level], count)
        yield levels
        yield GaugeMetricFamily("hivefs_engine_stripes", "Stripes", s["stripes"])
        yield GaugeMetricFamily("hivefs_engine_cache_bytes", "Bytes of the cache", s["cache_bytes"])
        yield GaugeMetricFamily("hivefs_engine_cut_off", "1 while most nodes are away at once", int(s["audit"]["cut_off"]))
        doubted = int(s["clock_doubted"])
        yield GaugeMetricFamily("hivefs_engine_clock_doubted", "1 while most nodes say another time", doubted)
        yield GaugeMetricFamily(
            "hivefs_engine_checkpoint_seconds", "Time of the last head", s["checkpoint"]["published_ns"] / 1e9
        )
        if s["capacity"] is not None:
            yield GaugeMetricFamily("hivefs_engine_capacity_bytes", "Data that the hive can take", s["capacity"]["total"])
            yield GaugeMetricFamily("hivefs_engine_free_bytes", "Data that it can take yet", s["capacity"]["free"])
        yield from self._counters()
        yield from self._nodes()

    def _counters(self) -> Iterator[Metric]:
        s = self._status
        yield CounterMetricFamily("hivefs_engine_placed_bytes", "Bytes of data placed", s["placing"]["bytes"])
        yield CounterMetricFamily("hivefs_engine_placed_stripes", "Stripes placed", s["placing"]["stripes"])
        yield CounterMetricFamily("hivefs_engine_repaired_stripes", "Stripes repaired", s["repair"]["repaired"])
        yield CounterMetricFamily("hivefs_engine_risked_repairs", "Old copies not counted", s["repair"]["risked"])
        yield CounterMetricFamily("hivefs_engine_cancelled_repairs", "Repairs not needed", s["repair"]["cancelled"])
        yield CounterMetricFamily("hivefs_engine_moved_bytes", "Bytes moved", s["moving"]["moved_bytes"])
        audits = CounterMetricFamily("hivefs_engine_audits", "Audits by outcome", labels=["outcome"])
        for outcome in ("passed", "failed", "silent", "busy"):
            audits.add_metric([outcome], s["audit"][outcome])
        yield audits
        yield CounterMetricFamily("hivefs_engine_audit_bytes", "Bytes that audits fetched", s["audit"]["bytes"])
        spares = CounterMetricFamily("hivefs_engine_spare_shares", "Old copies of shares, by fate", labels=["fate"])
        for fate in ("taken_back", "given_up"):
            spares.add_metric([fate], s["spares"][fate])
        yield spares

    def _nodes(self) -> Iterator[Metric]:
        nodes = self._status["nodes"]
        states = GaugeMetricFamily("hivefs_engine_nodes", "Nodes by state", labels=["state"])
        for state in STATES:
            states.add_metric([state], self._status["nodes_in_state"][state])
        yield states
        relayed = sum(1 for node in nodes if node["relayed"])
        yield GaugeMetricFamily("hivefs_engine_nodes_relayed", "Nodes that are online through a relay", relayed)
        score = GaugeMetricFamily("hivefs_engine_node_score", "1: never a wrong answer", labels=["node"])
        there = GaugeMetricFamily("hivefs_engine_node_availability", "Part of the time online", labels=["node"])
        suspended = GaugeMetricFamily("hivefs_engine_node_suspended", "1: out of trust", labels=["node"])
        for node in nodes:
            name = [node["id"][:12]]
            score.add_metric(name, node["score"])
            there.add_metric(name, node["availability"])
            suspended.add_metric(name, int(node["suspended"]))
        yield from (score, there, suspended)


def page(status: dict[str, Any]) -> bytes:
    """The page of one status."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Engine(status))
    text: bytes = generate_latest(registry)
    return text


async def serve(port: int, status: Callable[[], Awaitable[dict[str, Any]]]) -> None:
    """Answer on 127.0.0.1 until cancelled. A port that is taken is no reason to end: it is tried again."""
    said = ""
    while True:
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(metrics.serve, "127.0.0.1", port, status, page)
                log.info("metrics at http://127.0.0.1:%d/metrics", port)
                said = ""
        except* BadSetting as group:
            words = str(group.exceptions[0])
            if words != said:
                log.warning("%s", words)
            said = words
        await trio.sleep(AGAIN)

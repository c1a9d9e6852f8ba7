"""A node's counts in the text format of Prometheus, and a small HTTP server for them (names: docs/node-operators.md).

The server answers GET /metrics and nothing else, one request a connection, and is bounded in all that a peer could spend:
connections, bytes of a request, time. There is no authentication: it belongs on loopback, or behind something that has.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Final

import trio
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from hivefs.errors import BadSetting

log = logging.getLogger("hivefs.node")

MAX_CONNECTIONS: Final = 16
MAX_REQUEST: Final = 8 << 10
SECONDS: Final = 5.0
"""For one request and its answer."""

_GAUGES: Final = (
    ("shares", "shares", "Shares kept"),
    ("used_bytes", "used", "Bytes of shares kept"),
    ("capacity_bytes", "capacity", "Bytes of shares that the node offers"),
    ("free_bytes", "free", "Bytes free for new shares"),
    ("vaults", "vaults", "Vaults that have shares here"),
    ("conversations", "conversations", "Conversations open now"),
    ("up_seconds", "up_seconds", "Seconds since the node began to serve"),
)


def listen_address(text: str) -> tuple[str, int]:
    """'9464' or '127.0.0.1:9464' or '[::1]:9464' -> host and port; loopback when no address is said. Raises BadSetting."""
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    try:
        ipaddress.ip_address(host)
        number = int(port)
        if not (port.isascii() and port.isdigit() and number <= 65535):
            raise ValueError
    except ValueError:
        raise BadSetting(name="--metrics", reason=f"'{text}' is not an address such as 127.0.0.1:9464") from None
    return host, number


class _Node:
    """A collector of prometheus_client over one status."""

    def __init__(self, status: dict[str, Any]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        s = self._status
        yield InfoMetricFamily("hivefs_node_version", "Version of HiveFS", {"version": s["version"]})
        for name, key, text in _GAUGES:
            yield GaugeMetricFamily(f"hivefs_node_{name}", text, s[key])
        yield GaugeMetricFamily("hivefs_node_leases", "Leases of all vaults on all shares", s["leases"]["count"])
        yield GaugeMetricFamily(
            "hivefs_node_leases_ending_soon", "Leases that end within seven days", s["leases"]["end_soon"]
        )
        yield GaugeMetricFamily("hivefs_node_leaving", "1 while the node leaves", int(s["leaving"] is not None))
        yield GaugeMetricFamily("hivefs_node_quiet", "1 during the quiet hours", int(s["quiet"]))
        cap = GaugeMetricFamily(
            "hivefs_node_cap_bytes_per_second", "Cap of shares now; missing when there is none", labels=["direction"]
        )
        for direction, rate in (("sent", s["upload_now"]), ("received", s["download_now"])):
            if rate is not None:
                cap.add_metric([direction], rate)
        yield cap
        yield CounterMetricFamily("hivefs_node_dropped_shares", "Shares dropped as damaged", s["dropped"])
        yield from self._traffic()

    def _traffic(self) -> Iterator[Metric]:
        received = CounterMetricFamily("hivefs_node_received_bytes", "Bytes of frames that came", labels=["peer"])
        sent = CounterMetricFamily("hivefs_node_sent_bytes", "Bytes of frames that were sent", labels=["peer"])
        asked = CounterMetricFamily("hivefs_node_requests", "Requests by kind", labels=["peer", "kind"])
        refused = CounterMetricFamily("hivefs_node_refusals", "Refusals by reason", labels=["peer", "reason"])
        for peer, traffic in self._status["since_start"].items():
            received.add_metric([peer], traffic["in"])
            sent.add_metric([peer], traffic["out"])
            for kind, count in traffic["requests"].items():
                asked.add_metric([peer, kind], count)
            for reason, count in traffic["refusals"].items():
                refused.add_metric([peer, reason], count)
        yield from (received, sent, asked, refused)


def text_of(status: dict[str, Any]) -> bytes:
    """The page."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Node(status))
    page: bytes = generate_latest(registry)
    return page


async def serve(
    host: str,
    port: int,
    status: Callable[[], dict[str, Any] | Awaitable[dict[str, Any]]],
    page: Callable[[dict[str, Any]], bytes] = text_of,
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer until cancelled; started with the port. Raises BadSetting when the address cannot be had. A status that has to
    be waited for is a long one: its page is made by a thread.
    """

    async def told() -> bytes:
        found = status()
        if isinstance(found, dict):
            return page(found)
        return await trio.to_thread.run_sync(page, await found)

    try:
        listeners = await trio.open_tcp_listeners(port, host=host, backlog=MAX_CONNECTIONS)
    except OSError as error:
        raise BadSetting(name="--metrics", reason=f"{host}:{port} cannot be had ({error.strerror or error})") from error
    room = trio.Semaphore(MAX_CONNECTIONS)
    found = listeners[0].socket.getsockname()[1]
    task_status.started(found)
    await trio.serve_listeners(partial(_answer, room, told), listeners)


async def _answer(room: trio.Semaphore, page: Callable[[], Awaitable[bytes]], stream: trio.SocketStream) -> None:
    try:
        room.acquire_nowait()
    except trio.WouldBlock:
        await trio.aclose_forcefully(stream)
        return
    try:
        with trio.move_on_after(SECONDS):
            line = await _request_line(stream)
            if line is not None:
                await stream.send_all(await _response(line, page))
                await stream.send_eof()
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        return  # the peer is gone
    finally:
        room.release()
        await trio.aclose_forcefully(stream)


async def _request_line(stream: trio.SocketStream) -> bytes | None:
    """The first line of a request that has come whole; None when it is too long or does not."""
    data = b""
    while b"\r\n\r\n" not in data and b"\n\n" not in data:
        piece = await stream.receive_some(4096)
        data += piece
        if not piece or len(data) > MAX_REQUEST:
            return None
    return data.split(b"\n", 1)[0].strip()


async def _response(line: bytes, page: Callable[[], Awaitable[bytes]]) -> bytes:
    words = line.split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        return _http("400 Bad Request", b"")
    if words[0] not in (b"GET", b"HEAD"):
        return _http("405 Method Not Allowed", b"")
    if words[1].partition(b"?")[0] != b"/metrics":
        return _http("404 Not Found", b"see /metrics\n")
    try:
        text = await page()
    except Exception as error:  # what fails for one page (a disk, a mistake) must not end the process
        log.error("the metrics could not be made", exc_info=error)
        return _http("500 Internal Server Error", b"")
    return (
        _http("200 OK", text, len(text), CONTENT_TYPE_PLAIN_0_0_4)
        if words[0] == b"GET"
        else _http("200 OK", b"", len(text))
    )


def _http(state: str, body: bytes, length: int | None = None, kind: str = "text/plain; charset=utf-8") -> bytes:
    head = f"HTTP/1.1 {state}\r\nContent-Type: {kind}\r\nContent-Length: {len(body) if length is None else length}\r\n"
    return (head + "Connection: close\r\n\r\n").encode() + body

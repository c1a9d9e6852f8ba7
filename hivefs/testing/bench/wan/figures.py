"""The rows of ``scripts/bench --wan``: what TCP reaches over a link, and what the drive does.

Rates are shares of the link's rate, which nothing can reach quite: headers of IP and TCP take 3.5 % of each packet, TLS
and frames another half. Placing counts the bytes of all n shares, a cold read the bytes of the file. The first byte of a
cold file of 1 MiB, open and read of one byte, is counted in round trips, with the conversations open already; each sample
is another file, and the first read from a node is among them (TCP begins slowly there, or, with the usual congestion
control, after each pause). By the packets it is divided into the line and the processors of both sides (packets.py). What
comes of the line before the first byte can be opened is a sealed segment of 32 KiB, 5.6 ms of 50 Mbit/s.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from hivefs.crypto.seal import TAG_BYTES
from hivefs.model.ids import SEGMENT_BYTES
from hivefs.testing.bench.bounded import Failed, Overrun, run_bounded
from hivefs.testing.bench.processes import cpu_seconds
from hivefs.testing.bench.rounds import Record, say
from hivefs.testing.bench.targets import CannotStart
from hivefs.testing.bench.tools import MIB, Differs, digest, forget_pages, read_file, write_all
from hivefs.testing.bench.wan import link, packets, plain_tcp
from hivefs.testing.bench.wan.hive import CODE, FarHive
from hivefs.testing.bench.wan.lane import Shape
from hivefs.transport.channel import RECORD

BITS_PER_S: Final = 50e6
ROUND_TRIPS_S: Final = (0.02, 0.1)
LOSSES: Final = (0.0, 0.01)
CONNECTIONS: Final = {"TCP": (1, 8, 32), "trio.SSLStream": (1, 8)}
"""Eight is what the drive has: one for each node."""
GOAL: Final = 0.7
GOAL_ROUND_TRIPS: Final = 3.0
NEEDED: Final = -(-(SEGMENT_BYTES + TAG_BYTES) // RECORD) * (RECORD + 22) + 512
"""Bytes before the first one of a file can be opened: a sealed segment in whole records of TLS with their headers and tags,
and before it the heads of frames and the proof."""

_PAUSE_S: Final = 2.0
_LIMIT_S: Final = 400.0
_SETTLE_S: Final = 60.0

Figures = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much is moved: bytes of the file, samples of the first byte, seconds for each measure of TCP alone."""

    file_bytes: int
    samples: int
    tcp_s: float
    only_first: bool = False


FULL: Final = Amounts(64 * MIB, 8, 8.0)
QUICK: Final = Amounts(4 * MIB, 2, 1.0)


def shapes(quick: bool) -> list[Shape]:
    """The links that are measured."""
    if quick:
        return [Shape(0.02, 0.0, BITS_PER_S)]
    return [Shape(round_trip, loss, BITS_PER_S) for round_trip in ROUND_TRIPS_S for loss in LOSSES]


def measure(
    root: Path, controls: Sequence[str], quick: bool, record: Record, deadline: float, first_bytes: int = 0
) -> Figures:
    """Everything, for each congestion control ("" is the machine's), or only ``first_bytes`` samples of the first byte, if
    that is not 0. What fails is recorded, and the rest goes on. Raises link.NoLink when there can be no link here.
    """
    amounts, found = (QUICK if quick else FULL), Figures()
    if first_bytes:
        amounts = replace(amounts, samples=first_bytes, only_first=True)
    with link.opened(shapes(quick)[0]) as line:
        say(f"the link is made of {line.kind}")
    for shape in shapes(quick):
        for control in controls:
            name = _name(shape, control)
            if time.monotonic() > deadline:
                record.problem("wan", f"{name} is left out, the time is over")
                continue
            say(f"measuring {name}")
            rows = _Rows(found, shape, control)
            try:
                if not amounts.only_first:
                    _tcp(rows, amounts)
                _drive(rows, root / name.replace(" ", "-").replace("%", ""), amounts)
            except (CannotStart, Overrun, Failed, Differs, RuntimeError, OSError) as problem:
                record.problem("wan", f"{name}: {problem}")
    return found


def _name(shape: Shape, control: str) -> str:
    return f"{shape.round_trip_s * 1000:g} ms {shape.loss * 100:g}% {control or machines_control()}"


def machines_control() -> str:
    """The congestion control that sockets of this machine begin with."""
    return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()


class _Rows:
    """Lines of the table for one link."""

    def __init__(self, found: Figures, shape: Shape, control: str) -> None:
        self._found = found
        self.shape = shape
        self.control = control

    def add(self, what: str, unit: str, values: Sequence[float], against: str) -> None:
        name = _name(self.shape, self.control)
        value = statistics.median(values)
        about = {"round_trip_s": self.shape.round_trip_s, "loss": self.shape.loss, "bits_per_s": self.shape.bits_per_s}
        title = f"{name}: {what}"
        self._found[title] = {"title": title, "unit": unit, "value": value, "values": list(values), "against": against}
        self._found[title] |= {"link": about, "congestion": self.control or machines_control()}
        say(f"  {what}: {value:.3g} {unit} {against}")

    def rate(self, what: str, size: float, seconds: float, goal: float = 0.0) -> None:
        """Bytes that went over the link in some time."""
        share = size * 8 / seconds / self.shape.bits_per_s
        wanted = f" (goal {goal:g})" if share < goal else ""
        self.add(what, "Mbit/s", [size * 8 / seconds / 1e6], f"{share:.2f} of the link{wanted}")

    def processors(self, what: str, before: dict[str, float], after: dict[str, float], size: int) -> None:
        """What it took of processors, whatever else the machine did."""
        each = {part: (after[part] - before[part]) * 1000 * MIB / size for part in after}
        told = ", ".join(f"{part} {value:.1f}" for part, value in each.items())
        self.add(f"{what}, processor time for a MiB", "ms", [sum(each.values())], told)


def _tcp(rows: _Rows, amounts: Amounts) -> None:
    control = rows.control or machines_control()
    for what, counts in CONNECTIONS.items():
        for connections in counts:
            tls = what != "TCP"
            bits = plain_tcp.reached(rows.shape, connections, amounts.tcp_s, tls=tls, congestion=control)
            rows.rate(f"{what}, {connections} connection{'s' if connections > 1 else ''}", bits / 8, 1.0)


def _drive(rows: _Rows, root: Path, amounts: Amounts) -> None:
    with link.opened(rows.shape, congestion=rows.control) as line:
        hive = FarHive("wan", root, line)
        try:
            hive.start()
            _use(rows, hive, amounts)
        finally:
            hive.stop()


def _use(rows: _Rows, hive: FarHive, amounts: Amounts) -> None:
    needed, total = CODE
    small = [hive.directory / f"small-{number}" for number in range(amounts.samples)]
    for path in small:
        run_bounded(partial(_write, path, os.urandom(MIB)), _LIMIT_S)
    hive.wait(hive.directory, "guaranteed", _LIMIT_S)
    hive.settle(_SETTLE_S)

    data, big = os.urandom(amounts.file_bytes), hive.directory / "big"
    if not amounts.only_first:
        used = _used(hive)
        began = time.perf_counter()
        run_bounded(partial(_write, big, data), _LIMIT_S)
        hive.wait(big, "remote", _LIMIT_S)
        took = time.perf_counter() - began
        rows.rate(f"placing, all {total} shares", len(data) * total / needed, took, GOAL)
        hive.wait(hive.directory, "guaranteed", _LIMIT_S)
        hive.settle(_SETTLE_S)
        rows.processors("placing", used, _used(hive), amounts.file_bytes)

    hive.drop_cache()
    hive.settle(_SETTLE_S)
    _first_bytes(rows, hive, small)
    if not amounts.only_first:
        used = _used(hive)
        took = run_bounded(partial(_read, big, digest(data), len(data)), _LIMIT_S)
        rows.rate("cold sequential read", len(data), took, GOAL)
        rows.processors("cold sequential read", used, _used(hive), amounts.file_bytes)


def _used(hive: FarHive) -> dict[str, float]:
    """Seconds of processor time of each kind of process until now."""
    return {part: cpu_seconds(pids) for part, pids in hive.processes().items()}


def _first_bytes(rows: _Rows, hive: FarHive, paths: Sequence[Path]) -> None:
    round_trip, took, found = rows.shape.round_trip_s, [], []
    for path in paths:
        hive.link.watch()
        began, ended = run_bounded(partial(_first_byte, path), _LIMIT_S)
        took.append((ended - began) / round_trip)
        parts = packets.parts(hive.link.seen(), began, ended, round_trip, NEEDED)
        if parts is not None:
            found.append(parts)
            ms = [1000 * part for part in (parts.all, parts.before, parts.line, parts.far, parts.after)]
            again = ", some of them again" if parts.again else ""
            say(
                f"    {ms[0]:.1f} ms: asking {ms[1]:.1f}, line {ms[2]:.1f}, node {ms[3]:.1f}, opening {ms[4]:.1f};"
                f" {parts.bytes} bytes in {parts.flights} flights{again}"
            )
        time.sleep(_PAUSE_S)  # the rest of the file comes, and TCP takes its line for idle again
    within = sum(value <= GOAL_ROUND_TRIPS for value in took)
    said = f"{within} of {len(took)} within {GOAL_ROUND_TRIPS:g}, slowest {max(took):.1f}"
    rows.add("first byte of a cold 1 MiB", "round trips", took, said)
    if found:
        line = [parts.line / round_trip for parts in found]
        within = sum(value <= GOAL_ROUND_TRIPS for value in line)
        said = f"{within} of {len(line)} within {GOAL_ROUND_TRIPS:g}, slowest {max(line):.1f}"
        rows.add("of that the line", "round trips", line, said)
        for what, values in (
            ("mount and engine, before they ask", [parts.before for parts in found]),
            ("the node", [parts.far for parts in found]),
            ("engine and mount, when it is there", [parts.after for parts in found]),
        ):
            rows.add(f"of that {what}", "ms", [1000 * value for value in values], f"slowest {1000 * max(values):.1f}")


# ---- in children ----------------------------------------------------------------------------------------------------


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    write_all(fd, data)
    os.close(fd)


def _first_byte(path: Path) -> tuple[float, float]:
    """When it began and when the byte was there."""
    forget_pages(path)
    began = time.perf_counter()
    fd = os.open(path, os.O_RDONLY)
    got = os.pread(fd, 1, 0)
    ended = time.perf_counter()
    os.close(fd)
    if len(got) != 1:
        raise Differs("the file is empty")
    return began, ended


def _read(path: Path, wanted: str, size: int) -> float:
    forget_pages(path)
    began = time.perf_counter()
    data = read_file(path, size)
    took = time.perf_counter() - began
    if digest(data) != wanted:
        raise Differs("what came from the nodes is not what was written")
    return took

"""The link of ``scripts/bench --wan``: what it does to packets, and that nothing of it stays behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hivefs.testing.bench.wan import figures, link, packets
from hivefs.testing.bench.wan.emulator import FAR
from hivefs.testing.bench.wan.lane import Lane, Shape

PACKET = bytes(1500)
SHAPE = Shape(0.1, 0.0, 12e6)  # 1000 packets of 1500 bytes a second


def taken(lane: Lane, now: float) -> int:
    count = 0
    while lane.take(now) is not None:
        count += 1
    return count


def test_a_packet_takes_its_time_on_the_line_and_half_the_round_trip() -> None:
    lane = Lane(SHAPE, 1)
    lane.offer(PACKET, 10.0)
    lane.offer(PACKET, 10.0)
    assert lane.next_at == pytest.approx(10.051)
    assert (taken(lane, 10.0509), taken(lane, 10.0511), taken(lane, 10.0519), taken(lane, 10.0521)) == (0, 1, 0, 1)
    assert lane.next_at is None
    lane.offer(PACKET, 11.0)
    assert lane.next_at == pytest.approx(11.051), "a line that was idle begins anew"


def test_a_full_queue_drops_and_the_rate_is_kept() -> None:
    lane = Lane(SHAPE, 1)
    came = 0
    for millisecond in range(2000):  # twice the rate for two seconds
        now = millisecond / 1000
        lane.offer(PACKET, now)
        lane.offer(PACKET, now)
        came += taken(lane, now)
    came += taken(lane, 1000.0)
    assert came + lane.dropped == 4000
    assert came == pytest.approx(2000 + 100, abs=2), "two seconds, and the queue of 0.1 s behind them"


def test_losses_are_random_about_as_many_as_said_and_the_same_for_the_same_seed() -> None:
    def lost(seed: int) -> list[int]:
        lane = Lane(Shape(0.0, 0.01, 1e12), seed)
        found = []
        for number in range(20_000):
            before = lane.lost
            lane.offer(PACKET, float(number))
            found += [number] * (lane.lost - before)
        return found

    assert lost(7) == lost(7) != lost(8)
    assert 100 < len(lost(7)) < 300


@pytest.mark.parametrize("wrong", [(-0.1, 0, 1), (0.1, 1.0, 1), (0.1, -0.1, 1), (0.1, 0, 0), (0.1, 0, 1, 0)])
def test_a_link_that_cannot_be(wrong: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="a link has"):
        Shape(*wrong)


def test_without_root_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(link.NoLink, match=r"root \(uid 0\) is missing"), link.opened(SHAPE):
        pass


def test_where_there_is_no_link_the_benchmark_is_skipped(tmp_path: Path) -> None:
    """No program of iproute2 is found: exit status 0, the reason in the table and in the JSON, nothing left."""
    out = tmp_path / "out.json"
    (tmp_path / "work").mkdir()
    words = [sys.executable, "-m", "hivefs.testing.bench", "--wan", "--quick", "--json", str(out)]
    done = subprocess.run(
        [*words, "--directory", str(tmp_path / "work")],
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["skipped"] in done.stdout and ("is missing" in result["skipped"] or "root" in result["skipped"])
    assert result["hive"] == {} and list((tmp_path / "work").iterdir()) == []


# ---- a real one -----------------------------------------------------------------------------------------------------

ROUND_TRIP = 0.06
TALK = f"""
import socket, sys, time
if sys.argv[1] == "serve":
    with socket.create_server(("{FAR}", 0)) as server:
        print(server.getsockname()[1], flush=True)
        with server.accept()[0] as peer:
            while data := peer.recv(65536):
                peer.sendall(data)
else:
    began = time.monotonic()
    peer = socket.create_connection(("{FAR}", int(sys.argv[2])))
    connected = time.monotonic() - began
    sent, back = bytes(range(256)) * 1024, b""
    began = time.monotonic()
    peer.sendall(sent[:65536])
    while len(back) < 65536:
        back += peer.recv(65536)
    print(connected, time.monotonic() - began, back == sent[:65536])
"""


def test_a_link_has_its_round_trip_and_its_rate_and_is_gone_afterwards() -> None:
    """Only what cannot be faster is asserted: TCP cannot connect before one round trip, nor bytes come above the rate."""
    shape = Shape(ROUND_TRIP, 0.0, 10e6)
    try:
        with link.opened(shape, netem=False) as line:
            assert line.kind == "TUN"
            line.watch()
            pid = int(line.near[1].split("/")[2])
            words = [sys.executable, "-c", TALK]
            server = subprocess.Popen([*line.far, *words, "serve"], stdout=subprocess.PIPE)
            try:
                assert server.stdout is not None
                port = server.stdout.readline().decode().strip()
                done = link.run(line.near, [*words, "talk", port], 60)
            finally:
                server.kill()
                server.wait()
                if server.stdout is not None:
                    server.stdout.close()
            assert done.returncode == 0, done.stderr
            connected, echoed, same = done.stdout.split()
            assert same == "True" and float(connected) >= ROUND_TRIP
            assert float(echoed) >= ROUND_TRIP + 65536 * 8 / 10e6
            read = packets.parts(line.seen(), 0.0, time.monotonic(), ROUND_TRIP, 65536)
            assert read is not None and read.bytes >= 65536 and read.line >= ROUND_TRIP
            assert line.seen() == [], "what was told is not told again"
    except link.NoLink as reason:
        pytest.skip(str(reason))
    assert not Path(f"/proc/{pid}").exists()
    assert "hivewan" not in Path("/proc/net/dev").read_text()


@pytest.mark.slow
@pytest.mark.fuse
def test_all_rows_of_a_hive_behind_a_link(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = ["--wan", "--quick", "--directory", str(tmp_path), "--json", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "hivefs.testing.bench", *words], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    result = json.loads(out.read_text())
    if "skipped" in result:
        pytest.skip(result["skipped"])
    rows = {title.partition(": ")[2]: row for title, row in result["hive"].items()}
    assert {"placing, all 6 shares", "first byte of a cold 1 MiB", "cold sequential read"} < set(rows)
    of_it = [title for title in rows if title.startswith("of that ")]  # none with netem
    assert len(of_it) in (0, 4) and len(rows) == 5 + len(of_it) + sum(map(len, figures.CONNECTIONS.values()))
    assert all(row["value"] > 0 for row in rows.values())
    assert all(row["value"] <= 50 for title, row in rows.items() if row["unit"] == "Mbit/s"), "faster than the link"
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()

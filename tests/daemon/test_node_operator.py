"""A node process as its operator meets it: commands, signals, the service manager, metrics, a unit for systemd."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hivefs.cli import main as cli
from hivefs.daemon.metrics import MAX_CONNECTIONS, listen_address
from hivefs.daemon.node_process import running_node
from hivefs.daemon.service_manager import notify
from hivefs.daemon.unit import unit_for
from hivefs.errors import BadSetting, NodeProblem
from hivefs.testing.ports import free_ports


def hivefs(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hivefs", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def until(condition: Callable[[], object], what: str, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    hivefs("hive", "create", str(tmp_path / "key"))
    where = ["--hive", str(tmp_path / "key"), "--listen", f"/ip4/127.0.0.1/tcp/{free_ports(1)[0]}"]
    caps = ["--max-upload", "10M", "--quiet-hours", "22:00-06:00", "--quiet-upload", "0"]
    hivefs("node", "init", str(tmp_path / "n"), *where, "--country", "DE", "--operator", "me", *caps)
    return tmp_path / "n"


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """What systemd listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(90)
        yield listening


def test_a_node_from_its_start_to_its_end(directory: Path, manager: socket.socket) -> None:
    said = hivefs("node", "status", str(directory), code=39).stderr
    assert "never run" in said
    port = free_ports(1)[0]
    environment = {**os.environ, "NOTIFY_SOCKET": manager.getsockname()}
    command = [sys.executable, "-m", "hivefs", "node", "run", str(directory), "--metrics", str(port)]
    with (directory.parent / "run.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        first = manager.recv(4096).decode()
        assert first.startswith("READY=1\nSTATUS=serving at /ip4/127.0.0.1/")

        value = json.loads(hivefs("node", "status", str(directory), "--json").stdout)
        assert value["running"] and value["pid"] == process.pid
        assert value["caps"]["upload"] == 10 << 20 and value["caps"]["quiet_upload"] == 0
        assert value["caps"]["quiet_download"] is None
        # Changed while it runs, by the command and by SIGHUP.
        changed = hivefs("node", "set", str(directory), "--max-download", "1M", "--capacity", "20G", "--json").stdout
        assert json.loads(changed)["running"]
        value = json.loads(hivefs("node", "status", str(directory), "--json").stdout)
        assert (value["capacity"], value["free"] > 0, value["caps"]["download"]) == (20 << 30, True, 1 << 20)
        path = directory / "node.json"
        path.write_text(path.read_text().replace(str(20 << 30), str(30 << 30)))
        process.send_signal(signal.SIGHUP)
        until(lambda: b"hivefs_node_capacity_bytes 3.221225472e+10" in _page(port), "SIGHUP")
        path.write_text("{")
        process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert b"hivefs_node_capacity_bytes 3.221225472e+10" in _page(port), "a damaged file changes nothing"
        assert "is damaged or was edited" in hivefs("node", "status", str(directory), code=39).stderr

        _check_metrics(port)
        process.send_signal(signal.SIGTERM)
        assert manager.recv(4096) == b"STOPPING=1"
        assert process.wait(90) == 0
    finally:
        process.kill()
        process.wait(100)
    assert running_node(directory) is None and not (directory / "node.sock").exists()


def _page(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        page: bytes = answer.read()
        return page


NAME = re.compile(r"hivefs_node_[a-z_]*[a-z]")


def _check_metrics(port: int) -> None:
    """What promtool checks: every family has help and a type, names carry units, counters end in _total, all parses."""
    page = _page(port).decode()
    families = list(text_string_to_metric_families(page))
    documented = (Path(__file__).parents[2] / "docs" / "node-operators.md").read_text()
    assert len(families) > 15
    for family in families:
        assert NAME.fullmatch(family.name) and family.documentation and family.type in ("gauge", "counter", "info")
        assert not family.name.endswith(("_kb", "_mb", "_ms", "_gauge"))
        for sample in family.samples:
            assert sample.name == family.name + {"counter": "_total"}.get(family.type, ""), sample
            assert sample.value >= 0
            assert f"`{sample.name}`" in documented, f"{sample.name} is not in docs/node-operators.md"
    assert len({family.name for family in families}) == len(families)
    # Nothing but that page, and nobody can hold the server up.
    for words, code in ((b"GET /x HTTP/1.1", b"404"), (b"POST /metrics HTTP/1.1", b"405"), (b"rubbish", b"400")):
        assert _raw(port, words + b"\r\n\r\n").startswith(b"HTTP/1.1 " + code)
    head = _raw(port, b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and head.endswith(b"\r\n\r\n")
    assert _raw(port, b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n") == b""
    idle = [socket.create_connection(("127.0.0.1", port), 60) for _ in range(MAX_CONNECTIONS + 4)]
    try:
        until(lambda: _served(port), "the page after idle connections were dropped")
    finally:
        for connection in idle:
            connection.close()


def _raw(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        data = b""
        try:
            connection.sendall(request)
            while piece := connection.recv(65536):
                data += piece
        except (ConnectionResetError, BrokenPipeError):
            return data
        return data


def _served(port: int) -> bool:
    try:
        return b"hivefs_node_shares" in _page(port)
    except (OSError, urllib.error.URLError):
        return False


@pytest.mark.parametrize(
    ("text", "found"),
    [("9464", ("127.0.0.1", 9464)), ("127.0.0.1:1", ("127.0.0.1", 1)), ("[::1]:80", ("::1", 80)), (":5", ("127.0.0.1", 5))],
)
def test_addresses_for_metrics(text: str, found: tuple[str, int]) -> None:
    assert listen_address(text) == found


@pytest.mark.parametrize("text", ["x", "localhost:1", "127.0.0.1", "1.2.3.4:99999", "127.0.0.1:-1", "127.0.0.1:+1"])
def test_what_is_no_address_for_metrics(text: str) -> None:
    with pytest.raises(BadSetting, match=r"127\.0\.0\.1:9464"):
        listen_address(text)


def test_bad_settings_are_one_sentence(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def node(*words: str, code: int = 0) -> str:
        assert cli.run(["node", *words]) == code
        said = capsys.readouterr()
        assert len(said.err.strip().splitlines()) == (1 if code else 0)
        return said.err or said.out

    for words, part in (
        (["--max-upload", "fast"], "bytes a second"),
        (["--max-upload", "1K"], "at least 16K"),
        (["--max-upload", "same"], "bytes a second"),
        (["--max-upload", "nan"], "bytes a second"),
        (["--quiet-hours", "8-9"], "08:00-18:00"),
        (["--capacity", "1"], "at least 64M"),
    ):
        assert part in node("set", str(directory), *words, code=60)
    assert "there is no node in it" in node("set", str(directory / "nothing"), code=39)
    assert "must run until its shares have moved" in node("leave", str(directory), code=39)
    assert "The node does not run" in node("set", str(directory))
    vault = "0123456789abcdef" * 2
    assert vault in node("set", str(directory), "--credit", vault.upper())
    assert vault in node("set", str(directory), "--capacity", "1G")
    assert "credit is wrong" in node("set", str(directory), "--credit", "me", code=60)
    assert vault not in node("set", str(directory), "--credit", "none")
    # It was told to leave: that holds for its next start, and can be taken back before.
    assert json.loads((directory / "node.json").read_text())["leaving_ns"] > 0
    node("leave", str(directory), "--cancel")
    assert json.loads((directory / "node.json").read_text())["leaving_ns"] == 0


def test_nobody_is_told_when_nobody_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not notify("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        name = f"hivefs-test-{os.getpid()}"
        listening.bind("\0" + name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        assert notify("READY=1", "STATUS=x") and listening.recv(99) == b"READY=1\nSTATUS=x"


def test_the_unit_names_what_it_must(directory: Path) -> None:
    text = unit_for(directory, Path(sys.executable), "hive-user", "127.0.0.1:9464")
    assert "User=hive-user\n" in text and f"ReadWritePaths={directory}\n" in text
    assert text.count("--metrics 127.0.0.1:9464") == 1 and "CapabilityBoundingSet=\n" in text
    odd = directory.parent / 'a "b" 100% $x'
    directory.rename(odd)
    text = unit_for(odd, Path(sys.executable), "u")
    line = next(line for line in text.splitlines() if line.startswith("ExecStart="))
    assert line.endswith('a \\"b\\" 100%% $$x"')
    with pytest.raises(BadSetting):
        unit_for(odd, Path(sys.executable), "x\nExecStart=/bin/evil")
    bad = directory.parent / "a\nb"
    odd.rename(bad)
    with pytest.raises(BadSetting, match="control characters"):
        unit_for(bad, Path(sys.executable), "u")
    with pytest.raises(NodeProblem):
        unit_for(directory.parent / "nothing", Path(sys.executable))


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="the program systemd-analyze is missing (package systemd)"
)
def test_systemd_takes_the_unit_and_finds_it_hardened(directory: Path) -> None:
    file = directory.parent / "hivefs-node.service"
    file.write_text(hivefs("node", "unit", str(directory), "--user", "root").stdout)
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    ours = [line for line in verified.stderr.splitlines() if file.name in line]
    assert not ours, ours
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = re.search(r"exposure level for \S+ ([\d.]+)", rated.stdout)
    if found is None:
        pytest.skip(f"systemd-analyze with 'security --offline' (systemd 250) is missing: {rated.stderr.strip()[:200]}")
    assert float(found.group(1)) < 3.0, rated.stdout[-3000:]

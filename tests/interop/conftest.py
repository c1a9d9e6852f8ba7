"""The js-libp2p peer of these tests: installed once into pytest's cache, started for each test that asks for it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hivefs.testing.ports import free_port

HERE = Path(__file__).parent
OLDEST_NODE = (20, 19)
INSTALL_SECONDS = 240.0
ANSWER_SECONDS = 90.0
NO_NETWORK = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH", "EHOSTUNREACH")


def npm_says_no_network(output: str) -> str:
    """The code with which npm says that it reaches no registry; empty when it failed of something else."""
    return next((code for code in NO_NETWORK if f"code {code}" in output), "")


@pytest.fixture(scope="session")
def js_directory(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where peer.js stands beside what it imports. Skips where that cannot be, and says why."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None:
        pytest.skip("the program node is missing (package nodejs): there is no js-libp2p to speak with")
    if npm is None:
        pytest.skip("the program npm is missing (package npm): js-libp2p cannot be installed")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    if tuple(int(part) for part in version.removeprefix("v").split(".")[:2]) < OLDEST_NODE:
        pytest.skip(f"node {'.'.join(map(str, OLDEST_NODE))} or later is missing: the program node is {version}")
    lock = (HERE / "package-lock.json").read_bytes()
    cache = getattr(pytestconfig, "cache", None)  # there is none under -p no:cacheprovider
    root = Path(str(cache.mkdir("js-libp2p"))) if cache else tmp_path_factory.mktemp("js-libp2p")
    place = root / hashlib.sha256(lock + version.encode()).hexdigest()[:16]
    if not (place / "node_modules").is_dir():
        _install(npm, place)
    for file in HERE.glob("*.js"):
        shutil.copy(file, place)
    return place


def _install(npm: str, place: Path) -> None:
    making = place.with_name(f"{place.name}.{os.getpid()}")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    try:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, making)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-timeout=30000", "--fetch-retries=1"]
        try:
            done = subprocess.run(command, cwd=making, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip(f"a registry that npm reaches is missing: npm ci was not done after {INSTALL_SECONDS:g} s")
        if done.returncode:
            code = npm_says_no_network(done.stderr)
            if code:
                pytest.skip(f"a registry that npm reaches is missing ({code}): js-libp2p cannot be installed")
            pytest.fail(f"npm ci: {done.stdout[-1000:]}{done.stderr[-2000:]}")
        with contextlib.suppress(FileExistsError, OSError):  # another run was faster
            making.rename(place)
        assert (place / "node_modules").is_dir()
    finally:
        shutil.rmtree(making, ignore_errors=True)


class Lines:
    """A process whose output is read a line at a time, each within a bound."""

    def __init__(self, words: list[str], log: Path, cwd: Path | None = None) -> None:
        self._log = log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                words, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0
            )
        assert self.process.stdout is not None
        self._out = self.process.stdout
        self._waiting = selectors.DefaultSelector()
        self._waiting.register(self._out, selectors.EVENT_READ)
        self._rest = b""

    def line(self) -> str:
        end = time.monotonic() + ANSWER_SECONDS
        while b"\n" not in self._rest:
            assert self._waiting.select(max(0.0, end - time.monotonic())), f"no answer: {self.errors()}"
            more = os.read(self._out.fileno(), 65536)
            assert more, f"it ended: {self.errors()}"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def errors(self) -> str:
        return self._log.read_text(errors="replace")[-4000:]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)
        self._waiting.close()
        self._out.close()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


class Peer(Lines):
    """peer.js. ``ask`` gives a command and returns what came of it; an error of the other side fails the test."""

    def __init__(self, directory: Path, securities: str, hive: Path, log: Path) -> None:
        super().__init__(["node", "peer.js", securities, str(hive)], log, directory)
        told = json.loads(self.line())
        self.address: str = told["address"]
        self.key: str = told["key"]

    def ask(self, command: str, **options: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"command": command, **options}).encode() + b"\n")
        answer: dict[str, Any] = json.loads(self.line())
        assert "error" not in answer, f"{command}: {answer['error']}\n{self.errors()}"
        return answer

    def stop(self) -> None:
        """Let it say goodbye to its peers and end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(60) == 0, self.errors()


class NodeProcess(Lines):
    """A storage node, run by the hivefs command."""

    def __init__(self, directory: Path) -> None:
        super().__init__([sys.executable, "-m", "hivefs", "node", "run", str(directory)], directory.with_suffix(".log"))
        self.directory = directory
        self.address = self.line().split()[2]


def hivefs(*words: str) -> str:
    """The hivefs command; what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "hivefs", *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The key file of a new hive."""
    path = tmp_path_factory.mktemp("interop") / "hive.key"
    hivefs("hive", "create", str(path))
    return path


@pytest.fixture(scope="session")
def peer(js_directory: Path, hive: Path) -> Iterator[Callable[[str], Peer]]:
    """js-libp2p peers that offer and accept what is named: ``tls``, ``noise``, or both in that order. One that was started
    for an earlier test is used again unless it has ended."""
    started: list[Peer] = []
    running: dict[str, Peer] = {}

    def start(securities: str) -> Peer:
        if securities not in running or running[securities].process.poll() is not None:
            log = hive.with_name(f"js-{len(started)}.log")
            started.append(Peer(js_directory, securities, hive, log))
            running[securities] = started[-1]
        return running[securities]

    yield start
    for one in started:
        one.kill()


@pytest.fixture
def node(hive: Path, tmp_path: Path) -> Iterator[Callable[..., NodeProcess]]:
    """Starts a node of the hive that knows the given addresses."""
    started: list[NodeProcess] = []

    def start(*bootstrap: str) -> NodeProcess:
        directory = tmp_path / f"node-{len(started)}"
        port = free_port()
        words = [word for address in bootstrap for word in ("--bootstrap", address)]
        place = ("--country", "DE", "--operator", "test", "--listen", f"/ip4/127.0.0.1/tcp/{port}", "--capacity", "100M")
        hivefs("node", "init", str(directory), "--hive", str(hive), *place, *words)
        started.append(NodeProcess(directory))
        return started[-1]

    yield start
    for one in started:
        one.kill()

"""Helpers of the transport tests: each test is one bounded trio run that must leave no task behind."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

import hivefs.transport.host
from hivefs.transport import Connection, Host, Limits, Stream, open_host

LOCAL = "/ip4/127.0.0.1/tcp/0"
ROOT = Path(__file__).resolve().parents[2]


class Kit:
    """What a test needs, without imports between test modules."""

    local = LOCAL

    @staticmethod
    def run(test: Callable[[], Awaitable[None]], *, seconds: float = 120.0, clock: trio.abc.Clock | None = None) -> None:
        """Run an async test in at most ``seconds`` and fail when it leaves a task of ours behind. With a MockClock as
        ``clock`` time stands still but for the test's jumps: deadlines come when it wants, however slow the machine is.
        """

        async def bounded() -> None:
            with trio.fail_after(seconds):
                await test()
            await trio.testing.wait_all_tasks_blocked()
            me = trio.lowlevel.current_task()
            left = [child for nursery in me.child_nurseries for child in nursery.child_tasks]
            root = trio.lowlevel.current_root_task()
            assert root is not None
            for nursery in root.child_nurseries:
                left += [t for t in nursery.child_tasks if t is not me and "hivefs" in inspect.getfile(t.coro.cr_code)]
            assert left == []

        trio.run(bounded, clock=clock)

    @staticmethod
    async def freeze(process: trio.Process) -> None:
        """Stop the process and wait until it stands still."""
        process.send_signal(signal.SIGSTOP)
        while Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
            await trio.to_thread.run_sync(time.sleep, 0.01)

    @staticmethod
    async def fall_silent(connection: Connection, clock: trio.testing.MockClock, limits: Limits) -> None:
        """Let as much time pass as a silent peer is borne."""
        for wait in (limits.keepalive_interval, limits.keepalive_timeout) * 10:  # what the kernel still takes is life
            await trio.testing.wait_all_tasks_blocked(0.01)
            if connection.closed:
                return
            clock.jump(wait)

    @staticmethod
    @asynccontextmanager
    async def server(
        handlers: Mapping[str, Callable[[Stream], Awaitable[None]]] | None = None, *, limits: Limits | None = None
    ) -> AsyncIterator[Host]:
        everything = {"/echo/1": Kit.echo, **(handlers or {})}
        async with open_host(os.urandom(32), listen=[LOCAL], handlers=everything, limits=limits or Limits()) as host:
            yield host

    @staticmethod
    @asynccontextmanager
    async def pair(
        handlers: Mapping[str, Callable[[Stream], Awaitable[None]]] | None = None,
        *,
        limits: Limits | None = None,
        client_limits: Limits | None = None,
    ) -> AsyncIterator[tuple[Host, Connection]]:
        """A listening host and another host's connection to it."""
        async with (
            Kit.server(handlers, limits=limits) as host,
            open_host(os.urandom(32), limits=client_limits or Limits()) as client,
        ):
            yield host, await client.dial(host.addresses[0])

    @staticmethod
    async def echo(stream: Stream) -> None:
        while data := await stream.receive_some():
            await stream.send_all(data)

    @staticmethod
    async def receive_all(stream: Stream) -> bytes:
        parts = []
        while data := await stream.receive_some():
            parts.append(data)
        return b"".join(parts)

    @staticmethod
    async def receive_exactly(stream: Stream, size: int) -> bytes:
        parts = []
        while size:
            data = await stream.receive_some(min(size, 262144))
            assert data, "the stream ended early"
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    @staticmethod
    async def ask(connection: Connection, message: bytes) -> bytes:
        """One message there and back on a stream of its own."""
        stream = await connection.open_stream("/echo/1")
        await stream.send_all(message)
        await stream.send_eof()
        answer = await Kit.receive_all(stream)
        await stream.aclose()
        return answer

    @staticmethod
    @asynccontextmanager
    async def subprocess(source: str, *arguments: str) -> AsyncIterator[trio.Process]:
        """Another Python with ``source`` as its program; its output is readable, and it is dead afterwards."""
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", textwrap.dedent(source), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        try:
            yield process
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
                await process.stdout.aclose()
                await process.stdin.aclose()

    @staticmethod
    async def line(process: trio.Process) -> str:
        """The next line that the process prints; it prints one at a time."""
        text = b""
        while not text.endswith(b"\n"):
            more = await process.stdout.receive_some(1)
            assert more, f"the process ended after {text!r}"
            text += more
        return text.decode().strip()


SLOW_AND_ABOVE = {"test_a_paused_reader_is_waited_for"}
"""It waits for seconds for what Yamux and the keepalive do, above both."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "security" in metafunc.fixturenames:
        names = list(hivefs.transport.host.SECURITY)
        if metafunc.definition.name in SLOW_AND_ABOVE:
            names = names[:1]
        metafunc.parametrize("security", names, indirect=True, ids=[name.split("/")[1] for name in names])


@pytest.fixture
def security(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Hosts of this process offer and accept nothing but one of what SECURITY names."""
    monkeypatch.setattr(hivefs.transport.host, "SECURITY", {request.param: hivefs.transport.host.SECURITY[request.param]})
    return str(request.param)


@pytest.fixture
def kit() -> type[Kit]:
    return Kit


@pytest.fixture
def run() -> Callable[..., None]:
    return Kit.run

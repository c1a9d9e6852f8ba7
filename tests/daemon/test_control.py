"""Control sockets between two ends in one process, over real unix sockets."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
import pytest
import trio
import trio.testing

from hivefs.daemon import control
from hivefs.daemon.control import Methods, connect, serve
from hivefs.errors import (
    BadSetting,
    ControlProtocolMismatch,
    EngineUnavailable,
    HivefsError,
    NotEnoughShares,
    NotLoaded,
    NotMounted,
    PosixError,
    StoreDamaged,
)
from hivefs.model.ids import ChunkId
from hivefs.model.inode import ChunkRef
from hivefs.model.staged import DirtySlot, StagedExtent

LIMIT = 60.0


def conversation(
    run: Path,
    methods: Methods,
    talk: Callable[[control.Client], Awaitable[None]],
    name: str = "engine",
    clock: trio.abc.Clock | None = None,
) -> None:
    async def main() -> None:
        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                await nursery.start(serve, run, name, methods)
                async with connect(run, name) as client:
                    await talk(client)
                nursery.cancel_scope.cancel()

    trio.run(main, clock=clock)


def test_plain_and_async_methods(tmp_path: Path) -> None:
    async def later(value: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return [value, "later"]

    async def talk(client: control.Client) -> None:
        assert await client.call("now", {"a": b"\x00", "b": [1, None, True, -5]}) == {
            "a": b"\x00",
            "b": [1, None, True, -5],
        }
        assert await client.call("later", 1 << 63) == [1 << 63, "later"]
        big = os.urandom(3 << 20)
        assert await client.call("now", big) == big

    conversation(tmp_path, Methods({"now": lambda value: value, "later": later}), talk)


def test_calls_run_at_the_same_time_and_answers_find_their_caller(tmp_path: Path) -> None:
    events = {n: trio.Event() for n in range(20)}

    async def wait(value: Any) -> Any:
        await events[value].wait()
        return value

    async def talk(client: control.Client) -> None:
        answers = {}

        async def ask(n: int) -> None:
            answers[n] = await client.call("wait", n)

        async with trio.open_nursery() as nursery:
            for n in range(20):
                nursery.start_soon(ask, n)
            for n in reversed(range(20)):
                assert await client.call("free", n) is None
        assert answers == {n: n for n in range(20)}

    conversation(tmp_path, Methods({"wait": wait, "free": lambda n: events[n].set()}), talk)


def test_errors_keep_their_class_and_data(tmp_path: Path) -> None:
    def fail(value: Any) -> Any:
        raise NotEnoughShares(have=1, needed=3, stripe="ab", reason="nodes are away")

    async def talk(client: control.Client) -> None:
        with pytest.raises(NotEnoughShares) as caught:
            await client.call("fail")
        assert caught.value.data == {"have": 1, "needed": 3, "stripe": "ab", "reason": "nodes are away"}
        with pytest.raises(HivefsError, match="no method 'nothing'"):
            await client.call("nothing")

    conversation(tmp_path, Methods({"fail": fail}), talk)


def test_what_is_no_hivefs_error_is_told_without_ending_the_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(value: Any) -> Any:
        raise {"posix": PosixError(28), "load": NotLoaded(b"key"), "bug": KeyError("secret")}[value]

    async def talk(client: control.Client) -> None:
        with pytest.raises(HivefsError, match="No space left"):
            await client.call("fail", "posix")
        with pytest.raises(HivefsError, match="not on this machine yet"):
            await client.call("fail", "load")
        with pytest.raises(HivefsError, match=r"failed \(KeyError\)") as caught:
            await client.call("fail", "bug")
        assert "secret" not in str(caught.value)
        assert await client.call("fine", 1) == 1

    conversation(tmp_path, Methods({"fail": fail, "fine": lambda value: value}), talk)
    assert sum(1 for r in caplog.records if r.exc_info) == 1


def test_progress_comes_in_order_before_the_result(tmp_path: Path) -> None:
    async def count(value: Any, report: control.Report) -> Any:
        for n in range(value):
            await report(n)
        return "done"

    methods = Methods()
    methods.add_stream("count", count)

    async def talk(client: control.Client) -> None:
        seen: list[Any] = []
        assert await client.call("count", 50, progress=seen.append) == "done"
        assert seen == list(range(50))
        assert await client.call("count", 3) == "done"

    conversation(tmp_path, methods, talk)


def test_a_late_answer_is_withdrawn_at_the_other_end(tmp_path: Path) -> None:
    begun, cancelled = trio.Event(), trio.Event()
    clock = trio.testing.MockClock()

    async def never(value: Any) -> Any:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async def late() -> None:
        await begun.wait()
        clock.jump(0.1)

    async def talk(client: control.Client) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(late)
            with pytest.raises(EngineUnavailable, match=r"within 0\.05 s"):
                await client.call("never", timeout=0.05)
        await cancelled.wait()
        assert await client.call("fine", 2) == 2

    conversation(tmp_path, Methods({"never": never, "fine": lambda value: value}), talk, clock=clock)


def test_a_caller_that_goes_away_ends_its_calls(tmp_path: Path) -> None:
    begun, cancelled = trio.Event(), trio.Event()

    async def never(value: Any) -> Any:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async def main() -> None:
        methods = Methods({"never": never})
        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                await nursery.start(serve, tmp_path, "mount", methods)
                async with connect(tmp_path, "mount") as client, trio.open_nursery() as asking:
                    asking.start_soon(client.call, "never")
                    await begun.wait()
                    asking.cancel_scope.cancel()
                await cancelled.wait()
                await methods.quiet()
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_the_end_of_the_server_reaches_waiting_callers(tmp_path: Path) -> None:
    async def main() -> None:
        begun = trio.Event()

        async def never(value: Any) -> Any:
            begun.set()
            await trio.sleep_forever()

        async def end(scope: trio.CancelScope) -> None:
            await begun.wait()
            scope.cancel()

        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                serving = await nursery.start(_cancellable, tmp_path, Methods({"never": never}))
                async with connect(tmp_path, "engine") as client:
                    nursery.start_soon(end, serving)
                    with pytest.raises(EngineUnavailable, match="lost"):
                        await client.call("never")
                    await client.lost.wait()
                    with pytest.raises(EngineUnavailable):
                        await client.call("never")
        assert not (tmp_path / "engine.sock").exists()

    trio.run(main)


def test_an_error_out_of_a_nursery_of_a_method_is_told_as_it_is(tmp_path: Path) -> None:
    async def grouped(value: Any) -> Any:
        problems: list[Exception] = [StoreDamaged(path=Path("metadata"), reason="it is not there")]
        if value == "more":
            problems.append(ValueError())
        raise ExceptionGroup("of a nursery", [ExceptionGroup("of another", problems)])

    async def main() -> None:
        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                await nursery.start(serve, tmp_path, "engine", Methods({"grouped": grouped}))
                async with connect(tmp_path, "engine") as client:
                    with pytest.raises(StoreDamaged, match="it is not there"):
                        await client.call("grouped")
                    with pytest.raises(HivefsError, match="see the log"):
                        await client.call("grouped", "more")
                nursery.cancel_scope.cancel()

    trio.run(main)


async def _cancellable(run: Path, methods: Methods, *, task_status: Any) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, run, "engine", methods)
            task_status.started(scope)
            await trio.sleep_forever()


def test_an_answer_just_before_the_end_is_not_lost(tmp_path: Path) -> None:
    """The last answer and the end of the connection arrive together, as when a drive was unmounted."""

    async def main() -> None:
        listener = trio.socket.socket(socket.AF_UNIX)
        await listener.bind(str(tmp_path / "mount.sock"))
        listener.listen()

        async def answer_and_go() -> None:
            connection, _ = await listener.accept()
            await connection.recv(65536)
            await connection.send(frame(control.VERSION, 1, control.RESULT, "unmount", "done"))
            connection.close()

        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer_and_go)
                async with connect(tmp_path, "mount") as client:
                    assert await client.call("unmount") == "done"
        listener.close()

    for _ in range(20):
        trio.run(main)
        (tmp_path / "mount.sock").unlink()


@pytest.mark.parametrize(("process", "error"), [("engine", EngineUnavailable), ("mount", NotMounted)])
@pytest.mark.parametrize("left", ["nothing", "a dead socket", "no directory"])
def test_nobody_listens(tmp_path: Path, process: str, error: type[HivefsError], left: str) -> None:
    run = tmp_path / "run"
    if left != "no directory":
        run.mkdir()
    if left == "a dead socket":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(run / f"{process}.sock"))

    async def main() -> None:
        async with connect(run, process):
            pytest.fail("connected")

    with pytest.raises(error):
        trio.run(main)


def test_a_dead_socket_is_taken_over(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "engine.sock"))

    async def talk(client: control.Client) -> None:
        assert await client.call("echo", 1) == 1

    conversation(tmp_path, Methods({"echo": lambda value: value}), talk)


def test_a_directory_with_a_very_long_path(tmp_path: Path) -> None:
    run = tmp_path / ("d" * 200) / ("e" * 200)
    run.mkdir(parents=True)

    async def talk(client: control.Client) -> None:
        assert (run / "engine.sock").stat().st_mode & 0o777 == 0o600
        assert await client.call("echo", 1) == 1

    conversation(run, Methods({"echo": lambda value: value}), talk)


def test_the_error_of_the_body_comes_out_of_connect_as_it_is(tmp_path: Path) -> None:
    async def talk(client: control.Client) -> None:
        raise BadSetting(name="x", reason="y")

    with pytest.RaisesGroup(BadSetting):
        conversation(tmp_path, Methods(), talk)


def _raw(run: Path, data: bytes) -> bytes:
    """Send bytes to engine.sock from another thread's plain socket; what comes back until the end."""
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(LIMIT)
        plain.connect(str(run / "engine.sock"))
        plain.sendall(data)
        plain.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := plain.recv(65536):
            answer += piece
        return answer


def raw_conversation(run: Path, data: bytes) -> bytes:
    answers: list[bytes] = []

    async def talk(client: control.Client) -> None:
        answers.append(await trio.to_thread.run_sync(_raw, run, data))
        assert await client.call("echo", 5) == 5, "the server did not survive"

    conversation(run, Methods({"echo": lambda value: value}), talk)
    return answers[0]


def frame(*items: Any) -> bytes:
    data = cbor2.dumps(list(items))
    return struct.pack(">I", len(data)) + data


def test_a_caller_of_another_version_is_told_so(tmp_path: Path) -> None:
    answer = raw_conversation(tmp_path, frame(control.VERSION + 1, 7, control.CALL, "echo", 1))
    version, call, kind, _, value = cbor2.loads(answer[4:])
    assert (version, call, kind) == (control.VERSION, 7, control.ERROR)
    assert value["error"] == "ControlProtocolMismatch"


def test_a_server_of_another_version_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        listener = trio.socket.socket(socket.AF_UNIX)
        await listener.bind(str(tmp_path / "engine.sock"))
        listener.listen()

        async def foreign() -> None:
            connection, _ = await listener.accept()
            await connection.recv(65536)
            await connection.send(frame(control.VERSION + 1, 1, control.RESULT, "echo", 1))
            await connection.recv(1)

        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(foreign)
                async with connect(tmp_path, "engine") as client:
                    with pytest.raises(ControlProtocolMismatch):
                        await client.call("echo", 1)
                nursery.cancel_scope.cancel()
        listener.close()

    trio.run(main)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        struct.pack(">I", 5) + b"\xff\xff\xff\xff\xff",
        frame("text"),
        frame(1, 2, 3),
        frame("1", 2, 3, "x", None),
        frame(1, 2, 0, 5, None),
        frame(1, 2, 0, "echo", 1)[:-1],
        struct.pack(">I", 20000) + b"\x81" * 20000,
        os.urandom(100),
    ],
)
def test_garbage_ends_only_its_own_connection(tmp_path: Path, data: bytes) -> None:
    assert raw_conversation(tmp_path, data) == b""


def test_another_user_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("root (uid 0) is missing: the test becomes another user")
    asked: list[Any] = []
    program = f"""
import os, socket
os.setgid(65534); os.setuid(65534)
s = socket.socket(socket.AF_UNIX); s.settimeout(60); s.connect({str(tmp_path / "engine.sock")!r})
try:
    s.sendall(bytes.fromhex({frame(control.VERSION, 1, control.CALL, "echo", 1).hex()!r}))
    print(len(s.recv(100)))
except (BrokenPipeError, ConnectionResetError):
    print(0)
"""

    async def talk(client: control.Client) -> None:
        # Even where file modes would let them in.
        for path in (tmp_path / "engine.sock", *list(tmp_path.parents)[:-1], tmp_path):
            if path.stat().st_uid == 0 and str(path).startswith(str(tmp_path.parents[2])):
                path.chmod(0o777)
        command = [sys.executable, "-c", program]
        done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.STDOUT)
        assert done.stdout.strip() == b"0"
        assert await client.call("echo", 2) == 2

    conversation(tmp_path, Methods({"echo": lambda value: asked.append(value) or value}), talk)
    assert asked == [2]


def test_nouns_come_back_the_same() -> None:
    ref = ChunkRef(ChunkId(b"c" * 16), b"k" * 32, 1 << 20, 1)
    extent = StagedExtent(10, 20, 3, 1 << 33, 0, 40)
    full = DirtySlot(1 << 41, 1 << 40, 9, 1 << 20, (extent, extent), ref)
    empty = DirtySlot(2, 0, 1, 5, (), None)
    strict = replace(full, policy="strict")
    for slot in (full, empty, strict):
        value = cbor2.loads(cbor2.dumps(control.dirty_slot_to_value(slot)))
        assert control.dirty_slot_from_value(value) == slot


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        [1, 2, 3, 4, [], None, 7, 8],
        ["1", 0, 1, 5, [], None],
        [1, 0, 1, 5, [[1]], None],
        [1, 0, 1, 5, [], None, 8, 9],
    ],
)
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"expected|wrong type"):
        control.dirty_slot_from_value(value)

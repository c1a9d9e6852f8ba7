"""Control sockets: how the processes of one vault and the command line talk on one machine.

``run/mount.sock`` and ``run/engine.sock`` are unix stream sockets, mode 0600 in a directory of mode 0700; a peer of
another user (SO_PEERCRED; root is allowed) is cut off before a byte is read. Long paths work because a socket is
reached through ``/proc/self/fd/<directory>/<name>``. A frame is a 4-byte big-endian length and that many bytes of CBOR:

    [version, id, kind, name, value]

``id`` is chosen by the caller; calls of one connection run at the same time. Kinds: CALL (method name, argument),
PROGRESS (any number of them), then one RESULT or ERROR (class name of a HivefsError, its data). CANCEL withdraws a call
(its caller ran out of time or was cancelled itself); nothing comes back then. Values are plain CBOR.
"""

from __future__ import annotations

import inspect
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import trio

from hivefs.daemon.control_frames import CALL, CANCEL, ERROR, PROGRESS, RESULT, VERSION, Frames
from hivefs.daemon.control_values import (
    chunk_ref_from_value,
    chunk_ref_to_value,
    dirty_slot_from_value,
    dirty_slot_to_value,
    extent_from_value,
    extent_to_value,
)
from hivefs.daemon.launch import error_from_frame, error_to_frame
from hivefs.errors import (
    ControlProtocolMismatch,
    EngineUnavailable,
    HivefsError,
    NodeProblem,
    NotLoaded,
    NotMounted,
    PosixError,
    first_of,
)

log = logging.getLogger(__name__)

MAX_CALLS: Final = 256
"""Calls of one connection that may run at once; more wait unread."""

Report = Callable[[Any], Awaitable[None]]
Method = Callable[[Any], Any]
Stream = Callable[[Any, Report], Awaitable[Any]]


class Methods:
    """What a process answers to: names and callables that take one value and give one, directly or as a coroutine.

    A ``stream`` is a coroutine function that also gets ``report``, to be awaited with each step of its progress.
    """

    def __init__(self, methods: Mapping[str, Method] | None = None) -> None:
        self._methods: dict[str, Method] = dict(methods or {})
        self._streams: dict[str, Stream] = {}
        self._held: Callable[[], Awaitable[object]] | None = None
        self._at_once: frozenset[str] = frozenset()
        self._running = 0
        self._quiet = trio.Event()
        self._quiet.set()

    def begun(self) -> None:
        """A call came in."""
        if not self._running:
            self._quiet = trio.Event()
        self._running += 1

    def ended(self) -> None:
        """Its answer is out."""
        self._running -= 1
        if not self._running:
            self._quiet.set()

    async def quiet(self) -> None:
        """Return when no call is being answered."""
        await self._quiet.wait()

    def add(self, name: str, method: Method) -> None:
        """Answer to ``name``."""
        self._methods[name] = method

    def add_stream(self, name: str, stream: Stream) -> None:
        """Answer to ``name``, with progress."""
        self._streams[name] = stream

    def hold(self, until: Callable[[], Awaitable[object]], but: Iterable[str]) -> None:
        """Each call waits for ``until()`` first, but for these."""
        self._held, self._at_once = until, frozenset(but)

    async def answer(self, name: str, value: Any, report: Report) -> Any:
        """Run one call. HivefsError for a name that is not there."""
        if self._held is not None and name not in self._at_once:
            await self._held()
        stream = self._streams.get(name)
        if stream is not None:
            return await stream(value, report)
        method = self._methods.get(name)
        if method is None:
            raise HivefsError(detail=f"there is no method '{name}' here")
        result = method(value)
        return await result if inspect.isawaitable(result) else result


@asynccontextmanager
async def _directory(run: Path) -> AsyncIterator[str]:
    fd = os.open(run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


# ---- the side that answers ------------------------------------------------------------------------------------------


async def serve(
    run: Path, name: str, methods: Methods, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer on ``run/NAME.sock`` until cancelled. Takes over a socket that a dead process left; the caller makes sure
    (by a lock of its own) that no living one has it.
    """
    file = f"{name}.sock"
    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listener:
        async with _directory(run) as directory:
            with suppress(FileNotFoundError):
                os.unlink(f"{directory}/{file}")
            before = os.umask(0o177)
            try:
                await listener.bind(f"{directory}/{file}")
            finally:
                os.umask(before)
        listener.listen(64)
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    connection, _ = await listener.accept()
                    nursery.start_soon(_converse, trio.SocketStream(connection), methods, name)
        finally:
            with suppress(OSError):
                (run / file).unlink()


def _peer_uid(stream: trio.SocketStream) -> int:
    data = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", data)[1]) if isinstance(data, bytes) else -1


async def _converse(stream: trio.SocketStream, methods: Methods, process: str) -> None:
    """One connection to its end. Nothing that a caller does ends the server."""
    frames = Frames(stream)
    try:
        if _peer_uid(stream) not in (os.geteuid(), 0):
            log.warning("a control connection of another user was refused")
            return
        async with trio.open_nursery() as nursery:
            running: dict[int, trio.CancelScope] = {}
            room = trio.CapacityLimiter(MAX_CALLS)
            while (frame := await frames.receive()) is not None:
                version, call, kind, name, value = frame
                if version != VERSION:
                    error = ControlProtocolMismatch(process=process, theirs=VERSION, ours=version)
                    await frames.send(call, ERROR, name, error_to_frame(error))
                elif kind == CANCEL and call in running:
                    running[call].cancel()
                elif kind == CALL and call not in running:
                    await room.acquire_on_behalf_of(call)
                    running[call] = trio.CancelScope()
                    nursery.start_soon(_one_call, frames, methods, (call, name, value), running, room)
            nursery.cancel_scope.cancel()
    except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the caller is gone
    except* ValueError as problem:
        log.warning("a control connection was closed: %s", problem.exceptions[0])
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await frames.aclose()


async def _one_call(
    frames: Frames,
    methods: Methods,
    request: tuple[int, str, Any],
    running: dict[int, trio.CancelScope],
    room: trio.CapacityLimiter,
) -> None:
    call, name, value = request

    async def report(step: Any) -> None:
        await frames.send(call, PROGRESS, name, step)

    methods.begun()
    try:
        with running[call]:
            try:
                result = await methods.answer(name, value, report)
                await frames.send(call, RESULT, name, result)
            except HivefsError as error:
                await frames.send(call, ERROR, name, error_to_frame(error))
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                raise
            except PosixError as error:
                said = HivefsError(detail=os.strerror(error.errno))
                await frames.send(call, ERROR, name, error_to_frame(said))
            except NotLoaded:
                said = HivefsError(detail="the metadata this needs is not on this machine yet")
                await frames.send(call, ERROR, name, error_to_frame(said))
            except Exception as error:  # a mistake in one method must not end the drive
                ours = first_of(error, HivefsError)
                if not isinstance(ours, HivefsError):
                    log.error("control call '%s' failed unexpectedly", name, exc_info=error)
                    ours = HivefsError(detail=f"'{name}' failed ({type(error).__name__}); see the log")
                await frames.send(call, ERROR, name, error_to_frame(ours))
    finally:
        methods.ended()
        del running[call]
        room.release_on_behalf_of(call)


# ---- the side that asks ---------------------------------------------------------------------------------------------


class _Pending:
    def __init__(self, progress: Callable[[Any], None] | None) -> None:
        self.progress = progress
        self.done = trio.Event()
        self.result: Any = None
        self.error: HivefsError | None = None


class Client:
    """A connection to one process; made by connect(). ``call`` may be used by many tasks at once."""

    def __init__(self, frames: Frames, run: Path, process: str) -> None:
        self._frames = frames
        self._run = run
        self._process = process
        self._calls: dict[int, _Pending] = {}
        self._next = 0
        self.lost = trio.Event()
        """Set when the connection has ended."""

    async def call(
        self,
        name: str,
        value: Any = None,
        *,
        timeout: float = 30.0,
        progress: Callable[[Any], None] | None = None,
    ) -> Any:
        """The method's result. ``timeout`` in seconds; with ``progress`` (called with each step) it counts from the
        last step. Raises what the method raised, EngineUnavailable or NotMounted when the process is gone (or late).
        """
        if self.lost.is_set():
            raise unreachable(self._run, self._process, "the connection was lost")
        self._next += 1
        number, pending = self._next, _Pending(progress)
        with trio.CancelScope(deadline=trio.current_time() + timeout) as scope:
            if progress is not None:
                pending.progress = _prolonging(progress, scope, timeout)
            self._calls[number] = pending
            try:
                await self._frames.send(number, CALL, name, value)
                await pending.done.wait()
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                raise unreachable(self._run, self._process, "the connection was lost") from None
            finally:
                del self._calls[number]
                if not pending.done.is_set():
                    await self._withdraw(number, name)
        if not pending.done.is_set():
            raise unreachable(self._run, self._process, f"it did not answer '{name}' within {timeout:g} s", late=True)
        if pending.error is not None:
            raise pending.error
        return pending.result

    async def _withdraw(self, number: int, name: str) -> None:
        gone = suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError)
        with gone, trio.CancelScope(deadline=trio.current_time() + 0.5, shield=True):
            await self._frames.send(number, CANCEL, name, None)

    async def receive(self) -> None:
        """Hand answers to their callers until the connection ends (connect() runs this)."""
        try:
            while (frame := await self._frames.receive()) is not None:
                version, number, kind, _, value = frame
                pending = self._calls.get(number)
                if pending is None or pending.done.is_set():
                    continue
                if version != VERSION:
                    pending.error = ControlProtocolMismatch(process=self._process, theirs=version, ours=VERSION)
                elif kind == PROGRESS:
                    if pending.progress is not None:
                        pending.progress(value)
                    continue
                elif kind == ERROR:
                    pending.error = error_from_frame(value if isinstance(value, dict) else {})
                else:
                    pending.result = value
                pending.done.set()
        except (OSError, ValueError, EOFError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self.lost.set()
        for pending in self._calls.values():
            if not pending.done.is_set():  # else its answer came just before the end
                pending.error = unreachable(self._run, self._process, "the connection was lost")
                pending.done.set()


def _prolonging(progress: Callable[[Any], None], scope: trio.CancelScope, timeout: float) -> Callable[[Any], None]:
    def step(value: Any) -> None:
        scope.deadline = trio.current_time() + timeout
        progress(value)

    return step


def unreachable(run: Path, process: str, reason: str, *, late: bool = False) -> HivefsError:
    """The error for a process that is not there, or (``late``) does not answer in time."""
    if process == "node":
        return NodeProblem(path=run, reason=f"it does not answer ({reason})")
    if process == "engine":
        return EngineUnavailable(reason=reason, log=run / "engine.log")
    if late:
        return HivefsError(detail=f"the {process} process: {reason}; see {run / f'{process}.log'}")
    return NotMounted(home=run.parent)


@asynccontextmanager
async def connect(run: Path, process: str, *, timeout: float = 5.0) -> AsyncIterator[Client]:
    """A connection to "mount" or "engine". Raises NotMounted or EngineUnavailable when nobody listens."""
    connection = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        async with _directory(run) as directory:
            with trio.move_on_after(timeout) as waiting:
                await connection.connect(f"{directory}/{process}.sock")
        if waiting.cancelled_caught:
            raise unreachable(run, process, "it does not take connections", late=True)
    except OSError as error:
        connection.close()
        raise unreachable(run, process, error.strerror or "nobody listens") from None
    except BaseException:  # cancellation too: the socket is nobody's yet; raised again
        connection.close()
        raise
    client = Client(Frames(trio.SocketStream(connection)), run, process)
    problem: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.receive)
            try:
                yield client
            except Exception as error:  # noqa: BLE001 - raised again below, without the nursery's group around it
                problem = error
            nursery.cancel_scope.cancel()
    finally:
        connection.close()
    if problem is not None:
        raise problem


__all__ = [
    "CALL",
    "ERROR",
    "RESULT",
    "VERSION",
    "Client",
    "Methods",
    "Report",
    "chunk_ref_from_value",
    "chunk_ref_to_value",
    "connect",
    "dirty_slot_from_value",
    "dirty_slot_to_value",
    "extent_from_value",
    "extent_to_value",
    "serve",
    "unreachable",
]

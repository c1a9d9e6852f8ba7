"""Starting a process of HiveFS in the background, and being told whether it is ready. Used by the command line for the
mount and the nodes, and by the mount for the engine.

The starter gives the child one frame on standard input (secrets never stand in arguments or the environment) and gets
one frame back on an inherited pipe: ready, or the error in the catalogue's terms. A frame is a 4-byte big-endian length
and that many bytes of CBOR, a map. When the pipe closes without a frame the child died. The child leads a session of
its own, works in ``/``, and writes standard output and error to its log file.

    starter                                        child
    start(module, frame, log, ...)      ------->   frame, report = take_frame()
      ... waits, at most ``timeout`` s             ... opens what it needs
    Started(pid, info)                  <-------   report.ready(info)      or  report.failed(error)
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cbor2

import hivefs
from hivefs import errors
from hivefs.errors import HivefsError

MAX_FRAME = 1 << 20
_PR_SET_DUMPABLE = 4
PIPE_BYTES = 60_000
"""What a pipe surely takes without anyone reading, so that writing the first frame never waits."""
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Started:
    """A child that said it is ready; ``info`` is what it said. Poll ``process`` now and then so that it is reaped."""

    pid: int
    info: Mapping[str, Any]
    process: subprocess.Popen[bytes] = field(repr=False)


class Starting:
    """A child that was started and has not said anything yet."""

    def __init__(
        self, process: subprocess.Popen[bytes], pipe: int, log: Path, failure: Callable[[str], HivefsError]
    ) -> None:
        self.process = process
        self._pipe = pipe
        self._log = log
        self._failure = failure

    def wait(self, deadline: float) -> Started:
        """Wait until time.monotonic() is ``deadline``; raises the child's HivefsError, or the starter's ``failure``
        with a reason when it died or stayed silent (it is killed then).
        """
        try:
            frame = self._receive(deadline)
        except TimeoutError:
            self.kill()
            raise self._failure("it did not become ready in time") from None
        except (EOFError, ValueError):
            code = self._code()
            raise self._failure(f"it ended with {_ending(code)}") from None
        except KeyboardInterrupt:
            self.process.terminate()
            raise
        finally:
            os.close(self._pipe)
        if "error" in frame:
            self._code()
            raise error_from_frame(frame)
        return Started(self.process.pid, frame.get("info", {}), self.process)

    def _receive(self, deadline: float) -> dict[str, Any]:
        head = self._exactly(_LENGTH.size, deadline)
        (length,) = _LENGTH.unpack(head)
        if length > MAX_FRAME:
            raise ValueError("frame too long")
        return _decode(self._exactly(length, deadline))

    def _exactly(self, length: int, deadline: float) -> bytes:
        data = bytearray()
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        while len(data) < length:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise TimeoutError
            piece = os.read(self._pipe, length - len(data))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)

    def _code(self) -> int | None:
        try:
            return self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def kill(self) -> None:
        """End the child at once."""
        self.process.kill()
        self.process.wait()


def begin(
    arguments: Sequence[str],
    frame: Mapping[str, Any],
    log: Path | None,
    failure: Callable[[str], HivefsError],
    *,
    detach: bool = True,
) -> Starting:
    """Start ``python ARGUMENTS`` with ``frame`` on its standard input; ``ready_fd`` is put into the frame.

    ``log`` is opened for appending (0600); None leaves standard output and error as they are. ``failure`` makes the
    error for a child that did not come up, from a reason.
    """
    if len(_encode(frame)) > PIPE_BYTES:
        raise ValueError("the frame does not fit into a pipe")
    receive, send = os.pipe()
    stdin, feed = os.pipe()
    first = _encode({**frame, "ready_fd": send})
    output: int | None = None
    try:
        os.write(feed, first)  # before it runs: it has all that it needs also when we are killed at any moment from now on
        try:
            if log is not None:
                output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            process = subprocess.Popen(
                [sys.executable, "-P", *arguments],
                stdin=stdin,
                stdout=output,
                stderr=output,
                cwd="/",
                pass_fds=(send,),
                start_new_session=detach,
                umask=0o077,
                env=environment(),
            )
        except OSError as error:
            raise failure(error.strerror or str(error)) from error
        finally:
            os.close(send)
            os.close(stdin)
            if output is not None:
                os.close(output)
    except BaseException:  # Ctrl-C too: the descriptor is nobody's yet; raised again
        os.close(receive)
        raise
    finally:
        os.close(feed)
    return Starting(process, receive, log or Path("/dev/stderr"), failure)


def start(
    module: str,
    frame: Mapping[str, Any],
    log: Path | None,
    failure: Callable[[str], HivefsError],
    *,
    timeout: float = 60.0,
    detach: bool = True,
) -> Started:
    """Start ``python -m MODULE`` and wait at most ``timeout`` seconds until it is ready."""
    return begin(["-m", module], frame, log, failure, detach=detach).wait(time.monotonic() + timeout)


# ---- the child's side -----------------------------------------------------------------------------------------------


class Report:
    """The child's one answer to its starter; later calls do nothing. Without a pipe nobody is told."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def ready(self, info: Mapping[str, Any] | None = None) -> None:
        """Say that the service works; ``info`` must be CBOR-able."""
        self._send({"info": dict(info or {})})

    def failed(self, error: HivefsError) -> None:
        """Say why it will never be ready."""
        self._send(error_to_frame(error))

    def _send(self, frame: Mapping[str, Any]) -> None:
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        try:
            with contextlib.suppress(BrokenPipeError):  # the starter gave up waiting; the service goes on
                os.write(descriptor, _encode(frame))
        finally:
            os.close(descriptor)


def take_frame() -> tuple[dict[str, Any], Report]:
    """What the starter sent, and the way back. Standard input is /dev/null afterwards. Raises ValueError or EOFError
    when there is no frame (someone started the module by hand).
    """
    data = b""
    while len(data) < _LENGTH.size or len(data) < _LENGTH.size + _LENGTH.unpack_from(data)[0]:
        if len(data) > MAX_FRAME:
            raise ValueError("frame too long")
        piece = os.read(0, 65536)
        if not piece:
            raise EOFError("no frame on standard input")
        data += piece
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    frame = _decode(data[_LENGTH.size :])
    descriptor = frame.pop("ready_fd", None)
    if descriptor is not None:
        os.set_inheritable(descriptor, False)
    return frame, Report(descriptor)


def harden() -> None:
    """No core dumps, no ptrace, no /proc/PID/mem for other processes of this user: they would show keys."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")


# ---- errors across processes ----------------------------------------------------------------------------------------


def error_to_frame(error: HivefsError) -> dict[str, Any]:
    """The name of its class and its data as text or numbers."""
    data = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in error.data.items()}
    return {"error": type(error).__name__, "data": data}


def error_from_frame(frame: Mapping[str, Any]) -> HivefsError:
    """The error of the catalogue that the frame names."""
    found = getattr(errors, str(frame.get("error")), HivefsError)
    data = frame.get("data", {})
    if not (isinstance(found, type) and issubclass(found, HivefsError)):
        found, data = HivefsError, {"detail": f"unknown error {frame.get('error')}"}
    return found(**data)


def problem_of(group: BaseException) -> HivefsError | None:
    """The one HivefsError inside an exception (group), if that is what it is about."""
    if isinstance(group, HivefsError):
        return group
    if isinstance(group, BaseExceptionGroup):
        for inner in group.exceptions:
            found = problem_of(inner)
            if found is not None:
                return found
    return None


# ---- processes ------------------------------------------------------------------------------------------------------


def start_time(pid: int) -> int | None:
    """When the process was started (clock ticks since boot), None when there is none: pid and this name one process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text[text.rfind(")") + 2 :].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def stop_process(pid: int, started: int, *, grace: float = 10.0) -> bool:
    """SIGTERM, then SIGKILL after ``grace`` seconds. False when that process is not there (any more). A pid that was
    given to another process meanwhile is left alone.
    """
    if start_time(pid) != started:
        return False
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if start_time(pid) != started:
            return False
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        for sign, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
            signal.pidfd_send_signal(handle, sign)
            if poll.poll(seconds * 1000):
                return True
    except ProcessLookupError:
        return True
    finally:
        os.close(handle)
    return False


def wait_gone(pid: int, started: int, seconds: float) -> bool:
    """Wait at most that long until a process of ours has ended; whether it has."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return True
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        return start_time(pid) != started or bool(poll.poll(seconds * 1000))
    finally:
        os.close(handle)


# ---- inside ---------------------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """Ours, with the place of this very package first, so that the child runs the same code from any directory."""
    root = str(Path(hivefs.__file__).resolve().parent.parent)
    others = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != root]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, *others])}


def _ending(code: int | None) -> str:
    if code is None:
        return "no answer"
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _encode(frame: Mapping[str, Any]) -> bytes:
    data = cbor2.dumps(dict(frame))
    if len(data) > MAX_FRAME:
        raise ValueError("frame too long")
    return _LENGTH.pack(len(data)) + data


def _decode(data: bytes) -> dict[str, Any]:
    try:
        value = cbor2.loads(data)
    except cbor2.CBORDecodeError:
        raise ValueError("the frame is not CBOR") from None
    if not isinstance(value, dict):
        raise ValueError("the frame is not a map")
    return value

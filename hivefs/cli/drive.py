"""Starting and stopping the drive from the command line; what ``mount``, ``umount``, ``up`` and ``recover`` share."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio
from click import format_filename

from hivefs.daemon import control, launch
from hivefs.daemon.home import Home, Secrets
from hivefs.errors import EngineUnavailable, HivefsError, MountFailed, NotMounted, VaultInUse
from hivefs.fuse.mounting import TYPE, fusermount, heal, mounts_at

MOUNT_SECONDS = 90.0
ENGINE_SECONDS = 60.0
UNMOUNT_SECONDS = 120.0
ANSWER_SECONDS = 10.0


async def ask(home: Home, which: str, name: str, value: Any = None, timeout: float = ANSWER_SECONDS) -> Any:
    """One control call to the "mount" or the "engine" process. Raises NotMounted or EngineUnavailable."""
    async with control.connect(home.run, which) as client:
        return await client.call(name, value, timeout=timeout)


async def ask_or_none(home: Home, which: str, name: str, value: Any = None) -> Any:
    """The same; None when that process does not run or does not answer."""
    try:
        return await ask(home, which, name, value)
    except (NotMounted, EngineUnavailable):
        return None


def mount_drive(
    home: Home, secrets: Secrets, mountpoint: Path, options: dict[str, Any], *, foreground: bool
) -> launch.Started:
    """Start the mount process and wait until the drive is ready. Raises what the process says, or MountFailed."""
    frame = {**_secret_frame(home, secrets), "mountpoint": str(mountpoint.absolute()), **options}

    def failure(reason: str) -> HivefsError:
        return MountFailed(reason=reason, log=home.mount_log)

    log = None if foreground else home.mount_log
    return launch.start("hivefs.daemon.mount", frame, log, failure, timeout=MOUNT_SECONDS, detach=not foreground)


def _secret_frame(home: Home, secrets: Secrets) -> dict[str, Any]:
    return {"home": str(home.path), "secrets": secrets.to_bytes()}


@contextmanager
def signals_for(started: launch.Started) -> Iterator[None]:
    """Meanwhile Ctrl-C, SIGTERM and SIGHUP are for a foreground mount, which unmounts on them."""

    def pass_on(number: int, frame: object) -> None:
        started.process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def mounted_at(home: Home, only: Path | None = None) -> dict[str, Any]:
    """What the mount process says of itself. Raises NotMounted, also when the drive is not at ``only``, if that is said."""
    status: dict[str, Any] = trio.run(ask, home, "mount", "status")
    mountpoint = str(status["mountpoint"])
    if only is not None and mountpoint not in (str(place_of(only)), os.path.realpath(only)):
        raise NotMounted(home=home.path, where=f" at {format_filename(only)} (it is mounted at {mountpoint})")
    return status


def place_of(mountpoint: Path) -> Path:
    """A mount point as mounts are listed: nothing is followed there, where a dead drive may be."""
    path = Path(os.path.abspath(mountpoint))  # Path.absolute() keeps ".."; resolve() asks the drive
    return Path(os.path.realpath(path.parent)) / path.name


def unmount_drive(home: Home, only: Path | None = None) -> str:
    """Unmount and wait until the mount process let go of the vault; returns the mount point.

    Raises NotMounted (also when it is not at ``only``, if that is said), MountBusy.
    """
    status = mounted_at(home, only)
    mountpoint = str(status["mountpoint"])
    pid = int(status["pid"])
    started = launch.start_time(pid)
    try:
        trio.run(ask, home, "mount", "unmount", None, UNMOUNT_SECONDS)
    except NotMounted:
        if started is None or not launch.wait_gone(pid, started, ANSWER_SECONDS) or mounts_at(Path(mountpoint)):
            raise  # otherwise it went before its answer came through: that is what was asked for
    if started is not None and not launch.wait_gone(pid, started, UNMOUNT_SECONDS):
        raise MountFailed(reason=f"it was unmounted but process {pid} does not end", log=home.mount_log)
    return mountpoint


def take_stale(mountpoint: Path) -> bool:
    """Take a dead drive away from a mount point; False when there is none there."""
    kinds = mounts_at(mountpoint)
    if not kinds or kinds[-1] != TYPE:
        return False
    try:
        os.statvfs(mountpoint)  # unlike stat() this is never answered from the kernel's cache
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
            return False
    else:
        return False  # it lives: another vault's drive
    heal(mountpoint, fusermount())
    return True


def start_engine(home: Home, secrets: Secrets) -> launch.Started:
    """An engine without a mount. Raises what it says, or EngineUnavailable."""
    frame = _secret_frame(home, secrets)

    def failure(reason: str) -> HivefsError:
        return EngineUnavailable(reason=reason, log=home.engine_log)

    return launch.start("hivefs.daemon.engine", frame, home.engine_log, failure, timeout=ENGINE_SECONDS)


def need_engine(home: Home, unlock: Callable[[], Secrets]) -> None:
    """Return when an engine answers. A mount starts its own, and so may another command this moment: those are waited for.
    Else one is started, with what ``unlock`` gives. Raises what that or the engine says, or EngineUnavailable.
    """
    if trio.run(ask_or_none, home, "engine", "status") is not None:
        return
    if trio.run(ask_or_none, home, "mount", "status") is None:
        try:
            start_engine(home, unlock())
        except VaultInUse:
            pass  # somebody else has begun to start one
        else:
            return
    trio.run(_engine_comes, home)


async def _engine_comes(home: Home) -> None:
    with trio.move_on_after(ENGINE_SECONDS):
        while await ask_or_none(home, "engine", "status") is None:  # noqa: ASYNC110 - another process, which says nothing
            await trio.sleep(0.1)
        return
    raise EngineUnavailable(reason=f"it was not there within {ENGINE_SECONDS:g} s", log=home.engine_log)


async def stop_engine(home: Home) -> bool:
    """Ask an engine that has no mount to end, and wait for that; False when there is none or a mount needs it.

    What it has not placed yet stays on this machine and is placed the next time.
    """
    if await ask_or_none(home, "mount", "status") is not None:
        return False
    status = await ask_or_none(home, "engine", "status")
    if status is None:
        return False
    pid = int(status["pid"])
    started = launch.start_time(pid)
    await ask_or_none(home, "engine", "shutdown")
    if started is not None and not await trio.to_thread.run_sync(launch.wait_gone, pid, started, ENGINE_SECONDS):
        raise EngineUnavailable(reason=f"process {pid} does not end", log=home.engine_log)
    return True

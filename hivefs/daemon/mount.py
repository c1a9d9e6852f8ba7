"""The mount process: ``python -m hivefs.daemon.mount``, started by the command line (daemon/launch.py).

The frame on standard input: ``home``, ``mountpoint`` (paths), ``secrets`` (daemon/home.py, bytes), and optionally
``allow_other``, ``read_only`` (false) and ``engine`` (true). The answer is the pid, or the error. Secrets never stand in
arguments or the environment; before they are read, core dumps and ptrace by other processes of the user are switched
off. Exit status 0 after an unmount, however it came about; SIGTERM and SIGINT unmount (files that are in use lose their
drive after SHUTDOWN_SECONDS).

What this imports must not import libp2p: it would cost every mount a second and tens of megabytes.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import trio

from hivefs.daemon import launch, priority
from hivefs.daemon.drive import Drive, DriveOptions
from hivefs.daemon.home import Home, Secrets
from hivefs.daemon.memory import collect_seldom, keep_buffers, settled
from hivefs.errors import HivefsError, MountBusy, MountFailed
from hivefs.fuse.mounting import MountOptions

log = logging.getLogger(__name__)

SHUTDOWN_SECONDS = 10.0
KEPT_BYTES = 64 << 20
"""Free memory that malloc keeps for the next requests."""


def options_of(frame: dict[str, Any]) -> DriveOptions:
    """The user's choices in the frame."""
    mount = MountOptions(allow_other=bool(frame.get("allow_other")), read_only=bool(frame.get("read_only")))
    return DriveOptions(mount, engine=bool(frame.get("engine", True)))


async def _unmount_on_signal(drive: Drive, signals: AsyncIterator[int]) -> None:
    async for _ in signals:
        log.info("asked to stop")
        try:
            await drive.unmount()
        except MountBusy:
            with trio.move_on_after(SHUTDOWN_SECONDS):
                await drive.unmount(lazy=True)
                await trio.sleep_forever()
            drive.abort()
        except HivefsError as error:
            log.error("%s", error)
            drive.abort()


async def _serve(frame: dict[str, Any], report: launch.Report) -> None:
    home = Home.load(Path(frame["home"]))
    secrets = Secrets.from_bytes(frame["secrets"])
    drive = await Drive.open(home, secrets.keys(), options_of(frame), Path(frame["mountpoint"]))

    def ready() -> None:
        settled()
        collect_seldom()
        report.ready({"pid": os.getpid(), "mountpoint": str(drive.mountpoint)})

    # The receiver is the outermost: a second signal while the drive closes must not kill it half-way.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_unmount_on_signal, drive, signals)
                await drive.run(frame["secrets"], ready)
                nursery.cancel_scope.cancel()
        finally:
            drive.close()


def main() -> int:
    """See the head of the file; the exit status."""
    launch.harden()
    priority.short_turns()
    keep_buffers(KEPT_BYTES)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    frame, report = launch.take_frame()
    try:
        trio.run(_serve, frame, report)
    except (HivefsError, BaseExceptionGroup) as problem:
        known = launch.problem_of(problem)
        if known is None:
            report.failed(MountFailed(reason=type(problem).__name__, log=f"{frame.get('home')}/run/mount.log"))
            raise
        log.error("%s", known)
        report.failed(known)
        return known.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

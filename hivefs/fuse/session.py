"""One mounted drive from mount to unmount: the only place that runs pyfuse3."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pyfuse3
import trio

from hivefs.errors import MountpointProblem
from hivefs.fuse import mounting
from hivefs.fuse.handshake import POSIX_ACL, Handshake
from hivefs.fuse.loop import ReceiveLoop
from hivefs.fuse.mounting import MountOptions

log = logging.getLogger(__name__)

MAX_WORKERS = 200
"""Requests that may wait for something at once (chunks that are fetched, an fsync)."""
KEPT_WORKERS = 3
_UNMOUNT_SECONDS = 60.0


def _replace_trio(module: Any) -> None:
    """pyfuse3 waits through the name ``trio`` of its module (as pyfuse3.asyncio shows)."""
    vars(pyfuse3)["trio"] = module


class Session:
    """A drive at ``mountpoint``. pyfuse3 has room for one per process.

    ``open`` mounts (the kernel's requests wait from then on), ``run`` answers until it is unmounted, by ``unmount`` or
    by anybody else. After ``run`` nothing of the mount is left.
    """

    def __init__(self, operations: pyfuse3.Operations, mountpoint: Path, options: MountOptions) -> None:
        self.mountpoint = mountpoint
        self._operations = operations
        self._options = options
        self._handshake: Handshake | None = None
        self._loop: ReceiveLoop | None = None

    def load(self) -> float:
        """The share of the time that requests took lately, 0 to 1; 0 while nothing is mounted."""
        return 0.0 if self._loop is None else self._loop.load()

    def open(self) -> None:
        """Check, heal, mount. Raises MountpointProblem or NoFuse."""
        self.mountpoint = mounting.prepare(self.mountpoint)
        handshake = Handshake(mounting.mount(self.mountpoint, self._options))
        try:
            offer = handshake.begin()
            if not offer.flags & POSIX_ACL:
                self._operations.enable_acl = False
            pyfuse3.init(self._operations, handshake.session_path, set())
        except BaseException:  # Ctrl-C too: else the mount would stay, with nobody to answer; raised again
            handshake.close()
            raise
        self._handshake = handshake
        self._loop = ReceiveLoop(handshake.finish)
        _replace_trio(self._loop)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer the kernel; returns when the drive has been unmounted. ``started`` when the first answer is out."""
        handshake = self._handshake
        if handshake is None:
            raise RuntimeError("open() first")
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._announce, task_status)
                await pyfuse3.main(min_tasks=KEPT_WORKERS, max_tasks=MAX_WORKERS)
                nursery.cancel_scope.cancel()
        finally:
            pyfuse3.close(unmount=False)
            handshake.close()
            _replace_trio(trio)
            self._handshake = None

    async def _announce(self, task_status: trio.TaskStatus[None]) -> None:
        # The first stat is the first request: it is answered through the loop itself, so in a thread.
        try:
            await trio.to_thread.run_sync(self.mountpoint.stat, abandon_on_cancel=True)
        except OSError as error:  # after a recovery the root itself may have to come from the hive
            reason = f"its top directory cannot be read now ({error.strerror}); try again when the hive can be reached"
            raise MountpointProblem(mountpoint=self.mountpoint, reason=reason) from error
        before = await trio.to_thread.run_sync(mounting.raise_read_ahead, self.mountpoint, abandon_on_cancel=True)
        log.info("mounted; read-ahead of the kernel was %s KiB", before)
        task_status.started()

    async def unmount(self, *, lazy: bool = False) -> None:
        """Take the drive away; ``run`` returns then. Raises MountBusy while programs use it (unless ``lazy``)."""
        command = mounting.unmount_command(self.mountpoint, lazy=lazy)
        with trio.move_on_after(_UNMOUNT_SECONDS) as scope:
            done = await trio.run_process(command, capture_stderr=True, capture_stdout=True, check=False)
            if done.returncode:
                raise mounting.unmount_problem(self.mountpoint, done.stderr.decode("utf-8", "replace").strip())
        if scope.cancelled_caught:
            raise mounting.unmount_problem(self.mountpoint, f"it took longer than {_UNMOUNT_SECONDS:.0f} s")

    def abort(self) -> None:
        """Stop answering at once; ``run`` returns. What is mounted then belongs to nobody and is dead."""
        if self._handshake is not None:
            pyfuse3.terminate()

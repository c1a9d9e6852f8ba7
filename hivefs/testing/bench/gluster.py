"""GlusterFS as a peer: six bricks on the same disk, dispersed 4 + 2 as a hive's default code is, not encrypted.

Its daemon is one of our own, with its files below the target's root; a GlusterFS that the machine runs already is in the
way of the port, and left alone. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hivefs.daemon.launch import start_time, stop_process
from hivefs.testing.bench.peers import SETUP_SECONDS, Peer
from hivefs.testing.bench.processes import end
from hivefs.testing.bench.targets import CannotStart

_VOLUME = "bench"
_BRICKS = 6
_SETTINGS = """volume management
    type mgmt/glusterd
    option working-directory {root}/daemon
    option run-directory {root}/run
    option glusterd-sockfile {root}/socket
    option transport-type socket
    option transport.socket.listen-port 24007
    option transport.socket.bind-address 127.0.0.1
    option max-port 60999
end-volume
"""


class Gluster(Peer):
    """See the head of the file."""

    program = "glusterd"
    daemon: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """The daemon, a volume, and its bricks."""
        if os.geteuid() != 0:
            raise CannotStart(f"{self.name} needs root")
        for name in ("daemon", "run"):
            self._folder(name)
        settings = self.root / "glusterd.vol"
        settings.write_text(_SETTINGS.format(root=self.root))
        words = ["glusterd", "-N", "-f", str(settings), "-p", str(self.root / "pid"), "-l", str(self.root / "log")]
        self.daemon = subprocess.Popen(words, stdin=subprocess.DEVNULL, cwd=self.root, start_new_session=True)
        deadline = time.monotonic() + SETUP_SECONDS
        while not (self.root / "socket").exists():
            if self.daemon.poll() is not None or time.monotonic() > deadline:
                raise CannotStart(f"{self.name}: its daemon does not start (is port 24007 taken?)")
            time.sleep(0.1)
        bricks = [f"{socket.gethostname()}:{self._folder(f'brick{i}')}" for i in range(_BRICKS)]
        self._gluster("volume", "create", _VOLUME, "disperse", str(_BRICKS), "redundancy", "2", *bricks, "force")
        self._gluster("volume", "start", _VOLUME)

    def _gluster(self, *words: str) -> str:
        options = ["--mode=script", f"--glusterd-sock={self.root}/socket", f"--log-file={self.root}/cli.log"]
        return self._setup("gluster", *options, *words)

    def command(self) -> Sequence[str]:
        """In the foreground."""
        server = ["--volfile-server=127.0.0.1", f"--volfile-id={_VOLUME}"]
        return ["glusterfs", "-N", *server, "-l", str(self.root / "mount.log"), str(self.directory)]

    def pids(self) -> list[int]:
        """The mount, the daemon and the bricks."""
        daemon = [] if self.daemon is None else [self.daemon.pid]
        return [*super().pids(), *daemon, *self._bricks()]

    def _bricks(self) -> Iterator[int]:
        """What the daemon started; only processes that have our root in their arguments."""
        for file in (self.root / "run").rglob("*.pid"):
            with contextlib.suppress(OSError, ValueError):
                pid = int(file.read_text())
                if os.fsencode(self.root) in Path(f"/proc/{pid}/cmdline").read_bytes():
                    yield pid

    def stop(self) -> None:
        """Unmount, stop the volume, end the daemon and what it left."""
        super().stop()
        if self.daemon is None:
            return
        with contextlib.suppress(CannotStart):
            self._gluster("volume", "stop", _VOLUME, "force")
        left = [(pid, start_time(pid)) for pid in self._bricks()]
        end(self.daemon)
        for pid, started in left:
            if started is not None:
                stop_process(pid, started)
        self.daemon = None

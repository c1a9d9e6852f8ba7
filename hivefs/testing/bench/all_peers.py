"""The peers by name, and those that are there. Nothing is installed for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from hivefs.testing.bench.gluster import Gluster
from hivefs.testing.bench.peers import Gocryptfs, Peer, Rclone, S3ql, Securefs
from hivefs.testing.bench.sshfs import Sshfs
from hivefs.testing.bench.targets import Target

PEERS: dict[str, type[Peer]] = {
    "gocryptfs": Gocryptfs,
    "rclone": Rclone,
    "securefs": Securefs,
    "s3ql": S3ql,
    "glusterfs": Gluster,
    "sshfs": Sshfs,
}


def installed(root: Path, say: Callable[[str], None]) -> list[Target]:
    """Those whose program is there, each with its place below ``root``."""
    found: list[Target] = []
    for name, kind in PEERS.items():
        if shutil.which(kind.program):
            found.append(kind(name, root / name))
        else:
            say(f"{name} is not installed")
    return found

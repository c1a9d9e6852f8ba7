"""sshfs to this very machine: a real ssh connection, encrypted, to an sshd of its own that listens nowhere.

The server is started for the connection by the client itself (ProxyCommand, sshd -i), with keys made for it.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Sequence
from pathlib import Path

from hivefs.testing.bench.peers import Peer
from hivefs.testing.bench.targets import CannotStart

SERVER = Path("/usr/sbin/sshd")
_SEPARATION = Path("/run/sshd")


class Sshfs(Peer):
    """Default options; the files lie in the clear on the server's side, which is the same disk."""

    program = "sshfs"

    def prepare(self) -> None:
        """Keys and the configuration of both ends."""
        if not SERVER.exists():
            raise CannotStart("sshd is not installed")
        if os.geteuid() == 0:
            _SEPARATION.mkdir(mode=0o755, exist_ok=True)
        for name in ("host", "user"):
            key = self.root / name
            if not key.exists():
                self._setup("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        server = self.root / "sshd.conf"
        server.write_text(
            f"HostKey {self.root}/host\nAuthorizedKeysFile {self.root}/user.pub\nStrictModes no\nUsePAM no\n"
            "PermitRootLogin yes\nPasswordAuthentication no\nSubsystem sftp internal-sftp\n"
        )
        (self.root / "ssh.conf").write_text(
            f"Host here\n  ProxyCommand {SERVER} -i -f {server}\n  IdentityFile {self.root}/user\n  IdentitiesOnly yes\n"
            f"  StrictHostKeyChecking no\n  UserKnownHostsFile {self.root}/known\n  BatchMode yes\n  LogLevel ERROR\n"
        )

    def command(self) -> Sequence[str]:
        """In the foreground."""
        place = f"{getpass.getuser()}@here:{self._folder('files')}"
        return ["sshfs", "-f", "-F", str(self.root / "ssh.conf"), place, str(self.directory)]

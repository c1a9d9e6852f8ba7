"""Other file systems that keep files encrypted, each set up as its documentation says, on the same disk.

gocryptfs and securefs keep them in a directory, rclone (crypt, full cache) and S3QL in a local backend, to which they copy
later; so theirs is the guarantee of a local disk, as the drive's is before its engine has placed. (GlusterFS, which
spreads but does not encrypt, is in gluster.py.)
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from hivefs.testing.bench.targets import CannotStart, Mounted

SETUP_SECONDS = 60.0
PASSWORD = "a password for a benchmark"  # noqa: S105 - it protects random bytes for some minutes


class Peer(Mounted):
    """A peer; ``program`` is what must be installed."""

    program = ""

    def _setup(self, *words: str, said: str = "") -> str:
        """Run a command of its set-up; its output. Raises CannotStart."""
        try:
            done = subprocess.run(
                words,
                input=said,
                capture_output=True,
                text=True,
                cwd=self.root,
                env=self.environment(),
                timeout=SETUP_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as problem:
            raise CannotStart(f"{words[0]}: {problem}") from problem
        if done.returncode:
            raise CannotStart(f"{' '.join(words[:2])}: {(done.stderr or done.stdout).strip()[-300:]}")
        return done.stdout.strip()

    def environment(self) -> dict[str, str]:
        """A home of its own, so that no setting of the user is seen or changed."""
        return {**super().environment(), "HOME": str(self.root), "XDG_CACHE_HOME": str(self.root / "xdg-cache")}

    def _folder(self, name: str) -> str:
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        return str(folder)

    def _password(self) -> str:
        path = self.root / "password"
        path.write_text(PASSWORD + "\n")
        path.chmod(0o600)
        return str(path)


class Gocryptfs(Peer):
    """AES-GCM, names encrypted; default settings."""

    program = "gocryptfs"

    def prepare(self) -> None:
        """A new encrypted directory. The cost of the password is paid at the mount, not measured."""
        self._setup("gocryptfs", "-init", "-q", "-passfile", self._password(), self._folder("cipher"))

    def command(self) -> Sequence[str]:
        """In the foreground."""
        return ["gocryptfs", "-q", "-fg", "-passfile", self._password(), self._folder("cipher"), str(self.directory)]


class Rclone(Peer):
    """A crypt remote over a local one, mounted with the full cache."""

    program = "rclone"

    def prepare(self) -> None:
        """Its configuration."""
        secret = self._setup("rclone", "obscure", PASSWORD)
        text = f"[secret]\ntype = crypt\nremote = {self._folder('cipher')}\npassword = {secret}\n"
        (self.root / "rclone.conf").write_text(text)

    def command(self) -> Sequence[str]:
        """``rclone mount`` stays in the foreground."""
        options = ["--config", str(self.root / "rclone.conf"), "--cache-dir", self._folder("cache")]
        return ["rclone", "mount", *options, "--vfs-cache-mode", "full", "secret:", str(self.directory)]


class Securefs(Peer):
    """Default format, names and contents encrypted."""

    program = "securefs"

    def prepare(self) -> None:
        """A new encrypted directory."""
        self._setup("securefs", "create", "--pass", PASSWORD, self._folder("cipher"))

    def command(self) -> Sequence[str]:
        """In the foreground."""
        return ["securefs", "mount", "--pass", PASSWORD, self._folder("cipher"), str(self.directory)]


class S3ql(Peer):
    """Encrypted, on a local backend. Without compression: the bytes of the workloads cannot be made smaller."""

    program = "mount.s3ql"

    def _options(self) -> list[str]:
        authority = self.root / "authinfo"
        url = f"local://{self._folder('cipher')}"
        authority.write_text(f"[local]\nstorage-url: {url}\nfs-passphrase: {PASSWORD}\n")
        authority.chmod(0o600)
        return ["--authfile", str(authority), "--cachedir", self._folder("cache"), url]

    def prepare(self) -> None:
        """A new file system."""
        self._setup("mkfs.s3ql", *self._options(), said=f"{PASSWORD}\n{PASSWORD}\n")

    def command(self) -> Sequence[str]:
        """In the foreground."""
        return ["mount.s3ql", "--fg", "--compress", "none", *self._options(), str(self.directory)]

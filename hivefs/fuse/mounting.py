"""Mount points: what must hold before, fusermount3, unmounting, healing what a killed mount left behind.

The kernel side of a mount is a descriptor of /dev/fuse. fusermount3 (set-uid root where users may mount) opens it,
mounts, and passes it back over a socket (libfuse: lib/mount.c). We speak with it ourselves because libfuse prints its
reasons to stderr and tells its caller nothing. It is called for root too, so that there is one way.
"""

from __future__ import annotations

import array
import os
import re
import shutil
import socket
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from hivefs.errors import MountBusy, MountpointProblem, NoFuse

FSNAME = "hivefs"
TYPE = "fuse.hivefs"
_WAIT_SECONDS = 20.0
_ESCAPED = re.compile(rb"\\([0-7]{3})")
"""How the kernel writes blanks, line ends and backslashes in mountinfo."""
READ_AHEAD_KIB = 1024


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What a user may choose. ``allow_other``: other users of this machine see the drive too (by its permissions)."""

    allow_other: bool = False
    read_only: bool = False

    def text(self) -> str:
        """For ``fusermount3 -o``."""
        chosen = [f"fsname={FSNAME}", f"subtype={FSNAME}", "default_permissions", "nosuid", "nodev"]
        if self.allow_other:
            chosen.append("allow_other")
        if self.read_only:
            chosen.append("ro")
        return ",".join(chosen)


def fusermount() -> str:
    """The path of fusermount3; raises NoFuse when it or /dev/fuse is missing or may not be used."""
    if not Path("/dev/fuse").exists():
        raise NoFuse(reason="/dev/fuse is missing; load the kernel module with 'modprobe fuse'")
    program = shutil.which("fusermount3")
    if program is None:
        raise NoFuse(reason="fusermount3 is missing; install the package fuse3")
    return program


def mounts_at(mountpoint: Path) -> list[str]:
    """File system types mounted at exactly this path, the visible one last. Works for dead mounts too."""
    wanted = os.fsencode(mountpoint)
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        left, _, right = line.partition(b" - ")
        path = _ESCAPED.sub(lambda code: bytes([int(code[1], 8)]), left.split()[4])
        if path == wanted:
            found.append(right.split()[0].decode())
    return found


def prepare(mountpoint: Path) -> Path:
    """Check that a drive can be mounted there, healing a dead one; returns the real path.

    Raises MountpointProblem or NoFuse with a sentence that says what to do.
    """
    program = fusermount()
    path = Path(os.path.realpath(mountpoint.parent)) / mountpoint.name if mountpoint.name else mountpoint
    if _dead(path):
        heal(path, program)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise MountpointProblem(mountpoint=path, reason=f"it does not exist; make it with 'mkdir {path}'") from None
    except OSError as error:
        raise MountpointProblem(mountpoint=path, reason=f"it cannot be looked at ({error.strerror})") from None
    if not stat.S_ISDIR(mode):
        raise MountpointProblem(mountpoint=path, reason="it is not a directory; choose an empty directory")
    path = Path(os.path.realpath(path))
    if mounts_at(path):
        raise MountpointProblem(mountpoint=path, reason="something is mounted there already; unmount it first")
    try:
        if any(path.iterdir()):
            raise MountpointProblem(mountpoint=path, reason="it is not empty; choose an empty directory")
    except PermissionError:
        raise MountpointProblem(mountpoint=path, reason="you may not read it; choose a directory of yours") from None
    return path


def _dead(path: Path) -> bool:
    """Whether a FUSE mount is there that nobody answers for any more. stat(2) may not notice: the kernel answers it out
    of its cache for a day. statfs(2) always asks; in a process of its own, because a drive may be stopped, not dead.
    """
    if not any(kind.startswith("fuse") for kind in mounts_at(path)):
        return False
    asked = _run(["stat", "-f", "--", str(path)], LC_ALL="C")
    return b"not connected" in asked.stderr or b"connection abort" in asked.stderr.lower()


def heal(path: Path, program: str) -> None:
    """Take away what a killed mount left ('Transport endpoint is not connected'), if it was a drive of ours."""
    kinds = mounts_at(path)
    if not kinds or kinds[-1] != TYPE:
        raise MountpointProblem(
            mountpoint=path, reason=f"a dead mount of another program is there; try 'fusermount3 -u {path}'"
        )
    for command in ([program, "-u", "-z", str(path)], ["umount", "-l", str(path)]):
        if _run(command).returncode == 0:
            return
    raise MountpointProblem(
        mountpoint=path, reason=f"a dead mount is there and cannot be taken away; try 'sudo umount -l {path}'"
    )


def _run(command: list[str], **variables: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_WAIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, b"", str(error).encode())


def mount(path: Path, options: MountOptions) -> int:
    """Mount; returns the descriptor of /dev/fuse (close-on-exec). Raises MountpointProblem or NoFuse."""
    program = fusermount()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        ours.settimeout(_WAIT_SECONDS)
        process = subprocess.Popen(
            [program, "-o", options.text(), "--", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(theirs.fileno(),),
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
        )
        theirs.close()
        fd = _received(ours)
        try:
            _, said = process.communicate(timeout=_WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            _, said = process.communicate()
    if fd is None:
        raise _refused(path, said.decode("utf-8", "replace").strip())
    os.set_inheritable(fd, False)
    return fd


def _received(connection: socket.socket) -> int | None:
    try:
        _, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(4))
    except OSError:
        return None
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            return array.array("i", data[:4])[0]
    return None


def _refused(path: Path, said: str) -> MountpointProblem | NoFuse:
    """What fusermount3 said, as something that a person can act on."""
    if "user_allow_other" in said:
        return NoFuse(reason="allow_other needs the line 'user_allow_other' in /etc/fuse.conf; ask the administrator")
    if "/dev/fuse" in said:
        return NoFuse(reason=f"/dev/fuse cannot be opened ({said})")
    if "mount failed" in said or "not permitted" in said.lower():
        return NoFuse(reason=f"you may not mount here ({said}); in a container it needs --device /dev/fuse and SYS_ADMIN")
    return MountpointProblem(mountpoint=path, reason=said or "fusermount3 gave no reason")


def unmount_command(path: Path, *, lazy: bool = False) -> list[str]:
    """The command that takes a drive away. Run it in a process of its own: the kernel asks the drive meanwhile."""
    return [fusermount(), "-u", *(["-z"] if lazy else []), "--", str(path)]


def unmount_problem(path: Path, said: str) -> MountBusy | MountpointProblem:
    """What a failed unmount command means."""
    if "busy" in said.lower():
        return MountBusy(mountpoint=path)
    return MountpointProblem(mountpoint=path, reason=said or "fusermount3 gave no reason")


def raise_read_ahead(path: Path) -> int | None:
    """Let the kernel read 1 MiB ahead instead of 128 KiB, where we may say so (root). KiB before, or None."""
    device = path.stat().st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    try:
        before = int(setting.read_text())
        if before < READ_AHEAD_KIB:
            setting.write_text(str(READ_AHEAD_KIB))
    except (OSError, ValueError):
        return None
    return before

"""Every failure HiveFS reports to a person or to another room.

The docstring of a class is its message: one sentence that says what is wrong and what to do. Data that the sentence
needs is passed by keyword and kept as attributes. ``exit_code`` is what the ``hivefs`` command exits with (unique per
class, listed in ``docs/exit-codes.md``, checked by a test). ``transient`` says whether trying again later can help.

Style after borg's error catalogue: our errors and other people's are different types.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, ClassVar, Final

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the operating system answers when a disk, a quota or a file is full."""


def says_no_room(error: Exception) -> bool:
    """Whether an error of a library repeats one of those answers in words, as LMDB's do."""
    return any(os.strerror(number) in str(error) for number in NO_ROOM)


class HivefsError(Exception):
    """HiveFS could not do this: {detail}."""

    exit_code: ClassVar[int] = 1
    transient: ClassVar[bool] = False

    def __init__(self, **data: Any) -> None:
        super().__init__()
        self.data = data

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __str__(self) -> str:
        """The message: the docstring with the data filled in, on one line."""
        template = " ".join((type(self).__doc__ or "").split())
        return template.format_map(_Missing(self.data))


class _Missing(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return f"<{key}>"


def first_of(error: BaseException, *kinds: type[BaseException]) -> BaseException | None:
    """What trio's nurseries wrapped: the first one, when all that is in a group is of these kinds; else None."""
    if not isinstance(error, BaseExceptionGroup) or error.split(kinds)[1] is not None:
        return None
    first: BaseException = error
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first


# ---- vault: keys, passwords, client state -------------------------------------------------------------------------


class VaultMissing(HivefsError):
    """There is no vault in {home}; make one with 'hivefs init' or bring one back with 'hivefs recover'."""

    exit_code = 10


class VaultExists(HivefsError):
    """There is already a vault in {home}; choose another HIVEFS_HOME, or keep using that one."""

    exit_code = 11


class WrongPassword(HivefsError):
    """The password is wrong, or the vault file {path} was changed; nothing was opened."""

    exit_code = 12


class BadPhrase(HivefsError):
    """This is not a valid recovery phrase ({reason}); it has 24 words from the BIP39 English list."""

    exit_code = 13


class VaultInUse(HivefsError):
    """This vault is already mounted at {mountpoint}; unmount it with 'hivefs umount' first."""

    exit_code = 14


class SecretNeeded(HivefsError):
    """A {what} is needed and there is no terminal to ask on; pass it with {option}."""

    exit_code = 15


class KeyFileProblem(HivefsError):
    """The key file {path} cannot be used: {reason}."""

    exit_code = 16


# ---- mount -----------------------------------------------------------------------------------------------------------


class MountpointProblem(HivefsError):
    """Cannot mount at {mountpoint}: {reason}."""

    exit_code = 20


class NoFuse(HivefsError):
    """FUSE is not available: {reason}."""

    exit_code = 21


class NotMounted(HivefsError):
    """No drive is mounted from {home}{where}; mount it with 'hivefs mount MOUNTPOINT'."""

    exit_code = 22

    def __init__(self, *, where: str = "", **data: Any) -> None:
        """``where``: words on a place that was asked for, after a space."""
        super().__init__(where=where, **data)


class MountFailed(HivefsError):
    """The mount process stopped before the drive was ready: {reason}; see {log}."""

    exit_code = 23


class EngineUnavailable(HivefsError):
    """The engine does not answer ({reason}); the drive works with what is on this machine, see {log}."""

    exit_code = 24
    transient = True


class MountBusy(HivefsError):
    """The drive at {mountpoint} is in use, so it stays mounted; close the programs that use it and try again."""

    exit_code = 25
    transient = True


class ControlProtocolMismatch(HivefsError):
    """The running {process} process is of another HiveFS version ({theirs}, this is {ours}); unmount and mount again."""

    exit_code = 26


# ---- hive and nodes --------------------------------------------------------------------------------------------------


class TooFewNodes(HivefsError):
    """The code needs {total} nodes that the policy accepts and only {available} are there: {reason}."""

    exit_code = 30
    transient = True


class PolicyInfeasible(HivefsError):
    """No placement over the present nodes keeps the policy: {reason}."""

    exit_code = 31
    transient = True


class PeerUnreachable(HivefsError):
    """The node at {address} cannot be reached: {reason}."""

    exit_code = 32
    transient = True


class PeerIdentityMismatch(HivefsError):
    """The node at {address} is not the one it should be (expected {expected}, found {found}); nothing was sent to it."""

    exit_code = 33


class ConnectionLost(HivefsError):
    """The connection to {peer} was lost: {reason}."""

    exit_code = 34
    transient = True


class PeerTimeout(HivefsError):
    """The node {peer} did not answer {what} within {seconds} s."""

    exit_code = 35
    transient = True


class Refused(HivefsError):
    """The node {peer} refused: {reason}."""

    exit_code = 36


class HiveFull(HivefsError):
    """The hive has no room for this: {reason}; add nodes or delete files."""

    exit_code = 37
    transient = True


class HiveMissing(HivefsError):
    """There is no hive in {path}; start one with 'hivefs up'."""

    exit_code = 38


class NodeProblem(HivefsError):
    """The node in {path} cannot be run or asked: {reason}."""

    exit_code = 39


class HiveProblem(HivefsError):
    """The embedded hive in {path} cannot be used: {reason}."""

    exit_code = 40


class BadAddress(HivefsError):
    """'{address}' is not a node address; it looks like /ip4/192.0.2.7/tcp/4001/p2p/12D3KooW..."""

    exit_code = 41


class NoHeadFound(HivefsError):
    """No node that answered keeps a head of this vault ({answered} answered); check the phrase and the node address."""

    exit_code = 42


class HeadForked(HivefsError):
    """Two different heads claim number {sequence} of device {device}; nothing was opened, keep both nodes' answers."""

    exit_code = 43


class ShareMissing(HivefsError):
    """The node {peer} does not hold the share {share}."""

    exit_code = 44


class NodeFull(HivefsError):
    """The node {peer} has no room: {reason}."""

    exit_code = 45
    transient = True


class NodeBusy(HivefsError):
    """The node {peer} cannot do this now: {reason}."""

    exit_code = 46
    transient = True


class HeadStale(HivefsError):
    """The node {peer} already keeps a newer head of this device than number {sequence}; fetch it first."""

    exit_code = 47


class VaultForked(HivefsError):
    """Device {device} of this vault published head {sequence}, which this machine knows nothing of: nothing is deleted
    from here any more; if this is an old copy of the vault, bring the newest back with 'hivefs recover' and give this up.
    """

    exit_code = 48


class BadInvitation(HivefsError):
    """This invitation cannot be used: {reason}."""

    exit_code = 49


# ---- data ------------------------------------------------------------------------------------------------------------


class Corrupt(HivefsError):
    """{what} is damaged: {reason}."""

    exit_code = 50


class UnknownVersion(HivefsError):
    """{what} has format version {version}, which this HiveFS does not know; a newer HiveFS wrote it."""

    exit_code = 51


class NotEnoughShares(HivefsError):
    """Only {have} of the {needed} shares needed for stripe {stripe} can be read now: {reason}."""

    exit_code = 52
    transient = True


class StoreDamaged(HivefsError):
    """The local store {path} is damaged: {reason}; what is placed is safe, bring it back with 'hivefs recover'."""

    exit_code = 53


class CheckFailed(HivefsError):
    """The check found {problems} problems; see the list above."""

    exit_code = 54


class DiskFull(HivefsError):
    """The disk under {path} is full ({free} bytes free); free some space, nothing was lost."""

    exit_code = 55
    transient = True


class NotReached(HivefsError):
    """Not everything is {level} yet ({done} of {total} files): {reason}."""

    exit_code = 56
    transient = True


# ---- settings --------------------------------------------------------------------------------------------------------


class BadSetting(HivefsError):
    """The setting {name} is wrong: {reason}."""

    exit_code = 60


class PathNotInDrive(HivefsError):
    """{path} is not inside a mounted HiveFS drive of this vault."""

    exit_code = 61


class BadAttestation(HivefsError):
    """This attestation cannot be used: {reason}."""

    exit_code = 64


class BadPolicy(HivefsError):
    """The policy is wrong at line {line}, column {column}: {reason}."""

    exit_code = 62


class Interrupted(HivefsError):
    """Stopped on request; nothing was lost."""

    exit_code = 130


# ---- inside, never an exit code ---------------------------------------------------------------------------------------


class PosixError(Exception):
    """A file system answer that is an errno (positive), as the kernel wants it. Not shown to people as such."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


class NotLoaded(Exception):
    """A metadata key that is not on this machine yet (after a recovery): load the page that holds it, try again.

    ``key`` is a key of the metadata tree (docs/formats/tree.md). Raised before anything was changed.
    """

    def __init__(self, key: bytes) -> None:
        super().__init__(key)
        self.key = key


class NotInMemory(Exception):
    """``length`` bytes of a file from ``position`` on are on this machine's disk, but the kernel would have to wait for it:
    bring them into memory where waiting does no harm (chunkstore/disk.py), and try again.
    """

    def __init__(self, path: Path, position: int, length: int) -> None:
        super().__init__(path, position, length)
        self.path = path
        self.position = position
        self.length = length

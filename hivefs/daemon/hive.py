"""The hive's owner key: who holds it decides which nodes and clients belong. See docs/formats/hive-key.md.

It is a file of its own, 0600, that no node and no mount ever needs; keep it where only the hive's owner gets at it.
"""

from __future__ import annotations

import json
import os
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path

from hivefs.crypto.keys import public_key
from hivefs.daemon.home import write_file
from hivefs.errors import Corrupt, KeyFileProblem, UnknownVersion
from hivefs.formats.member import sign_member
from hivefs.model.ids import KEY_BYTES
from hivefs.model.node import Attribute, Membership, Role

FORMAT = "hivefs-hive-key"
VERSION = 1
_WHAT = "the hive's key file"


@dataclass(frozen=True, repr=False)
class HiveKey:
    """The Ed25519 seed (32 bytes) of a hive's owner; ``public`` is the hive's id."""

    seed: bytes
    public: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "public", public_key(self.seed))

    def __repr__(self) -> str:
        return f"HiveKey({self.public.hex()})"

    def node(self, subject: bytes, attributes: tuple[Attribute, ...]) -> Membership:
        """The certificate of a node, with what its owner claims of it."""
        return sign_member(self.seed, Membership(self.public, subject, Role.NODE, attributes, issued_ns=time.time_ns()))


def to_bytes(key: HiveKey) -> bytes:
    """JSON on one line."""
    value = {"format": FORMAT, "version": VERSION, "hive": key.public.hex(), "seed": key.seed.hex()}
    return (json.dumps(value) + "\n").encode("ascii")


def from_bytes(data: bytes) -> HiveKey:
    """Raises Corrupt or UnknownVersion."""
    try:
        value = json.loads(data)
        if value["format"] != FORMAT:
            raise Corrupt(what=_WHAT, reason="it is not a HiveFS hive key")
        if value["version"] != VERSION:
            raise UnknownVersion(what=_WHAT, version=value["version"])
        seed, public = bytes.fromhex(value["seed"]), bytes.fromhex(value["hive"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Corrupt(what=_WHAT, reason="its form is wrong") from None
    if len(seed) != KEY_BYTES or HiveKey(seed).public != public:
        raise Corrupt(what=_WHAT, reason="the key does not fit the hive")
    return HiveKey(seed)


def create(path: Path) -> HiveKey:
    """A new hive: a fresh key in ``path``, which must not exist. Raises KeyFileProblem."""
    key = HiveKey(os.urandom(KEY_BYTES))
    try:
        write_file(path, to_bytes(key), new=True)
    except OSError as error:
        raise KeyFileProblem(path=path, reason=error.strerror or str(error)) from error
    return key


def load(path: Path) -> HiveKey:
    """The key in ``path``. Raises KeyFileProblem, Corrupt, UnknownVersion."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(4096)
    except OSError as error:
        raise KeyFileProblem(path=path, reason=error.strerror or str(error)) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeyFileProblem(path=path, reason="others can read it; run 'chmod 600' on it")
    return from_bytes(data)

"""The key of an attester: who holds it vouches for nodes, to those who trust it. See docs/formats/attestation.md."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from hivefs.crypto.keys import public_key
from hivefs.daemon.home import write_file
from hivefs.errors import Corrupt, KeyFileProblem, UnknownVersion
from hivefs.model.ids import KEY_BYTES

FORMAT = "hivefs-attester-key"
VERSION = 1
_WHAT = "the attester's key file"


@dataclass(frozen=True, repr=False)
class AttesterKey:
    """An Ed25519 seed (32 bytes); ``public`` is what users trust."""

    seed: bytes
    public: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "public", public_key(self.seed))

    def __repr__(self) -> str:
        return f"AttesterKey({self.public.hex()})"


def to_bytes(key: AttesterKey) -> bytes:
    """JSON on one line."""
    value = {"format": FORMAT, "version": VERSION, "key": key.public.hex(), "seed": key.seed.hex()}
    return (json.dumps(value) + "\n").encode("ascii")


def from_bytes(data: bytes) -> AttesterKey:
    """Raises Corrupt or UnknownVersion."""
    try:
        value = json.loads(data)
        if value["format"] != FORMAT:
            raise Corrupt(what=_WHAT, reason="it is not the key of a HiveFS attester")
        if value["version"] != VERSION:
            raise UnknownVersion(what=_WHAT, version=value["version"])
        seed, public = bytes.fromhex(value["seed"]), bytes.fromhex(value["key"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Corrupt(what=_WHAT, reason="its form is wrong") from None
    if len(seed) != KEY_BYTES or AttesterKey(seed).public != public:
        raise Corrupt(what=_WHAT, reason="the seed does not fit the key")
    return AttesterKey(seed)


def create(path: Path) -> AttesterKey:
    """A fresh key in ``path``, which must not exist. Raises KeyFileProblem."""
    key = AttesterKey(os.urandom(KEY_BYTES))
    try:
        write_file(path, to_bytes(key), new=True)
    except OSError as error:
        raise KeyFileProblem(path=path, reason=error.strerror or str(error)) from error
    return key


def load(path: Path) -> AttesterKey:
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

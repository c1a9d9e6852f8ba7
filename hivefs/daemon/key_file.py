"""Key files: an Ed25519 seed with its public key, JSON on one line, 0600. What a key is for is in its format's name.

A hive owner's key (daemon/hive.py, docs/formats/hive-key.md) and an attester's (daemon/attester.py,
docs/formats/attestation.md).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from hivefs.crypto.keys import public_key
from hivefs.daemon.home import read_private, write_file
from hivefs.errors import Corrupt, KeyFileProblem, UnknownVersion
from hivefs.model.ids import KEY_BYTES

MOST_BYTES = 4096


@dataclass(frozen=True, slots=True)
class KeyFormat:
    """``format`` and ``version`` stand in the file, the public key under ``field``. ``what`` names the file in errors,
    ``other`` says what one of another format is not, ``unfit`` that seed and key do not belong together.
    """

    format: str
    version: int
    field: str
    what: str
    other: str
    unfit: str

    def to_bytes(self, seed: bytes) -> bytes:
        """JSON on one line."""
        value = {"format": self.format, "version": self.version, self.field: public_key(seed).hex(), "seed": seed.hex()}
        return (json.dumps(value) + "\n").encode("ascii")

    def from_bytes(self, data: bytes) -> bytes:
        """The seed. Raises Corrupt or UnknownVersion."""
        try:
            value = json.loads(data)
            if value["format"] != self.format:
                raise Corrupt(what=self.what, reason=self.other)
            if value["version"] != self.version:
                raise UnknownVersion(what=self.what, version=value["version"])
            seed, public = bytes.fromhex(value["seed"]), bytes.fromhex(value[self.field])
        except (ValueError, TypeError, KeyError, RecursionError):
            raise Corrupt(what=self.what, reason="its form is wrong") from None
        if len(seed) != KEY_BYTES or public_key(seed) != public:
            raise Corrupt(what=self.what, reason=self.unfit)
        return seed

    def create(self, path: Path) -> bytes:
        """A fresh seed in ``path``, which must not exist. Raises KeyFileProblem."""
        seed = os.urandom(KEY_BYTES)
        try:
            write_file(path, self.to_bytes(seed), new=True)
        except OSError as error:
            raise KeyFileProblem(path=path, reason=error.strerror or str(error)) from error
        return seed

    def load(self, path: Path) -> bytes:
        """The seed in ``path``. Raises KeyFileProblem, Corrupt, UnknownVersion."""
        return self.from_bytes(read_private(path, MOST_BYTES))

"""Real trees to copy in."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from pathlib import Path

SHARED = bytes.fromhex("02000000 01000600ffffffff 02000400e8030000 04000000ffffffff 10000400ffffffff 20000000ffffffff")
"""The ACL u::rw,u:1000:r,g::-,m::r,o::- (hivefs/filesystem/acl.py)."""


def photos(top: Path, count: int, seed: int = 1) -> Path:
    """Files of 2 to 4 MiB that do not compress, as photos; with small sidecars, times of their own and a few links."""
    dice = random.Random(seed)
    top.mkdir(parents=True)
    for number in range(count):
        folder = top / f"2024-{number % 12 + 1:02d}"
        folder.mkdir(exist_ok=True)
        photo = folder / f"IMG_{number:04d}.CR2"
        photo.write_bytes(dice.randbytes(dice.randint(2 << 20, 4 << 20)))
        sidecar = folder / f"IMG_{number:04d}.xmp"
        sidecar.write_text(f"<x rating={number % 5}/>\n" * dice.randint(1, 200))
        when = 1_600_000_000_000_000_000 + dice.randrange(10**17)
        os.utime(photo, ns=(when, when + 123_456_789 + number))
        if number % 10 == 0:
            os.setxattr(photo, "user.rating", str(number).encode())
            os.chmod(photo, 0o600 + number % 8)
            with contextlib.suppress(OSError):  # a directory of temporary files that keeps no ACLs
                os.setxattr(photo, "system.posix_acl_access", SHARED)
        if number % 15 == 0:
            os.link(photo, folder / f"best-{number}.CR2")
            os.symlink(f"../{folder.name}/{photo.name}", top / f"link-{number}")
    os.mkdir(top / "empty")
    (top / "empty file").touch()
    with (top / "sparse.bin").open("wb") as file:
        file.truncate(5 << 20)
        file.seek(3 << 20)
        file.write(b"island")
    return top


def standard_library(top: Path) -> Path:
    """Python's own standard library."""
    shutil.copytree(
        Path(os.__file__).parent, top, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "site-packages", "test")
    )
    return top

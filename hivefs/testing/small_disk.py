"""A small disk (a tmpfs) for a test, and somebody who fills it to the last byte."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path


class NoSmallDisk(Exception):
    """What is missing on this machine, in words."""


@contextlib.contextmanager
def small_disk(directory: Path, size: int) -> Iterator[None]:
    """A file system of ``size`` bytes on ``directory``, with mode 0700. Raises NoSmallDisk."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(directory)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        raise NoSmallDisk("the program mount is missing (package mount)") from None
    if made.returncode:
        raise NoSmallDisk(f"the right to mount a tmpfs (CAP_SYS_ADMIN) is missing: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], capture_output=True, timeout=20, check=True)


def fill(path: Path) -> Path:
    """Write to a file until its disk takes not one byte more; the file."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):  # it is full for such pieces
                while True:
                    file.write(bytes(size))
    return path

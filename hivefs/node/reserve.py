"""Room that a node keeps for itself on a disk that others may fill.

A share can only be forgotten by a transaction of the index, which needs new pages first, and a node that starts writes
down that it runs. On a disk without one free byte neither works, so it could not even be emptied. So some blocks belong to
a file that says nothing; it is given back to the disk when there is need, and made again when there is room.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Final

log = logging.getLogger("hivefs.node")

RESERVE: Final = "reserve"
RESERVE_BYTES: Final = 4 << 20
"""More than a transaction of the index that forgets a page of shares touches."""


class Reserve:
    """Of the node in ``directory``. Any thread may call; nothing is raised."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / RESERVE

    def keep(self, free: int) -> bool:
        """Make it when it is not whole and twice as much is ``free``; whether it is there now. Blocks."""
        with contextlib.suppress(OSError):  # it is not there
            if self._path.stat().st_size >= RESERVE_BYTES:  # else we were killed while it was made
                return True
        if free < 2 * RESERVE_BYTES:
            return False
        try:
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(handle, 0, RESERVE_BYTES)
            finally:
                os.close(handle)
        except OSError as error:
            self.give()
            log.warning("no room could be reserved in %s: %s", self._path.parent, error.strerror)
            return False
        return True

    def give(self) -> bool:
        """Give it to the disk; whether it was there."""
        with contextlib.suppress(OSError):  # it is not there, or the disk does not even let us remove it: there is none
            self._path.unlink()
            return True
        return False

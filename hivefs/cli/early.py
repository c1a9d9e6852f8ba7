"""Ctrl-C while modules are loaded, which is most of the time of a short command. Imports next to nothing itself.

A KeyboardInterrupt out of an import is a long traceback, and one in a callback of the import system is lost. There is
nothing to put in order yet, so the process says one sentence and ends.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

SAID = b"hivefs: Stopped on request; nothing was lost.\n"
"""As errors.Interrupted says it, which may not be loaded yet."""
CODE = 130


def stop(number: int = signal.SIGINT, frame: FrameType | None = None) -> None:
    """Say so and end at once."""
    os.write(2, SAID)
    os._exit(CODE)


class Loading:
    """``with Loading():`` Ctrl-C ends the process. Nothing changes where it was ignored or is somebody else's, nor
    outside of the main thread.
    """

    _ours = False

    def __enter__(self) -> None:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            try:
                signal.signal(signal.SIGINT, stop)
            except ValueError:
                return  # not the main thread: it gets no signals
            self._ours = True

    def __exit__(self, *error: object) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)

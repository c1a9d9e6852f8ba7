"""The pool as the engine has it, but that it says when something else is thought of a node."""

from __future__ import annotations

from collections.abc import Callable

from hivefs.chunkstore.pool import Pool


class SimPool(Pool):
    """See the head of the file."""

    on_touch: Callable[[], None]

    def touch(self) -> None:
        super().touch()
        self.on_touch()

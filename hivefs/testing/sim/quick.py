"""The pool as the engine has it, but that it says when something else is thought of a node, and looks at all at once."""

from __future__ import annotations

from collections.abc import Callable

import trio

from hivefs.chunkstore.pool import Pool


class SimPool(Pool):
    """See the head of the file."""

    on_touch: Callable[[], None]

    def touch(self) -> None:
        super().touch()
        self.on_touch()

    def give_up(self, seconds: float) -> None:
        """What ``run`` does in each round, without turns for others; so much time passed since the last."""
        self._follow_clock(seconds)
        self._tick(seconds)
        for node_id in list(self._due(trio.current_time())):
            self._look(node_id)

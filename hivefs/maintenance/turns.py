"""Long looks through the book take turns with everything else of the engine's loop.

A slice ends after SLICE_S of time, and at the latest after MOST items: under the simulator's clock, on which work takes no
time, only these count, so that a seed plays the same again. Then others have their turn. When they used it, somebody is
being served, and the look waits for a moment, so that it has no more than about half of a busy loop; else it goes on at
once. So a million stripes take as long as the machine needs for them, and not a million pauses.
"""

from __future__ import annotations

from typing import Final

import trio
import trio.lowlevel

SLICE_S: Final = 0.0005
"""Half of what may pass: an item that began before the end of a slice is finished in it."""
MOST: Final = 64
BUSY_S: Final = 0.0002
"""What a turn takes when nobody has anything to do is far below this."""
WAIT_S: Final = 0.0005


class Turns:
    """For one look. Call ``item`` after each item; nothing of the loop happens during it when the slice is not over.
    ``given`` counts the turns that others had.
    """

    def __init__(self) -> None:
        self._begun = trio.current_time()
        self._items = 0
        self.given = 0

    async def item(self) -> None:
        """One more item was looked at."""
        self._items += 1
        if self._items < MOST and trio.current_time() - self._begun < SLICE_S:
            return
        await self.over()

    async def over(self) -> None:
        """The slice is over, however long it was."""
        now = trio.current_time()
        await trio.lowlevel.checkpoint()
        if trio.current_time() - now > BUSY_S:
            await trio.sleep(WAIT_S)
        self._begun = trio.current_time()
        self._items = 0
        self.given += 1

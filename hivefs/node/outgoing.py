"""The answer to a GET on its way to a peer that may take its time.

A share is read whole and sent from memory. When memory is short, whoever has not taken its answer yet holds none any
more: what was read is forgotten and read again, piece by piece, as the peer takes it. So those who take nothing hold up
nobody, and an honest peer behind a slow line loses nothing by it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from hivefs.node.batching import Budget

PIECE_BYTES: Final = 64 << 10
"""Of an answer on its way; a peer that takes one of them has moved. The first is so small that it is sealed in small
records (transport/channel.py), so that who waits for the first bytes has them early.
"""
LATER_BYTES: Final = 128 << 10
"""The others, of what was read ahead: larger ones cost less. So much may be in memory beside the budget, for each
conversation whose answer was forgotten.
"""


class Held:
    """Bytes that one request holds, of its conversation's budget and of that of all."""

    def __init__(self, own: Budget, everyones: Budget) -> None:
        self._budgets = (own, everyones)
        self._taken: list[tuple[Budget, int]] = []

    async def take(self, count: int) -> None:
        """Wait for them."""
        for budget in self._budgets:
            await budget.take(count)
            self._taken.append((budget, count))

    def keep(self, count: int) -> None:
        """Give back all but ``count`` of them."""
        taken, self._taken = self._taken, []
        for budget, had in taken:
            if had > count:
                budget.give(had - count)
            self._taken.append((budget, min(had, count)))

    def give(self) -> None:
        """Give back what was taken; a second time nothing."""
        while self._taken:
            budget, count = self._taken.pop()
            budget.give(count)


class Outgoing:
    """``length`` bytes behind ``head``. ``read(offset, length)`` gives them, raises Refusal when they have gone; ``data``
    is what was read ahead, None when memory is short already.
    """

    def __init__(
        self, head: bytes, length: int, data: bytes | None, read: Callable[[int, int], Awaitable[bytes]], held: Held
    ) -> None:
        self.head = head
        self.length = length
        self._data = data
        self._read = read
        self._held = held
        self._at = 0

    @property
    def forgotten(self) -> bool:
        """It holds no memory."""
        return self._data is None

    def forget(self) -> None:
        """Memory is short."""
        if self._data is not None:
            self._data = None
            self._held.give()

    async def piece(self) -> bytes:
        """The next one; empty when all were given. A copy: what is on its way must not keep the rest alive."""
        start = self._at
        most = LATER_BYTES if start and self._data is not None else PIECE_BYTES
        end = min(start + most, self.length)
        self._at = end
        if self._data is None and start < end:
            return await self._read(start, end - start)
        return b"" if self._data is None else self._data[start:end]

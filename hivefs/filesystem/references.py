"""How often the kernel was given each inode: four bytes for each, because it may remember a million of them.

A dictionary of numbers costs more than a hundred bytes an entry. Inode numbers of one device follow each other, so they
are counted in pages of PAGE numbers, which are there as long as one of them is not zero.
"""

from __future__ import annotations

from array import array
from typing import Final

PAGE: Final = 1024
MOST: Final = (1 << 32) - 1
_SHIFT: Final = PAGE.bit_length() - 1
_USED: Final = PAGE
"""Behind the counts of a page stands how many of them are not zero."""


class References:
    """See the head of the file. A count beyond 32 bits stays at the most: such an inode is remembered for ever."""

    def __init__(self) -> None:
        self._pages: dict[int, array[int]] = {}

    def __contains__(self, ino: int) -> bool:
        page = self._pages.get(ino >> _SHIFT)
        return page is not None and page[ino & PAGE - 1] > 0

    def add(self, ino: int, count: int) -> None:
        """The kernel was given it ``count`` times more."""
        number, at = ino >> _SHIFT, ino & PAGE - 1
        page = self._pages.get(number)
        if page is None:
            page = self._pages[number] = array("I", bytes(4 * (PAGE + 1)))
        if not page[at]:
            page[_USED] += 1
        count += page[at]
        page[at] = count if count < MOST else MOST

    def drop(self, ino: int, count: int) -> bool:
        """It gave ``count`` of them back; whether some are left."""
        number, at = ino >> _SHIFT, ino & PAGE - 1
        page = self._pages.get(number)
        if page is None or not page[at]:
            return False
        if page[at] > count or page[at] == MOST:
            if page[at] < MOST:
                page[at] -= count
            return True
        page[at] = 0
        page[_USED] -= 1
        if not page[_USED]:
            del self._pages[number]
        return False

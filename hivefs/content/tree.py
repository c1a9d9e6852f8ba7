"""The metadata tree: where one page ends and the next begins, and how a level is edited.

The tree is a Merkle search tree over sorted records (a "prolly tree": Auvolat and Taïani, SRDS 2019; Noms, Dolt).
Level 0 is the leaves; a page of level n+1 names pages of level n by first key, place, and the key that opens them. All
pages are immutable: a change writes new pages from the leaf up to a new root and shares all others with the old tree.

**Where pages end.** Pages are cut from left to right, and whether a page ends after an item depends on nothing but the
items already in it: a hash of the item's key, compared with a threshold that grows with the bytes in the page

    end after the item   iff   hash32(level, key) * SPREAD^2  <  weight(item) * filled * 2^32

where ``filled`` includes the item. The chance to end grows linearly with the size, so sizes are Rayleigh distributed
with mean 1.25 * SPREAD = 33 KiB, and one page in a million is larger than 137 KiB: a tighter spread than a constant
chance behind a minimum gives, which matters because the largest page of a stripe decides the size of its shares. Two
cuttings that start at different places meet soon: wherever the one with less in its page ends, the other ends too.
A leaf weighs its records by their bytes; an inner page weighs each child 1 KiB (about 32 children), whatever the
descriptors of stripes it needs, because those depend on history and the boundaries must not.

Only then comes the hard limit: an item that would take a page above 256 KiB begins a new page.

**What that guarantees.** The leaves are a function of the records alone: any order of updates gives the boundaries
that a rebuild would give. For that an edit begins at the page before when the first record of a page changes (only
the hard limit looks one item ahead, and only then does it matter). Inner pages too are a function of the records
alone, unless descriptors of stripes fill an inner page to the hard limit: then boundaries of inner pages (never of
leaves) can depend on history. That takes 30 shares per stripe and 80 children all in stripes of their own.

**How a level is edited.** Changes to level 0 are records; changes to level n+1 are the child entries that the edit of
level n took away and put in. Both are the same thing, a sorted list of (key, value or None), so one class edits every
level: feed it the old pages that changes touch, go on to the next page until it says that it is in step again with the
old boundaries, skip to the next change. This file only decides; reading and storing is maintenance/checkpoint_tree.py.
"""

from __future__ import annotations

import enum
import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Final, Generic, TypeVar

from hivefs.errors import Corrupt
from hivefs.formats.page import MAX_KEY_BYTES, MAX_LEVEL, MAX_RECORD_BYTES
from hivefs.model.ids import StripeId
from hivefs.model.page import Child, LeafPage, Page, Record
from hivefs.model.stripe import PageRef, Stripe

V = TypeVar("V")

SPREAD: Final = 26 << 10
"""Bytes; the most frequent size of a page. The mean is 1.25 times that."""

MAX_PAGE_BYTES: Final = 256 << 10
"""Plaintext bytes of a page that holds more than one record."""

CHILD_WEIGHT: Final = 1 << 10
MIN_CHILDREN: Final = 4
"""An inner page has at least so many children, unless it is the last of its level: so every level is much smaller."""

_RECORD_BYTES = 8
_PAGE_BYTES = 64
_CHILD_BYTES = 128
_STRIPE_BYTES = 192
_SHARE_BYTES = 124
_LARGEST_STRIPE = _STRIPE_BYTES + 255 * _SHARE_BYTES
_SQUARE = SPREAD * SPREAD


class Keep(enum.Enum):
    """A change that changes nothing, but makes the page that holds the key be looked at."""

    KEEP = 0


KEEP: Final = Keep.KEEP


@dataclass(frozen=True, slots=True)
class Link:
    """What a page of a higher level holds per child, beside its first key.

    ``stripe`` describes the stripe of ``ref`` and is None while that one is still being filled.
    """

    ref: PageRef
    records: int
    stripe: Stripe | None

    @property
    def stripe_id(self) -> StripeId:
        """The stripe that the child lies in."""
        return self.ref.place.stripe_id


@dataclass(frozen=True, slots=True)
class Leaf:
    """What a leaf says: between ``low`` and ``high`` there are exactly these records.

    ``low`` is inclusive and b"" for the first leaf; ``high`` is exclusive and None for the last one. An empty tree is
    one leaf without records from b"" to None.
    """

    low: bytes
    high: bytes | None
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Spot:
    """A page as its parent (or the head) knows it, before it is read.

    ``first_key`` is None for the root. ``low`` and ``high`` are the range of keys under it, as in Leaf.
    """

    level: int
    link: Link
    first_key: bytes | None
    low: bytes
    high: bytes | None


def damaged(reason: str) -> Corrupt:
    """The error for a tree that contradicts itself."""
    return Corrupt(what="the metadata tree", reason=reason)


def check_page(page: Page, spot: Spot) -> None:
    """Raises Corrupt unless the page is what its parent says: level, first key, range of keys, number of records."""
    if isinstance(page, LeafPage):
        level, count, first, last = 0, len(page.records), page.records[0][0], page.records[-1][0]
    else:
        level, count = page.level, sum(child.records for child in page.children)
        first, last = page.children[0].first_key, page.children[-1].first_key
        if spot.link.stripe_id in page.stripes:
            raise damaged("a page describes the stripe that it lies in")
    if level != spot.level:
        raise damaged(f"a page of level {level} where one of level {spot.level} belongs")
    if spot.first_key is not None and first != spot.first_key:
        raise damaged("a page does not begin with the key that its parent names")
    if spot.high is not None and last >= spot.high:
        raise damaged("a page reaches into the next one")
    if count != spot.link.records:
        raise damaged(f"a page of {count} records where its parent names {spot.link.records}")


def child_link(page_stripes: Mapping[StripeId, Stripe], own: Stripe | None, child: Child) -> Link:
    """The link of a child of a page that lies in the stripe ``own``. Raises Corrupt when its stripe is not described."""
    stripe_id = child.ref.place.stripe_id
    stripe = page_stripes.get(stripe_id)
    if stripe is None and own is not None and own.stripe_id == stripe_id:
        stripe = own
    if stripe is None:
        raise damaged("a page names a child in a stripe that is not described")
    return Link(child.ref, child.records, stripe)


def check_changes(changes: Iterable[tuple[bytes, bytes | None]], before: bytes = b"") -> None:
    """Raises ValueError unless keys ascend strictly from above ``before`` and every record fits into a page."""
    for key, value in changes:
        if key <= before:
            raise ValueError("keys must not be empty and must ascend")
        if len(key) > MAX_KEY_BYTES or (value is not None and len(key) + len(value) > MAX_RECORD_BYTES):
            raise ValueError("a record is larger than a page can be")
        before = key


class Cutter(Generic[V]):
    """Cuts the items of one level into pages. Feed items in ascending order of key.

    ``measure(key, value, seen)`` gives (weight, bytes) of an item; ``seen`` are the stripes that the page already
    describes, emptied by this class at each new page.
    """

    def __init__(self, level: int, measure: Callable[[bytes, V, set[StripeId]], tuple[int, int]], least: int = 1) -> None:
        if level > MAX_LEVEL:
            raise ValueError("the tree is too high")
        self._salt = b"hivefs/tree/1" + bytes([level])
        self._measure = measure
        self._least = least
        self._seen: set[StripeId] = set()
        self._items: list[tuple[bytes, V]] = []
        self._filled = 0
        self._bytes = _PAGE_BYTES

    @property
    def empty(self) -> bool:
        """Whether the next item begins a page."""
        return not self._items

    def extend(self, items: Iterable[tuple[bytes, V]]) -> list[list[tuple[bytes, V]]]:
        """Take items; returns the pages that are complete."""
        pages: list[list[tuple[bytes, V]]] = []
        measure, salt, least, sha256 = self._measure, self._salt, self._least, hashlib.sha256
        for item in items:
            key = item[0]
            weight, size = measure(key, item[1], self._seen)
            if self._bytes + size > MAX_PAGE_BYTES and self._items:
                pages.append(self._close())
                weight, size = measure(key, item[1], self._seen)
            self._items.append(item)
            self._filled += weight
            self._bytes += size
            hashed = int.from_bytes(sha256(salt + key).digest()[:4], "big")
            if hashed * _SQUARE < weight * self._filled << 32 and len(self._items) >= least:
                pages.append(self._close())
        return pages

    def finish(self) -> list[list[tuple[bytes, V]]]:
        """There are no more items: the last page, if it is not empty."""
        return [self._close()] if self._items else []

    def _close(self) -> list[tuple[bytes, V]]:
        page, self._items = self._items, []
        self._filled, self._bytes = 0, _PAGE_BYTES
        self._seen.clear()
        return page


def _measure_record(key: bytes, value: bytes, _seen: set[StripeId]) -> tuple[int, int]:
    size = len(key) + len(value) + _RECORD_BYTES
    return size, size


def _measure_link(key: bytes, link: Link, seen: set[StripeId]) -> tuple[int, int]:
    size = len(key) + _CHILD_BYTES
    stripe_id = link.ref.place.stripe_id
    if stripe_id not in seen:
        seen.add(stripe_id)
        stripe = link.stripe
        size += (
            _LARGEST_STRIPE
            if stripe is None
            else _STRIPE_BYTES + len(stripe.policy_hash) + _SHARE_BYTES * len(stripe.shares)
        )
    return CHILD_WEIGHT, size


def leaf_cutter() -> Cutter[bytes]:
    """Cuts records into leaves."""
    return Cutter(0, _measure_record)


def inner_cutter(level: int) -> Cutter[Link]:
    """Cuts child entries into inner pages of that level (1 and up)."""
    return Cutter(level, _measure_link, MIN_CHILDREN)


class LevelEdit(Generic[V]):
    """Applies sorted changes to one level and cuts anew what they touch.

    Use: while ``next_key`` is not None, feed the old page that holds it, then every following page until ``in_step``.
    """

    def __init__(self, cutter: Cutter[V], changes: Sequence[tuple[bytes, V | Keep | None]]) -> None:
        self._cutter = cutter
        self._changes = changes
        self._keys = [key for key, _ in changes]
        self._done = 0

    @property
    def in_step(self) -> bool:
        """Whether the new pages end where the last fed old page ended, so that what follows can stay."""
        return self._cutter.empty

    @property
    def next_key(self) -> bytes | None:
        """The key of the first change that no fed page covered."""
        return self._keys[self._done] if self._done < len(self._keys) else None

    def next_from(self, key: bytes) -> bytes | None:
        """The first changed key that is not below ``key``, to see ahead which pages will be fed."""
        index = bisect_left(self._keys, key, self._done)
        return self._keys[index] if index < len(self._keys) else None

    def feed(self, items: Sequence[tuple[bytes, V]], high: bytes | None) -> list[list[tuple[bytes, V]]]:
        """Take the items of the next old page, whose range ends at ``high``; returns new pages that are complete.

        With ``high`` None (the last page of the level) the rest comes out too.
        """
        end = len(self._keys) if high is None else bisect_left(self._keys, high, self._done)
        pages = self._cutter.extend(merged(items, self._changes[self._done : end]))
        self._done = end
        return pages + self._cutter.finish() if high is None else pages


def merged(items: Sequence[tuple[bytes, V]], changes: Sequence[tuple[bytes, V | Keep | None]]) -> Sequence[tuple[bytes, V]]:
    """The items with the changes applied, in order. Deleting what is not there does nothing."""
    if not changes:
        return items
    table = dict(items)
    for key, value in changes:
        if value is None:
            table.pop(key, None)
        elif not isinstance(value, Keep):
            table[key] = value
    return sorted(table.items(), key=itemgetter(0))

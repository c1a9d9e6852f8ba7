"""Reading the metadata tree: every page is checked against what its parent says, and inner pages are remembered.

Nothing here trusts a node. A page opens only under the key that its parent names (made for that page alone), so another
page, an older one, or a part of one in its place does not open; and what opens must have the level, the first key, the
range of keys and the number of records that the parent names. Levels go down by one, so there are no cycles.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from operator import attrgetter
from typing import Protocol

import trio

from hivefs.content.tree import Leaf, Link, Spot, check_page, child_link, damaged
from hivefs.errors import HivefsError
from hivefs.formats import page as page_format
from hivefs.model.head import Root
from hivefs.model.page import InnerPage, LeafPage, Page, Record
from hivefs.model.stripe import PageRef, Stripe

CACHE_BYTES = 16 << 20
PARALLEL = 8
_first_key = attrgetter("first_key")


class Fetch(Protocol):
    """Gives the plaintext of a page of a stripe. Raises Corrupt when it does not open, NotEnoughShares and so on."""

    async def __call__(self, ref: PageRef, stripe: Stripe, /) -> bytes: ...


class TreeReader:
    """Reads trees of any root. ``cache_bytes`` of plaintext are remembered, ``parallel`` pages fetched at a time."""

    def __init__(self, fetch: Fetch, cache_bytes: int = CACHE_BYTES, parallel: int = PARALLEL) -> None:
        self._fetch = fetch
        self._cache_bytes = cache_bytes
        self._parallel = parallel
        self._cache: OrderedDict[bytes, tuple[Page, int]] = OrderedDict()
        self._cached_bytes = 0

    # ---- for the engine ---------------------------------------------------------------------------------------------

    async def load(self, root: Root, key: bytes) -> Leaf:
        """The leaf that holds ``key`` if anything does, with the range of keys that it speaks for. Raises Corrupt."""
        top = root_spot(root)
        if top is None:
            return Leaf(b"", None, ())
        spot = await self.locate(top, 0, key)
        return Leaf(spot.low, spot.high, await self.records(spot))

    async def walk(self, root: Root, start: bytes = b"") -> AsyncIterator[tuple[Leaf, int]]:
        """All leaves in order from the one that holds ``start``, each with the number of records up to its end.

        The last number equals ``root.records``. An empty tree gives one leaf without records. Raises Corrupt.
        """
        if root.page is None:
            yield Leaf(b"", None, ()), 0
        done = 0
        async for spot in self.spots(root, 0, start):
            if spot.high is not None and spot.high <= start:
                done += spot.link.records
            elif spot.level == 0:
                records = await self.records(spot)
                done += len(records)
                yield Leaf(spot.low, spot.high, records), done

    async def pages(self, root: Root) -> AsyncIterator[tuple[PageRef, Stripe]]:
        """Every page of the tree, leaves too, and its stripe; only inner pages are read. Raises Corrupt."""
        async for _, ref, stripe in self.leveled(root):
            yield ref, stripe

    async def leveled(self, root: Root) -> AsyncIterator[tuple[int, PageRef, Stripe]]:
        """The same with the level of each page, 0 for leaves."""
        async for spot in self.spots(root, 1):
            if spot.level == root.height - 1:
                yield spot.level, spot.link.ref, stripe_of(spot)
            if spot.level:
                for child in await self.children(spot):
                    yield child.level, child.link.ref, stripe_of(child)

    async def stripes(self, root: Root) -> AsyncIterator[Stripe]:
        """Every stripe that holds pages of the tree, once; only inner pages are read. Raises Corrupt."""
        seen = set()
        async for _, stripe in self.pages(root):
            if stripe.stripe_id not in seen:
                seen.add(stripe.stripe_id)
                yield stripe

    # ---- for editing ------------------------------------------------------------------------------------------------

    async def page(self, spot: Spot) -> Page:
        """The page, checked against what its parent says of it. Raises Corrupt, UnknownVersion, or what fetch raises."""
        ref = spot.link.ref
        known = self._cache.get(ref.key)
        if known is not None:
            self._cache.move_to_end(ref.key)
            page = known[0]
        else:
            page = page_format.from_bytes(await self._fetch(ref, stripe_of(spot)))
            if ref.key not in self._cache:
                self._cache[ref.key] = page, ref.length
                self._cached_bytes += ref.length
                while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
                    _, (_, size) = self._cache.popitem(last=False)
                    self._cached_bytes -= size
        check_page(page, spot)
        return page

    async def records(self, spot: Spot) -> tuple[Record, ...]:
        """The records of a leaf."""
        page = await self.page(spot)
        if not isinstance(page, LeafPage):
            raise damaged("an inner page where a leaf belongs")
        return page.records

    async def inner(self, spot: Spot) -> InnerPage:
        """The page, which must be an inner one."""
        page = await self.page(spot)
        if not isinstance(page, InnerPage):
            raise damaged("a leaf where an inner page belongs")
        return page

    async def children(self, spot: Spot) -> list[Spot]:
        """The pages under an inner page."""
        page = await self.inner(spot)
        return [_child(page, spot, i) for i in range(len(page.children))]

    async def links(self, spot: Spot) -> list[tuple[bytes, Link]]:
        """The entries of an inner page."""
        page = await self.inner(spot)
        return [(child.first_key, child_link(page.stripes, spot.link.stripe, child)) for child in page.children]

    async def locate(self, top: Spot, level: int, key: bytes, before: bool = False) -> Spot:
        """The page of ``level`` under ``top`` whose range holds ``key``; with ``before``, the keys just below it."""
        spot = top
        while spot.level > level:
            page = await self.inner(spot)
            cut = bisect_left if before else bisect_right
            spot = _child(page, spot, max(0, cut(page.children, key, key=_first_key) - 1))
        return spot

    async def prefetch(self, spots: Sequence[Spot]) -> None:
        """Read those pages into the cache, all at a time. Raises what the first failing one raises."""
        wanted = [spot for spot in spots if spot.link.ref.key not in self._cache]
        if len(wanted) < 2:
            return
        problems: list[HivefsError] = []

        async def read(spot: Spot) -> None:
            try:
                await self.page(spot)
            except HivefsError as error:
                problems.append(error)

        async with trio.open_nursery() as nursery:
            for spot in wanted:
                nursery.start_soon(read, spot)
        if problems:
            raise problems[0]

    async def spots(self, root: Root, lowest: int, start: bytes = b"") -> AsyncIterator[Spot]:
        """Pages of level ``lowest`` and above in order of keys, parents first; nothing is read of those before start."""
        top = root_spot(root)
        ahead = [] if top is None else [top]
        while ahead:
            spot = ahead.pop()
            if spot.high is not None and spot.high <= start:
                yield spot
                continue
            if spot.link.ref.key not in self._cache:
                siblings = [s for s in ahead[: -self._parallel : -1] if s.level == spot.level]
                await self.prefetch([spot, *siblings])
            yield spot
            if spot.level > lowest:
                ahead += reversed(await self.children(spot))


def root_spot(root: Root) -> Spot | None:
    """The top page as the head knows it; None for an empty tree. Raises Corrupt when the head contradicts itself."""
    if root.page is None:
        if root.height or root.records:
            raise damaged("a head names no page but a height or records")
        return None
    if not 1 <= root.height <= page_format.MAX_LEVEL + 1:
        raise damaged(f"a head names a height of {root.height}")
    stripe_id = root.page.place.stripe_id
    stripe = next((s for s in root.stripes if s.stripe_id == stripe_id), None)
    if stripe is None:
        raise damaged("a head does not describe the stripe of its page")
    return Spot(root.height - 1, Link(root.page, root.records, stripe), None, b"", None)


def stripe_of(spot: Spot) -> Stripe:
    """The stripe that a page lies in; it was read from its parent, so it is known."""
    if spot.link.stripe is None:
        raise ValueError("this page is not stored yet")
    return spot.link.stripe


def _child(page: InnerPage, spot: Spot, index: int) -> Spot:
    child = page.children[index]
    return Spot(
        spot.level - 1,
        child_link(page.stripes, spot.link.stripe, child),
        child.first_key,
        child.first_key if index else spot.low,
        page.children[index + 1].first_key if index + 1 < len(page.children) else spot.high,
    )

"""Writing the metadata tree: an edit level by level, from the leaves to a new root.

The pure decisions are in content/tree.py; this is the flow around them. Level 0 takes the changed records and gives the
changed child entries of level 1, and so on. Of each level only the pages that changes touch are read, each new page is
stored as soon as it is complete, and what stays in memory per level is the list of changed child entries.

**One stripe for all levels.** A parent names its children by place and describes their stripes, and a description holds
the hashes of the shares. So a parent could not lie in the same stripe as its children, and a small checkpoint would
need a stripe, and a round of placing, per level. Therefore a page does not describe the stripe that it lies in itself:
whoever reads it has the description already. ``PageStripe.add`` gives a page its place at once, ``place`` codes and
places the whole; it is called when the stripe is full or the tree is complete.

Nothing is undone here when placing fails: the caller forgets the stripes that it began for this edit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from operator import itemgetter
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import trio

from hivefs.content.tree import (
    KEEP,
    Keep,
    LevelEdit,
    Link,
    Spot,
    check_changes,
    inner_cutter,
    leaf_cutter,
)
from hivefs.formats import page as page_format
from hivefs.maintenance.tree_reader import CACHE_BYTES, PARALLEL, Fetch, TreeReader, root_spot
from hivefs.model.head import Root
from hivefs.model.ids import StripeId
from hivefs.model.page import Child, InnerPage, LeafPage
from hivefs.model.stripe import PageRef, Stripe

V = TypeVar("V")
Items: TypeAlias = list[tuple[bytes, V]]
EMPTY = Root(None, 0, 0)
_BATCH = 512


class PageStripe(Protocol):
    """A metadata stripe that is being filled."""

    @property
    def stripe_id(self) -> StripeId:
        """Known from the beginning, as pages name it."""

    def add(self, page: bytes) -> PageRef | None:
        """Seal a page (at most 1 MiB, under a fresh random key) and give it a place; None when it does not fit any
        more. A page always fits into a stripe that holds nothing.
        """

    async def place(self) -> Stripe:
        """Code and place what was added; called once. Raises HivefsError when it cannot be placed."""


class Edited(NamedTuple):
    """A new root, and the pages that it does not name any more (for garbage collection once its head is out).

    Every page that was added to a stripe is either in the new tree or in ``dropped``.
    """

    root: Root
    dropped: list[PageRef]


class CheckpointTree(TreeReader):
    """Reads and edits the tree. ``begin`` gives an empty stripe to fill; at most one is open at a time.

    Edits share nothing but the cache of pages, so several may run at once (each with stripes of its own).
    """

    def __init__(
        self,
        fetch: Fetch,
        begin: Callable[[], PageStripe],
        cache_bytes: int = CACHE_BYTES,
        parallel: int = PARALLEL,
    ) -> None:
        super().__init__(fetch, cache_bytes, parallel)
        self._begin = begin

    async def update(
        self,
        root: Root,
        changes: Sequence[tuple[bytes, bytes | None]],
        *,
        replaced: Mapping[StripeId, Stripe] | None = None,
        evacuate: Collection[StripeId] = (),
    ) -> Edited:
        """Apply changes (ascending keys, None deletes) and give the new root; the same root when nothing changes.

        ``replaced`` are new descriptions of stripes (repaired) that take the place of the old ones everywhere;
        ``evacuate`` are stripes whose pages are written again elsewhere, so that they can be given up. Either makes
        all inner pages be read. Raises ValueError for changes out of order or too large, Corrupt and what the ports
        raise.
        """
        check_changes(changes)
        replaced = replaced or {}
        marks: _Marks = {}
        reader: TreeReader = self
        if replaced or evacuate:
            reader = TreeReader(_Renewed(self._fetch, replaced), self._cache_bytes, self._parallel)
            marks = await _mark(reader, root, replaced, evacuate)
            stripes = tuple(replaced.get(stripe.stripe_id, stripe) for stripe in root.stripes)
            root = replace(root, stripes=stripes) if stripes != root.stripes else root
        edit = _Edit(reader, self._begin, replaced, evacuate, self._parallel)
        return await edit.run(root, changes, marks)

    async def relocate(self, root: Root, replaced: Mapping[StripeId, Stripe]) -> Edited:
        """Put new descriptions of stripes into the inner pages that hold the old ones; no other page changes."""
        return await self.update(root, (), replaced=replaced)

    async def build(self, records: Iterable[tuple[bytes, bytes]], root: Root = EMPTY) -> Edited:
        """A tree of all these records (ascending keys). The fields of ``root`` that are not the tree's are kept."""
        return await _Edit(self, self._begin, {}, (), self._parallel).build(root, records)


class _Renewed:
    """Fetches pages by the newest description of their stripe: the old one may name nodes that are gone."""

    def __init__(self, fetch: Fetch, replaced: Mapping[StripeId, Stripe]) -> None:
        self._fetch = fetch
        self._replaced = replaced

    async def __call__(self, ref: PageRef, stripe: Stripe, /) -> bytes:
        return await self._fetch(ref, self._replaced.get(stripe.stripe_id, stripe))


_Marks = dict[int, dict[bytes, Link | Keep]]


async def _mark(
    reader: TreeReader, root: Root, replaced: Mapping[StripeId, Stripe], evacuate: Collection[StripeId]
) -> _Marks:
    """Changes per level that pages in replaced or evacuated stripes call for."""
    marks: _Marks = {level: {} for level in range(root.height)}
    top = root_spot(root)
    if top is not None and top.link.stripe_id in evacuate:
        marks[top.level][b""] = KEEP
    async for spot in reader.spots(root, 1):
        if spot.level == 0:
            continue
        page = await reader.inner(spot)
        for key, link in await reader.links(spot):
            if link.stripe_id in evacuate:
                marks[spot.level - 1].setdefault(key, KEEP)
            # A page in the stripe of its own children holds no description that could be replaced.
            new = replaced.get(link.stripe_id)
            if new is not None and page.stripes.get(link.stripe_id, new) != new:
                marks[spot.level][key] = Link(link.ref, link.records, new)
    return marks


@dataclass(slots=True)
class _Old(Generic[V]):
    """An old page that an edit read."""

    items: Items[V]
    link: Link
    kept: bool = False


class _Edit:
    """One run of an edit: its stripes, what it stored, what it dropped."""

    def __init__(
        self,
        reader: TreeReader,
        begin: Callable[[], PageStripe],
        replaced: Mapping[StripeId, Stripe],
        evacuate: Collection[StripeId],
        parallel: int,
    ) -> None:
        self._reader = reader
        self._begin = begin
        self._replaced = replaced
        self._evacuate = evacuate
        self._parallel = parallel
        self._open: PageStripe | None = None
        self._placed: dict[StripeId, Stripe] = {}
        self._dropped: list[PageRef] = []
        self._single: dict[bytes, tuple[bytes, Link]] = {}
        """The child of each new inner page that has only one, by the key of the page."""

    async def run(self, root: Root, changes: Sequence[tuple[bytes, bytes | None]], marks: _Marks) -> Edited:
        """Edit all levels of a tree."""
        top = root_spot(root)
        if top is None:
            return await self.build(root, ((key, value) for key, value in changes if value is not None))
        leaves: dict[bytes, bytes | Keep | None] = dict.fromkeys(marks.get(0, {}), KEEP)
        leaves.update(changes)
        above = await self._level(LevelEdit(leaf_cutter(), _sorted(leaves)), top, 0, self._leaf_items, self._store_leaf)
        for level in range(1, top.level + 1):
            links: dict[bytes, Link | Keep | None] = {**marks.get(level, {}), **above}
            edit = LevelEdit(inner_cutter(level), _sorted(links))
            above = await self._level(edit, top, level, self._reader.links, partial(self._store_inner, level))
        entries = [(key, link) for key, link in _sorted(above) if link is not None]
        if not above or [link for _, link in entries] == [top.link]:
            return Edited(root, self._dropped)
        return await self._crown(root, top.level, entries)

    async def build(self, root: Root, records: Iterable[tuple[bytes, bytes]]) -> Edited:
        """Store all leaves, then what goes above them."""
        cutter, rest = leaf_cutter(), iter(records)
        entries: Items[Link] = []
        last = b""
        while batch := list(islice(rest, _BATCH)):
            check_changes(batch, last)
            last = batch[-1][0]
            for page in cutter.extend(batch):
                entries.append((page[0][0], await self._store_leaf(page)))
        for page in cutter.finish():
            entries.append((page[0][0], await self._store_leaf(page)))
        return await self._crown(root, 0, entries)

    async def _level(
        self,
        edit: LevelEdit[V],
        top: Spot,
        level: int,
        read: Callable[[Spot], Awaitable[Items[V]]],
        store: Callable[[Items[V]], Awaitable[Link]],
    ) -> dict[bytes, Link | None]:
        """Edit one level; returns the changes of the level above (for the top level: all of its pages)."""
        above: dict[bytes, Link | None] = {}
        olds: dict[bytes, _Old[V]] = {}
        done = b""
        horizon: bytes | None = b""
        while (at := edit.next_key if edit.in_step else done) is not None:
            # A leaf may end where it does because the next record was too large for it: if that one changes, the leaf
            # before it has to be cut again too. (Not when it was just cut: then it ended with the new record in view.)
            spot = await self._reader.locate(top, level, at, before=level == 0 and at > done)
            if horizon is not None and spot.low >= horizon:
                horizon = await self._read_ahead(edit, top, spot)
            items = await read(spot)
            olds[items[0][0]] = _Old(items, spot.link)
            for page in edit.feed(items, spot.high):
                first = page[0][0]
                old = olds.get(first)
                if old is not None and old.items == page and old.link.stripe_id not in self._evacuate:
                    old.kept = True
                    if level == top.level:
                        above[first] = old.link
                else:
                    above[first] = await store(page)
            if edit.in_step:
                for first, old in olds.items():
                    if not old.kept:
                        self._dropped.append(old.link.ref)
                        above.setdefault(first, None)
                olds.clear()
            if spot.high is None:
                break
            done = spot.high
        return above

    async def _read_ahead(self, edit: LevelEdit[V], top: Spot, spot: Spot) -> bytes | None:
        """Fetch the next pages that changes touch, all at a time; returns the key up to which that was done."""
        spots = [spot]
        while len(spots) < self._parallel and (high := spots[-1].high) is not None:
            key = edit.next_from(high)
            if key is None:
                break
            spots.append(await self._reader.locate(top, spot.level, key))
        await self._reader.prefetch(spots)
        return spots[-1].high

    async def _leaf_items(self, spot: Spot) -> Items[bytes]:
        return list(await self._reader.records(spot))

    async def _crown(self, root: Root, level: int, entries: Items[Link]) -> Edited:
        """Build up from all pages of a level to one, or go down while a page has a single child; then the new root."""
        while len(entries) > 1:
            level += 1
            cutter = inner_cutter(level)
            pages = cutter.extend(entries) + cutter.finish()
            entries = [(page[0][0], await self._store_inner(level, page)) for page in pages]
        if not entries:
            await self._close()
            return Edited(replace(root, page=None, height=0, records=0, stripes=()), self._dropped)
        key, link = entries[0]
        while level and (child := await self._only_child(level, key, link)) is not None:
            self._dropped.append(link.ref)
            level -= 1
            key, link = child
        await self._close()
        stripe = self._describe(link)
        new = replace(root, page=link.ref, height=level + 1, records=link.records, stripes=(stripe,))
        return Edited(new, self._dropped)

    async def _only_child(self, level: int, key: bytes, link: Link) -> tuple[bytes, Link] | None:
        if link.stripe is None:
            return self._single.get(link.ref.key)
        links = await self._reader.links(Spot(level, link, key, b"", None))
        return links[0] if len(links) == 1 else None

    # ---- storing ----------------------------------------------------------------------------------------------------

    async def _store_leaf(self, items: Items[bytes]) -> Link:
        data = page_format.to_bytes(LeafPage(tuple(items)))
        return Link(await self._store(lambda _: data), len(items), None)

    async def _store_inner(self, level: int, items: Items[Link]) -> Link:
        def encode(own: StripeId) -> bytes:
            table = {link.stripe_id: self._describe(link) for _, link in items if link.stripe_id != own}
            children = tuple(Child(key, link.ref, link.records) for key, link in items)
            return page_format.to_bytes(InnerPage(level, children, table))

        ref = await self._store(encode)
        if len(items) == 1:
            self._single[ref.key] = items[0]
        return Link(ref, sum(link.records for _, link in items), None)

    async def _store(self, encode: Callable[[StripeId], bytes]) -> PageRef:
        """Add a page to the open stripe, or to a new one when that is full (what it says depends on which)."""
        await trio.lowlevel.checkpoint()
        if self._open is not None:
            ref = self._open.add(encode(self._open.stripe_id))
            if ref is not None:
                return ref
            await self._close()
        self._open = self._begin()
        ref = self._open.add(encode(self._open.stripe_id))
        if ref is None:
            raise AssertionError("a page fits into an empty stripe")
        return ref

    async def _close(self) -> None:
        if self._open is not None:
            stripe, self._open = self._open, None
            self._placed[stripe.stripe_id] = await stripe.place()

    def _describe(self, link: Link) -> Stripe:
        stripe = self._replaced.get(link.stripe_id) or self._placed.get(link.stripe_id) or link.stripe
        if stripe is None:
            raise AssertionError("only the open stripe is not described")
        return stripe


def _sorted(table: Mapping[bytes, V]) -> Items[V]:
    return sorted(table.items(), key=itemgetter(0))

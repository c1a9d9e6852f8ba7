"""What a node, or whoever else holds pages of the metadata tree, may try: each must end in Corrupt."""

from dataclasses import replace
from random import Random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.content.tree import Spot
from hivefs.crypto.seal import seal_chunk
from hivefs.errors import Corrupt, UnknownVersion
from hivefs.formats import page as page_format
from hivefs.maintenance.checkpoint_tree import CheckpointTree
from hivefs.maintenance.tree_reader import root_spot
from hivefs.model.head import Root
from hivefs.model.ids import StripeId
from hivefs.model.page import Child, InnerPage, LeafPage
from hivefs.model.stripe import PageRef, Purpose
from hivefs.testing.memory_pages import VAULT, MemoryPages, contents

RECORDS = [(b"i" + n.to_bytes(8, "big"), Random(n).randbytes(1000)) for n in range(600)]


def tree_on(pages: MemoryPages) -> CheckpointTree:
    return CheckpointTree(pages.fetch, pages.begin)


async def leaf_spots(tree: CheckpointTree, root: Root) -> list[Spot]:
    top = root_spot(root)
    assert top is not None
    level = [top]
    while level[0].level:
        level = [child for spot in level for child in await tree.children(spot)]
    return level


def sealed(pages: MemoryPages, ref: PageRef) -> bytes:
    place = ref.place
    return pages.shares[place.stripe_id][place.index][place.offset : place.offset + place.length]


def overwrite(pages: MemoryPages, ref: PageRef, data: bytes) -> None:
    place = ref.place
    assert len(data) == place.length
    share = pages.shares[place.stripe_id][place.index]
    pages.shares[place.stripe_id][place.index] = share[: place.offset] + data + share[place.offset + place.length :]


async def refuses(pages: MemoryPages, root: Root, spot: Spot) -> None:
    """Every way to the page ends in Corrupt, and no other page suffers."""
    for attempt in (
        lambda: tree_on(pages).load(root, spot.low),
        lambda: contents(tree_on(pages), root),
        lambda: tree_on(pages).update(root, [(spot.low + b"\x00", b"new")]),
    ):
        with pytest.raises(Corrupt):
            await attempt()


async def equal_pair(tree: CheckpointTree, root: Root) -> tuple[Spot, Spot]:
    """Two leaves with the same number of records and the same lengths, so that nothing but the seal tells them apart."""
    by_length: dict[tuple[int, int], Spot] = {}
    for spot in await leaf_spots(tree, root):
        ref = spot.link.ref
        other = by_length.setdefault((ref.length, ref.place.length), spot)
        if other is not spot:
            return other, spot
    raise AssertionError("no such pair")


def run_pair(attack) -> None:
    """Build, let ``attack(pages, first, second)`` loose on two equally long leaves, and expect both refused or one."""

    async def main() -> None:
        pages = MemoryPages()
        root, _ = await tree_on(pages).build(RECORDS)
        first, second = await equal_pair(tree_on(pages), root)
        for spot in attack(pages, first, second):
            await refuses(pages, root, spot)

    trio.run(main)


def test_two_pages_swapped():
    def attack(pages, first, second):
        a, b = sealed(pages, first.link.ref), sealed(pages, second.link.ref)
        overwrite(pages, first.link.ref, b)
        overwrite(pages, second.link.ref, a)
        return [first, second]

    run_pair(attack)


def test_a_page_duplicated_over_another():
    def attack(pages, first, second):
        overwrite(pages, second.link.ref, sealed(pages, first.link.ref))
        return [second]

    run_pair(attack)


def test_segments_reordered_within_a_page():
    async def main() -> None:
        pages = MemoryPages()
        root, _ = await tree_on(pages).build(RECORDS)
        unit = (32 << 10) + 16
        spot = next(s for s in await leaf_spots(tree_on(pages), root) if s.link.ref.place.length > unit)
        data = sealed(pages, spot.link.ref)
        overwrite(pages, spot.link.ref, data[unit:] + data[:unit])
        await refuses(pages, root, spot)

    trio.run(main)


@pytest.mark.parametrize("keep", [0, 1, 15, 16, 17, 0.5, -1])
def test_a_truncated_page(keep):
    async def main() -> None:
        pages = MemoryPages()
        root, _ = await tree_on(pages).build(RECORDS[:20])
        assert root.page is not None
        place = root.page.place
        length = int(place.length * keep) if isinstance(keep, float) else keep % place.length
        share = pages.shares[place.stripe_id][place.index]
        pages.shares[place.stripe_id][place.index] = share[: place.offset + length]
        with pytest.raises(Corrupt):
            await tree_on(pages).load(root, b"x")

    trio.run(main)


def test_a_page_of_an_older_checkpoint_at_the_same_place():
    async def main() -> None:
        pages = MemoryPages()
        old, _ = await tree_on(pages).build(RECORDS)
        name = RECORDS[300][0]
        new, _ = await tree_on(pages).update(old, [(name, Random(9).randbytes(1000))])
        for level in range(old.height):
            was = await tree_on(pages).locate(root_spot(old), level, name)
            now = await tree_on(pages).locate(root_spot(new), level, name)
            assert was.link.ref != now.link.ref
            original = sealed(pages, now.link.ref)
            rolled_back = sealed(pages, was.link.ref)
            if level == 0:
                assert len(rolled_back) == len(original)
            overwrite(pages, now.link.ref, rolled_back[: len(original)].ljust(len(original), b"\x00"))
            with pytest.raises(Corrupt):
                await tree_on(pages).load(new, name)
            overwrite(pages, now.link.ref, original)
        assert dict((await tree_on(pages).load(old, name)).records)[name] == RECORDS[300][1]

    trio.run(main)


def test_a_head_s_root_cannot_be_mixed_with_that_of_another_checkpoint():
    async def main() -> None:
        pages = MemoryPages()
        old, _ = await tree_on(pages).build(RECORDS)
        new, _ = await tree_on(pages).update(old, [(b"z", b"more")])
        for mixed in (
            replace(new, page=old.page),
            replace(new, page=old.page, stripes=old.stripes),
            replace(new, stripes=old.stripes),
            replace(new, height=new.height - 1),
            replace(new, height=new.height + 1),
            replace(new, height=0),
            replace(new, height=40),
            replace(new, page=None),
            replace(new, stripes=()),
            replace(new, records=new.records + 1),
        ):
            with pytest.raises(Corrupt):
                await contents(tree_on(pages), mixed)
            with pytest.raises(Corrupt):
                await tree_on(pages).update(mixed, [(b"a", b"")])

    trio.run(main)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_flipped_bit_is_refused_or_was_padding(data):
    async def main() -> None:
        pages = MemoryPages()
        root, _ = await tree_on(pages).build(RECORDS[:150])
        stripe_id = root.stripes[0].stripe_id
        index = data.draw(st.integers(0, pages.needed - 1))
        share = bytearray(pages.shares[stripe_id][index])
        at = data.draw(st.integers(0, len(share) - 1))
        share[at] ^= 1 << data.draw(st.integers(0, 7))
        pages.shares[stripe_id][index] = bytes(share)
        used = any(
            ref.place.index == index and ref.place.offset <= at < ref.place.offset + ref.place.length for ref in pages.added
        )
        if used:
            with pytest.raises(Corrupt):
                await contents(tree_on(pages), root)
        else:
            assert await contents(tree_on(pages), root) == dict(RECORDS[:150])

    trio.run(main)


def test_pages_of_data_or_of_another_vault_do_not_pass():
    """Even under the right key: purpose and vault are bound into the seal."""

    async def main() -> None:
        pages = MemoryPages()
        root, _ = await tree_on(pages).build(RECORDS[:20])
        ref = root.page
        assert ref is not None
        plain = page_format.to_bytes(LeafPage(tuple(RECORDS[:20])))
        for vault, purpose, good in (
            (VAULT, Purpose.DATA, False),
            (b"w" * 16, Purpose.METADATA, False),
            (VAULT, Purpose.METADATA, True),
        ):
            overwrite(pages, ref, seal_chunk(ref.key, vault, purpose, plain)[0])
            if good:
                assert await contents(tree_on(pages), root) == dict(RECORDS[:20])
            else:
                with pytest.raises(Corrupt):
                    await contents(tree_on(pages), root)

    trio.run(main)


# ---- behind the seal: a port, a cache or an older HiveFS that hands over the wrong plaintext ---------------------------


class Lying(MemoryPages):
    """Gives another plaintext for the pages in ``lies``."""

    def __init__(self) -> None:
        super().__init__()
        self.lies: dict[PageRef, bytes] = {}

    async def fetch(self, ref, stripe, /):
        honest = await super().fetch(ref, stripe)
        return self.lies.get(ref, honest)


async def lied(change) -> None:
    """``change(plaintext by level on one path, neighbour's plaintext)`` gives the lies to try, (level, bytes) each."""
    pages = Lying()
    root, _ = await tree_on(pages).build(RECORDS)
    assert root.height == 2
    tree = tree_on(pages)
    name = RECORDS[300][0]
    spots = [await tree.locate(root_spot(root), level, name) for level in range(root.height)]
    plains = [await pages.fetch(spot.link.ref, spot.link.stripe) for spot in spots]
    assert spots[0].high is not None
    neighbour = await tree.locate(root_spot(root), 0, spots[0].high)
    beside = await pages.fetch(neighbour.link.ref, neighbour.link.stripe)
    for level, lie in change([page_format.from_bytes(p) for p in plains], page_format.from_bytes(beside)):
        pages.lies = {spots[level].link.ref: lie}
        with pytest.raises((Corrupt, UnknownVersion)):
            await tree_on(pages).load(root, name)
        with pytest.raises((Corrupt, UnknownVersion)):
            await tree_on(pages).update(root, [(name, b"new")])


def raw(page) -> bytes:
    return page_format.to_bytes(page)


def test_a_neighbour_a_parent_or_a_leaf_in_place_of_a_page():
    trio.run(
        lied,
        lambda plains, beside: [
            (0, raw(beside)),
            (0, raw(plains[1])),
            (1, raw(plains[0])),
            (0, b""),
            (1, raw(plains[1])[:-1]),
        ],
    )


def test_keys_injected_into_or_taken_from_a_leaf():
    def change(plains, beside):
        records = plains[0].records
        low, after = records[0][0], beside.records[0]
        return [
            (0, raw(LeafPage((*records, (records[-1][0] + b"\x00", b"planted"))))),
            (0, raw(LeafPage(records[:-1]))),
            (0, raw(LeafPage(records[1:]))),
            (0, raw(LeafPage((*records[:-1], after)))),
            (0, raw(LeafPage(((low + b"\x00", b""), *records[1:])))),
            (0, raw(LeafPage(((b"a", b""), *records[1:])))),
        ]

    trio.run(lied, change)


def test_children_reordered_removed_duplicated_or_renamed():
    def change(plains, beside):
        page = plains[1]
        children = list(page.children)
        at = next(i for i, c in enumerate(children) if c.first_key == plains[0].records[0][0])
        here, following = children[at], children[at + 1]

        def with_children(changed) -> tuple[int, bytes]:
            return 1, raw(InnerPage(page.level, tuple(changed), page.stripes))

        crossed = list(children)
        crossed[at] = Child(here.first_key, following.ref, following.records)
        crossed[at + 1] = Child(following.first_key, here.ref, here.records)
        doubled = list(children)
        doubled[at] = Child(here.first_key, following.ref, here.records)
        reordered = list(children)
        reordered[at], reordered[at + 1] = following, here
        renamed = list(children)
        renamed[at] = Child(here.first_key + b"\x00", here.ref, here.records)
        earlier = list(children)
        earlier[at] = Child(children[at - 1].first_key + b"\x00", here.ref, here.records)
        foreign = list(children)
        place = replace(here.ref.place, stripe_id=StripeId(b"?" * 16))
        foreign[at] = Child(here.first_key, replace(here.ref, place=place), here.records)
        return [
            with_children(crossed),
            with_children(doubled),
            with_children(reordered),
            with_children(renamed),
            with_children(earlier),
            with_children(foreign),
            with_children(children[:at] + children[at + 1 :]),
            with_children([*children, Child(b"z", here.ref, here.records)]),
            (1, raw(InnerPage(page.level + 1, page.children, page.stripes))),
        ]

    trio.run(lied, change)


def test_a_page_that_describes_its_own_stripe():
    """Else there would be two descriptions to choose from."""

    async def main() -> None:
        pages = Lying()
        root, _ = await tree_on(pages).build(RECORDS)
        spot = root_spot(root)
        assert spot is not None
        page = page_format.from_bytes(await pages.fetch(spot.link.ref, root.stripes[0]))
        assert isinstance(page, InnerPage)
        pages.lies[spot.link.ref] = raw(InnerPage(page.level, page.children, {root.stripes[0].stripe_id: root.stripes[0]}))
        with pytest.raises(Corrupt):
            await tree_on(pages).load(root, b"i")

    trio.run(main)

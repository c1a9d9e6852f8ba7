"""The metadata tree when stripes move: new descriptions after a repair, and pages written again elsewhere."""

from random import Random

import pytest
import trio

from hivefs.content import tree as rules
from hivefs.maintenance.checkpoint_tree import CheckpointTree
from hivefs.testing.memory_pages import MemoryPages, contents, leaves_of, live, shape


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Small pages, so that few records make a high tree."""
    monkeypatch.setattr(rules, "_SQUARE", 400 * 400)
    monkeypatch.setattr(rules, "CHILD_WEIGHT", 120)


def tree_on(pages: MemoryPages) -> CheckpointTree:
    return CheckpointTree(pages.fetch, pages.begin)


def key(number: int) -> bytes:
    return b"i" + number.to_bytes(8, "big")


def numbered(count: int, size: int = 60, seed: int = 3) -> list[tuple[bytes, bytes]]:
    random = Random(seed)
    return [(key(number), random.randbytes(size)) for number in range(count)]


class CurrentOnly(MemoryPages):
    """Fetches only by descriptions that are not out of date."""

    async def fetch(self, ref, stripe, /):
        assert stripe == self.stripes[stripe.stripe_id], "an old description"
        return await super().fetch(ref, stripe)


def test_relocate_renews_descriptions_and_keeps_other_pages():
    records = numbered(1500)

    async def main() -> None:
        pages = CurrentOnly(1, 3, 12_000)
        tree = tree_on(pages)
        root, _ = await tree.build(records[::2])
        root, _ = await tree.update(root, records[1::30])
        expected = await contents(tree, root)
        before, outline = await live(tree, root), await shape(tree, root)
        leaves = await leaves_of(tree, root)
        named = [stripe.stripe_id async for stripe in tree.stripes(root)]
        for some in (named[:1], named[5:9], [root.stripes[0].stripe_id], named):
            replaced = {stripe_id: pages.moved(stripe_id) for stripe_id in some}
            added = len(pages.added)
            root, dropped = await tree.relocate(root, replaced)
            tree = tree_on(pages)
            assert await contents(tree, root) == expected
            assert await shape(tree, root) == outline
            assert {s.stripe_id async for s in tree.stripes(root) if s != pages.stripes[s.stripe_id]} == set()
            after = await live(tree, root)
            assert before - after == set(dropped) and after - before == set(pages.added[added:])
            assert leaves <= after
            before = after

    trio.run(main)


def test_relocate_together_with_changes():
    async def main() -> None:
        pages = CurrentOnly(1, 3, 12_000)
        tree = tree_on(pages)
        root, _ = await tree.build(numbered(1000))
        replaced = {name: pages.moved(name) for name in list(pages.stripes)[::2]}
        changes = sorted({key(n): b"new" for n in range(0, 1000, 97)}.items())
        root, _ = await tree_on(pages).update(root, changes, replaced=replaced)
        assert await contents(tree_on(pages), root) == dict(numbered(1000)) | dict(changes)

    trio.run(main)


@pytest.mark.parametrize("later", [False, True])
def test_a_page_written_again_describes_its_old_stripe_anew(later):
    """Its other children stay behind in the stripe that it described nowhere, being in it itself."""

    async def main() -> None:
        pages = CurrentOnly()
        tree = tree_on(pages)
        root, _ = await tree.build(numbered(200))
        root, _ = await tree.update(root, [(key(n), b"second" * 10) for n in range(100)])
        own = root.stripes[0].stripe_id
        assert len([ref for ref in await leaves_of(tree, root) if ref.place.stripe_id == own]) > 10
        if later:
            # Now the root lies elsewhere, and pages above describe that stripe.
            root, _ = await tree.update(root, [(key(199), b"later")])
            assert root.stripes[0].stripe_id != own and root.height > 2
        new = pages.moved(own)
        root, _ = await tree_on(pages).update(root, [(key(n), b"third") for n in range(0, 100, 40)], replaced={own: new})
        tree = tree_on(pages)
        assert new in [stripe async for stripe in tree.stripes(root)]
        found = await contents(tree, root)
        assert [found[key(n)] for n in (0, 1, 40, 99)] == [b"third", b"second" * 10, b"third", b"second" * 10]

    trio.run(main)


def test_evacuate_empties_stripes():
    records = dict(numbered(1500))

    async def main() -> None:
        pages = MemoryPages(1, 3, 12_000)
        tree = tree_on(pages)
        root, _ = await tree.build(sorted(records.items()))
        outline = await shape(tree, root)
        stripes = [stripe.stripe_id async for stripe in tree.stripes(root)]
        for empty in (stripes[:3], stripes[7:8], [root.stripes[0].stripe_id], stripes):
            before = await live(tree, root)
            added = len(pages.added)
            root, dropped = await tree.update(root, [], evacuate=set(empty))
            after = await live(tree, root)
            assert not {ref.place.stripe_id for ref in after} & set(empty)
            assert before - after == set(dropped) and after - before == set(pages.added[added:])
            assert await shape(tree, root) == outline
        assert await contents(tree_on(pages), root) == records

    trio.run(main)

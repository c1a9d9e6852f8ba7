"""Editing and reading the metadata tree over pages in memory."""

from random import Random

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.content import tree as rules
from hivefs.errors import HiveFull
from hivefs.maintenance.checkpoint_tree import EMPTY, CheckpointTree
from hivefs.model.head import Root
from hivefs.testing.memory_pages import MemoryPages, contents, leaves_of, live, shape

TINY_SQUARE = 400 * 400
"""With these two, pages of a few hundred bytes and about 5 children: high trees out of few records."""
TINY_WEIGHT = 120


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(rules, "_SQUARE", TINY_SQUARE)
    monkeypatch.setattr(rules, "CHILD_WEIGHT", TINY_WEIGHT)


def tree_on(pages: MemoryPages, **options) -> CheckpointTree:
    return CheckpointTree(pages.fetch, pages.begin, **options)


def key(number: int) -> bytes:
    return b"i" + number.to_bytes(8, "big")


def apply(model: dict, changes: dict) -> None:
    for name, value in changes.items():
        if value is None:
            model.pop(name, None)
        else:
            model[name] = value


def numbered(count: int, size: int = 60, seed: int = 3) -> list[tuple[bytes, bytes]]:
    random = Random(seed)
    return [(key(number), random.randbytes(size)) for number in range(count)]


async def checked(pages: MemoryPages, root: Root, model: dict) -> None:
    """The tree holds the model, and looks as if it had been built from it at once."""
    tree = tree_on(pages)
    assert await contents(tree, root) == model
    other = MemoryPages(seed=99)
    built, _ = await tree_on(other).build(sorted(model.items()))
    assert (root.height, root.records) == (built.height, built.records)
    assert await shape(tree, root) == await shape(tree_on(other), built)


small_changes = st.lists(
    st.dictionaries(st.integers(0, 300), st.one_of(st.none(), st.integers(0, 90)), max_size=60), max_size=6
)
spans = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 200), st.booleans()), max_size=6)


@given(small_changes, spans, st.sampled_from([12_000, 40_000, 1 << 20]), st.sampled_from([1, 4000, 1 << 24]))
@settings(max_examples=120, deadline=None)
def test_any_updates_equal_a_dict_and_a_rebuild(steps, ranges, capacity, cache_bytes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "_SQUARE", TINY_SQUARE)
        patch.setattr(rules, "CHILD_WEIGHT", TINY_WEIGHT)
        edits = [{key(n): None if v is None else bytes([n % 251]) * v for n, v in step.items()} for step in steps]
        edits += [{key(n): b"r" * 30 if put else None for n in range(a, a + b)} for a, b, put in ranges]

        async def main() -> None:
            pages = MemoryPages(1, 3, capacity)
            tree, root, model = tree_on(pages, cache_bytes=cache_bytes), EMPTY, {}
            gone: set = set()
            for changes in edits:
                apply(model, changes)
                root, dropped = await tree.update(root, sorted(changes.items()))
                assert not gone & set(dropped) and len(set(dropped)) == len(dropped)
                gone |= set(dropped)
                await checked(pages, root, model)
                # Nothing leaks: every page ever stored is either in the tree or was reported as dropped.
                assert await live(tree, root) == set(pages.added) - gone

        trio.run(main)


LARGE = (10, 5_000, 60_000, 140_000, 262_000, 700_000, 1_040_000)


@given(st.lists(st.dictionaries(st.integers(0, 12), st.one_of(st.none(), st.sampled_from(LARGE)), max_size=8), max_size=5))
@settings(max_examples=60, deadline=None)
def test_large_records_keep_history_out_of_the_boundaries(steps):
    async def main() -> None:
        pages = MemoryPages()
        tree, root, model = tree_on(pages), EMPTY, {}
        for step in steps:
            changes = {key(n): None if v is None else bytes([n]) * v for n, v in step.items()}
            apply(model, changes)
            root, _ = await tree.update(root, sorted(changes.items()))
            await checked(pages, root, model)

    trio.run(main)


def test_a_page_that_ended_before_a_large_record_grows_when_that_shrinks():
    """The one case in which a leaf must be cut again though none of its own records changed."""
    records = {key(0): bytes(20), key(1): bytes(30), key(2): bytes(262_100), key(3): bytes(20)}

    async def main() -> None:
        pages = MemoryPages()
        tree = tree_on(pages)
        root, _ = await tree.build(sorted(records.items()))
        assert key(2) in (await shape(tree, root))[-1]
        root, _ = await tree.update(root, [(key(2), b"small")])
        assert (await shape(tree, root)) == [[b""]]

    trio.run(main)


def test_order_of_updates_does_not_matter(tiny):
    records = numbered(3000)

    async def one(seed: int, step: int) -> list[list[bytes]]:
        pages = MemoryPages(seed=seed)
        tree, root = tree_on(pages), EMPTY
        order = list(records)
        Random(seed).shuffle(order)
        for start in range(0, len(order), step):
            root, _ = await tree.update(root, sorted(order[start : start + step]))
        assert await contents(tree, root) == dict(records)
        return await shape(tree, root)

    async def main() -> None:
        first = await one(1, 3000)
        assert len(first) > 3
        for seed, step in ((2, 700), (3, 151)):
            assert await one(seed, step) == first

    trio.run(main)


def test_one_changed_record_in_100_000_rewrites_one_page_per_level():
    records = numbered(100_000)

    async def main() -> None:
        pages = MemoryPages()
        built, _ = await tree_on(pages).build(records)
        assert built.height == 3
        before = await live(tree_on(pages), built)
        for change, most in (
            ((key(50_000), b"x" * 60), 3),
            ((key(50_001), b"longer" * 30), 5),
            ((key(50_002), None), 5),
            ((key(1 << 40), b"new"), 5),
            ((b"a", b"first of all"), 5),
        ):
            added, fetched = len(pages.added), len(pages.fetched)
            tree = tree_on(pages)
            root, dropped = await tree.update(built, [change])
            assert 3 <= len(pages.added) - added <= most
            assert len(pages.fetched) - fetched <= most + 1
            assert len(pages.stripes) >= 2
            after = await live(tree, root)
            assert before - after == set(dropped)
            assert after - before == set(pages.added[added:])
        changed, _ = await tree_on(pages).update(built, [(key(50_000), b"x" * 60)])
        assert await contents(tree_on(pages), changed) == dict(records) | {key(50_000): b"x" * 60}

    trio.run(main)


def test_all_levels_of_a_small_edit_go_into_one_stripe():
    async def main() -> None:
        pages = MemoryPages()
        tree = tree_on(pages)
        root, _ = await tree.build(numbered(100_000))
        count = len(pages.stripes)
        root, _ = await tree.update(root, [(key(7), b"new")])
        assert len(pages.stripes) == count + 1
        assert root.stripes == (pages.stripes[root.stripes[0].stripe_id],)

    trio.run(main)


def test_changes_that_change_nothing(tiny):
    records = numbered(500)

    async def main() -> None:
        pages = MemoryPages()
        tree = tree_on(pages)
        root, _ = await tree.build(records)
        added = len(pages.added)
        same = sorted([*records[100:300], (key(1000), None), (b"a", None), (key(250) + b"x", None)])
        assert await tree.update(root, same) == (root, [])
        assert await tree.update(root, []) == (root, [])
        assert len(pages.added) == added

    trio.run(main)


def test_the_empty_tree(tiny):
    async def main() -> None:
        pages = MemoryPages()
        tree = tree_on(pages)
        start = Root(None, 0, 0, (), 77, ((1, 5),))
        assert await tree.build([], start) == (start, [])
        assert await tree.update(start, [(b"k", None)]) == (start, [])
        assert await contents(tree, start) == {}
        leaf = await tree.load(start, b"k")
        assert (leaf.low, leaf.high, leaf.records) == (b"", None, ())
        root, _ = await tree.update(start, numbered(300))
        assert (root.next_counter, root.seen) == (77, ((1, 5),))
        everything = await live(tree, root)
        root, dropped = await tree.update(root, [(name, None) for name, _ in numbered(300)])
        assert root == start
        assert set(dropped) == everything

    trio.run(main)


def test_a_tree_shrinks_to_the_height_that_a_rebuild_has(tiny):
    records = numbered(2000)

    async def main() -> None:
        pages = MemoryPages()
        tree = tree_on(pages)
        full, _ = await tree.build(records)
        for first, last in ((0, 1), (700, 703), (1990, 2000), (300, 420)):
            kept = dict(records[first:last])
            root, _ = await tree.update(full, [(name, None) for name, _ in records if name not in kept])
            assert root.height < full.height
            await checked(pages, root, kept)

    trio.run(main)


def test_a_tree_shrinks_through_an_old_page_with_one_child(tiny):
    """The last page of a level may have a single child; when all before it goes, that page is no level of its own."""

    async def main() -> None:
        for count in range(100, 400):
            records = numbered(count)
            pages = MemoryPages()
            tree = tree_on(pages)
            root, _ = await tree.build(records)
            outline = await shape(tree, root)
            if len(outline) == 3 and outline[1][-1] == outline[2][-1]:
                break
        else:
            raise AssertionError("no such tree")
        last = outline[2][-1]
        before = await live(tree, root)
        root, dropped = await tree.update(root, [(name, None) for name, _ in records if name < last])
        assert root.height == 1
        await checked(pages, root, {name: value for name, value in records if name >= last})
        assert before - set(dropped) == {root.page}

    trio.run(main)


def test_load_gives_the_page_and_its_range(tiny):
    records = numbered(1000)
    wanted = {name: value for name, value in records if name[-1] % 3}

    async def main() -> None:
        pages = MemoryPages()
        tree = tree_on(pages)
        root, _ = await tree.build(sorted(wanted.items()))
        for name in [b"", b"a", *[name for name, _ in records], key(5) + b"\x00", b"z"]:
            leaf = await tree.load(root, name)
            assert leaf.low <= name and (leaf.high is None or name < leaf.high)
            assert dict(leaf.records).get(name) == wanted.get(name)
            for present, value in leaf.records:
                assert wanted[present] == value
            inside = [n for n in wanted if leaf.low <= n and (leaf.high is None or n < leaf.high)]
            assert len(inside) == len(leaf.records)

    trio.run(main)


def test_walk_from_the_middle_reads_nothing_before(tiny):
    records = numbered(1000)

    async def main() -> None:
        pages = MemoryPages()
        root, _ = await tree_on(pages).build(records)
        tree = tree_on(pages)
        found, progress = [], []
        async for leaf, done in tree.walk(root, key(900)):
            found += leaf.records
            progress.append(done)
        assert progress == sorted(progress) and progress[-1] == 1000
        assert found == records[-len(found) :] and 100 <= len(found) < 130
        assert len(pages.fetched) < len(pages.added) / 3

    trio.run(main)


def test_pages_and_stripes_read_no_leaf(tiny):
    async def main() -> None:
        pages = MemoryPages(1, 3, 12_000)
        root, _ = await tree_on(pages).build(numbered(1000))
        tree = tree_on(pages)
        found = [(ref, stripe) async for ref, stripe in tree.pages(root)]
        assert sorted(ref.key for ref, _ in found) == sorted(ref.key for ref in pages.added)
        assert all(ref.place.stripe_id == stripe.stripe_id for ref, stripe in found)
        assert {s.stripe_id: s async for s in tree.stripes(root)} == pages.stripes
        assert len([s async for s in tree.stripes(root)]) == len(pages.stripes) > 5
        fetched = set(pages.fetched)
        leaves = await leaves_of(tree, root)
        assert len(leaves) > 100 and not leaves & fetched
        assert len(fetched | leaves) == len(pages.added)

    trio.run(main)


def test_at_most_so_many_pages_are_fetched_at_once(tiny):
    class Counting(MemoryPages):
        now = most = 0

        async def fetch(self, ref, stripe, /):
            self.now += 1
            self.most = max(self.most, self.now)
            await trio.testing.wait_all_tasks_blocked()
            try:
                return await super().fetch(ref, stripe)
            finally:
                self.now -= 1

    async def main() -> None:
        pages = Counting()
        root, _ = await tree_on(pages).build(numbered(1000))
        await contents(tree_on(pages, parallel=4), root)
        assert pages.most == 4
        pages.most = 0
        await tree_on(pages, parallel=3).update(root, [(key(n), b"x") for n in range(0, 1000, 50)])
        assert pages.most == 3

    trio.run(main)


def test_when_placing_fails_the_old_tree_stays(tiny):
    async def main() -> None:
        pages = MemoryPages()
        tree = tree_on(pages)
        root, _ = await tree.build(numbered(500))

        def fail() -> None:
            raise HiveFull(reason="test")

        pages.before_place = fail
        with pytest.raises(HiveFull):
            await tree.update(root, [(key(n), b"new") for n in range(500)])
        pages.before_place = lambda: None
        assert await contents(tree, root) == dict(numbered(500))
        root, _ = await tree.update(root, [(key(n), b"new") for n in range(500)])
        assert await contents(tree, root) == {key(n): b"new" for n in range(500)}

    trio.run(main)


def test_wrong_changes_are_refused():
    async def main() -> None:
        pages = MemoryPages()
        tree = tree_on(pages)
        for bad in ([(b"b", b""), (b"a", b"")], [(b"a", bytes(1 << 20))]):
            with pytest.raises(ValueError):
                await tree.update(EMPTY, bad)
            with pytest.raises(ValueError):
                await tree.build(bad)
        with pytest.raises(ValueError):
            await tree.build(iter([*numbered(600), (key(3), b"")]))

    trio.run(main)

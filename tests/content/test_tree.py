"""The pure half of the metadata tree: pages as bytes, and where they end."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.content import tree
from hivefs.errors import Corrupt, UnknownVersion
from hivefs.formats import page as page_format
from hivefs.formats import strict
from hivefs.formats.stripe import page_ref_to_items, stripe_to_items
from hivefs.model.ids import NodeId, ShareId, StripeId
from hivefs.model.page import Child, InnerPage, LeafPage
from hivefs.model.stripe import ChunkPlace, PageRef, Purpose, Share, Stripe

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "page.json").read_text())


def ref(stripe: bytes, number: int = 0) -> PageRef:
    return PageRef(ChunkPlace(StripeId(stripe * 16), number, 7, 400), bytes([number]) * 32, 500, 1)


def stripe(name: bytes, purpose: Purpose = Purpose.METADATA) -> Stripe:
    shares = tuple(Share(ShareId(bytes([i]) * 32), b"m" * 32, NodeId(b"n" * 32) if i else None) for i in range(3))
    return Stripe(StripeId(name * 16), purpose, 2, 4096, shares, b"p" * 32, 99)


LEAF = LeafPage(((b"d1", b"one"), (b"i1", b""), (b"m1", b"three")))
INNER = InnerPage(
    2,
    (Child(b"a", ref(b"S", 1), 7), Child(b"b", ref(b"T", 2), 1), Child(b"c", ref(b"S", 3), 2)),
    {StripeId(b"S" * 16): stripe(b"S")},
)


def leaf_items(keys, values=None, stripes=()):
    return strict.encode("HVpage", 1, 0, keys, [b"v"] * len(keys) if values is None else values, list(stripes))


def inner_items(keys, refs, stripes, level=1):
    return strict.encode("HVpage", 1, level, keys, refs, stripes)


@pytest.mark.parametrize("page", [LEAF, INNER])
def test_page_round_trip(page):
    assert page_format.from_bytes(page_format.to_bytes(page)) == page


@pytest.mark.parametrize("page", [LEAF, INNER])
def test_every_truncation_and_extension_is_refused(page):
    data = page_format.to_bytes(page)
    for cut in range(len(data)):
        with pytest.raises(Corrupt):
            page_format.from_bytes(data[:cut])
    with pytest.raises(Corrupt):
        page_format.from_bytes(data + b"\x00")


@pytest.mark.parametrize("page", [LEAF, INNER])
def test_a_changed_byte_is_refused_or_gives_another_page(page):
    data = page_format.to_bytes(page)
    for at in range(len(data)):
        for flip in (1, 0x80):
            changed = bytearray(data)
            changed[at] ^= flip
            try:
                other = page_format.from_bytes(bytes(changed))
            except (Corrupt, UnknownVersion):
                continue
            assert other != page
            assert page_format.to_bytes(other) == bytes(changed)


def test_version():
    with pytest.raises(UnknownVersion):
        page_format.from_bytes(strict.encode("HVpage", 3, 0, [b"k"], [b"v"], []))
    with pytest.raises(Corrupt):
        page_format.from_bytes(strict.encode("HVstripe", 1, 0, [b"k"], [b"v"], []))


@pytest.mark.parametrize(
    "data",
    [
        leaf_items([]),
        leaf_items([b""]),
        leaf_items([b"b", b"a"]),
        leaf_items([b"a", b"a"]),
        leaf_items([b"a", "b"]),
        leaf_items([b"k" * 256]),
        leaf_items([b"a", b"b"], [b"v"]),
        leaf_items([b"a"], [b"v", b"w"]),
        leaf_items([b"a"], ["v"]),
        leaf_items([b"a"], stripes=[stripe_to_items(stripe(b"S"))]),
        strict.encode("HVpage", 1, 0, [b"a"], [b"v"]),
        strict.encode("HVpage", 1, -1, [b"a"], [b"v"], []),
        strict.encode("HVpage", 1, True, [b"a"], [b"v"], []),
    ],
)
def test_malformed_leaf(data):
    with pytest.raises(Corrupt):
        page_format.from_bytes(data)


def _child(name: bytes, number: int = 0, records: int = 1):
    return [records, *page_ref_to_items(ref(name, number))]


@pytest.mark.parametrize(
    "data",
    [
        inner_items([b"b", b"a"], [_child(b"S"), _child(b"S", 1)], []),
        inner_items([b"a"], [_child(b"S"), _child(b"S", 1)], []),
        inner_items([b"a"], [_child(b"S", records=0)], []),
        inner_items([b"a"], [_child(b"S")], [], level=32),
        inner_items([b"a"], [_child(b"S")], [stripe_to_items(stripe(b"S", Purpose.DATA))]),
        inner_items([b"a"], [_child(b"S")], [stripe_to_items(stripe(b"T"))]),
        inner_items([b"a"], [_child(b"S")], [stripe_to_items(stripe(b"S"))] * 2),
        inner_items([b"a", b"b"], [_child(b"S"), _child(b"T")], [stripe_to_items(stripe(n)) for n in (b"T", b"S")]),
        inner_items([b"a", b"b"], [_child(b"S"), _child(b"T")], []),
        inner_items([b"a"], [_child(b"S")[:-1]], []),
    ],
)
def test_malformed_inner_page(data):
    with pytest.raises(Corrupt):
        page_format.from_bytes(data)


def test_one_stripe_may_be_left_out_the_page_s_own():
    data = inner_items([b"a", b"b"], [_child(b"S"), _child(b"T")], [stripe_to_items(stripe(b"T"))])
    page = page_format.from_bytes(data)
    assert isinstance(page, InnerPage)
    own = stripe(b"S")
    assert [tree.child_link(page.stripes, own, child).stripe for child in page.children] == [own, stripe(b"T")]
    with pytest.raises(Corrupt):
        tree.child_link(page.stripes, stripe(b"X"), page.children[0])


def spot(level, first, high, records, name=b"Z") -> tree.Spot:
    return tree.Spot(level, tree.Link(ref(name), records, stripe(name)), first, first or b"", high)


def test_check_page_compares_everything_that_the_parent_says():
    tree.check_page(LEAF, spot(0, b"d1", b"m2", 3))
    tree.check_page(LEAF, spot(0, None, None, 3))
    tree.check_page(INNER, spot(2, b"a", b"d", 10, b"T"))
    for page, bad in [
        (LEAF, spot(1, b"d1", b"m2", 3)),
        (LEAF, spot(0, b"d0", b"m2", 3)),
        (LEAF, spot(0, b"d2", b"m2", 3)),
        (LEAF, spot(0, b"d1", b"m1", 3)),
        (LEAF, spot(0, b"d1", b"m2", 4)),
        (INNER, spot(0, b"a", b"d", 10, b"T")),
        (INNER, spot(1, b"a", b"d", 10, b"T")),
        (INNER, spot(2, b"a", b"c", 10, b"T")),
        (INNER, spot(2, b"a", b"d", 9, b"T")),
        (INNER, spot(2, b"a", b"d", 10, b"S")),
    ]:
        with pytest.raises(Corrupt):
            tree.check_page(page, bad)


def numbered(count: int, size: int):
    return [(b"i" + number.to_bytes(8, "big"), bytes(size)) for number in range(count)]


def cut(records):
    cutter = tree.leaf_cutter()
    return cutter.extend(records) + cutter.finish()


def test_sizes_of_leaves():
    pages = cut(numbered(60_000, 100))
    sizes = [len(page_format.to_bytes(LeafPage(tuple(page)))) for page in pages[:-1]]
    assert 28_000 < sum(sizes) / len(sizes) < 40_000
    assert max(sizes) < 160 << 10
    assert [item for page in pages for item in page] == numbered(60_000, 100)


@given(st.lists(st.integers(0, 1_000_000), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_no_page_is_larger_than_its_limit(sizes):
    records = [(b"i" + i.to_bytes(8, "big"), bytes(size)) for i, size in enumerate(sizes)]
    pages = cut(records)
    assert [item for page in pages for item in page] == records
    for page in pages:
        data = page_format.to_bytes(LeafPage(tuple(page)))
        assert len(data) <= (tree.MAX_PAGE_BYTES if len(page) > 1 else 1 << 20)


@given(st.integers(1, 400), st.integers(1, 255))
@settings(max_examples=30, deadline=None)
def test_inner_pages_are_limited_too_and_every_level_shrinks(count, total):
    shares = tuple(Share(ShareId(bytes(32)), bytes(32), NodeId(bytes(32))) for _ in range(total))
    links = []
    for number in range(count):
        name = StripeId(number.to_bytes(16, "big"))
        described = Stripe(name, Purpose.METADATA, 1, 2 << 20, shares, b"p" * 32, (1 << 63) - 1)
        place = ChunkPlace(name, 255, 2 << 20, 2 << 20)
        links.append((number.to_bytes(255, "big"), tree.Link(PageRef(place, bytes(32), 1 << 20, 255), 1 << 40, described)))
    cutter = tree.inner_cutter(3)
    pages = cutter.extend(links) + cutter.finish()
    assert [item for page in pages for item in page] == links
    assert all(len(page) >= tree.MIN_CHILDREN for page in pages[:-1])
    for page in pages:
        children = tuple(Child(key, link.ref, link.records) for key, link in page)
        data = page_format.to_bytes(InnerPage(3, children, {link.stripe_id: link.stripe for _, link in page}))
        assert len(data) <= tree.MAX_PAGE_BYTES


def links_in(stripes, first=0):
    """Child entries in those stripes (numbers), which have 255 shares each."""
    shares = tuple(Share(ShareId(bytes(32)), bytes(32), NodeId(bytes(32))) for _ in range(255))
    links = []
    for number, name in enumerate(stripes, first):
        described = Stripe(StripeId(name.to_bytes(16, "big")), Purpose.METADATA, 1, 2 << 20, shares, b"p" * 32, 1 << 62)
        place = ChunkPlace(described.stripe_id, 254, 1 << 20, 1 << 20)
        links.append((number.to_bytes(8, "big"), tree.Link(PageRef(place, bytes(32), 1 << 20, 1), 1 << 40, described)))
    return links


def inner_bytes(page) -> int:
    children = tuple(Child(name, link.ref, link.records) for name, link in page)
    return len(page_format.to_bytes(InnerPage(3, children, {link.stripe_id: link.stripe for _, link in page})))


def test_a_stripe_counts_again_in_each_page_that_names_it(monkeypatch):
    monkeypatch.setattr(tree, "_SQUARE", 1 << 100)
    start = links_in([number % 9 for number in range(500)])
    full = tree.inner_cutter(3).extend(start)[0]
    # The first entry of the second page is in a stripe that the first page knew; then come nine others.
    links = start[: len(full) + 1]
    links += links_in([10 + number % 9 for number in range(500)], len(links))
    cutter = tree.inner_cutter(3)
    pages = cutter.extend(links) + cutter.finish()
    assert [item for page in pages for item in page] == links
    assert all(inner_bytes(page) <= tree.MAX_PAGE_BYTES for page in pages)


def test_an_inner_page_has_several_children_whatever_the_hash_says(monkeypatch):
    monkeypatch.setattr(tree, "_SQUARE", 0)
    cutter = tree.inner_cutter(3)
    assert [len(page) for page in cutter.extend(links_in([0] * 42)) + cutter.finish()] == [4] * 10 + [2]


def test_a_cut_depends_only_on_what_is_in_the_page():
    records = numbered(5000, 100)
    pages = cut(records)
    start = len(pages[0])
    assert cut(records[start:]) == pages[1:]


def test_cuttings_from_different_places_meet():
    records = numbered(20_000, 100)
    ends = {page[-1][0] for page in cut(records)}
    for skip in (1, 17, 150, 290):
        other = {page[-1][0] for page in cut(records[skip:])}
        assert len(ends - other) <= 6


def test_changes_must_ascend_and_fit():
    tree.check_changes([(b"a", None), (b"b", bytes(page_format.MAX_RECORD_BYTES - 1))])
    for bad in (
        [(b"", b"")],
        [(b"a", b""), (b"a", b"")],
        [(b"b", b""), (b"a", None)],
        [(b"k" * 256, b"")],
        [(b"a", bytes(page_format.MAX_RECORD_BYTES))],
    ):
        with pytest.raises(ValueError):
            tree.check_changes(bad)


@pytest.mark.parametrize("vector", VECTORS["leaves"], ids=lambda v: v["what"])
def test_leaf_vectors(vector):
    page = LeafPage(tuple((bytes.fromhex(k), bytes.fromhex(v)) for k, v in vector["records"]))
    data = bytes.fromhex(vector["bytes"])
    assert page_format.to_bytes(page) == data
    assert page_format.from_bytes(data) == page


@pytest.mark.parametrize("vector", VECTORS["inner"], ids=lambda v: v["what"])
def test_inner_vectors(vector):
    data = bytes.fromhex(vector["bytes"])
    page = page_format.from_bytes(data)
    assert isinstance(page, InnerPage)
    assert page_format.to_bytes(page) == data
    assert page.level == vector["level"]
    assert [child.first_key.hex() for child in page.children] == vector["first_keys"]
    assert [child.records for child in page.children] == vector["records"]
    assert [child.ref.place.stripe_id.hex() for child in page.children] == vector["child_stripes"]
    assert [child.ref.key.hex() for child in page.children] == vector["child_keys"]
    assert sorted(name.hex() for name in page.stripes) == vector["described"]


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda v: v["what"])
def test_refused_vectors(vector):
    with pytest.raises((Corrupt, UnknownVersion)):
        page_format.from_bytes(bytes.fromhex(vector["bytes"]))


@pytest.mark.parametrize("vector", VECTORS["cuts"], ids=lambda v: v["what"])
def test_cut_vectors(vector):
    """Records i || n (8 bytes) with values of that many zero bytes; the numbers of the first records of all leaves."""
    pages = cut(numbered(vector["records"], vector["value_bytes"]))
    assert [int.from_bytes(page[0][0][1:], "big") for page in pages] == vector["first"]

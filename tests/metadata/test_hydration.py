"""Bringing the metadata back page by page: what is missing is asked for, what was changed here is never overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_tools import make, reopen

from hivefs.errors import NotLoaded
from hivefs.formats.local import LOCAL_BYTES
from hivefs.formats.records import inode_key, inode_to_bytes, map_key, map_prefix
from hivefs.metadata.ranges import Ranges
from hivefs.model.inode import Inode

keys = st.binary(max_size=2)


@given(st.lists(st.tuples(keys, st.none() | keys), max_size=8), st.lists(keys, max_size=20))
def test_ranges_against_a_plain_list(added: list[tuple[bytes, bytes | None]], probes: list[bytes]) -> None:
    ranges, plain = Ranges(), []
    for low, high in added:
        if high is None or low < high:
            ranges.add(low, high)
            plain.append((low, high))

    def holds(key: bytes) -> bool:
        return any(low <= key and (high is None or key < high) for low, high in plain)

    edges = sorted({b"", *probes, *(k for pair in plain for k in pair if k is not None)})
    for key in edges:
        assert ranges.holds(key) == holds(key)
        assert ranges.first_gap(key) == next((e for e in edges if e >= key and not holds(e)), None)
    gap = ranges.gap()
    assert (gap is None) == (ranges.first_gap(b"") is None)
    if gap is not None:
        assert gap[0] == ranges.first_gap(b"")
        assert gap[1] == next((e for e in edges if e > gap[0] and holds(e)), None)
    lows = [low for low, _ in ranges]
    assert lows == sorted(lows)
    for (_, high), (low, _) in zip(list(ranges), list(ranges)[1:], strict=False):
        assert high is not None and high < low


def test_what_is_not_here_is_asked_for(tmp_path: Path) -> None:
    store = make(tmp_path, hydrating=True, device=3, next_counter=9)
    for ask in (
        lambda: store.get(map_key(5, 1)),
        lambda: list(store.scan(map_prefix(5), map_key(5, 1))),
        lambda: store.keys(map_prefix(5), map_key(5, 1), 1),
        lambda: store.floor(map_key(5, 1), map_prefix(5)),
    ):
        with pytest.raises(NotLoaded) as caught:
            ask()
        assert caught.value.key == map_key(5, 1)
    store.close(commit=True)


def test_a_scan_gives_what_is_here_and_then_asks_for_the_rest(tmp_path: Path) -> None:
    store = make(tmp_path, hydrating=True)
    store.load_page(map_key(5, 0), map_key(5, 10), [(map_key(5, s), b"%d" % s) for s in (0, 4)])
    seen = []
    with pytest.raises(NotLoaded) as caught:
        for _, value in store.scan(map_prefix(5)):
            seen.append(value)
    assert (seen, caught.value.key) == ([b"0", b"4"], map_key(5, 10))
    assert store.keys(map_prefix(5), limit=2) == [map_key(5, 0), map_key(5, 4)]
    assert store.floor(map_key(5, 9), map_prefix(5)) == (map_key(5, 4), b"4")
    store.load_page(map_key(5, 10), None, [])
    assert len(list(store.scan(map_prefix(5)))) == 2
    store.close(commit=True)


def test_floor_asks_for_the_hole_between(tmp_path: Path) -> None:
    store = make(tmp_path, hydrating=True)
    store.load_page(map_key(5, 0), map_key(5, 3), [(map_key(5, 1), b"1")])
    store.load_page(map_key(5, 6), map_key(5, 9), [])
    with pytest.raises(NotLoaded) as caught:
        store.floor(map_key(5, 7), map_prefix(5))
    assert caught.value.key == map_key(5, 3)
    store.load_page(map_key(5, 3), map_key(5, 6), [(map_key(5, 4), b"4")])
    assert store.floor(map_key(5, 7), map_prefix(5)) == (map_key(5, 4), b"4")
    store.close(commit=True)


def test_pages_never_overwrite_what_was_changed_here(tmp_path: Path) -> None:
    store = make(tmp_path, hydrating=True)
    page = [(map_key(1, s), b"old") for s in range(4)]
    assert store.load_page(map_key(1, 0), map_key(1, 4), page) == 4
    store.put(map_key(1, 0), b"new")
    store.delete(map_key(1, 1))
    store.commit()
    store.publish(store.seq - 1)
    store.forget_changed(b"", 100)
    assert store.load_page(map_key(0, 0), map_key(2, 0), page) == 0
    assert [value for _, value in store.scan(map_prefix(1))] == [b"new", b"old", b"old"]
    store.close(commit=True)


def test_loaded_records_are_not_changes_and_inodes_get_local_bytes(tmp_path: Path) -> None:
    store = make(tmp_path, hydrating=True)
    record = inode_to_bytes(Inode(7, 0o100644))
    removed = inode_to_bytes(Inode(8, 0o100644, nlink=0))
    foreign = [(b"c" + bytes(16), b"a chunk's place"), (b"n" + bytes(32), b"a node")]
    assert store.load_page(b"", b"z", [*foreign, (inode_key(7), record), (inode_key(8), removed)]) == 2
    store.commit()
    assert store.get(inode_key(7)) == bytes(LOCAL_BYTES) + record
    assert store.get(foreign[0][0]) is None
    assert store.orphans() == [8]
    assert store.inodes == 2
    assert store.counts()["changed"] == 0
    store.close(commit=True)


def test_new_inodes_of_this_device_need_no_page(tmp_path: Path) -> None:
    store = make(tmp_path, hydrating=True, device=3, next_counter=2)
    ino = store.next_ino()
    assert store.get(inode_key(ino)) is None
    assert store.keys(map_prefix(ino)) == []
    with pytest.raises(NotLoaded):
        store.get(inode_key(2 << 40 | 2))
    store.close(commit=True)


def test_what_is_loaded_is_remembered_and_the_end_costs_nothing(tmp_path: Path) -> None:
    store = make(tmp_path, hydrating=True)
    store.load_page(b"", map_key(5, 0), [(inode_key(1), inode_to_bytes(Inode(1, 0o40755)))])
    store.close(commit=True)
    store = reopen(tmp_path)
    assert store.hydrating
    assert store.get(inode_key(77)) is None
    loaded = 0
    while (gap := store.unloaded()) is not None:
        low, high = gap
        store.load_page(low, high, [])
        loaded += 1
        assert loaded < 20
    assert not store.hydrating
    store.close(commit=True)
    store = reopen(tmp_path)
    assert not store.hydrating
    assert store.unloaded() is None
    assert store.get(b"x-not-there") is None
    store.close(commit=True)

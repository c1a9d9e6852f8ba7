"""Where shares of a stripe may lie beside where it says: found by stripe, equal to a look through everything."""

from __future__ import annotations

import random
from pathlib import Path

import lmdb
import pytest

from hivefs.metadata.engine_copies import moved_share
from hivefs.metadata.engine_store import EngineStore
from hivefs.model.ids import NodeId, ShareId, StripeId
from hivefs.model.stripe import Purpose, Share, Stripe
from hivefs.placement.policy import Policy

NODES = [NodeId(bytes([n]) * 32) for n in (0, 1, 7, 254, 255)]


def stripe(number: int) -> Stripe:
    """Four shares whose names begin alike, so that a prefix that is too short would be seen."""
    shares = tuple(Share(ShareId(bytes(30) + bytes([number, i])), bytes(32), None) for i in range(4))
    return Stripe(StripeId(number.to_bytes(16, "big")), Purpose.DATA, 2, 4096, shares)


STRIPES = [stripe(n) for n in range(6)]


def naive(store: EngineStore, one: Stripe) -> set[tuple[int, NodeId]]:
    """By looking through all that waits to be deleted, may come back, or was moved."""
    pairs = {(NodeId(key[:32]), ShareId(key[32:])) for table in ("trash", "spare") for key in store.keys(table)}
    for key in store.keys("doomed"):
        if (share := moved_share(key)) is not None and key[9:25] == one.stripe_id:
            pairs.add(share)
    return {(i, node) for i, s in enumerate(one.shares) for node, share_id in pairs if share_id == s.share_id}


def change(store: EngineStore, dice: random.Random) -> None:
    one, index, node = dice.choice(STRIPES), dice.randrange(4), dice.choice(NODES)
    share_id = one.shares[index].share_id
    match dice.randrange(8):
        case 0:
            store.trash_share(node, share_id)
        case 1:
            store.spare_share(node, share_id, one.stripe_id, index, 5)
        case 2:
            store.trash_done(node, [share_id])
        case 3:
            store.spare_done(node, share_id)
        case 4:
            store.doom_share(one.stripe_id, node, share_id)
        case 5:
            store.reap(store.next_sequence() - dice.randrange(3), 100)
        case 6:
            held = tuple(Share(s.share_id, s.merkle_root, dice.choice([None, node])) for s in one.shares)
            store.save_stripe(Stripe(one.stripe_id, one.purpose, 2, 4096, held))
        case 7:
            store.forget_stripe(one.stripe_id)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_found_by_stripe_is_what_a_look_through_all_finds(tmp_path: Path, seed: int) -> None:
    dice, seen = random.Random(seed), 0
    store = EngineStore(tmp_path / "engine", bytes(32), Policy(2, 4))
    for number in range(60):
        with store.writing():
            for _ in range(5):
                change(store, dice)
        if number == 30:  # a restart
            store.close()
            store = EngineStore(tmp_path / "engine", bytes(32), Policy(2, 4))
        for one in STRIPES:
            assert store.old_copies(one) == naive(store, one)
            seen += len(store.old_copies(one))
    assert seen > 1000
    store.close()


def test_a_transaction_that_is_undone_leaves_the_index_as_it_was(tmp_path: Path) -> None:
    store = EngineStore(tmp_path / "engine", bytes(32), Policy(2, 4))
    one = STRIPES[1]
    with pytest.raises(ZeroDivisionError), store.writing():
        store.trash_share(NODES[0], one.shares[0].share_id)
        raise ZeroDivisionError
    assert store.old_copies(one) == set()
    store.close()


def older(path: Path, put: list[tuple[str, bytes]], gone: list[tuple[str, bytes]], listed: bool = True) -> None:
    """What a release that knows nothing of the index does to a store; with ``listed`` False it has none yet."""
    with lmdb.open(str(path), max_dbs=64, map_size=1 << 30) as env, env.begin(write=True) as txn:
        for table, key in put:
            txn.put(key, b"", db=env.open_db(table.encode(), txn))
        for table, key in gone:
            assert txn.delete(key, db=env.open_db(table.encode(), txn))
        if not listed:
            txn.drop(env.open_db(b"copies", txn), delete=True)


@pytest.mark.parametrize("listed", [True, False])
def test_a_store_that_an_older_release_wrote_gets_the_index_when_it_is_opened(tmp_path: Path, listed: bool) -> None:
    """Also when it had it: what was put and taken away meanwhile is as many."""
    store = EngineStore(tmp_path / "engine", bytes(32), Policy(2, 4))
    one = STRIPES[1]
    share = [s.share_id for s in one.shares]
    with store.writing():
        store.trash_share(NODES[0], share[0])
        store.trash_share(NODES[1], share[1])
        store.spare_share(NODES[3], share[2], one.stripe_id, 2, 5)
    store.close()
    older(tmp_path / "engine", [("trash", NODES[2] + share[3])], [("trash", NODES[1] + share[1])], listed)
    store = EngineStore(tmp_path / "engine", bytes(32), Policy(2, 4))
    assert store.old_copies(one) == naive(store, one) == {(0, NODES[0]), (2, NODES[3]), (3, NODES[2])}
    assert store.count("copies") == 3
    store.close()


def test_what_an_older_release_only_took_away_is_not_listed_any_more(tmp_path: Path) -> None:
    store = EngineStore(tmp_path / "engine", bytes(32), Policy(2, 4))
    one = STRIPES[1]
    share = [s.share_id for s in one.shares]
    with store.writing():
        store.trash_share(NODES[0], share[0])
        store.trash_share(NODES[1], share[1])
        store.spare_share(NODES[1], share[1], one.stripe_id, 1, 5)
    store.close()
    older(tmp_path / "engine", [], [("trash", NODES[1] + share[1])])
    store = EngineStore(tmp_path / "engine", bytes(32), Policy(2, 4))
    assert store.old_copies(one) == {(0, NODES[0]), (1, NODES[1])}  # it is a spare all the same
    store.close()
    older(tmp_path / "engine", [], [("trash", NODES[0] + share[0])])
    store = EngineStore(tmp_path / "engine", bytes(32), Policy(2, 4))
    assert store.old_copies(one) == {(1, NODES[1])}
    store.close()


def test_after_a_clean_end_nothing_is_looked_through_and_after_a_crash_all_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    count = EngineStore._counted_copies
    monkeypatch.setattr(EngineStore, "_counted_copies", lambda self: looks.append(1) or count(self))
    store = EngineStore(tmp_path / "engine", bytes(32), Policy(2, 4))
    with store.writing():
        store.trash_share(NODES[0], STRIPES[1].shares[0].share_id)
    looks.clear()
    for _ in range(3):
        store.close()
        store = EngineStore(tmp_path / "engine", bytes(32), Policy(2, 4))
    assert not looks
    with store.writing():
        store.trash_share(NODES[1], STRIPES[1].shares[0].share_id)
    monkeypatch.setattr(EngineStore, "_note_copies", lambda self: None)  # killed
    store.close()
    before = store_bytes(tmp_path / "engine")
    store = EngineStore(tmp_path / "engine", bytes(32), Policy(2, 4))
    assert looks == [1]
    store.close()
    assert store_bytes(tmp_path / "engine") == before  # it was whole: nothing is written


def store_bytes(path: Path) -> bytes:
    return (path / "data.mdb").read_bytes()


def test_what_other_stripes_left_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = EngineStore(tmp_path / "engine", bytes(32), Policy(2, 4))
    with store.writing():
        for number in range(2000):
            store.trash_share(NODES[number % 5], ShareId(number.to_bytes(4, "big") * 8))
    read = 0
    look = store.keys

    def counted(*given: object, **more: object) -> list[bytes]:
        nonlocal read
        found = look(*given, **more)  # type: ignore[arg-type]
        read += 1 + len(found)
        return found

    monkeypatch.setattr(store, "keys", counted)
    assert store.old_copies(STRIPES[3]) == set()
    assert read <= 4 + 1  # one look for each share, and one at what was moved
    store.close()


def test_what_an_undone_transaction_forgot_of_copies_is_there(tmp_path: Path) -> None:
    """A disk that is full when doomed copies are let go: they wait as before, and count."""
    store = EngineStore(tmp_path / "engine", bytes(32), Policy(2, 4, ()))
    try:
        one, node = STRIPES[0], NODES[1]
        with store.writing():
            store.save_stripe(one)
            store.doom_share(one.stripe_id, node, one.shares[2].share_id)
        with pytest.raises(OSError, match="no room"), store.writing():
            store.reap(store.sequence, 100)
            raise OSError("no room")
        assert store.old_copies(one) == naive(store, one) == {(2, node)}
        assert store.copies_left(one.stripe_id) == {node}
    finally:
        store.close()

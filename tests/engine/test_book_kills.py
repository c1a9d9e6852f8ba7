"""SIGKILL of a process that moves places and shares in the engine's store: the book is right after each."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from hivefs.metadata.engine_contents import Contents
from hivefs.metadata.engine_store import EngineStore
from hivefs.placement.policy import Policy

from .book import check_book

MOVER = textwrap.dedent(
    """
    import random, sys
    from dataclasses import replace
    from pathlib import Path
    from hivefs.metadata.engine_contents import Contents
    from hivefs.metadata.engine_store import EngineStore
    from hivefs.model.ids import ChunkId, NodeId, ShareId, StripeId
    from hivefs.placement.policy import Policy
    from hivefs.model.stripe import ChunkPlace, Purpose, Share, Stripe

    dice = random.Random(int(sys.argv[2]))
    store = EngineStore(Path(sys.argv[1]), bytes(32), Policy(1, 1, ()))
    contents = Contents(store)
    nodes = [NodeId(bytes([i]) * 32) for i in range(6)]

    def stripe():
        held = dice.sample(nodes, 3)
        shares = tuple(Share(ShareId(dice.randbytes(32)), bytes(32), node) for node in held)
        return Stripe(StripeId(dice.randbytes(16)), Purpose.DATA, 2, 4096, shares)

    def chunks():
        return [(c, p) for key in store.keys("tree", b"c") if (p := store.place(c := ChunkId(key[1:]))) is not None]

    sys.stdout.write("begun\\n")
    sys.stdout.flush()
    while True:
        step = dice.randrange(7)
        with store.writing():
            if step == 0 or store.count("live") < 3:
                made = stripe()
                store.save_stripe(made)
                for n in range(dice.randint(1, 5)):
                    place = ChunkPlace(made.stripe_id, n % 2, 64 * n, 64)
                    store.save_place(ChunkId(dice.randbytes(16)), place, 1, n)
            elif step == 1:
                made = stripe()
                store.save_stripe(made)
                moved = dice.sample(found, min(4, len(found))) if (found := chunks()) else []
                went = [store.move_place(c, p, ChunkPlace(made.stripe_id, 0, 64 * n, 64)) for n, (c, p) in enumerate(moved)]
                if not any(went):
                    store.forget_stripe(made.stripe_id)
            elif step == 2 and (found := chunks()):
                store.doom_chunk(dice.choice(found)[0])
            elif step == 3:
                store.reap(store.next_sequence(), 1000)
            elif step == 4:
                before = dice.choice(list(store.stripes()))
                index, target = dice.randrange(3), dice.choice(nodes)
                if target not in [s.node for s in before.shares]:
                    old = before.shares[index]
                    shares = list(before.shares)
                    shares[index] = replace(old, node=target)
                    store.save_stripe(replace(before, shares=tuple(shares)))
                    store.doom_share(before.stripe_id, old.node, old.share_id)
            elif step == 5:
                contents.note_unknown(dice.choice(nodes), [ShareId(dice.randbytes(32))], 1)
            else:
                node = dice.choice(nodes)
                contents.trash_unknown(node, contents.unknown(node))
                store.trash_done(node, store.trash_of(node, 2))
    """
)


def rounds(path: Path, count: int) -> None:
    dice = random.Random(7)
    for number in range(count):
        command = [sys.executable, "-c", MOVER, str(path), str(number)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.getcwd()})
        try:
            assert process.stdout is not None and process.stdout.readline() == b"begun\n"
            time.sleep(0.05 + dice.random() * 0.25)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(100)
        store = EngineStore(path, bytes(32), Policy(1, 1, ()))
        try:
            check_book(store)
            while not Contents(store).indexed:
                Contents(store).index()
            check_book(store)
        finally:
            store.close()


def test_the_book_is_right_after_kills(tmp_path: Path) -> None:
    rounds(tmp_path / "engine", 4)


@pytest.mark.slow
def test_the_book_is_right_after_many_kills(tmp_path: Path) -> None:
    rounds(tmp_path / "engine", 100)


def test_a_store_of_before_there_was_a_list_of_chunks_gets_one_in_slices(tmp_path: Path) -> None:
    rounds(tmp_path / "engine", 1)
    store = EngineStore(tmp_path / "engine", bytes(32), Policy(1, 1, ()))
    with store.writing():
        for key in store.keys("within"):
            store.delete("within", key)
        store.delete("info", b"within")
    contents = Contents(store)
    assert not contents.indexed
    while not contents.indexed:
        contents.index()
    check_book(store)
    store.close()

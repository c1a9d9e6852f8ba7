"""The engine learns of nodes without holding anybody up, and one invitation lets in no more than it can have."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from hivefs.crypto.keys import public_key
from hivefs.daemon import engine_roster
from hivefs.daemon.engine_roster import SLICE, SPARE
from hivefs.errors import PeerUnreachable
from hivefs.formats.invite import sign_invitation
from hivefs.formats.member import accept, sign_address, sign_member
from hivefs.maintenance.turns import MOST
from hivefs.model.node import Invitation, Membership, Role, RosterEntry, Ticket
from hivefs.testing.memory_hive import HIVE_SEED, MemoryClient, MemoryHive

from .test_engine import make_home, run, running, until

DAY = 86_400 * 10**9


def seed(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def ticket(name: str, uses: int) -> Ticket:
    now = time.time_ns()
    bare = Invitation(b"", public_key(seed(name)), Role.NODE, (), now, now + DAY, uses)
    return Ticket(sign_invitation(HIVE_SEED, bare), seed(name))


def entry(membership: Membership, name: str) -> RosterEntry:
    return RosterEntry(membership, sign_address(seed(name), ("/nowhere/1",), 5))


def invited(by: Ticket, name: str) -> RosterEntry:
    return entry(accept(by, seed(name), Role.NODE, (), time.time_ns()), name)


def owned(name: str) -> RosterEntry:
    return entry(sign_member(HIVE_SEED, Membership(b"", public_key(seed(name)), Role.NODE, (), 1)), name)


class Silent(MemoryHive):
    """Of these nodes none can be reached."""

    @asynccontextmanager
    async def dial(self, entry: RosterEntry) -> AsyncIterator[MemoryClient]:
        if entry.address.addresses[0] in ("/nowhere/1", "/nowhere/2"):
            raise PeerUnreachable(address=entry.address.addresses[0], reason="nobody is there")
        async with super().dial(entry) as client:
            yield client


def test_one_invitation_lets_in_no_more_than_it_can_have(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    thief, friend = ticket("stolen", 1), ticket("another", 3)
    flood = [invited(thief, f"thief {i}") for i in range(60)]

    async def test() -> None:
        home = make_home(tmp_path / "home")
        async with running(home, Silent(), None) as engine:
            before = len(engine.store.node_ids())
            assert await engine.hear(flood[:30]) == engine.learn(flood[:30]) + 2 + SPARE == 2 + SPARE
            assert await engine.hear([*flood, invited(friend, "friend"), owned("owner's")]) == 2
            assert len(engine.store.node_ids()) == before + 2 + SPARE + 2
            assert caplog.text.count("more nodes come by one invitation") == 1
            kept = next(e for e in flood if engine.store.roster_entry(e.address.node_id) is not None)
            name = f"thief {flood.index(kept)}"
            moved = replace(kept, address=sign_address(seed(name), ("/nowhere/2",), 6))
            assert await engine.hear([moved]) == 1, "who is in may move"
        async with running(home, Silent(), None) as engine:  # what is in the book counts after a restart too
            await until(lambda: len(engine.pool.members) == before + 2 + SPARE + 2)
            assert await engine.hear(flood) == 0

    with caplog.at_level(logging.WARNING, engine_roster.__name__):
        run(test)


def test_many_entries_are_taken_while_others_have_their_turn(tmp_path: Path) -> None:
    many = [owned(f"node {i}") for i in range(6 * SLICE + 3)]
    forged = replace(owned("forged"), address=replace(owned("forged").address, signature=bytes(64)))

    async def test() -> None:
        async with running(make_home(tmp_path / "home"), Silent(), None) as engine:
            turns = 0

            async def others() -> None:
                nonlocal turns
                while True:
                    await trio.lowlevel.checkpoint()
                    turns += 1

            async with trio.open_nursery() as nursery:
                nursery.start_soon(others)
                await trio.lowlevel.checkpoint()
                turns = 0
                assert await engine.hear([*many, forged, *many[:5]]) == len(many)
                assert turns >= 6
                turns = 0
                assert await engine.hear(4 * many) == 0, "also when all is known"
                # In which order two tasks that are ready have their turn is drawn: the first or the last may be missing.
                assert turns >= 4 * len(many) // MOST - 1 > 3
                nursery.cancel_scope.cancel()
            assert {e.address.node_id for e in many} <= engine.pool.members.keys()

    run(test)

"""Rollback and forks: nodes that show old or different heads to who recovers, and old copies of a vault's own machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from engine.memory_vault import MemoryVault
from engine.test_engine import SECRETS, content, make_home, run, running, settle, until

from hivefs.crypto.keys import VaultKeys, public_key
from hivefs.crypto.seal import RecordSealer
from hivefs.daemon import recover as recovery
from hivefs.daemon.home import Home, Lock, Secrets, client_membership
from hivefs.errors import HeadForked, NoHeadFound, PeerIdentityMismatch
from hivefs.formats import head as head_format
from hivefs.metadata.engine_store import EngineStore
from hivefs.model.head import Head, Root
from hivefs.model.ids import DeviceId
from hivefs.placement.policy import Policy
from hivefs.testing.memory_hive import HIVE_SEED, MemoryClient, MemoryHive, MemoryNode

KEYS = SECRETS.keys()
HIVE_KEY = public_key(HIVE_SEED)


def make_head(
    sequence: int,
    previous: Head | None = None,
    *,
    device: int = 1,
    seed: bytes = SECRETS.device_seed,
    keys: VaultKeys = KEYS,
    seen: tuple[tuple[int, int], ...] | None = None,
    counter: int = 2,
    hive_key: bytes = HIVE_KEY,
) -> Head:
    """A head as a device of the vault makes it, over an empty tree whose ``counter`` tells states apart."""
    who = DeviceId(public_key(seed))
    certificate = head_format.sign_certificate(keys.owner_seed, who, device, 1)
    root = Root(None, 0, 0, (), counter, seen if seen is not None else ((device, sequence),), hive_key)
    sealed = head_format.seal_root(RecordSealer(keys.head_key, os.urandom), who, sequence, root)
    return head_format.sign_head(seed, certificate, sequence, previous, 10**18 + sequence, sealed)


class Conversations:
    """daemon.network.Conversations over a hive in memory. ``shown`` says what a node tells of heads (all it has)."""

    def __init__(self, hive: MemoryHive, shown: dict[int, list[Head]]) -> None:
        self._hive = hive
        self._shown = shown

    @asynccontextmanager
    async def open(self, *_: Any) -> AsyncIterator[Conversations]:
        yield self

    @asynccontextmanager
    async def with_address(self, address: str) -> AsyncIterator[MemoryClient]:
        async with self._with(self._hive.nodes[0]) as client:
            yield client

    @asynccontextmanager
    async def with_node(self, entry: Any) -> AsyncIterator[MemoryClient]:
        async with self._with(self._hive.by_id(entry.membership.subject)) as client:
            yield client

    @asynccontextmanager
    async def _with(self, node: MemoryNode) -> AsyncIterator[MemoryClient]:
        client = MemoryClient(self._hive, node)
        membership = client_membership(HIVE_SEED, KEYS.owner_key, 1)
        client.greeted = SimpleNamespace(hive_key=membership.hive_key, node_key=node.node_id, membership=membership)
        shown = self._shown.get(node.number)
        if shown is not None:

            async def lie(*, timeout: float = 30) -> list[Head]:
                return shown

            client.get_heads = lie  # type: ignore[method-assign]
        yield client


def recover(path: Path, monkeypatch: pytest.MonkeyPatch, heads: list[Head], shown: dict[int, list[Head]]) -> Root:
    """Recover a vault from eight nodes that keep ``heads`` but tell what ``shown`` says; the root that was chosen."""
    hive = MemoryHive()
    for node in hive.nodes:
        node.heads = {bytes([i]): head for i, head in enumerate(heads)}
    monkeypatch.setattr(recovery, "Conversations", Conversations(hive, shown))
    home = Home.prepare(path / "home", Secrets(SECRETS.master, os.urandom(32)), Lock("none"))

    async def body() -> None:
        with trio.fail_after(100):
            await recovery.recover(home, KEYS, "/any", lambda text: None)

    trio.run(body)
    store = EngineStore(home.engine, KEYS.engine_key, Policy(1, 1, ()))
    try:
        root = head_format.root_from_bytes(store.info("root"))
    finally:
        store.close()
    assert home.vault.certificate.number > max(head.certificate.number for head in heads)
    return root


def test_a_node_that_makes_up_a_hive_of_its_own_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first node names the hive during a recovery; the vault's own head says which one it really lives in."""
    elsewhere = make_head(3, hive_key=public_key(b"h" * 32))
    with pytest.raises(PeerIdentityMismatch):
        recover(tmp_path, monkeypatch, [elsewhere], {})


OLD = make_head(1, counter=100)
NEW = make_head(2, OLD, counter=200)


@pytest.mark.parametrize("liars", [(1,), (8,), (1, 2, 3, 4, 5, 6, 7)])
def test_nodes_that_give_an_older_head_are_outvoted_by_one_that_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, liars: tuple[int, ...]
) -> None:
    assert recover(tmp_path, monkeypatch, [NEW, OLD], {number: [OLD] for number in liars}).next_counter == 200


def test_nodes_that_give_no_head_do_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recover(tmp_path, monkeypatch, [NEW], {number: [] for number in range(1, 8)}).next_counter == 200


def test_what_a_stranger_signed_is_not_a_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Public-key substitution: a device that the vault's owner never enrolled, in every disguise."""
    stranger = bytes([66]) * 32
    other_vault = VaultKeys(bytes([66]) * 32)
    honest = NEW.certificate
    forged = [
        make_head(9, seed=stranger, keys=other_vault),  # all of another vault
        replace(make_head(9, seed=stranger, keys=other_vault), certificate=honest),  # under the certificate of ours
        replace(NEW, certificate=replace(honest, device=DeviceId(public_key(stranger)))),  # our certificate, other key
        replace(NEW, certificate=replace(honest, owner_key=other_vault.owner_key)),  # another owner
        replace(NEW, sequence=9),  # a number that was not signed
        replace(NEW, sealed_root=OLD.sealed_root),  # the root of another head
        replace(NEW, previous=bytes(32)),
    ]
    certificate = head_format.sign_certificate(other_vault.owner_seed, DeviceId(public_key(stranger)), 3, 1)
    claimed = replace(certificate, vault_id=KEYS.vault_id)  # an enrolment by someone else for this vault
    forged.append(head_format.sign_head(stranger, claimed, 9, None, 1, NEW.sealed_root))
    assert recover(tmp_path, monkeypatch, [NEW], {n: forged for n in range(2, 9)}).next_counter == 200
    with pytest.raises(NoHeadFound):
        recover(tmp_path / "alone", monkeypatch, [NEW], {n: forged for n in range(1, 9)})


def test_two_heads_with_one_number_are_shown_and_none_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = make_head(2, OLD, counter=300)
    with pytest.raises(HeadForked) as caught:
        recover(tmp_path, monkeypatch, [NEW], {5: [other]})
    assert (caught.value.sequence, caught.value.device) == (2, 1)


def test_two_devices_that_know_nothing_of_each_other_are_a_fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apart = make_head(7, device=2, seed=bytes([2]) * 32, seen=((1, 1), (2, 7)), counter=300)
    with pytest.raises(HeadForked):
        recover(tmp_path, monkeypatch, [NEW, apart], {})
    after = make_head(7, device=2, seed=bytes([2]) * 32, seen=((1, 2), (2, 7)), counter=300)
    assert recover(tmp_path / "joined", monkeypatch, [NEW, after], {}).next_counter == 300


def test_two_machines_with_the_same_device_number_are_a_fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Brought back twice from one head: both are device 2, and the longer history must not win silently."""
    twins = [make_head(n, device=2, seed=bytes([n]) * 32, seen=((1, 2), (2, n)), counter=n) for n in (3, 9)]
    with pytest.raises(HeadForked) as caught:
        recover(tmp_path, monkeypatch, [NEW, *twins], {})
    assert caught.value.device == 2


def test_an_old_copy_of_the_machine_neither_publishes_nor_deletes(tmp_path: Path) -> None:
    """A backup or a virtual machine's snapshot is put back: its tree is old, and its heads must not become the newest."""

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        home = make_home(tmp_path / "home")
        async with running(home, hive, vault) as engine:
            vault.write(1, 0, os.urandom(9000))
            await settle(engine, vault)
        shutil.copytree(home.path, tmp_path / "old")
        async with running(home, hive, vault) as engine:
            for _ in range(3):
                vault.write(1, 0, os.urandom(9000))
                await settle(engine, vault)
            await until(lambda: engine.store.count("trash") == 0)
        held = [dict(node.shares) for node in hive.nodes]
        heads = [dict(node.heads) for node in hive.nodes]
        newest = max(head.sequence for kept in heads for head in kept.values())
        stale = MemoryVault()
        async with running(Home.load(tmp_path / "old"), hive, stale) as engine:
            for turn in range(newest + 2):  # enough to get past the number that the nodes keep
                stale.write(1, 0, os.urandom(100 + turn))
                engine.placing.poke()
                engine.checkpoint.poke()
                await until(lambda: not stale.dirty_slots)
                await until(lambda: engine.checkpoint.wanted.is_set() is False)
            await until(lambda: engine.checkpoint.forked is not None)
            assert "recover" in engine.status()["checkpoint"]["forked"]
            await until(lambda: "knows nothing" in engine.checkpoint.waiting_for)
            assert stale.published_sequence == 0
            with engine.store.writing():
                for node in hive.nodes:
                    for share_id in held[hive.nodes.index(node)]:
                        engine.store.trash_share(node.node_id, share_id)
            await trio.sleep(1.5)  # longer than the trash waits
        assert [node.heads for node in hive.nodes] == heads
        assert all(kept.items() <= node.shares.items() for kept, node in zip(held, hive.nodes, strict=True))

    run(test)


def test_another_machine_at_work_stops_deletion(tmp_path: Path) -> None:
    """The machine that was given up for lost is alive, while the recovered one works: neither deletes the other's data."""

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            plain = os.urandom(5000)
            vault.write(1, 0, plain)
            await settle(engine, vault)
            own = engine.checkpoint.head()
            assert own is not None and engine.checkpoint.forked is None
            second = make_head(1, device=2, seed=bytes([2]) * 32, seen=((1, own.sequence), (2, 1)))
            hive.nodes[3].heads[second.certificate.device] = second
            hive.nodes[3].stop()
            await until(lambda: len(engine.pool.online()) == 7)
            hive.nodes[3].start()
            await until(lambda: engine.checkpoint.forked is not None)
            held = sum(len(node.shares) for node in hive.nodes)
            old = {(node.number, share_id) for node in hive.nodes for share_id in node.shares}
            vault.delete(1, 0)
            vault.write(2, 0, plain)
            await settle(engine, vault)
            await until(lambda: engine.store.count("trash") > 0)
            await trio.sleep(1.5)
            new = {(node.number, share_id) for node in hive.nodes for share_id in node.shares}
            assert held and old <= new
            assert await content(engine, vault, 2, 0) == plain, "the rest goes on"

    run(test)


def test_a_node_that_claims_a_newer_head_without_showing_it_stops_nothing(tmp_path: Path) -> None:
    """What a node says in a refusal is no proof; only signed heads count."""

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            vault.write(1, 0, os.urandom(100))
            await settle(engine, vault)
            forged = replace(make_head(50), signature=bytes(64))
            assert not head_format.head_valid(forged, engine.keys.vault_id)
            device = next(iter(hive.nodes[0].heads))
            hive.nodes[0].heads[device] = forged  # refuses all that we send as older from now on
            vault.write(1, 0, os.urandom(100))
            await settle(engine, vault)
            assert engine.checkpoint.forked is None and vault.published_sequence > 0

    run(test)

"""The engine places, proves, judges and repairs by the policies of the vault's text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from hivefs.cli.status import policy_words
from hivefs.daemon import engine_metrics, engine_policies
from hivefs.daemon.engine_core import Engine
from hivefs.daemon.engine_link import LazyBook
from hivefs.errors import BadPolicy, NotEnoughShares
from hivefs.formats import policy as policy_format
from hivefs.formats import records
from hivefs.maintenance.placement_check import PlacementCheck
from hivefs.model.ids import CHUNK_BYTES
from hivefs.model.node import Attribute
from hivefs.model.stripe import Level, Purpose, Stripe
from hivefs.placement.heads import KEPT
from hivefs.testing.memory_hive import MemoryHive

from .memory_vault import MemoryVault
from .test_engine import content, drop_cache, make_home, run, running, settle, until

NO_US = """
[policy.default]
[policy.home]
code = "2/4"
deny = ["US"]
[paths]
"/home" = "home"
"""
STRICT = """
[policy.default]
deny = ["DE"]
"""


def countries(hive: MemoryHive, stripe: Stripe) -> set[str]:
    return {hive.by_id(share.node).country for share in stripe.shares if share.node is not None}


async def checked(engine: Engine) -> PlacementCheck:
    await trio.lowlevel.checkpoint()
    check = PlacementCheck(engine.store)
    check.run()
    return check


def test_each_file_is_placed_by_its_policy_and_certified(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(("DE", "FR", "CH", "IS", "US"), 2), MemoryVault()
        vault.policies[7] = "home"
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await settle(engine, vault)  # a first head, by the policy of before
            before = {stripe.stripe_id for stripe in engine.store.stripes()}
            await engine.set_policies(NO_US)
            for ino in (5, 7):
                vault.write(ino, 0, os.urandom(300_000))
            await settle(engine, vault)
            vault.write(5, 1, b"and another, after which nothing of the first is left")
            await settle(engine, vault)
            assert not before & {stripe.stripe_id for stripe in engine.store.stripes()}
            _, other = await engine.locate(vault.map[(5, 0)].chunk_id)
            _, home = await engine.locate(vault.map[(7, 0)].chunk_id)
            assert (other.needed, other.total) == (4, 6) and (home.needed, home.total) == (2, 4)
            assert "US" not in countries(hive, home)
            for stripe in engine.store.stripes():
                assert all(share.standing for share in stripe.shares)
                assert engine.store.health(stripe).level == Level.GUARANTEED
                if stripe.purpose == Purpose.METADATA:
                    assert "US" not in countries(hive, stripe), "metadata obeys all policies in use"
            named = engine.store.policy_of(home.policy_hash)
            assert named is not None and named.name == "home" and named.deny == ("US",)
            known = engine.store.standing(home.shares[0].standing)
            assert known is not None and any(a.name == "country" for a in known)
            check = await checked(engine)
            assert check.findings == [] and check.counts["proved"] == check.counts["stripes"] > 2
            await engine.rules._measure()  # the last one may be of before
            status = engine.status()["policies"]
            assert status["codes"] == {"default": "4/6", "home": "2/4"} and not any(status["out_of_policy"].values())

    run(test)


def test_a_stricter_policy_moves_old_data_and_a_bad_text_changes_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(("DE", "FR", "CH", "IS", "SE"), 2), MemoryVault()
        data = {ino: os.urandom(200_000) for ino in range(6)}
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            for ino, plain in data.items():
                vault.write(ino, 0, plain)
            await settle(engine, vault)
            before = {s.stripe_id: s for s in engine.store.stripes()}
            with pytest.raises(BadPolicy):
                await engine.set_policies("[policy.default]\ncode = 7\n")
            assert engine.store.policy_text() == ""
            await engine.set_policies(STRICT)
            assert engine.store.policy_text() == STRICT
            digest = policy_format.digest(engine.policies.written("default"))
            await until(lambda: all("DE" not in countries(hive, s) for s in engine.store.stripes()))
            await until(lambda: all(engine.store.certified(s) for s in engine.store.stripes()))
            for stripe in engine.store.stripes():
                old = before.get(stripe.stripe_id)
                if old is not None:
                    moved = sum(1 for a, b in zip(old.shares, stripe.shares, strict=True) if a.node != b.node)
                    assert moved == sum(1 for s in old.shares if s.node and hive.by_id(s.node).country == "DE")
                if stripe.purpose == Purpose.DATA:
                    assert stripe.policy_hash == digest
            await until(lambda: not any(node.shares for node in hive.nodes if node.country == "DE"))
            drop_cache(engine)
            for ino, plain in data.items():
                assert await content(engine, vault, ino, 0) == plain

    run(test)


def test_a_policy_that_cannot_be_placed_holds_up_only_its_own_files(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        text = 'metadata = "default"\n' + NO_US.replace('deny = ["US"]', 'deny = ["DE", "FR", "CH"]')
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await engine.set_policies(text)
            for ino in range(400):
                vault.policies[ino] = "home"
                vault.write(ino, 0, os.urandom(100))
            vault.write(1000, 0, os.urandom(100_000))
            engine.placing.poke()
            await until(lambda: (1000, 0) in vault.map)
            await until(lambda: "home" in engine.placing.progress.waiting_for)
            assert not any((ino, 0) in vault.map for ino in range(400))
            await engine.set_policies(text.replace('deny = ["DE", "FR", "CH"]', ""))
            await settle(engine, vault)
            assert all((ino, 0) in vault.map for ino in range(400))

    run(test)


def test_a_node_that_changes_hands_is_left_with_priority(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(("DE", "FR", "CH", "IS", "SE"), 2), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await engine.set_policies('[policy.default]\ndeny = ["US"]\n')
            vault.write(1, 0, os.urandom(200_000))
            await settle(engine, vault)
            _, stripe = await engine.locate(vault.map[(1, 0)].chunk_id)
            sold = hive.by_id(stripe.shares[0].node)  # type: ignore[arg-type]
            sold.country = "US"
            sold.epoch += 1
            engine.learn([sold.entry()])
            assert engine.store.health(stripe).level == Level.REMOTE
            assert any(f.kind == "out-of-policy" for f in (await checked(engine)).findings)
            await until(lambda: not list(engine.store.each_on(sold.node_id)))
            assert all(engine.store.health(s).level == Level.GUARANTEED for s in engine.store.stripes())
            assert (await checked(engine)).findings == []

    run(test)


def test_policies_and_certificates_come_through_a_restart(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(("DE", "FR", "CH", "IS", "SE"), 2), MemoryVault()
        home = make_home(tmp_path / "home")
        async with running(home, hive, vault) as engine:
            await engine.set_policies(STRICT)
            vault.write(1, 0, os.urandom(200_000))
            await settle(engine, vault)
            await until(lambda: engine.store.info("head_out") is True)
        async with running(home, hive, vault) as engine:
            head = engine.checkpoint.head()
            assert head is not None and engine.status()["checkpoint"]["published_ns"] == head.time_ns > 0
            assert engine.store.policy_text() == STRICT and engine.policies.written("default").deny == ("DE",)
            check = await checked(engine)
            assert check.findings == [] and check.counts["proved"] > 1

    run(test)


def test_a_forged_certificate_is_found_without_any_node(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            vault.write(1, 0, os.urandom(200_000))
            await settle(engine, vault)
            for node in hive.nodes:
                node.stop()
            stripe = next(iter(engine.store.stripes()))
            one = stripe.shares[0].standing
            with engine.store.writing():
                forged = [type(share)(share.share_id, share.merkle_root, share.node, one) for share in stripe.shares]
                made = type(stripe)(
                    stripe.stripe_id,
                    stripe.purpose,
                    stripe.needed,
                    stripe.share_bytes,
                    tuple(forged),
                    stripe.policy_hash,
                    stripe.placed_ns,
                )
                engine.store._put_stripe(made)
            found = (await checked(engine)).findings
            assert [f.kind for f in found if f.problem] == ["certificate-wrong"]

    run(test)


def test_a_head_that_one_authority_can_take_from_all_its_keepers_is_not_published(tmp_path: Path) -> None:
    """DE and US over one, FR and US over the other are three authorities; the US alone takes both."""

    async def test() -> None:
        hive, vault = MemoryHive(("CH", "IS", "NO", "SE", "DE", "FR")), MemoryVault()
        for node in hive.nodes[8:]:
            node.also = (Attribute("parent", "big"), Attribute("parent_country", "US"))
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            vault.write(1, 0, os.urandom(9000))
            await settle(engine, vault)
            assert engine.rules.status()["freshness"]["nodes"] == 12
            assert engine.rules.status()["freshness"]["fresh_device"] == "known"
            american = [node.node_id for node in hive.nodes[8:]]
            assert not engine.rules.survives(american, KEPT)
            for node in hive.nodes[:8]:
                node.stop()
            await until(lambda: {node_id for node_id, _ in engine.rules.keepers()} == set(american))
            with pytest.raises(NotEnoughShares, match="withhold"):
                await engine.checkpoint.send_head()
            hive.nodes[0].start()
            await until(lambda: len(list(engine.rules.keepers())) == 5)
            await engine.checkpoint.send_head()
            assert await engine.checkpoint.measure() < Level.GUARANTEED
            fresh = engine.rules.status()["freshness"]
            assert fresh["nodes"] == 5 and fresh["remembering_device"].startswith("unknown")

    run(test)


def test_a_text_in_force_that_cannot_be_read_stops_nothing_but_placing_and_is_mended_while_the_engine_runs(
    tmp_path: Path,
) -> None:
    """Such as another version of HiveFS wrote. Before, the engine ended, and with it all that could have mended it."""

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        home = make_home(tmp_path / "home")
        plain = os.urandom(30_000)
        async with running(home, hive, vault) as engine:
            vault.write(9, 0, plain)
            await settle(engine, vault)
            with engine.store.writing():
                text = policy_format.text_to_bytes("[policy.default]\nof_tomorrow = 1\n")
                engine.store._save_tree(records.policy_key(policy_format.TEXT_KEY), text)
        vault.write(9, 1, plain)
        async with running(home, hive, vault) as engine:
            await until(lambda: "of_tomorrow" in engine.placing.progress.waiting_for)
            status = engine.status()
            assert "of_tomorrow" in status["policies"]["problem"] and status["capacity"] is None
            assert "'hivefs policy edit' mends it" in policy_words(status["policies"])
            engine_metrics.page(status)
            drop_cache(engine)
            assert await content(engine, vault, 9, 0) == plain
            sequence, stripes = engine.checkpoint.published_ns, engine.store.count("live")
            hive.nodes[0].stop()
            await trio.sleep(0.5)
            assert engine.checkpoint.published_ns == sequence and engine.store.count("live") == stripes
            book = LazyBook(home, engine.keys)
            book._reader = engine.store  # a process opens it once
            stripe = next(engine.store.stripes())
            assert book.paths() == {} and book.stripe_level(stripe.stripe_id) == Level.LOCAL
            assert book.explained(stripe.stripe_id) == {} and book.stripe(stripe.stripe_id) == stripe
            hive.nodes[0].start()
            await engine.rules.set("")
            await settle(engine, vault)
            assert not engine.status()["policies"]["problem"]
            assert await content(engine, vault, 9, 1) == plain

    run(test)


def test_status_of_a_small_book_is_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waited until everything is guaranteed reads so, and not what was counted some seconds ago."""
    monkeypatch.setattr(engine_policies, "MEASURE_EVERY", 1e6)
    monkeypatch.setattr(engine_policies, "QUICK", 1e6)

    async def test() -> None:
        vault = MemoryVault()
        async with running(make_home(tmp_path / "home"), MemoryHive(), vault) as engine:
            await until(lambda: engine.rules._took < 1e6)  # counted once at the start
            vault.write(1, 0, os.urandom(CHUNK_BYTES))
            await settle(engine, vault)
            assert sum(engine.status()["levels"].values()) == 0
            assert (await engine.told())["levels"]["guaranteed"] >= CHUNK_BYTES

    run(test)

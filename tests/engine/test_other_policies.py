"""Data whose file has another policy now: it moves to where that lets it and nowhere else, and it shows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import trio

from hivefs.cli.status import eta, moving_words
from hivefs.content.packing import Packed
from hivefs.daemon import engine_moving
from hivefs.daemon.engine_core import Engine
from hivefs.maintenance import garbage
from hivefs.maintenance.placement_check import PlacementCheck
from hivefs.maintenance.reassign import Reassign
from hivefs.maintenance.repack import Repack
from hivefs.maintenance.repack_plan import Target
from hivefs.model.ids import StripeId
from hivefs.model.stripe import Purpose, Stripe
from hivefs.placement.policies import Policies
from hivefs.testing.memory_hive import MemoryHive

from .memory_vault import MemoryVault
from .test_engine import content, drop_cache, make_home, run, running, settle, until
from .test_moving import idle, moved

PHOT = """
[policy.default]
code = "4/6"
[policy.phot]
code = "2/4"
deny = ["US"]
[paths]
"/Photos" = "phot"
"""
FAMILY = PHOT.replace("phot", "family")
STRICTER = FAMILY.replace('"US"', '"US", "IS"')
COUNTRIES = ("DE", "FR", "CH", "IS", "SE", "US")


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "EVERY", 0.05)
    # The tests look and move themselves: the duty would take their jobs when it is the first.
    monkeypatch.setattr(Repack, "run", idle)
    monkeypatch.setattr(engine_moving, "POLICIES_EVERY", 10_000.0)


async def never(duty: Reassign, vault: object) -> None:
    """The mount has not told yet which policies files have."""
    await trio.sleep_forever()


def of_data(engine: Engine) -> dict[StripeId, Stripe]:
    return {s.stripe_id: s for s in engine.store.stripes() if s.purpose == Purpose.DATA}


def names(engine: Engine) -> set[str]:
    policies: Policies = engine.store.policies
    return {policies.name_of(stripe) for stripe in of_data(engine).values()}


async def photos(engine: Engine, vault: MemoryVault, count: int = 4) -> dict[int, bytes]:
    """Files of the policy phot, placed by it."""
    plain = {ino: os.urandom(200_000) for ino in range(1, count + 1)}
    for ino, data in plain.items():
        vault.policies[ino] = "phot"
        vault.write(ino, 0, data)
    await settle(engine, vault)
    assert all((s.needed, s.total) == (2, 4) for s in of_data(engine).values())
    return plain


def test_nothing_of_a_name_that_is_gone_moves_before_it_is_known_which_policy_its_files_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reassign, "run", never)

    async def test() -> None:
        hive, vault = MemoryHive(COUNTRIES, 2), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await engine.set_policies(PHOT)
            await photos(engine, vault)
            before = {i: [share.node for share in s.shares] for i, s in of_data(engine).items()}
            await engine.set_policies(STRICTER)
            assert await moved(engine) == 0
            assert {i: [share.node for share in s.shares] for i, s in of_data(engine).items()} == before
            for stripe in of_data(engine).values():
                assert engine.store.policies.of(stripe).deny == ("US",), "what it was placed by holds until it is moved"

    run(test)


def test_a_policy_that_only_gets_another_name_moves_nothing_and_certificates_get_the_name(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(COUNTRIES, 2), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await engine.set_policies(PHOT)
            plain = await photos(engine, vault)
            before = {i: [share.node for share in s.shares] for i, s in of_data(engine).items()}
            vault.policies = dict.fromkeys(plain, "family")
            await engine.set_policies(FAMILY)
            assert names(engine) == {"family"}
            await until(lambda: all(engine.store.certified(s) for s in of_data(engine).values()))
            assert await moved(engine) == 0
            assert {i: [share.node for share in s.shares] for i, s in of_data(engine).items()} == before
            named = {engine.store.policy_of(s.policy_hash) for s in of_data(engine).values()}
            assert {policy.name for policy in named if policy is not None} == {"family"}

    run(test)


def test_another_name_with_other_words_moves_once_and_to_where_it_belongs(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(COUNTRIES, 2), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await engine.set_policies(PHOT)
            plain = await photos(engine, vault)
            vault.policies = dict.fromkeys(plain, "family")
            await engine.set_policies(STRICTER)
            await until(lambda: bool(engine.moving.repack._wishes))
            assert await moved(engine) >= 1
            await until(lambda: names(engine) == {"family"})
            for stripe in of_data(engine).values():
                assert (stripe.needed, stripe.total) == (2, 4)
                assert not {"US", "IS"} & {hive.by_id(s.node).country for s in stripe.shares if s.node is not None}
            drop_cache(engine)
            for ino, data in plain.items():
                assert await content(engine, vault, ino, 0) == data

    run(test)


def test_an_automatic_code_goes_with_a_policy_that_gets_another_name(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(COUNTRIES, 2), MemoryVault()
        auto = PHOT.replace('code = "2/4"', 'code = "auto"')
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await engine.set_policies(auto)
            codes = engine.store.info
            await until(lambda: bool(codes("codes")))
            (chosen,) = codes("codes").values()
            await engine.set_policies(auto.replace("phot", "family"))
            policy = engine.store.policies.named("family")  # and it is not "being chosen"
            assert [policy.needed, policy.total] == chosen[:2]

    run(test)


def test_a_wish_for_what_lies_elsewhere_by_now_is_made_again_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(COUNTRIES, 2), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await engine.set_policies(PHOT)
            plain = {ino: os.urandom(200_000) for ino in range(1, 5)}
            for ino, data in plain.items():
                vault.write(ino, 0, data)
            await settle(engine, vault)
            repack = engine.moving.repack
            await until(lambda: engine.moving.reassign.known and not repack._wishes)
            vault.policies = dict.fromkeys(plain, "phot")
            engine.moving.reassign.ask()
            await until(lambda: bool(repack._wishes))
            # Meanwhile all of it moves to another stripe of the policy of before.
            repack._wishes, wishes = {}, repack._wishes
            chunks = [vault.map[(ino, 0)].chunk_id for ino in plain]
            repack.wish(chunks, Target("default", 4, 6), "a test")
            assert await moved(engine) == 1
            repack._wishes = wishes
            assert await moved(engine) == 0
            await until(lambda: bool(repack._wishes))
            assert await moved(engine) >= 1
            await until(lambda: all((s.needed, s.total) == (2, 4) for s in of_data(engine).values()))
            await until(lambda: not engine.moving.reassign.elsewhere)

    run(test)


def test_while_it_is_not_known_which_policies_files_have_no_other_code_moves_data(tmp_path: Path) -> None:
    """What was moved into /Photos as the code of default changed went to the new code of default first."""

    async def test() -> None:
        hive, vault = MemoryHive(COUNTRIES, 2), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await engine.set_policies(PHOT)
            vault.write(1, 0, os.urandom(200_000))
            vault.write(2, 0, os.urandom(200_000))
            await settle(engine, vault)
            vault.policies[1] = "phot"
            await engine.set_policies(PHOT.replace("4/6", "3/6"))
            assert await moved(engine) == 0, "the mount was not asked yet"
            reassign = engine.moving.reassign
            await until(lambda: reassign.known and bool(engine.moving.repack._wishes))
            for _ in range(3):
                await moved(engine)
                await settle(engine, vault)
                await until(lambda: reassign.known and not reassign.again)
            _, one = await engine.locate(vault.map[(1, 0)].chunk_id)
            _, two = await engine.locate(vault.map[(2, 0)].chunk_id)
            assert (one.needed, one.total) == (2, 4) and (two.needed, two.total) == (3, 6)

    run(test)


def test_what_was_on_its_way_as_the_text_changed_is_looked_at_when_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(COUNTRIES, 2), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await settle(engine, vault)
            place, go, on_its_way = engine.writer.place, trio.Event(), trio.Event()

            async def slowly(packed: Packed, purpose: Purpose, *more: Any) -> Stripe:
                if purpose == Purpose.DATA:
                    on_its_way.set()
                    await go.wait()
                return await place(packed, purpose, *more)

            monkeypatch.setattr(engine.writer, "place", slowly)
            vault.write(1, 0, os.urandom(100_000))
            engine.placing.poke()
            await on_its_way.wait()
            vault.policies[1] = "phot"
            await engine.set_policies(PHOT)
            await until(lambda: engine.moving.reassign.known)
            assert not engine.moving.reassign.elsewhere
            go.set()
            await until(lambda: bool(engine.moving.repack._wishes))

    run(test)


def test_what_waits_to_be_moved_shows(tmp_path: Path) -> None:
    """In status and its levels, as the reason of who waits, and in the check of placement: by the policy of the file."""

    async def test() -> None:
        hive, vault = MemoryHive(COUNTRIES, 2), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await engine.set_policies(PHOT)
            plain = await photos(engine, vault)
            await until(lambda: engine.moving.reassign.known)
            await engine.rules._measure()
            before = engine.status()
            assert not any(before["moving"]["elsewhere"].values()) and not before["policies"]["out_of_policy"]
            vault.policies = dict.fromkeys(plain, "family")
            allowed = FAMILY.replace('deny = ["US"]', 'allow = ["US", "IS", "SE", "CH"]\nno_hostage = false')
            await engine.set_policies(allowed.replace("2/4", "5/8") + "\n")
            await until(lambda: engine.moving.reassign.known and bool(engine.moving.repack._wishes))
            await engine.rules._measure()
            status = engine.status()
            number = len(of_data(engine))
            assert status["moving"]["elsewhere"]["stripes"] == {"family": number}
            words = f"stripes wait to be moved to the policy of their files: {number} to family"
            assert moving_words(status["moving"]).startswith(words)
            idle_ones = {"placing": {}, "checkpoint": {}, "repair": {}}
            assert eta({"mount": {}, "engine": status | idle_ones})["reason"].startswith(words)
            elsewhere = engine.moving.reassign.elsewhere
            check = PlacementCheck(engine.store, elsewhere=elsewhere)
            check.run()
            assert check.counts["other-policy"] == number and not any(f.problem for f in check.findings)
            outside = [s for s in of_data(engine).values() if not engine.store.health(s, "family").verdict.holds]
            # Four shares in four of five countries, two of which are denied now.
            assert len(outside) == number and status["policies"]["out_of_policy"]["family"]
            assert engine.rules.levels["guaranteed"] == 0 < engine.rules.levels["remote"]
            assert sum(f.kind == "out-of-policy" and f.detail.startswith("stripe") for f in check.findings) >= number
            assert await moved(engine)
            await until(lambda: not engine.moving.reassign.elsewhere)
            assert not any(engine.status()["moving"]["elsewhere"].values())

    run(test)

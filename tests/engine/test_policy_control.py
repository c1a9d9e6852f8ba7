"""The control methods about policies with the real engine: a text that is set through them moves what is placed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import trio

from hivefs.daemon.control import Methods
from hivefs.daemon.policy_book import EngineBook
from hivefs.daemon.policy_control import PolicyControl
from hivefs.errors import BadPolicy, PolicyInfeasible
from hivefs.testing.memory_hive import MemoryHive

from .memory_vault import MemoryVault
from .test_engine import make_home, run, running, settle, until

AWAY = '[policy.default]\ncode = "4/6"\ndeny = ["DE"]\n'


async def nothing(*_: Any) -> Any:
    await trio.lowlevel.checkpoint()


def test_a_node_out_of_trust_is_not_counted(tmp_path: Path) -> None:
    """The engine places nothing on it: a code that needs every node was said to be possible, and then all data waited."""

    async def test() -> None:
        hive, vault = MemoryHive(("DE", "FR", "CH", "IS", "SE", "NO", "FI", "NL"), 1), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            methods = Methods()
            PolicyControl(EngineBook(engine), nothing, engine.hydration.done.wait).add_to(methods)
            await until(lambda: sum(node.here for node in EngineBook(engine).nodes()) == 8)
            all_of_them = {"text": '[policy.default]\ncode = "5/8"\n'}
            assert not (await methods.answer("policy_check", all_of_them, nothing))["policies"]["default"]
            bad = hive.nodes[3].node_id
            for _ in range(1000):
                if not engine.trust.suspended(bad):
                    engine.trust.failed(bad)
            assert engine.trust.suspended(bad)
            found = await methods.answer("policy_check", all_of_them, nothing)
            assert "needs 8 nodes" in found["policies"]["default"] and "only 7 are there" in found["policies"]["default"]
            assert found["nodes"] == 7
            with pytest.raises(PolicyInfeasible, match="only 7 are there"):
                await methods.answer("policy_set", all_of_them, nothing)

    run(test)


def test_a_text_in_force_that_names_no_network_holds_on_and_its_mistake_is_told(tmp_path: Path) -> None:
    """Releases before this one took any name."""

    async def test() -> None:
        hive, vault = MemoryHive(("DE", "FR", "CH", "IS"), 2), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            methods = Methods()
            PolicyControl(EngineBook(engine), nothing, engine.hydration.done.wait).add_to(methods)
            old = '[policy.default]\ncode = "4/6"\ndeny = ["operator:operator-1", "subnet:hello"]\n'
            with pytest.raises(BadPolicy, match="line 3, column 32"):
                await methods.answer("policy_set", {"text": old, "force": True}, nothing)
            with engine.store.writing():
                engine.store.save_policy_text(old)  # as such a release did
            assert engine.store.policies.named("default").deny == ("operator:operator-1", "subnet:hello")
            said = await methods.answer("policy_get", None, nothing)
            assert said["text"] == old and "no subnet that a node can be in" in said["problem"]

    run(test)


def test_a_text_is_set_and_obeyed_and_one_that_cannot_be_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(("DE", "FR", "CH", "IS", "SE"), 2), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            methods = Methods()
            PolicyControl(EngineBook(engine), nothing, engine.hydration.done.wait).add_to(methods)
            for ino in range(4):
                vault.write(ino, 0, os.urandom(200_000))
            await settle(engine, vault)
            with pytest.raises(PolicyInfeasible, match="--force"):
                await methods.answer("policy_set", {"text": '[policy.default]\nallow = ["US", "CA", "MX"]\n'}, nothing)
            assert (await methods.answer("policy_get", None, nothing))["own"] is False
            said = await methods.answer("policy_set", {"text": AWAY}, nothing)
            assert said["policies"] == {"default": ""} and said["metadata"] == ""
            assert (await methods.answer("policy_get", None, nothing))["policies"]["default"]["deny"] == ["DE"]

            def german() -> int:
                held = [share.node for stripe in engine.store.stripes() for share in stripe.shares]
                return sum(hive.by_id(node).country == "DE" for node in held if node is not None)

            await until(lambda: not german())
            assert all(share.node is not None for stripe in engine.store.stripes() for share in stripe.shares)

    run(test)

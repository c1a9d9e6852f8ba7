"""Measured times, the user's table and the place of the machine, in the engine: what they make unknown, and until when."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import trio

from hivefs.daemon import evidence_control, registry_file
from hivefs.daemon.control import Methods
from hivefs.daemon.engine_core import Engine
from hivefs.errors import BadSetting, Corrupt
from hivefs.formats.member import sign_address
from hivefs.maintenance import round_trips
from hivefs.model.node import UNKNOWN, RosterEntry
from hivefs.placement.registry import from_lines
from hivefs.testing.memory_hive import MemoryHive, MemoryNode

from .test_engine import make_home, run, running, until
from .test_evidence import country, jurisdictions

PLACE = "52.5,13.4"  # Berlin


async def ask(engine: Engine, method: str, value: Any) -> Any:
    methods = Methods()
    evidence_control.add(methods, engine)

    async def report(_: Any) -> None:
        return

    return await methods.answer(method, value, report)


def tell(engine: Engine, node: MemoryNode, addresses: tuple[str, ...], sequence: int) -> None:
    """It signs where it is, anew."""
    engine.learn([RosterEntry(node.entry().membership, sign_address(node.seed, addresses, sequence))])


def slowly(engine: Engine, node: MemoryNode, windows: int) -> None:
    """So many windows in which nothing refutes what it says. (The pings of the memory hive take no time at all.)"""
    trips = engine.round_trips
    for _ in range(windows):
        trips._now = {key: seconds for key, seconds in trips._now.items() if key[1] != trips._addresses(node.node_id)}
        trips.measured(node.node_id, 0.3)
        engine.evidence.weigh(trips.turn())


def test_a_node_that_answers_too_fast_for_its_country_is_nowhere_until_that_is_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        hive = MemoryHive(("DE", "US", "IS", "CH"), 1)
        berlin, liar, *_ = hive.nodes
        home = make_home(tmp_path / "home", needed=2, total=3)
        async with running(home, hive, None) as engine:
            trips = engine.round_trips
            trips.measured(liar.node_id, 0.001)
            assert country(engine, liar) == ("US", "claimed"), "where we are is not known"
            assert await ask(engine, "evidence_place", PLACE) == PLACE
            for node, seconds in ((berlin, 0.0001), (liar, 0.200)):
                assert not trips.measured(node.node_id, seconds)
            assert trips.measured(liar.node_id, 0.002) and engine.evidence.weigh([liar.node_id]) == [liar.node_id]
            assert not trips.measured(liar.node_id, 0.001), "once"
            assert country(engine, liar) == ("", "measured") and UNKNOWN in jurisdictions(engine, liar)
            (row,) = [n for n in engine.status()["nodes"] if n["id"] == liar.node_id.hex()]
            assert "country US is refuted: it answers in 2.0 ms and light takes" in row["unsure"][0]
            assert country(engine, berlin) == ("DE", "claimed")
        said = [r.getMessage() for r in caplog.records if "is refuted" in r.getMessage()]
        assert len(said) == 1
        async with running(home, hive, None) as engine:
            assert engine.round_trips.place_text == PLACE
            assert country(engine, liar) == ("", "measured"), "after a restart"
            engine.evidence.again()
            await trio.sleep(0.1)
            assert country(engine, liar) == ("", "measured")
            trips = engine.round_trips
            tell(engine, liar, liar.entry().address.addresses, 9)
            assert country(engine, liar) == ("", "measured"), "the same addresses, signed once more"
            slowly(engine, liar, 3)
            assert country(engine, liar) == ("", "measured"), "it can always be slower than it is"
            tell(engine, liar, ("/ip4/127.0.0.1/tcp/99",), 10)
            assert country(engine, liar) == ("", "measured"), "other addresses are nothing measured"
            trips.measured(liar.node_id, 0.002)
            slowly(engine, liar, 3)
            assert country(engine, liar) == ("", "measured"), "it was refuted there, too"
            tell(engine, liar, ("/ip4/127.0.0.1/tcp/98",), 11)
            slowly(engine, liar, 1)
            assert country(engine, liar) == ("", "measured"), "not a whole window"
            trips._now[liar.node_id, b"at others meanwhile"] = 0.002
            slowly(engine, liar, 1)
            assert country(engine, liar) == ("", "measured")
            slowly(engine, liar, 1)
            assert country(engine, liar) == ("US", "claimed")
            assert await ask(engine, "evidence_place", "none") == ""
            with pytest.raises(BadSetting):
                await ask(engine, "evidence_place", "Berlin")

    with caplog.at_level("INFO"):
        run(test)


def test_pings_refute_by_themselves_when_the_place_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_trips, "EVERY", 0.05)  # what a busy machine holds up refutes nothing: the next one does

    async def test() -> None:
        hive = MemoryHive(("DE", "US", "IS", "CH"), 1)
        async with running(make_home(tmp_path / "home", needed=2, total=3), hive, None) as engine:
            await until(lambda: len(engine.pool.online()) == 4)
            await ask(engine, "evidence_place", "DE")
            await until(lambda: country(engine, hive.nodes[1]) == ("", "measured"))
            await until(lambda: country(engine, hive.nodes[2]) == ("", "measured"))
            assert country(engine, hive.nodes[0]) == ("DE", "claimed")
            assert country(engine, hive.nodes[3]) == ("CH", "claimed"), "which borders on Germany"
            await ask(engine, "evidence_place", "none")
            await until(lambda: country(engine, hive.nodes[1]) == ("US", "claimed"))

    run(test)


def test_a_relay_makes_no_node_seem_far_and_hides_no_answer_that_is_too_fast(tmp_path: Path) -> None:
    relay = ("/hivefs-relay/ip4/192.0.2.7/tcp/4001/p2p/12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X",)

    async def test() -> None:
        hive = MemoryHive(("DE", "US", "IS", "CH"), 1)
        other, liar, hidden, _ = hive.nodes
        async with running(make_home(tmp_path / "home", needed=2, total=3), hive, None) as engine:
            trips = engine.round_trips
            await ask(engine, "evidence_place", PLACE)
            assert not trips.measured(other.node_id, 0.0001, relayed=True) and trips.least(other.node_id) is None
            assert trips.measured(hidden.node_id, 0.0001, relayed=True), "no way to Iceland is so short"
            assert trips.measured(liar.node_id, 0.002)
            engine.evidence.weigh([liar.node_id, hidden.node_id])
            assert country(engine, liar) == country(engine, hidden) == ("", "measured")
            tell(engine, liar, relay, 9)
            tell(engine, hidden, relay, 9)
            for _ in range(4):
                for node in (liar, hidden):
                    trips._now = {key: seconds for key, seconds in trips._now.items() if key[0] != node.node_id}
                    trips.measured(node.node_id, 0.3, relayed=True)
                engine.evidence.weigh(trips.turn())
            assert country(engine, liar) == country(engine, hidden) == ("", "measured"), "a long way is no proof"

    run(test)


def test_addresses_beside_a_relay_do_not_say_where_a_node_is(tmp_path: Path) -> None:
    """It is used through the relay: nobody needs to reach it at the address in the country that it says."""
    relay = "/hivefs-relay/ip4/8.8.1.9/tcp/4001/p2p/12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X"

    async def test() -> None:
        hive = MemoryHive(("DE", "DE", "IS", "CH"), 1)
        honest, liar, *_ = hive.nodes = [PublicNode(n.number, n.country, n.operator) for n in hive.nodes]
        home = make_home(tmp_path / "home", needed=2, total=3)
        (tmp_path / "table.csv").write_text("network,country\n8.8.1.0/24,DE,64500,R\n8.8.2.0/24,DE\n")
        async with running(home, hive, None) as engine:
            with registry_file.handed_over(home.engine, registry_file.read_csv(tmp_path / "table.csv")) as name:
                await ask(engine, "evidence_registry", name)
            await until(lambda: country(engine, honest) == country(engine, liar) == ("DE", "registry"))
            tell(engine, liar, ("/ip4/8.8.2.8/tcp/4001", relay), 9)
            await until(lambda: country(engine, liar) == ("DE", "claimed"))
            (row,) = [n for n in engine.status()["nodes"] if n["id"] == liar.node_id.hex()]
            assert "subnet" not in row["attributes"] and row["relays"] == [relay.removeprefix("/hivefs-relay")]
            assert not row["relayed"]

    run(test)


class PublicNode(MemoryNode):
    """One that tells a public address."""

    def entry(self) -> RosterEntry:
        made = super().entry()
        return RosterEntry(made.membership, sign_address(self.seed, (f"/ip4/8.8.{self.number}.8/tcp/4001",), 1))


def test_the_users_table_counts_after_a_restart_and_a_planted_one_does_not(tmp_path: Path) -> None:
    async def test() -> None:
        hive = MemoryHive(("DE", "US", "IS", "CH"), 1)
        hive.nodes = [PublicNode(n.number, n.country, n.operator) for n in hive.nodes]
        honest, liar = hive.nodes[0], hive.nodes[1]
        home = make_home(tmp_path / "home", needed=2, total=3)
        (tmp_path / "table.csv").write_text("network,country\n8.8.1.0/24,DE,64500,R\n8.8.2.0/24,SG\n")
        async with running(home, hive, None) as engine:
            made = registry_file.read_csv(tmp_path / "table.csv")
            with registry_file.handed_over(home.engine, made) as name:
                facts = await ask(engine, "evidence_registry", name)
            assert facts["rows"] == 2 and sorted(p.name for p in home.engine.glob("*registry*")) == [
                "registry-" + facts["digest"].hex()
            ]
            await until(lambda: country(engine, honest) == ("DE", "registry"))
            await until(lambda: country(engine, liar) == ("", "registry"))
            assert UNKNOWN in jurisdictions(engine, liar)
            for wrong in ("../vault.json", "registry-x", 7, "new-registry-gone"):
                with pytest.raises((BadSetting, Corrupt)):
                    await ask(engine, "evidence_registry", wrong)
        async with running(home, hive, None) as engine:
            assert country(engine, honest) == ("DE", "registry")
        path = next(home.engine.glob("registry-*"))
        path.write_bytes(path.read_bytes()[:-1] + b"\x00")
        async with running(home, hive, None) as engine:
            await until(lambda: country(engine, honest) == ("DE", "claimed"))
            assert registry_file.facts(engine.store) is not None
            assert await ask(engine, "evidence_registry", None) is None
            await until(lambda: country(engine, liar) == ("US", "claimed"))
            assert not list(home.engine.glob("registry-*"))

    run(test)


def test_tables_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="cannot be read"):
        registry_file.read_csv(tmp_path / "none")
    (tmp_path / "bad.csv").write_bytes(b"\xff\xfe\x00\x00,DE\n")
    with pytest.raises(BadSetting, match="line 1"):
        registry_file.read_csv(tmp_path / "bad.csv")
    assert from_lines(csv.reader(["192.0.2.0/24,DE"])).rows == 1

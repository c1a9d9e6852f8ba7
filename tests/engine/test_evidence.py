"""The engine's evidence: whom the user trusts, what is forged, replayed or ended, nodes that change, recovery."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from hivefs.crypto import keys
from hivefs.daemon.engine_core import Engine, opened
from hivefs.errors import BadAttestation, BadSetting
from hivefs.formats import attestation
from hivefs.model.attestation import Attestation, Statement
from hivefs.model.node import UNKNOWN, Attribute, Evidence
from hivefs.model.stripe import Level, Purpose
from hivefs.placement.attributes import authorities
from hivefs.testing.memory_hive import HIVE_SEED, MemoryHive, MemoryNode

from .memory_vault import MemoryVault
from .test_engine import SECRETS, make_home, recovered, run, running, settle, until

NOTARY, STRANGER = bytes([91]) * 32, bytes([92]) * 32
KEY = keys.public_key(NOTARY)
DAY = 86_400 * 10**9
NOW = 1_800_000_000 * 10**9


def vouch(node: MemoryNode, by: bytes = NOTARY, issued: int = 0, expires: int = 0, **said: str) -> Attestation:
    return attestation.sign_attestation(by, Attestation(b"", node.node_id, tuple(said.items()), issued, expires))


def country(engine: Engine, node: MemoryNode) -> tuple[str, str]:
    found = next(n for n in engine.status()["nodes"] if n["id"] == node.node_id.hex())
    return found["attributes"]["country"], found["evidence"]["country"]


def jurisdictions(engine: Engine, node: MemoryNode) -> frozenset[str]:
    view = engine.store.node_view(node.node_id)
    assert view is not None
    assert authorities(view.attributes)["jurisdiction"] == engine.pool.members[node.node_id].authorities["jurisdiction"]
    return authorities(view.attributes)["jurisdiction"]


def test_an_attestation_counts_when_its_attester_is_trusted_and_until_it_is_not(tmp_path: Path) -> None:
    async def test() -> None:
        hive = MemoryHive()
        node = hive.nodes[0]
        home = make_home(tmp_path / "home")
        async with running(home, hive, None) as engine:
            assert country(engine, node) == ("DE", "claimed")
            hive.statements = [sign(node, vouch(node, country="DE"))]
            await until(lambda: len(engine.pool.online()) == 8)
            await engine.news.compare(engine.online()[0][1])  # type: ignore[index]
            assert engine.store.statement_of(node.node_id) is not None
            assert country(engine, node) == ("DE", "claimed"), "a stranger's word"
            assert engine.evidence.trust(KEY, "the notary") and not engine.evidence.trust(KEY, "the notary")
            await until(lambda: country(engine, node) == ("DE", "attested"))
            assert country(engine, hive.nodes[1]) == ("DE", "claimed")
            assert engine.evidence.attesters(node.node_id) == [KEY]
        async with running(home, hive, None) as engine:
            assert country(engine, node) == ("DE", "attested"), "after a restart at once"
            assert engine.evidence.distrust(KEY) and not engine.evidence.distrust(KEY)
            await until(lambda: country(engine, node) == ("DE", "claimed"))

    run(test)


def sign(node: MemoryNode, *vouched: Attestation, sequence: int = 1, **claims: str) -> Statement:
    return attestation.sign_statement(node.seed, Statement(node.node_id, sequence, tuple(claims.items()), vouched))


def test_forged_replayed_expired_and_untrusted_ones_are_refused_and_named(tmp_path: Path) -> None:
    async def test() -> None:
        hive = MemoryHive()
        node, other = hive.nodes[0], hive.nodes[2]
        async with running(make_home(tmp_path / "home"), hive, None) as engine:
            engine.evidence.trust(KEY, "")
            engine.evidence._clock = lambda: NOW
            good = vouch(node, country="DE")
            named = node.node_id.hex()[:12]
            own = vouch(node, by=node.seed, country="CH")
            for bad, reason in [
                (replace(good, said=(("country", "CH"),)), f"{named}: its signature .* forged"),
                (replace(good, subject=other.node_id), f"{other.node_id.hex()[:12]}: its signature .* forged"),
                (
                    vouch(node, by=STRANGER, country="DE"),
                    f"{named}: its attester {keys.public_key(STRANGER).hex()} is not trust",
                ),
                (own, f"{named}: a node cannot attest itself"),
                (vouch(node, issued=1, expires=NOW - DAY, country="DE"), f"{named}: it has expired"),
                (vouch(node, issued=NOW + DAY + 1, country="DE"), f"{named}: it is from the future"),
            ]:
                with pytest.raises(BadAttestation, match=reason):
                    engine.evidence.take_attestations([good, bad])
            assert country(engine, node) == ("DE", "claimed"), "all or none"
            engine.evidence.trust(node.node_id, "a node's key, by mistake")
            hive.statements = [
                sign(node, replace(good, subject=other.node_id)),
                attestation.sign_statement(other.seed, Statement(other.node_id, 9, (), (good,))),
                replace(sign(other, vouch(other, by=node.seed, country="IS")), sequence=99),
                sign(node, own),
                sign(node, good, sequence=(1 << 63) - 1),
            ]
            assert engine.evidence.take_statements(hive.statements) == 0
            assert country(engine, node) == ("DE", "claimed")
            assert engine.evidence.take_attestations([good]) == 1 and engine.evidence.take_attestations([good]) == 0
            assert country(engine, node) == ("DE", "attested")
            assert engine.evidence.take_attestations([vouch(node, issued=5, country="DE", operator="operator-1")]) == 1
            assert engine.evidence.take_attestations([good]) == 0, "the older one brought again"
            with pytest.raises(BadSetting, match="longer than"):
                engine.evidence.trust(keys.public_key(STRANGER), "x" * 200)
            with pytest.raises(BadSetting, match="cannot be shown"):
                engine.evidence.trust(keys.public_key(STRANGER), "me\x1b[2J")

    run(test)


def test_an_owner_who_lies_about_a_country_is_contradicted_by_whom_the_user_trusts(tmp_path: Path) -> None:
    """Without trust the lie is a claim; with an attester it is unknown; trusting the owner is the user's own doing."""

    async def test() -> None:
        hive = MemoryHive()
        liar = hive.nodes[0]
        async with running(make_home(tmp_path / "home"), hive, None) as engine:
            assert jurisdictions(engine, liar) == {"DE"}
            engine.evidence.trust(KEY, "")
            engine.evidence.take_attestations([vouch(liar, country="US", operator_country="DE")])
            assert jurisdictions(engine, liar) == {UNKNOWN, "DE"}
            (row,) = [n for n in engine.status()["nodes"] if n["id"] == liar.node_id.hex()]
            assert row["attributes"]["country"] == "" and "the hive's owner says DE" in row["unsure"][0]

    run(test)


def test_a_node_that_is_relabelled_is_noticed_and_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        hive = MemoryHive()
        node = hive.nodes[3]
        async with running(make_home(tmp_path / "home"), hive, None) as engine:
            await until(lambda: len(engine.pool.online()) == 8)
            before = engine.pool.change()
            node.also, node.epoch = (Attribute("parent", "X"), Attribute("parent_country", "US", Evidence.ATTESTED)), 2
            for _, client in list(engine.online()):
                await engine.news.compare(client)
            assert jurisdictions(engine, node) == {"FR", "US"} and before.is_set()
            said = [r.getMessage() for r in caplog.records if "parent_country is US now (claimed)" in r.getMessage()]
            assert len(said) == 1 and node.node_id.hex()[:12] in said[0]
            node.also, node.epoch = (), 1  # an older certificate brought back
            engine.learn([node.entry()])
            assert jurisdictions(engine, node) == {"FR", "US"}
            assert engine.evidence.take_statements([sign(node, country="IS")]) == 1, "its own word against the owner's"
            assert jurisdictions(engine, node) == {UNKNOWN, "FR", "US"}
            assert engine.evidence.take_statements([sign(node, sequence=2)]) == 1
            assert jurisdictions(engine, node) == {"FR", "US"}

    with caplog.at_level(logging.INFO):
        run(test)


def test_the_owners_word_is_attested_for_who_trusts_the_owner(tmp_path: Path) -> None:
    async def test() -> None:
        hive = MemoryHive()
        node = hive.nodes[0]
        node.also = (Attribute("hoster", "Rack", Evidence.ATTESTED),)
        async with running(make_home(tmp_path / "home"), hive, None) as engine:

            def hoster() -> tuple[str, str]:
                found = next(n for n in engine.status()["nodes"] if n["id"] == node.node_id.hex())
                return found["attributes"]["hoster"], found["evidence"]["hoster"]

            assert hoster() == ("Rack", "claimed")
            engine.evidence.trust(keys.public_key(HIVE_SEED), "the owner")
            await until(lambda: hoster() == ("Rack", "attested"))
            assert country(engine, node) == ("DE", "claimed"), "which the owner itself only claims"

    run(test)


def test_an_attestation_ends_by_itself_a_day_after_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hivefs.maintenance.evidence.EVERY", 0.05)

    async def test() -> None:
        hive = MemoryHive()
        node = hive.nodes[0]
        async with running(make_home(tmp_path / "home"), hive, None) as engine:
            now = [NOW]
            engine.evidence._clock = lambda: now[0]
            engine.evidence.trust(KEY, "")
            engine.evidence.take_attestations([vouch(node, expires=NOW + 10, country="DE")])
            await until(lambda: country(engine, node) == ("DE", "attested"))
            now[0] = NOW + DAY
            await trio.sleep(0.3)
            assert country(engine, node) == ("DE", "attested"), "clocks may be a day apart"
            now[0] = NOW + DAY + 10
            await until(lambda: country(engine, node) == ("DE", "claimed"))

    run(test)


def test_trust_and_attestations_come_back_at_a_recovery_before_anything_is_repaired(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        node, other = hive.nodes[0], hive.nodes[2]
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            engine.evidence.trust(KEY, "the notary")
            engine.evidence.take_attestations([vouch(node, country="DE")])
            hive.statements = [sign(other, vouch(other, country="FR"))]
            engine.evidence.take_statements(hive.statements)
            vault.write(5, 0, b"data" * 100)
            await settle(engine, vault)
            root = engine.checkpoint.root()
        hive.statements = []
        second = make_home(tmp_path / "second")
        recovered(second, root)
        states: list[Any] = []
        async with opened(second, SECRETS, hive.dial) as engine:  # type: ignore[arg-type]
            repair = engine.repair.run

            async def seen() -> None:
                states.append((country(engine, node), country(engine, other)))
                await repair()

            engine.repair.run = seen  # type: ignore[method-assign]
            engine.learn([n.entry() for n in hive.nodes])
            assert country(engine, node) == ("DE", "claimed")
            await until(lambda: states)
            assert states == [(("DE", "attested"), ("FR", "attested"))]
            assert [made.name for made in engine.store.trusted_keys()] == ["the notary"]

    run(test)


def test_a_node_that_does_not_know_the_question_for_news_is_used_as_before(tmp_path: Path) -> None:
    from hivefs.errors import ConnectionLost
    from hivefs.testing.memory_hive import MemoryClient

    async def test() -> None:
        hive = MemoryHive()
        asked: list[int] = []
        again: set[int] = set()
        get_roster = MemoryClient.get_roster

        async def as_before(self: MemoryClient, *, timeout: float = 30) -> Any:
            again.add(self._node.number)
            return await get_roster(self, timeout=timeout)

        async def unknown(self: MemoryClient, **_: Any) -> Any:
            asked.append(self._node.number)
            self._node.stopped.set()
            self._node.stopped = trio.Event()
            raise ConnectionLost(peer=str(self._node.number), reason="a frame of unknown kind 40")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MemoryClient, "news", unknown)
            patch.setattr(MemoryClient, "get_roster", as_before)
            async with running(make_home(tmp_path / "home"), hive, None) as engine:
                await until(lambda: len(asked) >= 8)
                await until(lambda: len(again) == 8)
                assert sorted(asked) == list(range(1, 9)), "each was asked once"
                assert len(engine.pool.online()) == 8

    run(test)


def test_shares_leave_nodes_that_were_sold_without_anybody_asking(tmp_path: Path) -> None:
    """Three nodes in three countries get one owner in a fourth: whatever stripe all three hold is out of policy then."""

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        ids: set[bytes] = set()

        def together(engine: Engine) -> list[int]:
            return [sum(1 for share in stripe.shares if share.node in ids) for stripe in engine.store.stripes()]

        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            for slot in range(12):
                vault.write(7, slot, bytes([slot]) * (1 << 20))
            await settle(engine, vault)
            first = next(iter(engine.store.stripes()))
            held = [hive.by_id(share.node) for share in first.shares if share.node is not None]
            sold = list({node.country: node for node in held}.values())[:3]
            ids.update(node.node_id for node in sold)
            assert max(together(engine)) == len(ids) == 3
            for node in sold:
                node.also, node.epoch = (Attribute("parent", "Corp"), Attribute("parent_country", "US")), 2
            await engine.news.compare(engine.online()[0][1])  # type: ignore[index]
            await until(lambda: max(together(engine)) <= 2)
            await until(lambda: all(engine.store.health(s).level == Level.GUARANTEED for s in engine.store.stripes()))
            assert all(len(jurisdictions(engine, node)) == 2 for node in sold)

    run(test)


def test_a_policy_that_asks_for_attested_nodes_waits_for_them_and_notices_when_they_are_no_more(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            with engine.store.writing():
                engine.store.save_policy_text('[policy.default]\nevidence = "attested"\n')
            vault.write(7, 0, b"data" * 1000)
            engine.placing.poke()
            await until(lambda: engine.placing.progress.waiting_for)
            assert not [s for s in engine.store.stripes() if s.purpose == Purpose.DATA], "nothing is placed on claims"
            engine.evidence.trust(KEY, "")
            for node in hive.nodes:
                said = {"country": node.country, "operator": node.operator, "operator_country": node.country}
                engine.evidence.take_attestations([vouch(node, **said)])
            await settle(engine, vault)
            stripes = [s for s in engine.store.stripes() if s.purpose == Purpose.DATA]
            assert stripes and all(engine.store.health(s).level == Level.GUARANTEED for s in stripes)
            engine.evidence.distrust(KEY)
            await until(lambda: engine.store.health(stripes[0]).level == Level.REMOTE)

    run(test)

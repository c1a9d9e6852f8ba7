"""Policies over the control socket and on the command line, with an engine that is a book in memory."""

from __future__ import annotations

import json
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cbor2
import click
import pytest
import trio

from hivefs.cli import (
    asking,
    policy_apply,
    policy_check,
    policy_edit,
    policy_explain,
    policy_set,
    policy_show,
    policy_simulate,
)
from hivefs.cli import main as cli
from hivefs.cli import placement as placement_command
from hivefs.daemon import policy_look
from hivefs.daemon.control import Methods
from hivefs.daemon.control_frames import Encoded
from hivefs.daemon.home import Home, Lock, Secrets
from hivefs.daemon.policy_control import PolicyControl
from hivefs.daemon.policy_nodes import Node, infeasible
from hivefs.errors import BadPolicy, BadSetting, HivefsError, PathNotInDrive, PolicyInfeasible
from hivefs.formats import records
from hivefs.model.ids import ROOT_INO, ChunkId, NodeId, ShareId, StripeId
from hivefs.model.inode import ChunkRef, Dirent, Inode, MapExtent, SlotKind
from hivefs.model.node import Attribute, Evidence
from hivefs.model.stripe import Purpose, Share, Stripe
from hivefs.placement.health import NodeState
from hivefs.placement.language import parse
from hivefs.placement.policy import Policy

NAMES_KEY = bytes(32)
PLACES = ("DE", "FR", "CH", "IS")


def node(number: int, country: str, **more: str) -> Node:
    said = {"country": country, "operator_country": country, "operator": f"op-{number}", **more}
    attributes = tuple(Attribute(name, value) for name, value in said.items())
    return Node(NodeId(bytes([number]) * 32), NodeState.ONLINE, attributes, True, 1 << 30)


class Tree:
    """A snapshot: directories, files and maps, made by hand."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.next = ROOT_INO
        self.add(stat.S_IFDIR)

    def add(self, kind: int) -> int:
        ino = self.next
        self.next += 1
        self.records[records.inode_key(ino)] = records.inode_to_bytes(Inode(ino, kind | 0o644))
        return ino

    def name(self, directory: int, name: str, kind: int, ino: int | None = None) -> int:
        ino = self.add(kind) if ino is None else ino
        key = records.dirent_key(directory, records.name_hash(NAMES_KEY, directory, name.encode()))
        self.records[key] = records.dirent_to_bytes(Dirent(name.encode(), ino, kind >> 12))
        return ino

    def chunk(self, ino: int, slot: int, chunk_id: ChunkId | None) -> None:
        chunk = None if chunk_id is None else ChunkRef(chunk_id, bytes(32), 10, 0)
        kind = SlotKind.PENDING if chunk is None else SlotKind.CHUNK
        self.records[records.map_key(ino, slot)] = records.extent_to_bytes(MapExtent(slot, 1, kind, chunk))

    def get(self, key: bytes) -> bytes | None:
        return self.records.get(key)

    def scan(self, prefix: bytes, start: bytes = b"") -> Iterator[tuple[bytes, bytes | None]]:
        yield from sorted((k, v) for k, v in self.records.items() if k.startswith(prefix) and k >= start)

    def staged(self) -> Iterator[tuple[int, int, bytes | None]]:
        return iter(())


class MemoryBook:
    """A Book: three nodes in each of four countries, stripes of 4/8."""

    default = Policy(4, 8)

    def __init__(self) -> None:
        self.kept = ""
        self.there = [node(1 + 4 * i + j, country) for j, country in enumerate(PLACES) for i in range(3)]
        self.stripes: dict[ChunkId, Stripe] = {}
        self.metadata: list[Stripe] = [self.stripe(200, range(8))]

    def stripe(self, number: int, holders: Any) -> Stripe:
        shares = tuple(
            Share(ShareId(bytes([number, i]) * 16), bytes(32), None if h is None else self.there[h].node_id)
            for i, h in enumerate(holders)
        )
        return Stripe(StripeId(bytes([number]) * 16), Purpose.DATA, 4, 100, shares)

    def text(self) -> str:
        return self.kept

    async def set_text(self, text: str) -> None:
        self.kept = text

    def nodes(self) -> list[Node]:
        return self.there

    policy_text = text

    def stripe_id_of(self, chunk_id: ChunkId) -> StripeId | None:
        stripe = self.stripes.get(chunk_id)
        return None if stripe is None else stripe.stripe_id

    def knows(self, stripe_id: StripeId) -> bool:
        return self.holders(stripe_id) is not None

    def holders(self, stripe_id: StripeId) -> Any:
        found = {stripe.stripe_id: stripe for stripe in self.stripes.values()}.get(stripe_id)
        return None if found is None else held(found)

    def metadata_holders(self) -> Iterator[tuple[StripeId, Any]]:
        return ((stripe.stripe_id, held(stripe)) for stripe in self.metadata)


def held(stripe: Stripe) -> Any:
    return stripe.needed, tuple(share.node for share in stripe.shares)


class World:
    """A book, a tree with three files, and the control methods."""

    def __init__(self) -> None:
        self.book, self.tree = MemoryBook(), Tree()
        self.methods = Methods()
        self.control = PolicyControl(self.book, self.look, self.ready)
        self.control.add_to(self.methods)
        photos = self.tree.name(ROOT_INO, "Photos", stat.S_IFDIR)
        even = self.book.stripe(1, (0, 1, 3, 4, 6, 7, 9, 10))  # two in each country
        german = self.book.stripe(2, (0, 1, 2, 3, 4, 6, 7, 9))  # three in DE
        broken = self.book.stripe(3, (0, 1, 2, 3, None, None, None, None))
        for number, (directory, name, stripe) in enumerate(
            ((ROOT_INO, "even", even), (photos, "german", german), (photos, "broken", broken))
        ):
            ino = self.tree.name(directory, name, stat.S_IFREG)
            chunk = ChunkId(bytes([number]) * 16)
            self.book.stripes[chunk] = stripe
            self.tree.chunk(ino, 0, chunk)
        half = self.tree.name(ROOT_INO, "half", stat.S_IFREG)
        self.tree.chunk(half, 0, None)
        self.tree.name(photos, "again", stat.S_IFREG, half)

    async def look(self, kind: str, given: dict[str, Any], nodes: Any, report: Any) -> Encoded:
        """What the child does (daemon/looking.py), here."""
        steps: list[Any] = []

        def tell(*step: Any) -> None:
            steps.append(list(step))

        with tempfile.TemporaryDirectory() as room:
            look = policy_look.Look(self.book, self.tree, NAMES_KEY, nodes, Path(room), tell)
            found = getattr(policy_look, kind)(look, **given)
            assert not list(Path(room).iterdir())
        for step in steps:
            await report(step)
        return Encoded(cbor2.dumps(found))

    async def ready(self) -> None:
        await trio.lowlevel.checkpoint()

    def ask(self, name: str, value: Any = None, steps: list[Any] | None = None) -> Any:
        async def report(step: Any) -> None:
            if steps is not None:
                steps.append(step)

        async def call() -> Any:
            with trio.fail_after(60):
                found = await self.methods.answer(name, value, report)
                return found.value if isinstance(found, Encoded) else found

        return trio.run(call)


def test_explain_says_who_holds_what_and_proves_it() -> None:
    world, steps = World(), []
    found = world.ask("policy_explain", {"path": "/"}, steps)
    assert (found["files"], found["local"], found["stripes"]) == (4, 1, 3)
    assert ["files", 4, 4] in steps and ["stripes", 3, 3] in steps and steps[-1] == ["policies", 1, 1]
    assert (found["proved"], found["failing"], found["missing_shares"]) == (2, 1, 4) and found["codes"] == {"4/8": 3}
    (proof,) = found["proofs"]
    assert proof["no_reassembly"] == {"holds": True, "coalition": 1, "worst": ["DE"], "shares": 3, "allowed": 3}
    assert proof["no_hostage"]["remaining"] == 1 and proof["no_hostage"]["must_remain"] == 4 and not proof["holds"]
    shares = {h["node"]: h["shares"] for h in found["holders"]}
    assert shares[world.book.there[0].node_id.hex()] == 3 and sum(shares.values()) == 20
    assert found["holders"][0]["evidence"]["country"] == "claimed"
    assert found["metadata"]["proved"] == 1 and found["policies"]["default"]["infeasible"] == ""
    assert found["freshness"] == {"jurisdictions": 4, "remembering": "known", "fresh": "known"}
    assert world.ask("policy_explain", {"path": "/even"})["proofs"][0]["no_hostage"]["remaining"] == 6
    with pytest.raises(PathNotInDrive):
        world.ask("policy_explain", {"path": "/Photos/none"})


def test_explain_of_what_cannot_be_guaranteed_is_honest() -> None:
    world = World()
    world.book.there = [n for n in world.book.there if n.attributes[0].value in ("DE", "FR")]
    found = world.ask("policy_explain", {"path": "/even"})
    assert found["policies"]["default"]["limits"] == "2 jurisdictions: withholding cannot be prevented where rebuilding is"
    assert found["policies"]["default"]["infeasible"] and found["missing_shares"] == 4
    assert found["freshness"]["remembering"].startswith(
        "unknown: it needs a node that is not under 2 of family jurisdiction"
    )
    world.book.there = [node(i, "DE", parent="big", parent_country="US") for i in range(1, 5)]
    assert world.ask("policy_explain", {"path": "/even"})["freshness"]["jurisdictions"] == 1


def test_a_policy_of_a_path_is_what_its_files_are_proved_by() -> None:
    world = World()
    text = '[policy.p]\nno_hostage = { slack = 1 }\n[paths]\n"/Photos" = "p"\n'
    world.ask("policy_set", {"text": text})
    found = world.ask("policy_explain", {"path": "/"})
    assert set(found["policies"]) == {"default", "p"} and {p["policy"] for p in found["proofs"]} == {"default", "p"}
    (proof,) = world.ask("policy_explain", {"path": "/Photos/german"})["proofs"]
    assert proof["policy"] == "p" and proof["no_hostage"]["must_remain"] == 5 and proof["no_hostage"]["remaining"] == 5


def test_simulate() -> None:
    world = World()
    ask = {"lose": ["DE"], "seize": ["FR", "CH"], "nodes_gone": 0}
    found = world.ask("policy_simulate", ask)
    assert (found["nodes"], found["nodes_left"]) == (12, 9)
    files = found["files"]
    assert (files["files"], files["readable"], files["lost"], files["endangered"]) == (4, 3, 1, 0)
    assert (files["whole"], files["partly"]) == (2, 2) and found["local"] == 1
    found = world.ask("policy_simulate", {**ask, "nodes_gone": 2, "path": "/even"})
    assert (found["files"]["files"], found["files"]["endangered"]) == (1, 1)
    with pytest.raises(HivefsError, match="--lose"):
        world.ask("policy_simulate", {**ask, "lose": ["Atlantis"]})


def test_a_set_is_refused_before_anything_moves_unless_it_is_forced() -> None:
    world = World()
    with pytest.raises(BadPolicy):
        world.ask("policy_set", {"text": "[policy.default]\ncod = 1"})
    wants = '[policy.default]\ncode = "4/8"\nallow = ["EU"]\n'
    with pytest.raises(PolicyInfeasible, match="--force"):
        world.ask("policy_set", {"text": wants})
    assert world.book.kept == "" and world.ask("policy_get")["own"] is False
    assert world.ask("policy_check", {"text": wants})["policies"]["default"]
    assert world.ask("policy_set", {"text": wants, "force": True})["policies"]["default"]
    assert world.book.kept == wants and world.ask("policy_get")["text"] == wants


def test_an_automatic_code_is_feasible_when_some_code_is() -> None:
    four = [node(i, country) for i, country in enumerate(PLACES, 1)]
    assert infeasible(Policy(0, 0, auto=True), four) == ""
    assert infeasible(Policy(0, 0, auto=True), four[:2]) != "" and infeasible(Policy(4, 8), four) != ""


def test_nodes_that_would_do_if_they_were_attested_are_said_to() -> None:
    nodes = [node(i, country) for i, country in enumerate(PLACES * 3, 1)]
    for policy in (Policy(4, 8, evidence=Evidence.ATTESTED), Policy(0, 0, evidence=Evidence.ATTESTED, auto=True)):
        words = infeasible(policy, nodes)
        assert "would do if what is said of 12 of them was attested" in words and 'evidence = "attested"' in words
        assert "under 0;" in words or "under 0 of" in words, "and no empty brackets"
        good = [replace(n, attributes=tuple(replace(a, evidence=Evidence.ATTESTED) for a in n.attributes)) for n in nodes]
        assert infeasible(policy, good) == ""
        assert "what is said of 9 of them was attested" in infeasible(policy, [*good[:3], *nodes[3:]])
        assert "would do" not in infeasible(policy, [n for n in nodes if n.attributes[0].value != "FR"][:4])
    capped = Policy(4, 8, max_per=(("asn", 2),), evidence=Evidence.REGISTRY)
    assert "would do" not in infeasible(capped, nodes), "nobody states a network, so there is nothing to attest"


def test_an_engine_that_has_just_started_waits_to_hear_of_its_nodes() -> None:
    for name in ("policy_check", "policy_set"):
        world = World()
        there, world.book.there = world.book.there, []
        looks = iter((True, True, True, False))

        def meeting(there: list[Node] = there, world: World = world, looks: Iterator[bool] = looks) -> bool:
            found = next(looks)
            if not found:
                world.book.there = there  # what was heard last counts
            return found

        PolicyControl(world.book, world.look, world.ready, meeting=meeting).add_to(world.methods)
        steps: list[Any] = []
        found = world.ask(name, {"text": ""}, steps)
        assert found["nodes"] == 12 and not any(found["policies"].values()) and not found["metadata"]
        assert steps == [["nodes heard of so far", 0, 0]] * 3


def test_what_can_be_kept_waits_for_nobody_and_what_cannot_is_said_in_the_end() -> None:
    world, steps = World(), list[Any]()
    PolicyControl(world.book, world.look, world.ready, meeting=lambda: True).add_to(world.methods)
    assert world.ask("policy_check", {"text": ""}, steps)["nodes"] == 12 and steps == []
    world.book.there = []
    looks = iter((True, False))
    PolicyControl(world.book, world.look, world.ready, meeting=lambda: next(looks)).add_to(world.methods)
    with pytest.raises(PolicyInfeasible):
        world.ask("policy_set", {"text": ""}, steps)
    assert len(steps) == 1


# ---- the commands -------------------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A vault in HIVEFS_HOME, and all commands ask a World as if it was the engine."""
    monkeypatch.setenv("HIVEFS_HOME", str(tmp_path / "vault"))
    Home.create(tmp_path / "vault", Secrets(bytes(32), bytes([9]) * 32), Lock("none"), bytes([7]) * 32, (), 4, 8, {})
    made = World()

    def ask(home: Home, name: str, value: Any, *unlock: Any, visible: bool) -> Any:
        return made.ask(name, value)

    commands = (policy_apply, policy_check, policy_edit, policy_explain, policy_set, policy_show, policy_simulate)
    for module in (*commands, placement_command, asking):
        monkeypatch.setattr(module, "ask_engine", ask)
    return made


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.run([str(word) for word in words])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return call


Run = Callable[..., tuple[int, str, str]]


def test_show_set_and_remove(world: World, run: Run, tmp_path: Path) -> None:
    code, out, _ = run("policy", "show")
    assert code == 0 and parse(out, Policy(2, 3)).policies["default"] == world.book.default
    text = tmp_path / "policy.toml"
    text.write_text('# mine\n[policy.p]\ndeny = ["US"] # never\n')
    assert run("policy", "apply", text)[0] == 0
    assert run("policy", "set", "/Photos", "p")[:2] == (0, "/Photos in the drive: p.\n")
    assert world.book.kept == '# mine\n[policy.p]\ndeny = ["US"] # never\n\n[paths]\n"/Photos" = "p"\n'
    assert run("policy", "set", "/Photos", "--remove")[0] == 0 and "/Photos" not in world.book.kept
    code, _, err = run("policy", "set", "/Photos", "q")
    assert code == 62 and 'no policy "q"' in err and err.count("\n") == 1
    assert run("policy", "set", "Photos", "p")[0] == 60 and run("policy", "set", "/Photos")[0] == 2
    assert run("policy", "set", b"/\xff".decode("utf-8", "surrogateescape"), "p")[0] == 60


def test_a_path_at_which_there_is_nothing_is_taken_with_a_word(world: World, run: Run, tmp_path: Path) -> None:
    code, out, err = run("policy", "set", "/Photos/german", "default")
    assert (code, out, err) == (0, "/Photos/german in the drive: default.\n", "")
    code, out, err = run("policy", "set", "/Later", "default")
    assert (code, out) == (0, "/Later in the drive: default.\n")
    assert err == "Note: There is nothing at /Later in the drive yet.\n"
    outside = tmp_path / "outside"
    outside.mkdir()
    code, _, err = run("policy", "set", outside, "default")
    assert code == 0 and f"nothing at {outside} in the drive yet" in err and "paths are those inside of the drive" in err
    code, out, err = run("policy", "set", outside, "default", "--json")
    assert code == 0 and json.loads(out)["nothing_there"] is True and err == ""
    assert json.loads(run("policy", "set", "/even", "default", "--json")[1])["nothing_there"] is False


def test_a_mounted_drive_is_looked_at_itself(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def mounted(*_: Any) -> dict[str, str]:
        return {"mountpoint": str(tmp_path / "drive")}

    monkeypatch.setattr(asking, "ask_or_none", mounted)
    (tmp_path / "drive" / "new").mkdir(parents=True)
    for path in ("/new", tmp_path / "drive" / "new"):
        assert run("policy", "set", path, "default") == (0, "/new in the drive: default.\n", "")
    code, out, err = run("policy", "set", tmp_path / "drive" / "none", "default")
    assert (code, out, err) == (0, "/none in the drive: default.\n", "Note: There is nothing at /none in the drive yet.\n")


def test_what_was_never_set_cannot_be_removed(world: World, run: Run) -> None:
    for _ in range(2):
        code, out, err = run("policy", "set", "/Photos", "--remove")
        assert code == 60 and not out and err.count("\n") == 1 and "/Photos in the drive has no policy of its own" in err
        assert world.book.kept in ("", '[paths]\n"/even" = "default"\n')
        world.book.kept = '[paths]\n"/even" = "default"\n'


def test_a_text_in_force_that_is_wrong_now_can_be_seen_and_mended(world: World, run: Run, tmp_path: Path) -> None:
    world.book.kept = "[policy.default]\nof_tomorrow = 1\n"
    code, out, err = run("policy", "show")
    assert code == 0 and out == world.book.kept and "line 2, column 1" in err
    assert run("policy", "set", "/a", "default")[0] == 62 and run("policy", "explain", "/")[0] == 62
    assert run("policy", "check")[0] == 62
    good = tmp_path / "policy.toml"
    good.write_text('[policy.default]\ncode = "4/8"\n')
    assert run("policy", "apply", good)[0] == 0 and run("policy", "check")[0] == 0


def test_check_names_line_and_column(world: World, run: Run, tmp_path: Path) -> None:
    text = tmp_path / "policy.toml"
    text.write_bytes(b'[policy.default]\nallow = ["XX"]\n')
    code, out, err = run("policy", "check", text)
    assert code == 62 and "line 2, column 10" in err and out == ""
    text.write_bytes(b"\xff\xfe")
    assert run("policy", "check", text)[0] == 62
    assert run("policy", "check", tmp_path / "none")[0] == 60 and run("policy", "check", tmp_path)[0] == 60
    text.write_text('[policy.default]\nallow = ["EU"]\n')
    assert run("policy", "check", text, "--text-only")[0] == 0
    code, out, err = run("policy", "check", text)
    assert code == 31 and "default" in out and "policy default" in err
    assert run("policy", "check")[0] == 0 and world.book.kept == ""
    assert run("policy", "apply", text)[0] == 31 and world.book.kept == ""
    code, out, _ = run("policy", "apply", text, "--force")
    assert code == 0 and "waits" in out and world.book.kept


def test_explain_simulate_and_placement(world: World, run: Run) -> None:
    code, out, _ = run("policy", "explain", "/")
    assert code == 0 and "no reassembly by 1 holds: DE at most 3 shares, 4 of 8 rebuild" in out
    assert "no hostage of 1 DOES NOT HOLD: without DE 1 shares remain, 4 must" in out and "DE (c)" in out
    assert "4 shares are missing now" in out
    assert "policy default: repair of 4/8 begins with the first missing share (with this code it is not safe" in out
    code, out, _ = run("policy", "simulate", "--lose", "DE", "--seize", "FR,CH", "--nodes-gone", "1", "--json")
    assert code == 0 and '"nodes_left": 9' in out and '"seize": [' in out
    code, out, _ = run("policy", "simulate", "--lose", "DE", "--nodes-gone", "1")
    assert code == 0 and "whichever go" in out and "lost" in out
    assert run("policy", "simulate", "--lose", "Atlantis")[0] == 60
    code, out, _ = run("placement", "/Photos")
    assert code == 0 and "3 files in 2 stripes (1 not proved), policy default" in out and "4 shares are missing" in out
    assert run("placement", "/none")[0] == 61
    assert run("placement", "/even", "--json")[1].startswith("{")


def test_edit(world: World, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\necho \'[paths]\n"/a" = "default"\' >> "$1"\n')
    editor.chmod(0o755)
    monkeypatch.setenv("VISUAL", str(editor))
    monkeypatch.setenv("EDITOR", str(editor))
    assert run("policy", "edit")[0] == 0 and world.book.kept.endswith('"/a" = "default"\n')
    before = world.book.kept
    code, _, err = run("policy", "edit")  # the same twice is not TOML
    assert code == 62 and "not TOML" in err and world.book.kept == before
    (refused,) = tmp_path.rglob("policy-refused.toml")
    assert refused.read_text().count('"/a" = "default"') == 2 and str(refused) in err, "what was written is not lost"
    for program in ("true", "rm"):
        monkeypatch.setenv("VISUAL", program)
        code, out, _ = run("policy", "edit")
        assert code == 0 and "Nothing was changed" in out and world.book.kept == before


@pytest.mark.parametrize("written", ["", " \n\n", "# nothing\n"])
def test_an_empty_text_takes_no_rule_away_unless_that_is_forced(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, written: str
) -> None:
    monkeypatch.setattr(policy_edit.click, "edit", lambda filename: Path(filename).write_text(written))
    text = tmp_path / "policy.toml"
    text.write_text(written)
    before = '[policy.default]\ncode = "4/8"\nno_hostage = { slack = 1 }\n'
    for world.book.kept in ("", before):
        kept = world.book.kept
        code, out, err = run("policy", "edit")
        assert code == 0 and "Nothing was changed" in out and "The text is empty" in err and world.book.kept == kept
        assert bool(list(tmp_path.rglob("policy-refused.toml"))) == written.startswith("#"), "what says something is kept"
        code, _, err = run("policy", "apply", text)
        assert code == 62 and "it is empty" in err and "--force" in err and world.book.kept == kept
    for more in ((), ("--text-only",)):
        code, out, _ = run("policy", "check", text, *more)
        assert code == 0 and "The text is empty: the vault's own default holds" in out
        assert json.loads(run("policy", "check", text, "--json", *more)[1])["empty"] is True
    assert run("policy", "apply", text, "--force")[0] == 0 and world.book.kept == written
    world.book.kept = before
    assert run("policy", "edit", "--force")[0] == 0 and world.book.kept == written
    assert json.loads(run("policy", "check", "--json")[1])["empty"] is True, "in force"


@pytest.mark.parametrize("moment", ["editor", "question", "engine", "gave up"])
def test_what_was_written_in_the_editor_is_kept_and_named_when_it_is_interrupted(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, moment: str
) -> None:
    rounds = iter(("[policy.default]\nmine = 1\n",) if moment != "engine" else ("[policy.p]\n# mine = 1\n",))

    def edit(filename: str) -> None:
        text = next(rounds, "")
        if text:
            Path(filename).write_text(text)
        if moment == "editor":
            raise KeyboardInterrupt

    def confirm(*words: Any, **more: Any) -> bool:
        if moment == "question":
            raise click.Abort
        return True

    def apply(*words: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(policy_edit.click, "edit", edit)
    monkeypatch.setattr(policy_edit.click, "confirm", confirm)
    monkeypatch.setattr(policy_edit.sys, "stdin", SimpleNamespace(isatty=lambda: True))
    if moment == "engine":
        monkeypatch.setattr(policy_edit, "apply", apply)
    code, _, err = run("policy", "edit")
    (kept,) = tmp_path.rglob("policy-refused.toml")
    assert "mine = 1" in kept.read_text() and f"hivefs policy apply {kept}" in err and world.book.kept == ""
    assert code == (0 if moment == "gave up" else 130)


def test_what_an_editor_saved_in_another_coding_is_refused_and_kept(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def edit(filename: str) -> None:
        Path(filename).write_bytes(b"# \xff\n")

    monkeypatch.setattr(policy_edit.click, "edit", edit)
    code, _, err = run("policy", "edit")
    (kept,) = tmp_path.rglob("policy-refused.toml")
    assert code == 62 and "UTF-8" in err and kept.read_bytes() == b"# \xff\n"


def test_a_text_can_be_checked_where_there_is_no_vault(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIVEFS_HOME", str(tmp_path / "none"))
    text = tmp_path / "policy.toml"
    text.write_text('[policy.p]\ndeny = ["US"]\n')
    code, out, _ = run("policy", "check", text, "--text-only")
    assert code == 0 and "2 policies" in out and "4/6" in out
    assert '"default": "init"' in run("policy", "check", text, "--text-only", "--json")[1]
    text.write_text("[policy.default]\nrepair_at = 6\n")  # as many as the default code has shares
    code, _, err = run("policy", "check", text, "--text-only")
    assert code == 62 and "line 2" in err
    assert run("policy", "check", text)[0] == 10 and run("policy", "check", "--text-only")[0] == 2


def test_a_path_that_is_no_utf8_is_refused_also_below_the_mount_point(monkeypatch: pytest.MonkeyPatch) -> None:
    async def mounted(*_: Any) -> dict[str, str]:
        return {"mountpoint": "/drive"}

    monkeypatch.setattr(asking, "ask_or_none", mounted)
    home: Any = SimpleNamespace()
    assert asking.vault_path(home, "/drive/Photos") == "/Photos" and asking.vault_path(home, "/drive") == "/"
    for path in ("/drive/a\udcff", "/elsewhere\udcff"):
        with pytest.raises(BadSetting, match="is not UTF-8"):
            asking.vault_path(home, path)

"""What looks through the whole book for a user is a process of its own: with the real stores, and cancelled."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from hivefs.cli.policy_explain import looked_words
from hivefs.daemon import control, looking, policy_look
from hivefs.daemon.control_frames import Encoded
from hivefs.daemon.engine import Process
from hivefs.daemon.engine_core import Engine
from hivefs.daemon.looker import Looker
from hivefs.daemon.policy_book import EngineBook
from hivefs.daemon.policy_control import PolicyControl
from hivefs.errors import HivefsError, PathNotInDrive
from hivefs.formats import records
from hivefs.formats import stripe as stripe_format
from hivefs.formats.local import local_inode_to_bytes
from hivefs.maintenance import placement_check
from hivefs.metadata.engine_store import EngineStore
from hivefs.metadata.snapshot import MetadataSnapshot
from hivefs.metadata.store import MetadataStore
from hivefs.model.ids import ROOT_INO, ChunkId
from hivefs.model.inode import Inode
from hivefs.testing.bench.loop_figures import CODE, filled

FILES, STRIPES, NODES = 900, 300, 40


@pytest.fixture(name="engine", scope="module")
def _engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = filled(tmp_path_factory.mktemp("looker") / "home", NODES, STRIPES, FILES)
    yield engine
    engine.close()


@pytest.fixture(name="looker")
def _looker(engine: Engine) -> Looker:
    return Looker(engine.home, engine.keys.reading())


def asked(engine: Engine, looker: Looker, name: str, value: Any, steps: list[Any]) -> Any:
    methods = control.Methods()
    PolicyControl(EngineBook(engine), looker.ask, trio.lowlevel.checkpoint).add_to(methods)

    async def report(step: Any) -> None:
        steps.append(step)

    async def go() -> Any:
        with trio.fail_after(120):
            return await methods.answer(name, value, report)

    found = trio.run(go)
    assert isinstance(found, Encoded) and not looker.children
    return found.value


def test_explain_counts_what_there_is(engine: Engine, looker: Looker, monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(data: bytes) -> None:
        raise AssertionError("a stripe was looked at in the engine's process")

    with monkeypatch.context() as patched:
        patched.setattr(stripe_format, "from_bytes", decoded)
        steps: list[Any] = []
        found = asked(engine, looker, "policy_explain", {"path": "/"}, steps)
    assert (found["files"], found["local"], found["stripes"]) == (FILES, 0, STRIPES)
    assert not found["looked"]["changed"], "all of it is of one moment"
    assert found["codes"] == {f"{CODE[0]}/{CODE[1]}": STRIPES} and found["missing_shares"] == 0
    held: dict[str, int] = {}
    for stripe in engine.store.stripes():
        for share in stripe.shares:
            assert share.node is not None
            held[share.node.hex()] = held.get(share.node.hex(), 0) + 1
    assert {h["node"]: h["shares"] for h in found["holders"]} == held and found["more_holders"] == 0
    assert ["files", FILES, FILES] in steps and ["stripes", STRIPES, STRIPES] in steps


def test_a_part_of_the_drive(engine: Engine, looker: Looker) -> None:
    found = asked(engine, looker, "policy_explain", {"path": "/file 7"}, [])
    assert (found["files"], found["stripes"]) == (1, 1)
    with pytest.raises(PathNotInDrive):
        asked(engine, looker, "policy_explain", {"path": "/not there"}, [])
    assert not list(engine.home.run.glob("look-*"))


@pytest.mark.parametrize("renewed", [True, False])
def test_the_mount_uses_its_pages_again_while_its_files_are_looked_at(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renewed: bool
) -> None:
    """A commit for each file. Each file is seen once, the answer says that they changed, and the store does not grow."""
    shutil.copytree(engine.home.metadata, tmp_path / "metadata")
    store = MetadataStore(tmp_path / "metadata", engine.keys)

    def opened(path: Path, keys: Any) -> MetadataSnapshot:
        snapshot = MetadataSnapshot(path, keys, store=store)
        if not renewed:
            snapshot.begin = lambda: 0  # type: ignore[method-assign]
        return snapshot

    def pages() -> int:
        return int(store.environment.info()["last_pgno"])

    def commit() -> None:
        store.put(records.inode_key(ROOT_INO), local_inode_to_bytes(Inode(ROOT_INO, 0o40755, mtime_ns=len(commits)), 1, 1))
        store.commit()
        commits.append(0)

    def what(look: policy_look.Look) -> dict[str, Any]:
        paths = [path for path, chunks in look.files("/") if len(list(chunks)) == 1]
        assert len(set(paths)) == len(paths)
        return {"files": len(paths)}

    commits: list[int] = []
    monkeypatch.setattr(looking, "TELL_S", -1.0)
    monkeypatch.setattr(looking, "RENEW_S", -1.0)
    monkeypatch.setattr(looking, "MetadataSnapshot", opened)
    before, question = pages(), SimpleNamespace(metadata=tmp_path / "metadata", keys=engine.keys, given={}, room=tmp_path)
    found = looking._files(what, cast("Any", question), cast("Any", None), [], looking.Steps(lambda step: None, commit))
    grown = pages() - before
    store.close(commit=True)
    assert found["files"] == FILES <= len(commits)
    assert found["looked"]["changed"] == renewed and found["looked"]["from_ns"] < found["looked"]["to_ns"]
    assert grown < FILES / 10 if renewed else grown > FILES
    words = looked_words(found)
    assert len(words) == int(renewed) and all("may be missing" in line for line in words)


def test_simulate_says_the_same_as_counting(engine: Engine, looker: Looker) -> None:
    ask = {"path": "/", "lose": ["DE"], "seize": ["FR", "CH"], "nodes_gone": 0}
    found = asked(engine, looker, "policy_simulate", ask, [])
    there = {m.node_id: m.authorities["jurisdiction"] for m in engine.pool.members.values()}
    lost = whole = 0
    for number in range(FILES):
        place = engine.store.place(ChunkId(number.to_bytes(16, "big")))
        assert place is not None
        stripe = engine.store.stripe(place.stripe_id)
        assert stripe is not None
        over = [there[share.node] for share in stripe.shares if share.node is not None]
        lost += sum("DE" not in names for names in over) < stripe.needed
        whole += sum(bool(names & {"FR", "CH"}) for names in over) >= stripe.needed
    assert (found["files"]["lost"], found["files"]["whole"], found["files"]["files"]) == (lost, whole, FILES)
    assert found["nodes_left"] == sum("DE" not in names for names in there.values())


def test_check_placement_keeps_few_findings_of_many(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement_check, "MOST", 10)
    check = placement_check.PlacementCheck(engine.store)
    check.run()
    missing = [f for f in check.findings if f.kind == "certificate-missing"]
    assert len(missing) == 11 and sum(f.count for f in missing) == STRIPES == check.counts["certificate-missing"]
    assert check.counts["holding"] == STRIPES


def test_check_placement_in_a_child_is_the_check_here(engine: Engine, looker: Looker) -> None:
    here = placement_check.PlacementCheck(engine.store, engine.old_copies.as_read, engine.old_copies.together)
    here.run()

    async def go() -> Encoded:
        async def report(step: Any) -> None:
            await trio.lowlevel.checkpoint()

        with trio.fail_after(120):
            return await looker.ask("check_placement", {"whole": True}, (), report)

    found = trio.run(go).value
    assert {(f["kind"], f["detail"]) for f in found if f["kind"] != "certificates"} == {
        (f.kind, f.detail) for f in here.findings
    }
    assert any(f["kind"] == "certificates" and f"{STRIPES} stripes" in f["detail"] for f in found)


INTERRUPTED = """
import os, sys
from hivefs.daemon import looking
tell = looking.Steps.__call__

def told(self, *given):
    before = self._last
    tell(self, *given)
    if self._last is not before:
        os.kill(os.getpid(), {number})

looking.Steps.__call__ = told
looking.harden()
looking.serve(sys.stdin.buffer, sys.stdout.buffer)
"""


def interrupted(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Children send themselves this signal after the first step that they tell: however late that is read here, they are in
    the middle of their look. Gives the words of the command that is run otherwise.
    """
    real, words = trio.lowlevel.open_process, list[str]()

    async def opened(command: list[str], **how: Any) -> trio.Process:
        words.extend(command)
        return await real([command[0], "-P", "-c", INTERRUPTED.format(number=int(number))], **how)

    monkeypatch.setattr(trio.lowlevel, "open_process", opened)
    return words


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.stops
def test_who_goes_away_takes_the_child_along(
    engine: Engine, looker: Looker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a real control socket, as Ctrl-C in the command does it."""
    interrupted(monkeypatch, signal.SIGSTOP)  # so that it does not end by itself
    methods = control.Methods()
    pids: list[int] = []

    async def look(value: Any, report: control.Report) -> Encoded:
        async def stopped(step: Any) -> None:
            pids.extend(looker.children)
            await report(step)

        return await looker.ask("explain", {"path": "/"}, EngineBook(engine).nodes(), stopped)

    methods.add_stream("look", look)
    told = trio.Event()

    async def go() -> None:
        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                await nursery.start(control.serve, tmp_path, "engine", methods)
                async with control.connect(tmp_path, "engine") as client:
                    async with trio.open_nursery() as calls:
                        calls.start_soon(lambda: client.call("look", None, progress=lambda step: told.set()))
                        await told.wait()
                        assert pids and all(map(alive, pids))
                        calls.cancel_scope.cancel()
                    while any(map(alive, pids)):
                        await trio.sleep(0.01)
                nursery.cancel_scope.cancel()

    trio.run(go)
    assert not looker.children


def test_a_child_that_dies_is_an_error_and_no_hang(engine: Engine, looker: Looker, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(monkeypatch, signal.SIGKILL)
    steps: list[Any] = []

    async def report(step: Any) -> None:
        steps.append(step)
        await trio.lowlevel.checkpoint()

    async def go() -> None:
        with trio.fail_after(120):
            await looker.ask("explain", {"path": "/"}, EngineBook(engine).nodes(), report)

    with pytest.raises(HivefsError, match="ended"):
        trio.run(go)
    assert steps


@pytest.mark.stops
def test_a_child_that_was_killed_holds_no_page_of_the_stores(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else both would grow with every commit until all who have them open end, and no reader be let in after some such."""
    interrupted(monkeypatch, signal.SIGSTOP)  # so that it does not end by itself
    pids: list[int] = []

    async def go() -> str:
        process = Process(engine, cast("Any", None), engine.home)
        process._metadata = snapshot = MetadataSnapshot(engine.home.metadata, engine.keys)
        environments = (engine.store._env, snapshot._environment)

        async def killed(step: Any) -> None:
            for pid in process._looker.children:
                pids.append(pid)
                assert all(str(pid) in environment.readers() for environment in environments)
            raise KeyError  # as when who asked goes away: the child is killed

        try:
            with trio.fail_after(120), pytest.raises(KeyError):
                await process._look("explain", {"path": "/"}, EngineBook(engine).nodes(), killed)
            return "".join(environment.readers() for environment in environments)
        finally:
            snapshot.close()

    readers = trio.run(go)
    assert pids and not any(str(pid) in readers for pid in pids)


READER = """
import lmdb, os, sys
reading = lmdb.open(sys.argv[1], readonly=True, create=False).begin()
print(os.getpid(), flush=True)
sys.stdin.read()
"""


def test_a_store_lets_go_of_readers_that_were_killed_before_it_was_opened(tmp_path: Path) -> None:
    first = filled(tmp_path / "home", 40, 1, 1)
    first.close()
    path, key = first.home.engine, first.keys.engine_key
    # One has it open all the time, as the mount does; else the places would be made anew.
    stays, ends = (
        subprocess.Popen([sys.executable, "-c", READER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    )
    with stays, ends:
        assert all(child.stdout is not None and child.stdout.readline() for child in (stays, ends))
        ends.kill()
        ends.wait()
        store = EngineStore(path, key, first.home.policy())
        try:
            assert str(stays.pid) in store._env.readers() and str(ends.pid) not in store._env.readers()
        finally:
            store.close()
            stays.kill()


def test_a_child_of_another_release_is_not_told_anything(engine: Engine, looker: Looker) -> None:
    looker._release += b" and a word"
    with pytest.raises(HivefsError, match="upgraded"):
        asked(engine, looker, "policy_explain", {"path": "/"}, [])
    assert not looker.children


@pytest.mark.stops
def test_keys_are_in_no_argument_and_no_environment_of_the_child(
    engine: Engine, looker: Looker, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = interrupted(monkeypatch, signal.SIGSTOP)  # so that it can be looked at
    seen: list[bytes] = []

    async def report(step: Any) -> None:
        for pid in looker.children:
            seen.extend(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ", "limits"))
        raise KeyError

    async def go() -> None:
        with trio.fail_after(120), pytest.raises(KeyError):
            await looker.ask("explain", {"path": "/"}, EngineBook(engine).nodes(), report)

    trio.run(go)
    keys = engine.keys.reading()
    assert seen and "hivefs.daemon.looking" in words
    seen += [word.encode() for word in words]
    for key in (keys.metadata_key, keys.names_key, keys.engine_key, engine.keys.master):
        assert not any(key in one or key.hex().encode() in one for one in seen)
    assert any(line.split()[4:6] == [b"0", b"0"] for one in seen for line in one.splitlines() if b"core file" in line)
    assert repr(keys) == "ReadingKeys(...)"

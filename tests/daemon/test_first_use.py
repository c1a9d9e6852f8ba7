"""A vault that was never mounted opens whatever ran before; metadata that is lost is noticed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hivefs.daemon import first_use
from hivefs.daemon.first_use import never_used, open_or_make
from hivefs.daemon.home import Home, Lock, Secrets
from hivefs.errors import StoreDamaged, VaultInUse
from hivefs.metadata.engine_store import EngineStore
from hivefs.metadata.environment import make_environment
from hivefs.metadata.store import MetadataStore
from hivefs.model.ids import NodeId, ShareId

SECRETS = Secrets(bytes(32), bytes([9]) * 32)
KEYS = SECRETS.keys()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "vault", SECRETS, Lock("none"), bytes([7]) * 32, (), 4, 8, {})


def engine(home: Home) -> contextlib.closing[EngineStore]:
    return contextlib.closing(EngineStore(home.engine, KEYS.engine_key, home.policy()))


def opens(home: Home) -> None:
    open_or_make(home, KEYS, "a test").close()
    assert home.used.exists() and not never_used(home, KEYS)
    MetadataStore(home.metadata, KEYS).close()


def lose(home: Home, *stores: str) -> None:
    for store in stores:
        shutil.rmtree(home.path / store)
        (home.path / store).mkdir()


def is_missed(home: Home) -> None:
    with pytest.raises(StoreDamaged, match="it is not there"):
        open_or_make(home, KEYS, "a test")
    assert not (home.metadata / "data.mdb").exists(), "nothing was begun anew"


def test_an_engine_that_ran_before_the_first_mount_is_no_damage(home: Home) -> None:
    with engine(home) as store:
        with store.writing():
            store.save_info("probe", 1)
            store.save_info("head", None)
        assert never_used(home, KEYS, store), "asked by the engine itself"
    assert never_used(home, KEYS)
    opens(home)
    opens(home)


@pytest.mark.parametrize("lost", [("metadata",), ("metadata", "engine"), ("metadata", "engine", "stage", "cache")])
def test_metadata_of_a_vault_that_was_opened_once_is_missed(home: Home, lost: tuple[str, ...]) -> None:
    opens(home)
    lose(home, *lost)
    is_missed(home)


def a_head(home: Home) -> None:
    with engine(home) as store, store.writing():
        store.save_info("head", b"it was published")


def a_share_to_delete(home: Home) -> None:
    with engine(home) as store, store.writing():
        store.trash_share(NodeId(bytes(32)), ShareId(bytes(32)))


def a_segment(home: Home) -> None:
    (home.stage / f"{1:016x}.seg").write_bytes(b"")


def a_journal(home: Home) -> None:
    (home.metadata / "journal").write_bytes(b"")


@pytest.mark.parametrize("left", [a_head, a_share_to_delete, a_segment, a_journal])
def test_a_vault_of_a_release_without_the_mark_is_known_by_what_it_left(home: Home, left: Callable[[Home], None]) -> None:
    opens(home)
    home.used.unlink()
    lose(home, "metadata")
    left(home)
    assert not never_used(home, KEYS)
    is_missed(home)


def test_a_recovered_vault_is_never_begun_anew(home: Home) -> None:
    certificate = replace(home.vault.certificate, number=2)
    assert not never_used(Home(home.path, replace(home.vault, certificate=certificate)), KEYS)


@pytest.mark.parametrize("moment", ["lock", "new.mdb", "empty", "made"])
def test_a_kill_while_the_metadata_is_made_leaves_a_vault_that_opens(home: Home, moment: str) -> None:
    if moment in ("lock", "new.mdb"):
        (home.metadata / moment).write_bytes(b"\0" * 100)
    else:
        MetadataStore(home.metadata, KEYS, create=True).close()
    if moment == "empty":  # all is there but the commit of what it begins with
        (home.metadata / "data.mdb").unlink()
        make_environment(home.metadata)
    opens(home)


def test_the_lock_is_let_go_when_the_mark_cannot_be_made(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Home) -> None:
        raise StoreDamaged(path=self.path, reason="the disk does not store")

    with monkeypatch.context() as patch:
        patch.setattr(Home, "mark_used", full)
        with pytest.raises(StoreDamaged, match="does not store"):
            open_or_make(home, KEYS, "a test")
    opens(home)
    held = open_or_make(home, KEYS, "a test")
    with pytest.raises(VaultInUse):
        first_use.open_or_make(home, KEYS, "another")
    held.close()


def test_the_mark_goes_aside_with_the_stores_of_a_vault_whose_file_was_lost(home: Home) -> None:
    opens(home)
    home.file.unlink()
    made = Home.create(home.path, SECRETS, Lock("none"), bytes([7]) * 32, (), 4, 8, {})
    assert never_used(made, KEYS)
    (aside,) = home.path.glob("before-*")
    assert (aside / "used").exists() and (aside / "metadata" / "data.mdb").exists()
    opens(made)

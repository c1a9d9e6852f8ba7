"""Policies and standings in the engine's store: kept once, replaced whole, in checkpoints, back after a recovery."""

from __future__ import annotations

from pathlib import Path

import pytest

from hivefs.formats import policy as policy_format
from hivefs.formats import records
from hivefs.metadata.engine_store import EngineStore
from hivefs.model.node import Attribute, Evidence
from hivefs.placement.policy import Policy
from hivefs.placement.verifier import Rules

KEY = bytes(range(32))
DEFAULT = Policy(4, 6)
STRICT = Policy(4, 8, (Rules(), Rules("operator")), (("operator", 2),), name="strict", deny=("US",))
KNOWN = (Attribute("country", "DE"), Attribute("operator", "x", Evidence.ATTESTED))


def changed(store: EngineStore) -> dict[bytes, bytes | None]:
    with store.changes() as changes:
        return dict(changes)


def test_what_is_kept_goes_into_the_next_checkpoint(tmp_path: Path) -> None:
    store = EngineStore(tmp_path / "engine", KEY, DEFAULT)
    assert store.policy_text() == "" and store.policy_of(policy_format.digest(STRICT)) is None
    with store.writing():
        store.save_policy_text("# mine\n")
        policy, standing = store.save_policy(STRICT), store.save_standing(KNOWN)
    assert store.policy_text() == "# mine\n"
    assert store.policy_of(policy) == STRICT
    assert store.standing(standing) == KNOWN and store.standing(bytes(16)) is None
    assert set(changed(store)) == {
        records.policy_key(bytes(16)),
        records.policy_key(policy),
        records.standing_key(standing),
    }
    with store.writing():
        store.published(store.next_sequence())
        assert store.save_policy(STRICT) == policy and store.save_standing(KNOWN[::-1]) == standing
        store.save_policy_text("# mine\n")
    assert changed(store) == {}, "the same again is no change"
    with store.writing():
        store.save_policy_text("")
    assert store.policy_text() == "" and changed(store) == {records.policy_key(bytes(16)): None}
    store.close()


def test_a_text_that_is_not_committed_leaves_the_old_one(tmp_path: Path) -> None:
    store = EngineStore(tmp_path / "engine", KEY, DEFAULT)
    with store.writing():
        store.save_policy_text("# old\n")
    with pytest.raises(ZeroDivisionError), store.writing():
        store.save_policy_text("# new\n")
        raise ZeroDivisionError
    assert store.policy_text() == "# old\n"
    store.close()


def test_they_come_back_with_the_pages_of_a_recovery(tmp_path: Path) -> None:
    store = EngineStore(tmp_path / "engine", KEY, DEFAULT)
    with store.writing():
        store.save_info("hydrating", True)
        digest = store.save_policy(STRICT)
        store.save_policy_text("# set here, after the recovery\n")
        key = records.standing_key(store.save_standing(KNOWN))
    page = [(k, v) for k, v in changed(store).items() if v is not None and k != records.policy_key(digest)]
    other = EngineStore(tmp_path / "other", KEY, DEFAULT)
    with other.writing():
        other.save_info("hydrating", True)
        other.save_policy_text("# newer than the checkpoint\n")
    assert other.gap() == b"a"
    other.load_page(b"", b"b", [(k, v) for k, v in page if k[:1] == b"a"])
    assert other.standing(key[1:]) == KNOWN and other.gap() == b"c"
    other.load_page(b"b", b"q", page)
    assert other.gap() == b"s" and other.policy_text() == "# newer than the checkpoint\n"
    other.load_page(b"q", None, [])
    assert other.gap() is None and not list(other.nodes())
    store.close()
    other.close()

"""Nodes with something to delete are found without going through all that is to be deleted."""

from __future__ import annotations

from pathlib import Path

from hivefs.metadata.engine_store import EngineStore
from hivefs.model.ids import NodeId, ShareId
from hivefs.placement.policy import Policy


def test_each_node_is_named_once_in_order(tmp_path: Path) -> None:
    store = EngineStore(tmp_path / "engine", bytes(32), Policy(4, 6))
    low, middle, high = (NodeId(bytes([b]) * 32) for b in (0, 7, 255))
    assert store.trash_nodes() == []
    with store.writing():
        for node in (high, low, middle):
            for share in (bytes(32), bytes([9]) * 32, b"\xff" * 32):
                store.trash_share(node, ShareId(share))
    assert store.trash_nodes() == [low, middle, high]
    with store.writing():
        store.trash_done(middle, [ShareId(bytes(32)), ShareId(bytes([9]) * 32)])
    assert store.trash_nodes() == [low, middle, high]
    with store.writing():
        store.trash_done(middle, [ShareId(b"\xff" * 32)])
    assert store.trash_nodes() == [low, high]
    store.close()

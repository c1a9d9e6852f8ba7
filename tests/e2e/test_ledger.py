"""The accounts of a whole hive of real processes: every node has signed what the engine's book says."""

from __future__ import annotations

import os

import pytest

from .live import live, until

pytestmark = [pytest.mark.fuse, pytest.mark.slow]


def test_nodes_and_engine_agree_on_what_is_held(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with live(tmp_path) as hive:
        for number in range(20):
            (hive.drive / f"file{number}").write_bytes(os.urandom(70_000))
        hive.wait(hive.drive)

        def agreed() -> bool:
            accounts = hive.json("ledger")
            return accounts["balanced"] and all(row["countersigned"] for row in accounts["nodes"])

        until(agreed, 180, what="a receipt of every node")
        accounts = hive.json("ledger")
        assert accounts["leases"] == accounts["book_shares"] > 0
        assert not any(row["problem"] for row in accounts["nodes"])

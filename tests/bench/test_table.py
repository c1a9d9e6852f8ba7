"""Medians, ratios and the table, from figures that are given."""

from __future__ import annotations

from hivefs.testing.bench import table
from hivefs.testing.bench.rounds import Record
from hivefs.testing.bench.workloads import WORKLOADS, Row


def test_a_share_is_more_when_ours_is_better() -> None:
    rate, seconds = Row("a", "a", "/s", 0.5), Row("b", "b", "s", 0.5, "less")
    assert table.share(rate, [50.0, 40.0, 90.0], [100.0, 100.0, 100.0]) == 0.5
    assert table.share(seconds, [2.0, 4.0, 8.0], [1.0, 1.0, 1.0]) == 0.25
    # each round against its own: a machine that is busy in one round disturbs both sides of it
    assert table.share(rate, [50.0, 5.0, 50.0], [100.0, 10.0, 100.0]) == 0.5
    assert table.share(rate, [None, 30.0], [10.0, None]) is None
    assert table.median([None, 3.0, 1.0, 2.0]) == 2.0 and table.median([None]) is None


def test_the_table_has_what_was_measured() -> None:
    record = Record(2)
    for number, (ceiling, ours, peer) in enumerate([(100.0, 30.0, 10.0), (200.0, 60.0, 10.0)]):
        record.put("ceiling", "write", number, ceiling)
        record.put("hivefs", "write", number, ours)
        record.put("gocryptfs", "write", number, peer)
    record.put("gocryptfs", "untar", 1, 2.5)
    record.problem("rclone", "photos: it failed")
    figure = {"title": "placing", "value": 12.0, "unit": "MB/s", "against": "0.4 of it"}
    targets = {"command": "bench", "quick": False, "targets": ["ceiling", "hivefs", "gocryptfs"]}
    result = table.report(record, {"placing": figure}, targets)
    assert result["failed"] == ["rclone"]
    assert list(result["rows"]) == ["write", "untar"]
    row = result["rows"]["write"]
    assert row["median"] == {"ceiling": 150.0, "hivefs": 45.0, "gocryptfs": 10.0}
    assert row["of_ceiling"]["hivefs"] == 0.3 and row["drive_to"]["gocryptfs"] == 4.5
    said = table.text(result)
    cells = [cell.strip() for line in said.splitlines() if "sequential write" in line for cell in line.split("|")]
    assert cells[3:9] == ["150", "45", "10", "0.30 (goal 0.6)", "0.08", "4.50"]
    untar = [cell.strip() for line in said.splitlines() if "untar" in line for cell in line.split("|")]
    assert untar[3:9] == ["-", "-", "2.5", "-", "-", "-"]
    assert "placing" in said and "problem: rclone: photos: it failed" in said


def test_rows_have_names_of_their_own() -> None:
    keys = [row.key for workload in WORKLOADS for row in workload.rows]
    assert len(keys) == len(set(keys)) and len({workload.name for workload in WORKLOADS}) == len(WORKLOADS)

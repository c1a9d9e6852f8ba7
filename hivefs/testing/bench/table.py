"""Figures to medians, ratios, a table for people and JSON for programs."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hivefs.testing.bench.rounds import Record
from hivefs.testing.bench.workloads import WORKLOADS, Row

VERSION = 1
CEILING = "ceiling"
DRIVE = "hivefs"
MANY_SHARES = (10_000, 100_000, 1_000_000)


def median(values: Sequence[float | None]) -> float | None:
    """Of those that are there."""
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def share(row: Row, ours: Sequence[float | None], theirs: Sequence[float | None]) -> float | None:
    """How good ``ours`` is against ``theirs``, more is better: the median of the ratios of each round."""
    ratios = [
        a / b if row.better == "more" else b / a
        for a, b in zip(ours, theirs, strict=True)
        if a is not None and b is not None
    ]
    return statistics.median(ratios) if ratios else None


def rows_of(record: Record) -> dict[str, dict[str, Any]]:
    """Every row that any target filled: values, medians and shares of the ceiling."""
    found: dict[str, dict[str, Any]] = {}
    nothing: list[float | None] = [None] * record.rounds
    for row in (row for workload in WORKLOADS for row in workload.rows):
        values = {target: rows[row.key] for target, rows in record.values.items() if row.key in rows}
        if not values:
            continue
        ceiling = values.get(CEILING, nothing)
        ours = values.get(DRIVE, nothing)
        found[row.key] = {
            "title": row.title,
            "unit": row.unit,
            "better": row.better,
            "goal": row.goal,
            "values": values,
            "median": {target: median(v) for target, v in values.items()},
            "of_ceiling": {target: share(row, v, ceiling) for target, v in values.items()},
            "drive_to": {target: share(row, ours, v) for target, v in values.items()},
        }
    return found


def report(record: Record, hive: dict[str, Any], context: dict[str, Any]) -> dict[str, Any]:
    """The whole result."""
    return {
        "version": VERSION,
        "when": time.strftime("%Y-%m-%d %H:%M:%S"),
        "machine": {
            "cpus": len(os.sched_getaffinity(0)),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "load": os.getloadavg(),
            "root": os.geteuid() == 0,
        },
        "rounds": record.rounds,
        **context,
        "rows": rows_of(record),
        "hive": hive,
        "errors": record.errors,
        "failed": sorted(record.failed),
    }


def text(result: dict[str, Any]) -> str:
    """The tables, as Markdown."""
    parts = []
    rows = result["rows"]
    if rows:
        targets = [name for name in result["targets"] if any(name in row["values"] for row in rows.values())]
        parts.append(_markdown(_header(targets), [_line(row, targets) for row in rows.values()]))
    if result["hive"]:
        lines = [[f["title"], _figure(f["value"]), f["unit"], f["against"]] for f in result["hive"].values()]
        parts.append(_markdown(["HiveFS only", "median", "unit", "against"], lines))
    if "skipped" in result:
        parts.append(f"skipped: {result['skipped']}")
    parts += [f"problem: {problem}" for problem in result["errors"]]
    return "\n\n".join(parts)


def _header(targets: Sequence[str]) -> list[str]:
    header = ["workload", "unit", *targets]
    if CEILING in targets:
        header += [f"{name} / ceiling" for name in targets if name != CEILING]
    if DRIVE in targets:
        header += [f"{DRIVE} / {name}" for name in targets if name not in (DRIVE, CEILING)]
    return header


def _line(row: dict[str, Any], targets: Sequence[str]) -> list[str]:
    line = [row["title"], row["unit"], *(_figure(row["median"].get(name)) for name in targets)]
    if CEILING in targets:
        for name in targets:
            if name != CEILING:
                ratio = row["of_ceiling"].get(name)
                missed = name == DRIVE and ratio is not None and ratio < row["goal"]
                line.append(_ratio(ratio) + (f" (goal {row['goal']:g})" if missed else ""))
    if DRIVE in targets:
        line += [_ratio(row["drive_to"].get(name)) for name in targets if name not in (DRIVE, CEILING)]
    return line


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}".replace(",", " ") if value >= 100 else f"{value:.3g}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    table = [list(header), *map(list, lines)]
    widths = [max(len(line[i]) for line in table) for i in range(len(header))]
    words = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in table]
    words.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(line) + " |" for line in words)


def save(result: dict[str, Any], path: Path) -> None:
    """As JSON."""
    import json

    path.write_text(json.dumps(result, indent=1, default=str) + "\n")

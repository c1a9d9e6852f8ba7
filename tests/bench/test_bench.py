"""The benchmark itself, with tiny amounts: it measures every row, leaves nothing behind, and sees what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hivefs.testing.bench import sources, workloads
from hivefs.testing.bench.__main__ import parse
from hivefs.testing.bench.drive import Drive
from hivefs.testing.bench.rounds import Record, Rounds
from hivefs.testing.bench.targets import Disk, Target

MISSING = [program for program in ("git", "rsync", "tar", "cp") if shutil.which(program) is None]
HIVE_ROWS = {row.key for workload in workloads.WORKLOADS for row in workload.rows}


def bench(directory: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    out = directory / "out.json"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "hivefs.testing.bench",
            "--quick",
            "--directory",
            str(directory),
            "--json",
            str(out),
            *words,
        ],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done, json.loads(out.read_text())


@pytest.mark.fuse
@pytest.mark.skipif(bool(MISSING), reason=f"the programs {', '.join(MISSING)} are missing (packages of the same names)")
@pytest.mark.slow
def test_two_rounds_against_the_ceiling(tmp_path: Path) -> None:
    done, result = bench(tmp_path, "--rounds", "2", "--targets", "ceiling,fast-ceiling")
    assert set(result["rows"]) == HIVE_ROWS and result["errors"] == [] and result["hive"] == {}
    for row in result["rows"].values():
        assert set(row["values"]) == {"ceiling", "fast-ceiling"}
        assert all(len(v) == 2 and all(x > 0 for x in v) for v in row["values"].values())
        assert row["of_ceiling"]["ceiling"] == 1 and row["of_ceiling"]["fast-ceiling"] > 0
    assert result["quick"] and result["rounds"] == 2 and result["targets"] == ["ceiling", "fast-ceiling"]
    assert done.stdout.count("\n| ") >= len(HIVE_ROWS)
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"], "the benchmark left something behind"
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@pytest.fixture
def fast(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where that can be had: what is told here is not how long a disk, on which others write as well,
    takes to write all that it was given.
    """
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="hivefs-bench-", dir="/dev/shm") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> sources.Sources:
    """To make them all of Python's library is looked through: once is enough, nobody changes them."""
    return sources.make(tmp_path_factory.mktemp("bench") / "inputs", sources.QUICK)


def run(target: Target, inputs: sources.Sources, workload: str) -> Record:
    """One round of one workload on one target, in this process."""
    record = Record(1)
    target.start()
    rounds = Rounds([target], inputs, sources.QUICK, record, settle=True, deadline=float("inf"))
    rounds.run(w for w in workloads.WORKLOADS if w.name == workload)
    return record


class Rotting(Disk):
    """A disk that changes one byte of the largest file while nothing goes on."""

    def settle(self, limit: float) -> None:
        files = [Path(d, name) for d, _, names in os.walk(self.directory) for name in names]
        if files:
            with max(files, key=lambda p: p.stat().st_size).open("r+b") as file:
                byte = file.read(1)
                file.seek(0)
                file.write(bytes([(byte[0] + 1) % 256]))
        super().settle(limit)


@pytest.mark.parametrize("workload", ["sequential", "small", "random", "photos"])
def test_a_changed_byte_is_seen(fast: Path, inputs: sources.Sources, workload: str) -> None:
    record = run(Rotting("rotting", fast / "disk"), inputs, workload)
    assert len(record.errors) == 1 and "Differs" in record.errors[0], record.errors


def test_nothing_is_wrong_on_a_disk(fast: Path, inputs: sources.Sources) -> None:
    record = run(Disk("disk", fast / "disk"), inputs, "sequential")
    assert record.errors == [] and set(record.values["disk"]) == {"write", "read_cold", "read_warm"}
    assert list((fast / "disk" / "drive").iterdir()) == []


def test_a_target_that_hangs_is_left_out(fast: Path, inputs: sources.Sources) -> None:
    """The step is ended at its limit, said so, and the rest goes on."""
    import signal
    from dataclasses import replace

    def hang(place: workloads.Place) -> workloads.Result:
        signal.pause()
        return {}

    stuck = workloads.Workload("stuck", (hang,), ())
    record = Record(1)
    target = Disk("disk", fast / "disk")
    target.start()
    sizes = replace(sources.QUICK, step_limit_s=0.5)
    rounds = Rounds([target], inputs, sizes, record, settle=True, deadline=float("inf"))
    rounds.run([stuck])
    assert record.errors == ["disk: stuck: not done after 0.5 s"] and rounds.targets == [target]


@pytest.mark.parametrize("words", [["--only", "nonsense"], ["--targets", "nonsense"], ["--rounds", "0"]])
def test_a_wrong_command_line(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hivefs.testing.bench", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_a_node_that_fills_is_measured_and_survives_its_kill(fast: Path) -> None:
    done, result = bench(fast, "--only", "node", "--shares", "300,600")
    assert result["errors"] == [] and result["targets"] == [] and result["rows"] == {}
    figures = result["hive"]
    assert {key.split("_")[1] for key in figures} == {"put", "get", "have", "stat", "resident", "anonymous", "start"}
    assert all(figure["value"] > 0 for figure in figures.values())
    assert figures["node_put_300"]["against"] == "1.00 of the first" and "600 shares" in done.stdout
    assert [p.name for p in fast.iterdir()] == ["out.json"], "the benchmark left something behind"


def test_every_step_is_measured_by_itself(fast: Path) -> None:
    from hivefs.testing.bench import stages

    found = stages.measure(fast / "stages", (2, 3), 1)
    assert {key for key, *_ in stages.ROWS} == set(found)
    assert all(found[key] > 0 for key in ("stage_read", "seal", "zfec", "sha_engine", "check", "read", "cache_read"))


@pytest.mark.slow
@pytest.mark.fuse
def test_the_processor_time_of_a_hive_by_stages(tmp_path: Path) -> None:
    _, result = bench(tmp_path, "--targets", "hivefs", "--only", "stages", "--rounds", "1")
    figures = result["hive"]
    assert result["errors"] == []
    for kind in ("placing", "cold"):
        parts = [figures[f"stages_{kind}_{part}"]["value"] for part in ("mount", "engine", "nodes")]
        assert all(value > 0 for value in parts)
        assert figures[f"stages_{kind}_all"]["value"] == pytest.approx(sum(parts))


def test_another_checkout_runs_its_own_program(tmp_path: Path) -> None:
    other = tmp_path / "checkout" / "hivefs"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("")
    (other / "__main__.py").write_text("import sys; print('other', *sys.argv[1:])")
    drive = Drive("before", tmp_path / "before", tmp_path / "checkout")
    drive.root.mkdir()
    assert drive.hivefs("status", "--json").strip() == "other status --json"
    assert parse(["--against", str(tmp_path / "checkout")]).against == tmp_path / "checkout"
    with pytest.raises(SystemExit):
        parse(["--against", str(tmp_path)])

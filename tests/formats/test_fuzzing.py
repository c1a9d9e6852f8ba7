"""The decoders under atheris: as many inputs as take some seconds, always from the same seed, so that what passed here also
passes there; with the slow tests a minute, or HIVEFS_FUZZ_SECONDS, with others each time.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_mutations import CASES

RUNS, LONG = 100_000, int(os.environ.get("HIVEFS_FUZZ_SECONDS", "60"))
PROGRAM = Path(__file__).with_name("fuzzing.py")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="the Python package atheris is missing (constraints.txt; wheels for CPython 3.11 to 3.13, Linux, x86-64)",
)


def fuzz(directory: Path, *options: str, program: str = "") -> subprocess.CompletedProcess[str]:
    corpus = directory / "corpus"
    corpus.mkdir(exist_ok=True)
    words = [sys.executable, *(["-c", program] if program else [str(PROGRAM)]), str(corpus), "-rss_limit_mb=2048"]
    paths = os.pathsep.join([str(PROGRAM.parent), str(PROGRAM.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [*words, f"-artifact_prefix={directory}/", *options],
        capture_output=True,
        text=True,
        timeout=LONG + 240,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )


@pytest.mark.parametrize(
    "bound",
    [(f"-runs={RUNS}", "-seed=1"), pytest.param((f"-max_total_time={LONG}",), marks=pytest.mark.slow)],
    ids=["few", "many"],
)
def test_no_input_makes_a_decoder_do_what_it_does_not_say(tmp_path: Path, bound: tuple[str, ...]) -> None:
    done = fuzz(tmp_path, *bound, "-timeout=60", "-max_len=4096")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs is not None and int(runs[1]) > 1000, done.stderr[-2000:]
    begun = sum(len(case.seeds) for case in CASES.values())
    assert len(list((tmp_path / "corpus").iterdir())) > begun + 50, "it found no new paths: nothing is instrumented"


def test_a_decoder_that_raises_something_else_is_found(tmp_path: Path) -> None:
    """The harness itself: one decoder gets a mistake that the vectors do not meet."""
    program = """
import sys, fuzzing
from pathlib import Path
from dataclasses import replace

name = "cid.from_text" if "cid.from_text" in fuzzing.CASES else fuzzing.NAMES[0]
right = fuzzing.CASES[name]

def wrong(data):
    value = right.decode(data[:-1] if data.endswith(b"!") else data)
    if data.endswith(b"!"):
        raise KeyError("a mistake")
    return value

fuzzing.NAMES[:] = [name]
fuzzing.CASES[name] = replace(right, decode=wrong)
fuzzing.fill(Path(sys.argv[1]))
fuzzing.atheris.Setup(sys.argv, fuzzing.one)
fuzzing.atheris.Fuzz()
"""
    done = fuzz(tmp_path, "-runs=5000000", "-seed=3", "-timeout=60", "-max_len=512", program=program)
    assert done.returncode != 0 and "a mistake" in done.stdout + done.stderr, done.stderr[-2000:]

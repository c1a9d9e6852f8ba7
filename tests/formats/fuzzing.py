"""Every decoder of test_mutations.py under atheris, a fuzzer that is guided by what the bytes reached in the code.

    python fuzzing.py CORPUS [options of libFuzzer, such as -max_total_time=60]

CORPUS is a directory that is filled with the vectors and grows. The first byte of an input chooses the decoder, so that one
process looks for new paths in all of them. Ends with 77 at the first input that a decoder does not refuse as it says, or
that it takes and writes differently; the input lies beside the corpus then.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["hivefs.formats", "hivefs.protocol", "hivefs.model", "hivefs.crypto"]):
    from test_mutations import CASES

NAMES = sorted(CASES)


def one(data: bytes) -> None:
    """What attack() of test_mutations.py checks of one mutant."""
    if not data or data[0] >= len(NAMES):
        return
    name, data = NAMES[data[0]], data[1:]
    case = CASES[name]
    try:
        value = case.decode(data)
    except case.raised:
        return
    except Exception as error:
        raise AssertionError(f"{name} raised {error!r} for {data.hex()}") from error
    if case.encode is not None and case.encode(value) != data:
        raise AssertionError(f"{name} took {data.hex()} and writes other bytes")


def fill(corpus: Path) -> None:
    for number, name in enumerate(NAMES):
        for seed in CASES[name].seeds:
            data = bytes([number]) + seed
            (corpus / hashlib.sha256(data).hexdigest()[:20]).write_bytes(data)


if __name__ == "__main__":
    fill(Path(sys.argv[1]))
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()

"""fio writes, reads back and compares; after a new mount it compares once more."""

from __future__ import annotations

from pathlib import Path

import pytest
from judges import bounded, judge
from mount_tools import Mounted

pytestmark = [pytest.mark.slow, pytest.mark.fuse, pytest.mark.timeout(600)]

JOBS = {
    "psync, sequential, 1 MiB": ("psync", "write", "--bs=1m", "--size=64m"),
    "psync, sequential, 4 KiB": ("psync", "write", "--bs=4k", "--size=16m"),
    "psync, random, 4 KiB": ("psync", "randwrite", "--bs=4k", "--size=24m"),
    "psync, random, 64 KiB": ("psync", "randwrite", "--bs=64k", "--size=48m"),
    "psync, random, sizes that fit nothing": ("psync", "randwrite", "--bsrange=512-300k", "--bs_unaligned", "--size=24m"),
    "psync, reading and writing": ("psync", "randrw", "--bs=8k", "--size=24m"),
    "psync, four at once": ("psync", "randwrite", "--bs=16k", "--size=8m", "--numjobs=4"),
    "psync, with fdatasync": ("psync", "randwrite", "--bs=4k", "--size=2m", "--fdatasync=4"),
    "psync, O_SYNC": ("psync", "randwrite", "--bs=16k", "--size=2m", "--sync=1"),
    "psync, O_DIRECT": ("psync", "randrw", "--bs=16k", "--size=16m", "--direct=1"),
    "mmap, sequential": ("mmap", "write", "--bs=64k", "--size=32m"),
    "mmap, random": ("mmap", "randwrite", "--bs=4k", "--size=16m"),
    "mmap, reading and writing": ("mmap", "randrw", "--bs=4k", "--size=16m"),
    "libaio, random": ("libaio", "randwrite", "--bs=16k", "--size=16m", "--iodepth=16"),
}


def fio(directory: Path, name: str, *more: str) -> None:
    engine, pattern, *rest = JOBS[name]
    words = (f"--ioengine={engine}", f"--rw={pattern}", *rest, "--verify=crc32c", "--verify_fatal=1", "--do_verify=1")
    common = ("--name=job", f"--directory={directory}", "--randseed=7", "--end_fsync=1", "--verify_state_save=0")
    status, said = bounded([judge("fio"), *common, *words, *more], 300, cwd=directory)
    assert status == 0, said
    assert "err= 0" in said, said
    assert "verify:" not in said, said


@pytest.mark.parametrize("name", JOBS)
def test_what_was_written_is_read(drive: Mounted, name: str) -> None:
    directory = drive.path / name
    judge("fio")
    directory.mkdir()
    fio(directory, name)
    drive.unmount()
    drive.mount()
    fio(directory, name, "--verify_only")

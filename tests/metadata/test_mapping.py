"""metadata/mapping.py: a small data file is read with what lies around, a large one is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_tools import KEYS

from hivefs.metadata import mapping
from hivefs.metadata.store import MetadataStore


def one_by_one(path: Path) -> bool:
    """Whether the kernel was told that this file's pages are looked at in no order (VmFlags in /proc/PID/smaps)."""
    inode, found, flags = str((path / "data.mdb").stat().st_ino), False, []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and len(words) >= 5:
            found = words[4] == inode
        elif found and words[0] == "VmFlags:":
            flags.append("rr" in words)
    assert flags, "it is mapped"
    assert len(set(flags)) == 1
    return flags[0]


def test_a_small_file_is_read_with_what_lies_around_until_it_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metadata"
    store = MetadataStore(path, KEYS, create=True)
    assert not one_by_one(path)
    monkeypatch.setattr(mapping, "SMALL_BYTES", (path / "data.mdb").stat().st_size)
    for number in range(500):
        store.put(b"i" + number.to_bytes(8, "big"), bytes(200))
    store.commit()
    assert one_by_one(path)
    store.close()

    store = MetadataStore(path, KEYS)
    assert one_by_one(path)
    monkeypatch.setattr(mapping, "SMALL_BYTES", 1 << 30)
    store.put_info(b"x", b"y")
    store.commit()
    assert not one_by_one(path)
    store.close()


def test_a_file_that_is_gone_is_no_error(tmp_path: Path) -> None:
    mapping.ReadAround(tmp_path / "data.mdb").follow()

"""formats/staged.py against tests/vectors/stage.json, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from stage_tools import counted_random, pattern

from hivefs.errors import Corrupt, UnknownVersion
from hivefs.formats import staged
from hivefs.model.ids import CHUNK_BYTES
from hivefs.model.staged import StagedExtent
from hivefs.stage.log import StageLog
from hivefs.stage.reader import StageReader

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "stage.json").read_text())


def test_slot_record_vector() -> None:
    for vector in VECTORS["slot_records"]:
        extents = [StagedExtent(*fields) for fields in vector["extents"]]
        assert staged.extents_to_bytes(extents).hex() == vector["hex"]
        assert staged.extents_from_bytes(bytes.fromhex(vector["hex"])) == extents


@pytest.mark.parametrize("vector", VECTORS["segments"], ids=lambda v: v["name"])
def test_segment_vector_is_what_the_log_writes(vector: dict[str, Any], tmp_path: Path) -> None:
    key = bytes.fromhex(vector["key"])
    plain = pattern(vector["length"], vector["pattern"])
    log = StageLog(tmp_path, key, counted_random(vector["random"].encode()), reserve_bytes=0)
    extents = log.write(vector["ino"], vector["offset"], plain)
    log.close()
    assert [[slot, e.start, e.length, e.segment, e.position, e.run_start, e.run_length] for slot, e in extents] == vector[
        "extents"
    ]
    (path,) = tmp_path.iterdir()
    assert path.name == vector["file"]
    data = path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == vector["sha256"]
    if "hex" in vector:
        assert data.hex() == vector["hex"]


@pytest.mark.parametrize("vector", VECTORS["segments"], ids=lambda v: v["name"])
def test_segment_vector_opens_by_the_spec_alone(vector: dict[str, Any], tmp_path: Path) -> None:
    """docs/formats/stage.md followed by hand, with nothing but AES-GCM; then by StageReader."""
    plain = pattern(vector["length"], vector["pattern"])
    log = StageLog(tmp_path, bytes.fromhex(vector["key"]), counted_random(vector["random"].encode()), reserve_bytes=0)
    log.write(vector["ino"], vector["offset"], plain)
    log.close()
    data = (tmp_path / vector["file"]).read_bytes()

    assert data[:8] == b"HVstage\x01"
    number = data[8:16]
    assert vector["file"] == number.hex() + ".seg"
    segment_key = AESGCM(bytes.fromhex(vector["key"])).decrypt(data[16:32], data[32:80], b"hivefs/stage/1" + number)
    found = b""
    for slot, _, _, _, position, run_start, run_length in vector["extents"]:
        done = 0
        while done < run_length:
            unit = min(32768, run_length - done)
            at = position + done // 32768 * 32800
            context = (
                b"HVunit\x00\x01"
                + number
                + at.to_bytes(8, "big")
                + vector["ino"].to_bytes(8, "big")
                + (slot * 1048576 + run_start + done).to_bytes(8, "big")
                + run_length.to_bytes(4, "big")
            )
            found += AESGCM(segment_key).decrypt(data[at : at + 16], data[at + 16 : at + unit + 32], context)
            done += unit
    assert found == plain

    reader = StageReader(tmp_path, bytes.fromhex(vector["key"]))
    parts = []
    for slot, *fields in vector["extents"]:
        extent = StagedExtent(*fields)
        parts.append(reader.read(vector["ino"], slot, extent, extent.start, extent.length))
    reader.close()
    assert b"".join(part or b"" for part in parts) == plain


GOOD = StagedExtent(10, 20, 7, 80, 0, 100)


@pytest.mark.parametrize(
    "extents",
    [
        [GOOD, StagedExtent(29, 5, 7, 80, 0, 100)],  # overlap
        [StagedExtent(30, 5, 7, 80, 0, 100), GOOD],  # out of order
        [StagedExtent(10, 0, 7, 80, 0, 100)],  # empty
        [StagedExtent(90, 20, 7, 80, 0, 100)],  # beyond its run
        [StagedExtent(10, 20, 7, 80, 15, 100)],  # before its run
        [StagedExtent(CHUNK_BYTES - 5, 10, 7, 80, 0, CHUNK_BYTES + 5)],  # beyond the slot
        [StagedExtent(10, 20, 7, 79, 0, 100)],  # inside the header
    ],
)
def test_impossible_slot_records_are_corrupt(extents: list[StagedExtent]) -> None:
    with pytest.raises(Corrupt):
        staged.extents_from_bytes(staged.extents_to_bytes(extents))


def test_slot_record_lengths_and_version() -> None:
    good = staged.extents_to_bytes([GOOD])
    assert staged.extents_from_bytes(good) == [GOOD]
    for bad in (b"", good[:-1], good + b"\0"):
        with pytest.raises(Corrupt):
            staged.extents_from_bytes(bad)
    with pytest.raises(UnknownVersion):
        staged.extents_from_bytes(b"\x02" + good[1:])


def test_header_of_another_number_version_or_kind() -> None:
    good = staged.header_to_bytes(5, bytes(64))
    assert staged.header_from_bytes(good, 5) == bytes(64)
    for bad in (good[:-1], good + b"\0", b"XVstage" + good[7:], b""):
        with pytest.raises(Corrupt):
            staged.header_from_bytes(bad, 5)
    with pytest.raises(Corrupt):
        staged.header_from_bytes(good, 6)
    with pytest.raises(UnknownVersion):
        staged.header_from_bytes(good[:7] + b"\x02" + good[8:], 5)


def test_run_bytes() -> None:
    assert [staged.run_bytes(n) for n in (1, 32768, 32769, CHUNK_BYTES)] == [33, 32800, 32833, CHUNK_BYTES + 1024]

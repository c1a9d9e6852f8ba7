"""The table of networks as bytes: vectors, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hivefs.errors import Corrupt, UnknownVersion
from hivefs.formats.registry import registry_from_bytes, registry_to_bytes
from hivefs.placement.registry import from_lines

VECTORS = Path(__file__).parent.parent / "vectors" / "registry.json"
TABLE = from_lines(
    [
        ["192.0.2.0/24", "DE", "AS64500", "Müller"],
        ["198.51.100.0/25", "FR", "64501"],
        ["2001:db8::/32", "CH", "", "Rack"],
        ["2001:db8:5::/48", "DE", "64500", "Müller"],
    ]
)
ONE = from_lines([["192.0.2.7/32", "IS"]])


def made() -> dict[str, str]:
    return {"table": registry_to_bytes(TABLE).hex(), "one network": registry_to_bytes(ONE).hex()}


def test_vectors_are_written_and_read_the_same() -> None:
    """Never change a vector; add a version."""
    kept = json.loads(VECTORS.read_text())
    assert kept["version"] == 1 and kept["vectors"] == made()
    assert registry_from_bytes(bytes.fromhex(kept["vectors"]["table"])) == TABLE
    assert registry_from_bytes(bytes.fromhex(kept["vectors"]["one network"])) == ONE


def test_wrong_ones_are_refused() -> None:
    good = registry_to_bytes(ONE)
    with pytest.raises(UnknownVersion):
        registry_from_bytes(good[:10] + b"\x02" + good[11:])
    head = 19
    for bad, reason in [
        (b"x" + good[1:], "magic"),
        (good[:11] + b"\xff" * 4 + good[15:], "too many"),
        (good[: head + 5], "cut off"),
        (good[: head + 4] + bytes(4) + good[head + 8 :], "in order"),
        (good[: head + 8] + b"\x00\x00\x00\x01" + good[head + 12 :], "not there"),
        (good + b"\x00", "origins|canonical"),
    ]:
        with pytest.raises(Corrupt, match=reason):
            registry_from_bytes(bad)

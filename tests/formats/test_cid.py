"""Shares under the names that IPFS gives them. The vectors were compared with js `multiformats` and with known CIDs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivefs.errors import Corrupt
from hivefs.formats.cid import cid_from_text, cid_to_text
from hivefs.model.ids import ShareId

KEPT = json.loads((Path(__file__).parent.parent / "vectors" / "cid.json").read_text())
DATA = {"hello world": b"hello world", "zero bytes": bytes(65536), "two megabytes": bytes(range(256)) * 8192}
HELLO = KEPT["vectors"]["hello world"]["cid"]


@pytest.mark.parametrize("name", DATA)
def test_vectors(name: str) -> None:
    assert KEPT["version"] == 1
    vector, share_id = KEPT["vectors"][name], ShareId(hashlib.sha256(DATA[name]).digest())
    assert share_id.hex() == vector["bytes_sha256"]
    assert cid_to_text(share_id) == vector["cid"]
    assert cid_from_text(vector["cid"]) == share_id


def test_the_cid_of_hello_world_is_the_one_that_ipfs_gives() -> None:
    """As `echo -n "hello world" | ipfs add --cid-version 1 --raw-leaves` says."""
    assert HELLO == "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"


@given(st.binary(min_size=32, max_size=32))
def test_there_and_back(digest: bytes) -> None:
    assert cid_from_text(cid_to_text(ShareId(digest))) == digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        HELLO.upper(),
        HELLO[1:],
        HELLO[:-1],
        HELLO + "a",
        HELLO + "=",
        HELLO[:-1] + "f",  # the same bytes, with a spare bit set
        HELLO[:-1] + "1",
        HELLO[:-1] + "é",
        "b" + HELLO[1:5].replace("f", "g") + HELLO[5:],  # another codec
        "zb2rhj7crUKTQYRGCRATFaQ6YFLTde2YzdqbbhAASkL9uRDXn",  # base58
        "QmT78zSuBmuS4z925WZfrqQ1qHaJ56DQaTfyMUF7F8ff5o",  # version 0
    ],
)
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(Corrupt):
        cid_from_text(text)


@given(st.text(max_size=70))
def test_no_text_does_anything_else(text: str) -> None:
    try:
        share_id = cid_from_text(text)
    except Corrupt:
        return
    assert cid_to_text(share_id) == text


def test_an_id_of_another_length_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        cid_to_text(ShareId(b"short"))

"""Attestations and what nodes say of themselves: vectors, forgeries, times."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.crypto import keys
from hivefs.daemon import attester
from hivefs.errors import BadAttestation, Corrupt
from hivefs.formats import attestation, strict
from hivefs.model.attestation import Attestation, Statement, TrustedKey
from hivefs.model.ids import NodeId
from hivefs.model.node import ATTRIBUTE_NAMES

VECTORS = Path(__file__).parent.parent / "vectors" / "attestation.json"
DAY = 86_400 * 10**9
NOW = 1_800_000_000 * 10**9
NOTARY, NODE, OTHER = (bytes([i]) * 32 for i in (41, 42, 43))
NODE_ID = NodeId(keys.public_key(NODE))
SAID = (("operator", "Müller"), ("country", "DE"), ("operator_country", "DE"))
GOOD = attestation.sign_attestation(NOTARY, Attestation(b"", NODE_ID, SAID, NOW, NOW + 365 * DAY))
FOR_EVER = attestation.sign_attestation(OTHER, Attestation(b"", NODE_ID, (("asn", "24940"),), NOW))
STATEMENT = attestation.sign_statement(NODE, Statement(NODE_ID, 7, (("parent", "X"), ("hoster", "")), (GOOD, FOR_EVER)))
NOTHING = attestation.sign_statement(NODE, Statement(NODE_ID, 8))
TRUSTED = TrustedKey(keys.public_key(NOTARY), "the notary", NOW)


def made() -> dict[str, str]:
    return {
        "attestation": attestation.attestation_to_bytes(GOOD).hex(),
        "attestation text": attestation.attestation_to_text(GOOD),
        "for ever": attestation.attestation_to_bytes(FOR_EVER).hex(),
        "statement": attestation.statement_to_bytes(STATEMENT).hex(),
        "says nothing": attestation.statement_to_bytes(NOTHING).hex(),
        "attester key": attester.to_bytes(attester.AttesterKey(NOTARY)).hex(),
        "trusted key": attestation.trusted_to_bytes(TRUSTED).hex(),
    }


def test_vectors_are_written_and_read_the_same() -> None:
    """Never change a vector; add a version."""
    kept = json.loads(VECTORS.read_text())
    assert kept["version"] == 1 and kept["vectors"] == made()
    data = {name: bytes.fromhex(value) for name, value in kept["vectors"].items() if not name.endswith("text")}
    assert attestation.attestation_from_bytes(data["attestation"]) == GOOD
    assert attestation.attestations_from_text("# a note\n\n" + kept["vectors"]["attestation text"] + "\n") == [GOOD]
    assert attestation.statement_from_bytes(data["statement"]) == STATEMENT
    assert attestation.statement_from_bytes(data["says nothing"]) == NOTHING and attestation.statement_valid(NOTHING)
    assert attester.from_bytes(data["attester key"]) == attester.AttesterKey(NOTARY)
    assert attestation.trusted_from_bytes(data["trusted key"]) == TRUSTED


def test_the_longest_ones_are_within_their_bounds() -> None:
    said = tuple((name, "\U0001f4a9" * attestation.MAX_VALUE) for name in ATTRIBUTE_NAMES)
    longest = attestation.sign_attestation(NOTARY, Attestation(b"", NODE_ID, said, 1 << 62, 1 << 62))
    assert len(attestation.attestation_to_bytes(longest)) <= attestation.MAX_BYTES
    whole = Statement(NODE_ID, 1 << 62, tuple(sorted(said)), (longest,) * attestation.MAX_ATTESTATIONS)
    blob = attestation.statement_to_bytes(attestation.sign_statement(NODE, whole))
    assert len(blob) <= attestation.MAX_STATEMENT_BYTES
    assert attestation.statement_valid(attestation.statement_from_bytes(blob))


@pytest.mark.parametrize(
    ("forged", "reason"),
    [
        (replace(GOOD, said=(("country", "CH"),)), "forged"),
        (replace(GOOD, subject=keys.public_key(OTHER)), "forged"),
        (replace(GOOD, attester=keys.public_key(OTHER)), "forged"),
        (replace(GOOD, expires_ns=0), "forged"),
        (replace(GOOD, signature=bytes(64)), "forged"),
        (attestation.sign_attestation(NODE, GOOD), "cannot attest itself"),
    ],
)
def test_forged_ones_are_refused_and_it_is_said_why(forged: Attestation, reason: str) -> None:
    assert attestation.problem(GOOD, NOW) == ""
    assert reason in attestation.problem(forged, NOW) and not attestation.signed(forged)
    inside = attestation.sign_statement(NODE, Statement(NODE_ID, 9, (), (forged,)))
    assert not attestation.statement_valid(attestation.statement_from_bytes(attestation.statement_to_bytes(inside)))


def test_clocks_may_be_a_day_apart_and_no_more() -> None:
    assert attestation.problem(GOOD, NOW - DAY) == "" == attestation.problem(GOOD, NOW + 366 * DAY - 1)
    assert "expired" in attestation.problem(GOOD, NOW + 366 * DAY)
    assert "future" in attestation.problem(GOOD, NOW - DAY - 1)


def test_a_node_cannot_pass_on_what_was_said_of_another_nor_speak_for_another() -> None:
    stolen = attestation.sign_statement(OTHER, Statement(NODE_ID, 9, (), (GOOD,)))
    assert not attestation.statement_valid(stolen), "signed by itself, with what is said of another"
    assert not attestation.statement_valid(replace(STATEMENT, sequence=99))
    assert not attestation.statement_valid(replace(stolen, node_id=NODE_ID))


def test_of_two_statements_the_later_counts_and_the_same_everywhere() -> None:
    assert attestation.newer(NOTHING, STATEMENT, NOW) and not attestation.newer(STATEMENT, NOTHING, NOW)
    twin = attestation.sign_statement(NODE, Statement(NODE_ID, 8, (("hoster", "Z"),)))
    assert attestation.newer(twin, NOTHING, NOW) != attestation.newer(NOTHING, twin, NOW)
    assert attestation.newer(NOTHING, None, NOW) and not attestation.newer(NOTHING, NOTHING, NOW)


def test_a_statement_from_far_ahead_takes_no_place_and_gives_way() -> None:
    within = replace(NOTHING, sequence=(NOW + DAY) // 10**9)
    for sequence in (within.sequence + 1, (1 << 63) - 1):
        last = replace(NOTHING, sequence=sequence)
        assert not attestation.newer(last, None, NOW) and not attestation.newer(last, NOTHING, NOW)
        assert attestation.newer(NOTHING, last, NOW)
    assert attestation.newer(within, NOTHING, NOW) and not attestation.newer(NOTHING, within, NOW)


@pytest.mark.parametrize(
    "said",
    [
        [["country", "DE"], ["asn", "1"]],
        [["asn", "1"], ["asn", "2"]],
        [["colour", "red"]],
        [["country", ""]],
        [["country", "x" * 257]],
    ],
)
def test_names_are_known_sorted_and_once(said: list[list[str]]) -> None:
    fields = [GOOD.attester, GOOD.subject, said, 1, 0]
    with pytest.raises(Corrupt):
        attestation.attestation_from_bytes(strict.encode("HVattest", 1, fields, bytes(64)))


@pytest.mark.parametrize("word", ["good\x1b[2J", "good\nnode 2", "\u202egnp", "山田\u3000商店", "می\u200cخواهم"])
def test_what_was_signed_before_there_was_a_rule_about_characters_stays_readable(word: str) -> None:
    made = replace(GOOD, said=(("operator", word),))
    assert attestation.attestation_from_bytes(attestation.attestation_to_bytes(made)) == made


def test_what_no_text_can_hold_is_refused_when_it_is_read() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        attestation.said_from_items([["operator", "\udcff"]], empty=True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "none in the file"),
        ("# only a note\n", "none in the file"),
        ("HIVEFS-INVITE:AAAA", "line 1 does not begin"),
        ("\nHIVEFS-ATTEST:AAAA", "line 2 is cut off"),
        ("HIVEFS-ATTEST:ÄÄÄÄ", "line 1 is cut off"),
        ("x" * (attestation.MAX_TEXT + 1), "longer than"),
    ],
)
def test_files_that_are_none_are_refused_with_the_line(text: str, reason: str) -> None:
    with pytest.raises(BadAttestation, match=reason):
        attestation.attestations_from_text(text)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.sampled_from(ATTRIBUTE_NAMES), st.text(min_size=1, max_size=20).filter(str.isprintable), max_size=8),
    st.integers(0, (1 << 63) - 1),
    st.integers(0, (1 << 63) - 1),
)
def test_what_is_written_is_read_the_same(said: dict[str, str], issued: int, expires: int) -> None:
    one = attestation.sign_attestation(NOTARY, Attestation(b"", NODE_ID, tuple(said.items()), issued, expires))
    assert attestation.signed(one)
    assert attestation.attestation_from_bytes(attestation.attestation_to_bytes(one)) == one
    assert attestation.attestations_from_text(attestation.attestation_to_text(one)) == [one]

"""Every decoder of bytes that come from others, or from a disk that others can write, under mutants of its own vectors.

A decoder raises what its docstring says and nothing else. What it accepts is written again as exactly the same bytes, so
that a hash or a signature over bytes covers one meaning only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mutating import mutants

from hivefs.crypto.keys import public_key
from hivefs.daemon import attester, hive
from hivefs.daemon.home import Secrets
from hivefs.errors import BadAttestation, BadInvitation, Corrupt, UnknownVersion
from hivefs.formats import (
    attestation,
    cid,
    head,
    invite,
    journal,
    lan,
    local,
    member,
    meter,
    page,
    policy,
    receipt,
    records,
    registry,
    reputation,
    revoked,
    staged,
    standing,
    stripe,
    vault,
)
from hivefs.model.ids import NodeId
from hivefs.model.staged import SegmentPiece
from hivefs.protocol import answers, failures, frames, greeting, requests
from hivefs.protocol.frames import Frame, FrameDecoder, Kind, ProtocolViolation

ROOT = Path(__file__).parents[2]
FEW, MANY = 300, 40_000
DAMAGED = (Corrupt, UnknownVersion)


@dataclass(frozen=True)
class Case:
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes] | None
    """None where other bytes may mean the same: JSON, and what only ever says yes or no."""
    seeds: list[bytes]
    raised: tuple[type[Exception], ...] = DAMAGED


def kept(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((ROOT / "tests" / "vectors" / f"{name}.json").read_text())
    return value


def seeds(name: str, *items: str) -> list[bytes]:
    return [bytes.fromhex(kept(name)["vectors"][item]) for item in items]


# ---- frames: kind, length of the header, header, payload, so that mutants do not all end at the frame's own length -------


def flat(frame: Frame) -> bytes:
    return bytes([frame.kind]) + len(frame.header).to_bytes(2, "big") + frame.header + frame.payload


def frame_of(data: bytes) -> Frame:
    """The frame of a mutant. Its payload may be as long as the mutant is: what the wire allows is FrameDecoder's."""
    if len(data) < 3 or data[0] not in set(Kind):
        raise ProtocolViolation("no frame")
    cut = 3 + int.from_bytes(data[1:3], "big")
    if cut > len(data):
        raise ProtocolViolation("cut off")
    return Frame(Kind(data[0]), 7, data[3:cut], data[cut:])


def of_wire(data: bytes) -> list[Frame]:
    """All frames of some bytes; those that are not complete do not count."""
    decoder = FrameDecoder(frozenset(Kind))
    decoder.feed(data)
    found = []
    while (frame := decoder.next_frame()) is not None:
        found.append(frame)
    if decoder.inside:
        raise ProtocolViolation("cut off")
    return found


WIRE = {
    name: bytes.fromhex(value)
    for name, value in kept("protocol")["vectors"].items()
    if not name.startswith(("signed", "merkle"))
}
FLAT = {name: flat(of_wire(data)[0]) for name, data in WIRE.items()}
ASKED = [data for name, data in FLAT.items() if name.startswith("request ")]
ANSWERS: dict[str, type[Any]] = {
    "done": answers.Done,
    "kept": answers.Kept,
    "part": answers.Part,
    "sizes": answers.Sizes,
    "flags": answers.Flags,
    "page": answers.Page,
    "taken": answers.Taken,
    "node stat": answers.NodeStat,
    "hive state": answers.HiveState,
    "listing": answers.Listing,
    "listing of nothing": answers.Listing,
    "news": answers.News,
    "ranges": answers.Ranges,
}


def framed(decode: Callable[[Frame], Any], encode: Callable[[Any], Frame], seeds: list[bytes]) -> Case:
    """Payloads that the kind cannot have are not given to it, as on the wire."""

    def decoded(data: bytes) -> Any:
        frame = frame_of(data)
        if len(frame.payload) > frames.MAX_PAYLOAD[frame.kind]:
            raise ProtocolViolation("too long")
        if frame.kind != encode_kind:
            raise ProtocolViolation("another kind")
        return decode(frame)

    encode_kind = frame_of(seeds[0]).kind
    return Case(decoded, lambda value: flat(encode(value)), seeds, (*DAMAGED, ProtocolViolation))


def asked(data: bytes) -> requests.Request:
    frame = frame_of(data)
    if frame.kind not in frames.FROM_CLIENT - {Kind.CANCEL} or len(frame.payload) > frames.MAX_PAYLOAD[frame.kind]:
        raise ProtocolViolation("not a request")
    return requests.from_frame(frame)


# ---- others ----------------------------------------------------------------------------------------------------------


def read_journal(data: bytes) -> journal.Frame:
    return journal.body_from_bytes(data)


def write_journal(frame: journal.Frame) -> bytes:
    rows = [journal.row_to_bytes(journal.TABLES.index(table) + 1, key, value) for table, key, value in frame.rows]
    return journal.body_to_bytes(frame.numbers, rows, frame.pieces)


HIVE_KEY, NODE = public_key(bytes([3]) * 32), NodeId(public_key(bytes([4]) * 32))


def announced(data: bytes) -> NodeId | None:
    """A TXT record as it is on the wire: strings behind their lengths, ``key=value``."""
    properties: dict[bytes, bytes | None] = {}
    while data:
        item, data = data[1 : 1 + data[0]], data[1 + data[0] :]
        key, equals, value = item.partition(b"=")
        properties[key] = value if equals else None
    found = lan.node_of(properties, HIVE_KEY)
    assert found in (None, NODE), "only who knows the hive's key can make another tag"
    return found


TXT = b"".join(
    bytes([len(item)]) + item for item in (f"{k}={v}".encode() for k, v in lan.to_properties(HIVE_KEY, NODE).items())
)
VAULTS = seeds("vault", "password", "keyfile", "none")
STAGE, METADATA = kept("stage"), kept("metadata")
PAGES = [bytes.fromhex(p["bytes"]) for kind in ("leaves", "inner") for p in kept("page")[kind] if "bytes" in p]
NUMBER = 77
HEADER = staged.header_to_bytes(NUMBER, bytes(range(64)))

CASES: dict[str, Case] = {
    "records.inode_from_bytes": Case(
        records.inode_from_bytes, records.inode_to_bytes, seeds("records", "inode", "symlink")
    ),
    "records.dirent_from_bytes": Case(records.dirent_from_bytes, records.dirent_to_bytes, seeds("records", "dirent")),
    "records.extent_from_bytes": Case(
        partial(records.extent_from_bytes, 3), records.extent_to_bytes, seeds("records", "hole", "pending", "chunk")
    ),
    "records.xattr_from_bytes": Case(
        records.xattr_from_bytes, lambda value: records.xattr_to_bytes(*value), seeds("records", "xattr")
    ),
    "records.place_from_bytes": Case(records.place_from_bytes, records.place_to_bytes, seeds("records", "place")),
    "local.local_inode_fields": Case(local.local_inode_fields, None, [bytes.fromhex(METADATA["local_inode"]["bytes"])]),
    "stripe.from_bytes": Case(stripe.from_bytes, stripe.to_bytes, seeds("stripe", "stripe", "certified")),
    "stripe.holders_from_bytes": Case(stripe.holders_from_bytes, None, seeds("stripe", "stripe", "certified")),
    "page.from_bytes": Case(page.from_bytes, page.to_bytes, PAGES + seeds("page_certified", "inner")),
    "policy.from_bytes": Case(policy.from_bytes, policy.to_bytes, seeds("policy", "plain", "auto", "all")),
    "policy.text_from_bytes": Case(policy.text_from_bytes, policy.text_to_bytes, seeds("policy", "text")),
    "standing.from_bytes": Case(standing.from_bytes, standing.to_bytes, seeds("standing", "standing", "nothing")),
    "head.from_bytes": Case(head.from_bytes, head.to_bytes, seeds("head", "head")),
    "head.root_from_bytes": Case(head.root_from_bytes, head.root_to_bytes, seeds("head", "root", "certified root")),
    "head.certificate_from_bytes": Case(
        head.certificate_from_bytes,
        head.certificate_to_bytes,
        [head.certificate_to_bytes(head.from_bytes(seeds("head", "head")[0]).certificate)],
    ),
    "member.member_from_bytes": Case(
        member.member_from_bytes,
        member.member_to_bytes,
        seeds("member", "certificate") + seeds("invite", "certificate by invitation"),
    ),
    "member.entry_from_bytes": Case(
        member.entry_from_bytes,
        member.entry_to_bytes,
        seeds("member", "entry", "leaving", "credits", "relay") + seeds("invite", "entry by invitation"),
    ),
    "member.outline_from_bytes": Case(  # it looks at less of what was read as a whole before
        member.outline_from_bytes,
        None,
        seeds("member", "entry", "leaving", "credits", "relay") + seeds("invite", "entry by invitation"),
    ),
    "invite.invitation_from_bytes": Case(
        invite.invitation_from_bytes, invite.invitation_to_bytes, seeds("invite", "invitation")
    ),
    "invite.ticket_from_bytes": Case(invite.ticket_from_bytes, invite.ticket_to_bytes, seeds("invite", "ticket")),
    "invite.ticket_from_text": Case(
        lambda data: invite.ticket_from_text(data.decode("latin-1")),
        None,  # white space and small letters do no harm
        [kept("invite")["vectors"]["ticket text"].encode()],
        (BadInvitation,),
    ),
    "revoked.revocations_from_bytes": Case(
        revoked.revocations_from_bytes, revoked.revocations_to_bytes, seeds("invite", "revoked", "revoked nobody")
    ),
    "attestation.attestation_from_bytes": Case(
        attestation.attestation_from_bytes,
        attestation.attestation_to_bytes,
        seeds("attestation", "attestation", "for ever"),
    ),
    "attestation.attestations_from_text": Case(
        lambda data: attestation.attestations_from_text(data.decode("latin-1")),
        None,  # white space, notes and empty lines do no harm
        [kept("attestation")["vectors"]["attestation text"].encode()],
        (BadAttestation,),
    ),
    "attestation.statement_from_bytes": Case(
        attestation.statement_from_bytes, attestation.statement_to_bytes, seeds("attestation", "statement", "says nothing")
    ),
    "attestation.trusted_from_bytes": Case(
        attestation.trusted_from_bytes, attestation.trusted_to_bytes, seeds("attestation", "trusted key")
    ),
    "registry.registry_from_bytes": Case(
        registry.registry_from_bytes, registry.registry_to_bytes, seeds("registry", "table", "one network")
    ),
    "attester.from_bytes": Case(attester.from_bytes, None, seeds("attestation", "attester key")),
    "cid.cid_from_text": Case(
        lambda data: cid.cid_from_text(data.decode("latin-1")),
        lambda value: cid.cid_to_text(value).encode(),
        [item["cid"].encode() for item in kept("cid")["vectors"].values()],
    ),
    "lan.node_of": Case(announced, None, [TXT]),
    "reputation.from_bytes": Case(reputation.from_bytes, reputation.to_bytes, seeds("reputation", "full", "new")),
    "receipt.receipt_from_bytes": Case(
        receipt.receipt_from_bytes, receipt.receipt_to_bytes, seeds("receipt", "signed", "countersigned")
    ),
    "meter.from_bytes": Case(meter.from_bytes, meter.to_bytes, seeds("meter", "day", "empty")),
    "staged.extents_from_bytes": Case(
        staged.extents_from_bytes, staged.extents_to_bytes, [bytes.fromhex(r["hex"]) for r in STAGE["slot_records"]]
    ),
    "staged.header_from_bytes": Case(
        lambda data: staged.header_from_bytes(data, NUMBER), partial(staged.header_to_bytes, NUMBER), [HEADER]
    ),
    "journal.body_from_bytes": Case(
        read_journal, write_journal, [bytes.fromhex(f["body"]) for f in kept("journal")["frames"]]
    ),
    "vault.from_bytes": Case(vault.from_bytes, None, VAULTS),
    "vault.mac_valid": Case(lambda data: vault.mac_valid(data, bytes(32)), None, VAULTS),
    "hive.from_bytes": Case(hive.from_bytes, None, seeds("vault", "hive_key")),
    "home.Secrets.from_bytes": Case(Secrets.from_bytes, None, [Secrets(bytes(32), bytes(32)).to_bytes()]),
    "frames.FrameDecoder": Case(
        of_wire, lambda found: b"".join(map(frames.to_bytes, found)), list(WIRE.values()), (ProtocolViolation,)
    ),
    "requests.from_frame": Case(
        asked, lambda value: flat(requests.to_frame(value, 7)), ASKED, (*DAMAGED, ProtocolViolation)
    ),
    **{
        f"answers.from_frame of {name}": framed(
            partial(answers.from_frame, kind), lambda value: answers.to_frame(value, 7), [FLAT[f"answer {name}"]]
        )
        for name, kind in ANSWERS.items()
    },
    "greeting.hello_from_frame": framed(
        greeting.hello_from_frame, greeting.hello_to_frame, [FLAT["hello"], FLAT["hello of a recovery"]]
    ),
    "greeting.challenge_from_frame": framed(
        greeting.challenge_from_frame, greeting.challenge_to_frame, [FLAT["challenge"]]
    ),
    "greeting.login_from_frame": framed(greeting.login_from_frame, greeting.login_to_frame, [FLAT["login"]]),
    "greeting.welcome_from_frame": framed(greeting.welcome_from_frame, greeting.welcome_to_frame, [FLAT["welcome"]]),
    "failures.from_header": Case(
        failures.from_header,
        None,  # codes that are not known become others
        [frame_of(FLAT[name]).header for name in ("failure", "failure revoked")],
    ),
}


def attack(name: str, count: int) -> None:
    case = CASES[name]
    for seed in case.seeds:
        value = case.decode(seed)
        assert case.encode is None or case.encode(value) == seed, "a vector that is not read and written the same"
    for data in mutants(case.seeds, count, name):
        try:
            value = case.decode(data)
        except case.raised:
            continue
        except Exception as error:
            raise AssertionError(f"{name} raised {error!r} for {data.hex()}") from error
        assert case.encode is None or case.encode(value) == data, f"{name} took {data.hex()} and writes other bytes"


@pytest.mark.parametrize("name", CASES)
def test_mutants_are_refused_as_said_or_are_written_the_same(name: str) -> None:
    attack(name, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_many_mutants(name: str) -> None:
    attack(name, MANY)


@pytest.mark.parametrize("deep", [b"[" * 100_000, b'{"a":' * 100_000, b"\x81" * 100_000, b"\xd8\x1c\x81\xd8\x1d\x00"])
@pytest.mark.parametrize("name", CASES)
def test_nesting_without_end_is_refused(name: str, deep: bytes) -> None:
    case = CASES[name]
    with pytest.raises((*case.raised, AssertionError)):
        assert case.decode(deep) is not None


def test_a_day_of_the_meter_without_rows_is_refused() -> None:
    for wrong in ("826748566d6574657201", "846748566d657465720180f6"):
        with pytest.raises(Corrupt):
            meter.from_bytes(bytes.fromhex(wrong))


def test_a_journal_frame_has_one_form() -> None:
    """Rows behind pieces, and a piece that says that it was deleted, are not what we write."""
    numbers, row = journal.Numbers(1, 2, 3, 4), journal.row_to_bytes(1, b"key", b"value")
    piece = journal.body_to_bytes(numbers, [], [SegmentPiece(1, 2, b"")])
    body = journal.body_to_bytes(numbers, [row], [])
    behind = piece + row
    gone = piece[: len(body) - len(row)] + piece[len(body) - len(row) :].replace(bytes(4), b"\xff" * 4, 1)
    assert write_journal(read_journal(piece)) == piece
    for wrong in (behind, gone):
        assert wrong != piece
        with pytest.raises(Corrupt):
            read_journal(wrong)


def test_a_mac_that_is_no_text_is_not_valid() -> None:
    """JSON can say half a surrogate pair, which is a str that has no bytes."""
    value = json.loads(VAULTS[0])
    for said in ("\ud800", "é", 7, None, ["00"]):
        assert not vault.mac_valid(json.dumps({**value, "mac": said}).encode(), bytes(32))


def test_every_decoder_is_here() -> None:
    """A new ``*_from_bytes``, ``_frame``, ``_header`` or ``_text`` of these rooms comes into the table above."""
    found = {
        f"{path.stem}.{name}"
        for room in ("formats", "protocol")
        for path in (ROOT / "hivefs" / room).glob("*.py")
        for name in re.findall(r"^def ((?:[a-z]\w*_)?from_(?:bytes|frame|header|text))\(", path.read_text(), re.M)
    }
    assert len(found) > 25
    assert found - {name.partition(" ")[0] for name in CASES} == set()

"""Byte vectors of the conversation and of Merkle proofs. Never change a vector; add a version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hivefs.content import merkle
from hivefs.crypto import keys
from hivefs.formats.member import member_to_bytes, sign_member
from hivefs.model.ids import ShareId
from hivefs.model.node import Attribute, Membership, Role
from hivefs.model.receipt import Listed
from hivefs.protocol import answers, failures, frames, greeting, requests
from hivefs.protocol.failures import Code, Refusal
from hivefs.protocol.frames import Frame, FrameDecoder, Kind
from hivefs.protocol.proofs import delete_message, login_message

VECTORS = Path(__file__).parent.parent / "vectors" / "protocol.json"


def fill(first: int, count: int) -> bytes:
    return bytes((first + i) % 256 for i in range(count))


HIVE, OWNER, NODE = (bytes([i]) * 32 for i in (3, 1, 4))
HIVE_KEY, OWNER_KEY, NODE_KEY = map(keys.public_key, (HIVE, OWNER, NODE))
CLIENT_TRANSPORT, NONCE = fill(9, 32), fill(200, 32)
CLIENT = member_to_bytes(sign_member(HIVE, Membership(b"", OWNER_KEY, Role.CLIENT, (), 1, 0, 0)))
NODE_MEMBER = member_to_bytes(
    sign_member(HIVE, Membership(b"", NODE_KEY, Role.NODE, (Attribute("country", "DE"),), 1, 0, 0))
)
DATA = fill(0, 100)
SHARE = ShareId(hashlib.sha256(DATA).digest())
BIG = fill(0, 200_000)
LOGIN = login_message(CLIENT_TRANSPORT, NODE_KEY, NONCE, HIVE_KEY, OWNER_KEY, CLIENT)
DELETE = delete_message(NODE_KEY, OWNER_KEY, NONCE, 1, [SHARE])

REQUESTS: dict[str, requests.Request] = {
    "put": requests.Put(SHARE, 1_800_000_000_000_000_000, DATA),
    "get": requests.Get(SHARE, 10, 20),
    "have": requests.Have((SHARE,)),
    "delete": requests.Delete(1, keys.sign(OWNER, DELETE), (SHARE,)),
    "renew": requests.Renew(1_800_000_000_000_000_000, (SHARE,)),
    "head put": requests.HeadPut(b"a head"),
    "heads get": requests.HeadsGet(),
    "roster get": requests.RosterGet(NODE_KEY),
    "roster put": requests.RosterPut((b"an entry", b"another")),
    "stat": requests.Stat(),
    "ping": requests.Ping(),
    "hive state get": requests.HiveStateGet(),
    "members get": requests.MembersGet(NODE_KEY),
    "members get everyone": requests.MembersGet(b"", True),
    "members put": requests.MembersPut((b"a certificate", b"another")),
    "revoked get": requests.RevokedGet(),
    "revoked put": requests.RevokedPut(b"a list"),
    "receipt get": requests.ReceiptGet(fill(1, 32)),
    "receipt put": requests.ReceiptPut(b"a receipt"),
    "list": requests.ListShares(SHARE),
    "list from the first": requests.ListShares(),
    "news get": requests.NewsGet(),
    "statements get": requests.StatementsGet(NODE_KEY),
    "statements put": requests.StatementsPut((b"a statement", b"another")),
    "ranges get": requests.RangesGet(False),
    "range get": requests.RangeGet(True, NODE_KEY[0], NODE_KEY),
    "range get from the first": requests.RangeGet(False, 255),
}
ANSWERS: dict[str, answers.Answer] = {
    "done": answers.Done(),
    "kept": answers.Kept(1_800_000_000_000_000_000),
    "part": answers.Part(100, 0, (), DATA),
    "sizes": answers.Sizes((100, 0)),
    "flags": answers.Flags((True, False)),
    "page": answers.Page(True, (b"one", b"two")),
    "taken": answers.Taken(2),
    "node stat": answers.NodeStat(10, 3, 7, 1, 0, 1_800_000_000_000_000_000, "0.1.0"),
    "hive state": answers.HiveState(7, bytes(range(32))),
    "listing": answers.Listing(
        fill(250, 32), (Listed(ShareId(fill(7, 32)), 1_800_000_000_000_000_000, 4096), Listed(SHARE, 1, 100))
    ),
    "listing of nothing": answers.Listing(b"", ()),
    "news": answers.News(bytes(range(32)), bytes(range(32, 64))),
    "ranges": answers.Ranges(tuple(bytes([number]) * 32 for number in range(256))),
}
GREETING: dict[str, Frame] = {
    "hello": greeting.hello_to_frame(greeting.Hello((1,), HIVE_KEY)),
    "hello of a recovery": greeting.hello_to_frame(greeting.Hello((1,), b"")),
    "challenge": greeting.challenge_to_frame(greeting.Challenge(1, NONCE)),
    "login": greeting.login_to_frame(greeting.Login(OWNER_KEY, keys.sign(OWNER, LOGIN), CLIENT)),
    "welcome": greeting.welcome_to_frame(greeting.Welcome(1_800_000_000_000_000_000, 64, NODE_MEMBER, CLIENT)),
    "failure revoked": Frame(Kind.FAILURE, 0, failures.to_header(Refusal(Code.REVOKED, "no more"))),
    "failure": Frame(Kind.FAILURE, 7, failures.to_header(Refusal(Code.MISSING, "not here"))),
    "cancel": Frame(Kind.CANCEL, 7),
}


def built() -> dict[str, bytes]:
    """Every example as this release writes it."""
    made = {f"request {name}": frames.to_bytes(requests.to_frame(r, 7)) for name, r in REQUESTS.items()}
    made |= {f"answer {name}": frames.to_bytes(answers.to_frame(a, 7)) for name, a in ANSWERS.items()}
    made |= {name: frames.to_bytes(frame) for name, frame in GREETING.items()}
    leaves = merkle.leaf_hashes(BIG)
    made |= {
        "signed login": LOGIN,
        "signed delete": DELETE,
        "merkle root of 200000": merkle.merkle_root(BIG),
        "merkle path of leaf 1 in 200000": b"".join(merkle.prove(leaves, 1, 2)),
    }
    return made


KEPT = {name: bytes.fromhex(value) for name, value in json.loads(VECTORS.read_text())["vectors"].items()}


def one_frame(data: bytes) -> Frame:
    decoder = FrameDecoder(frozenset(Kind))
    decoder.feed(data)
    frame = decoder.next_frame()
    assert frame is not None and not decoder.inside
    return frame


def test_all_that_is_built_is_kept_and_the_other_way_round() -> None:
    assert built() == KEPT


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_are_read(name: str) -> None:
    assert requests.from_frame(one_frame(KEPT[f"request {name}"])) == REQUESTS[name]


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_read(name: str) -> None:
    expected = ANSWERS[name]
    assert answers.from_frame(type(expected), one_frame(KEPT[f"answer {name}"])) == expected


READERS: dict[str, Callable[[Frame], object]] = {
    "hello": greeting.hello_from_frame,
    "hello of a recovery": greeting.hello_from_frame,
    "challenge": greeting.challenge_from_frame,
    "login": greeting.login_from_frame,
    "welcome": greeting.welcome_from_frame,
}


@pytest.mark.parametrize("name", READERS)
def test_greetings_are_read(name: str) -> None:
    assert READERS[name](one_frame(KEPT[name])) == READERS[name](GREETING[name])


def test_signatures_in_the_vectors_hold() -> None:
    login = greeting.login_from_frame(one_frame(KEPT["login"]))
    assert keys.verify(login.subject, login.signature, KEPT["signed login"])
    delete = requests.from_frame(one_frame(KEPT["request delete"]))
    assert isinstance(delete, requests.Delete)
    assert keys.verify(OWNER_KEY, delete.signature, KEPT["signed delete"])


def test_the_merkle_path_in_the_vectors_proves_its_leaf() -> None:
    path = KEPT["merkle path of leaf 1 in 200000"]
    steps = [path[i : i + 32] for i in range(0, len(path), 32)]
    merkle.check(KEPT["merkle root of 200000"], len(BIG), 1, BIG[65536:131072], steps)

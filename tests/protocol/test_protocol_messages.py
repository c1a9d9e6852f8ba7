"""Requests, answers and greetings: every value comes back, and nothing but its own bytes is taken for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivefs.errors import Corrupt, HeadForked, HivefsError, NodeBusy, NodeFull, Refused, ShareMissing, UnknownVersion
from hivefs.formats import strict
from hivefs.protocol import answers, failures, greeting, requests
from hivefs.protocol.failures import Code, Refusal
from hivefs.protocol.frames import REQUESTS, Frame, Kind
from hivefs.protocol.proofs import delete_message, login_message

ID = st.binary(min_size=32, max_size=32)
IDS = st.lists(ID, min_size=1, max_size=5).map(tuple)
TIME = st.integers(0, 2**63 - 1)
BLOB = st.binary(min_size=1, max_size=50)
AFTER = st.one_of(st.just(b""), ID)

REQUEST = st.one_of(
    st.builds(requests.Put, ID, TIME, BLOB),
    st.builds(requests.Get, ID, st.integers(0, 2 << 20), st.integers(0, 2 << 20)),
    st.builds(requests.Have, IDS),
    st.builds(requests.Delete, st.integers(1, 2**63 - 1), st.binary(min_size=64, max_size=64), IDS),
    st.builds(requests.Renew, TIME, IDS),
    st.builds(requests.HeadPut, BLOB),
    st.builds(requests.HeadsGet, AFTER),
    st.builds(requests.RosterGet, AFTER),
    st.builds(requests.RosterPut, st.lists(BLOB, max_size=4).map(tuple)),
    st.builds(requests.Stat),
    st.builds(requests.Ping),
)
SIZE = st.integers(0, 2 << 20)
ANSWER = st.one_of(
    st.builds(answers.Done),
    st.builds(answers.Kept, TIME),
    st.builds(answers.Part, st.integers(1, 2 << 20), SIZE, st.lists(ID, max_size=6).map(tuple), BLOB),
    st.builds(answers.Sizes, st.lists(SIZE, max_size=5).map(tuple)),
    st.builds(answers.Flags, st.lists(st.booleans(), max_size=5).map(tuple)),
    st.builds(answers.Page, st.just(False), st.lists(BLOB, max_size=4).map(tuple)),
    st.builds(answers.Page, st.just(True), st.lists(BLOB, min_size=1, max_size=4).map(tuple)),
    st.builds(answers.Taken, TIME),
    st.builds(answers.NodeStat, TIME, TIME, TIME, TIME, TIME, TIME, st.text(max_size=64)),
)


@given(REQUEST, st.integers(1, 2**32 - 1))
def test_requests_come_back(request_: requests.Request, number: int) -> None:
    frame = requests.to_frame(request_, number)
    assert frame.kind in REQUESTS and frame.request == number
    assert requests.from_frame(frame) == request_


@given(ANSWER)
def test_answers_come_back(answer: answers.Answer) -> None:
    assert answers.from_frame(type(answer), answers.to_frame(answer, 7)) == answer


@given(st.sampled_from(sorted(REQUESTS)), st.binary(max_size=100), st.binary(max_size=100))
def test_garbage_is_no_request(kind: Kind, header: bytes, payload: bytes) -> None:
    frame = Frame(kind, 1, header, payload)
    try:
        request = requests.from_frame(frame)
    except (Corrupt, UnknownVersion):
        return
    assert requests.to_frame(request, 1) == frame


@given(REQUEST, st.data())
def test_a_changed_header_is_refused_or_means_itself(request_: requests.Request, data: st.DataObject) -> None:
    frame = requests.to_frame(request_, 1)
    at = data.draw(st.integers(0, len(frame.header) - 1))
    flipped = bytearray(frame.header)
    flipped[at] ^= data.draw(st.integers(1, 255))
    changed = Frame(frame.kind, 1, bytes(flipped), frame.payload)
    try:
        request = requests.from_frame(changed)
    except (Corrupt, UnknownVersion):
        return
    assert request != request_ and requests.to_frame(request, 1) == changed


@given(ANSWER, ANSWER)
def test_an_answer_is_never_taken_for_one_of_another_type(one: answers.Answer, other: answers.Answer) -> None:
    if type(one) is not type(other):
        with pytest.raises(Corrupt):
            answers.from_frame(type(other), answers.to_frame(one, 1))


@pytest.mark.parametrize(
    "header",
    [
        "81",  # cut off
        "d81e820100",  # the rational number 1/0
        "ff",  # a break without a beginning
        "81" * 600,  # deep
        "9bffffffffffffffff",  # a list of 2^64 items
        "5bffffffffffffffff",  # 2^64 bytes
        "c482011bffffffffffffffff",
    ],
)
def test_hostile_cbor_is_refused_in_words_of_ours(header: str) -> None:
    for kind in sorted(REQUESTS):
        with pytest.raises(Corrupt):
            requests.from_frame(Frame(kind, 1, bytes.fromhex(header)))
    with pytest.raises(Corrupt):
        failures.from_header(bytes.fromhex(header))
    with pytest.raises(Corrupt):
        greeting.hello_from_frame(Frame(Kind.HELLO, 0, bytes.fromhex(header)))


def test_a_request_of_another_version_is_named_so() -> None:
    with pytest.raises(UnknownVersion, match="version 9"):
        requests.from_frame(Frame(Kind.PING, 1, strict.encode("ping", 9)))


@pytest.mark.parametrize("kind", [Kind.HAVE, Kind.DELETE, Kind.RENEW])
@pytest.mark.parametrize("count", [0, 31, 33, 1025 * 32])
def test_lists_of_ids_have_1_to_1024_whole_ids(kind: Kind, count: int) -> None:
    headers = {
        Kind.HAVE: strict.encode("have", 1),
        Kind.DELETE: strict.encode("delete", 1, 1, bytes(64)),
        Kind.RENEW: strict.encode("renew", 1, 5),
    }
    with pytest.raises(Corrupt):
        requests.from_frame(Frame(kind, 1, headers[kind], bytes(count)))


@given(st.builds(greeting.Hello, st.lists(st.integers(0, 65535), max_size=32).map(tuple), AFTER))
def test_hellos_come_back(hello: greeting.Hello) -> None:
    assert greeting.hello_from_frame(greeting.hello_to_frame(hello)) == hello


@given(st.builds(greeting.Welcome, TIME, st.integers(1, 65535), BLOB, BLOB))
def test_welcomes_come_back(welcome: greeting.Welcome) -> None:
    assert greeting.welcome_from_frame(greeting.welcome_to_frame(welcome)) == welcome


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (Code.MISSING, ShareMissing),
        (Code.FULL, NodeFull),
        (Code.QUOTA, NodeFull),
        (Code.BUSY, NodeBusy),
        (Code.FORKED, HeadForked),
        (Code.FORBIDDEN, Refused),
        (Code.WRONG_HASH, Refused),
    ],
)
def test_refusals_become_errors_that_say_whether_to_try_again(code: Code, error: type[HivefsError]) -> None:
    refusal = failures.from_header(failures.to_header(Refusal(code, "because")))
    made = failures.to_error(refusal, "abc", share="s", sequence=1, device="d")
    assert type(made) is error and made.code == code
    if error is not HeadForked:
        assert made.transient == (code in failures.TRANSIENT)
    assert "<" not in str(made)


def test_an_unknown_code_of_a_later_node_is_still_permanent_or_transient() -> None:
    for transient, error in ((True, NodeBusy), (False, Refused)):
        header = strict.encode("failure", 1, 77, transient, "new")
        assert type(failures.to_error(failures.from_header(header), "abc")) is error


def test_a_nodes_words_cannot_steer_a_terminal_or_forge_a_log_line() -> None:
    refusal = Refusal(Code.FORBIDDEN, "no\x1b[2J\nERROR all lost")
    text = str(failures.to_error(failures.from_header(failures.to_header(refusal)), "abc"))
    assert "\x1b" not in text and "\n" not in text


def test_signed_messages_differ_in_every_field() -> None:
    base = [bytes([i]) * 32 for i in range(1, 7)]
    messages = {login_message(*base)}
    for i in range(6):
        changed = list(base)
        changed[i] = b"\xee" * 32
        messages.add(login_message(*changed))
    ids = [bytes([9]) * 32]
    messages.add(delete_message(base[0], base[1], base[2], 1, ids))
    messages.add(delete_message(base[0], base[1], base[2], 2, ids))
    messages.add(delete_message(base[0], base[1], base[2], 1, ids * 2))
    messages.add(delete_message(base[5], base[1], base[2], 1, ids))
    messages.add(delete_message(base[0], base[5], base[2], 1, ids))
    messages.add(delete_message(base[0], base[1], base[5], 1, ids))
    assert len(messages) == 7 + 6

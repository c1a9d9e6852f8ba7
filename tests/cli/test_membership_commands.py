"""invite, join, node join, hive revoke, hive members as far as they need no running node: sentences and exit codes."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import pytest
from commands import Run

from hivefs.crypto.keys import public_key
from hivefs.daemon import hive, owner
from hivefs.errors import BadSetting
from hivefs.formats import revoked
from hivefs.formats.invite import PREFIX, sign_invitation, ticket_from_text, ticket_to_text
from hivefs.model.node import Evidence, Invitation, Role, Ticket
from hivefs.node.config import load_node

DAY = 86_400 * 10**9
NOBODY = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWKTLvrwdyjTJkUM1xNP5qXsS8P7FXMqXUnGeiwCZfRfob"
LISTEN = ("--listen", "/ip4/127.0.0.1/tcp/4001")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    hive.create(tmp_path / "hive.key")
    return tmp_path / "hive.key"


def invite(hivefs: Run, key: Path, *more: object) -> str:
    said = hivefs("invite", "--hive", key, *more)
    assert said.code == 0, said.err
    return said.out.splitlines()[0]


def ended(key: Path) -> str:
    seed, now = bytes([5]) * 32, time.time_ns()
    bare = Invitation(b"", public_key(seed), Role.NODE | Role.CLIENT, (), now - 9 * DAY, now - 2 * DAY)
    return ticket_to_text(Ticket(sign_invitation(hive.load(key).seed, bare), seed, (NOBODY,)))


# ---- invite -----------------------------------------------------------------------------------------------------


def test_an_invitation_says_what_was_asked_for(hivefs: Run, key: Path, tmp_path: Path) -> None:
    text = invite(hivefs, key, "--role", "both", "--uses", 3, "--expires", "36h", "--member-for", "4w", "--node", NOBODY,
                  "--country", "ch", "--operator", "us", "--evidence", "registry")  # fmt: skip
    ticket = ticket_from_text(text)
    made = ticket.invitation
    assert made.hive_key == hive.load(key).public and made.roles == Role.CLIENT | Role.NODE and made.uses == 3
    assert made.expires_ns - made.issued_ns == 36 * 3600 * 10**9 and made.until_ns - made.issued_ns == 28 * DAY
    assert {(a.name, a.value, a.evidence) for a in made.attributes} == {
        ("country", "CH", Evidence.REGISTRY),
        ("operator", "us", Evidence.REGISTRY),
    }
    assert ticket.addresses == (NOBODY,)


def test_for_programs_and_into_a_file_that_only_its_owner_reads(hivefs: Run, key: Path, tmp_path: Path) -> None:
    out = tmp_path / "invitation"
    said = hivefs("invite", "--hive", key, "--out", out, "--json")
    assert said.code == 0 and "invitation" not in said.json and PREFIX not in said.out + said.err
    ticket = ticket_from_text(out.read_text())
    assert said.json["id"] == ticket.invitation.key.hex() and out.stat().st_mode & 0o777 == 0o600
    again = hivefs("invite", "--hive", key, "--out", out)
    assert again.code == BadSetting.exit_code and ticket_from_text(out.read_text()) == ticket
    assert ticket_from_text(hivefs("invite", "--hive", key, "--json").json["invitation"])


@pytest.mark.skipif(
    importlib.util.find_spec("segno") is None, reason="the Python package segno is missing (constraints.txt)"
)
def test_a_qr_code_holds_the_line(hivefs: Run, key: Path) -> None:
    said = hivefs("invite", "--hive", key, "--qr", "--node", NOBODY, "--node", NOBODY)
    lines = said.out.splitlines()
    assert said.code == 0 and lines[0].startswith(PREFIX)
    assert len(lines) > 30 and {len(line) for line in lines[1:]} == {len(lines[1])} and len(lines[1]) < 120
    long = hivefs("invite", "--hive", key, "--qr", *[w for _ in range(16) for w in ("--node", NOBODY)],
                  "--hoster", "h" * 256, "--operator", "o" * 256, "--parent", "p" * 256)  # fmt: skip
    assert long.code == 0 or "too long for a QR code" in long.err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--expires", "soon"), "such as 30m"),
        (("--expires", "0d"), "more than nothing"),
        (("--member-for", "9999999w"), "a hundred years"),
        (("--country", "Germany"), "two letters"),
        (("--operator-country", "el"), "ISO 3166-1), such as DE; say GR."),
        (("--node", "example.org"), "not a node address"),
        (tuple(w for _ in range(17) for w in ("--node", NOBODY)), "at most 16"),
    ],
)
def test_wrong_wishes_are_one_sentence(hivefs: Run, key: Path, words: tuple[str, ...], reason: str) -> None:
    said = hivefs("invite", "--hive", key, *words)
    assert said.code in (41, 60) and reason in said.err and len(said.err.splitlines()) == 1 and not said.out


def test_without_a_hive(hivefs: Run, tmp_path: Path) -> None:
    assert hivefs("invite").code == 38
    assert hivefs("invite", "--hive", tmp_path / "none").code == 16


# ---- joining ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["argument", "file", "stdin", "broken lines"])
def test_the_first_node_joins_whatever_way_the_invitation_comes(hivefs: Run, key: Path, tmp_path: Path, way: str) -> None:
    text = invite(hivefs, key, "--role", "node", "--country", "DE")
    source, stdin = text, ""
    if way == "stdin":
        source, stdin = "-", text + "\nanother line\n"
    elif way != "argument":
        source = str(tmp_path / "invitation")
        lines = [text] if way == "file" else [text[i : i + 70] for i in range(0, len(text), 70)]
        Path(source).write_text("\n".join(lines) + "\n")
    said = hivefs("node", "join", source, tmp_path / "n", *LISTEN, "--operator", "us", "--lan", stdin=stdin)
    assert said.code == 0 and "names no node" in said.out
    config, seed = load_node(tmp_path / "n")
    assert config.lan and config.membership is not None and config.membership.subject == public_key(seed)
    assert {(a.name, a.value, a.evidence.name) for a in config.membership.attributes} == {
        ("country", "DE", "ATTESTED"),
        ("operator", "us", "CLAIMED"),
        ("operator_country", "DE", "CLAIMED"),
    }
    again = hivefs("node", "join", source, tmp_path / "n", *LISTEN, "--operator", "us", stdin=stdin)
    assert again.code == 39 and "already" in again.err and load_node(tmp_path / "n")[1] == seed


def test_a_node_gets_a_new_membership_and_keeps_its_key(hivefs: Run, key: Path, tmp_path: Path) -> None:
    first = invite(hivefs, key, "--role", "node", "--country", "DE")
    assert hivefs("node", "join", first, tmp_path / "n", *LISTEN, "--operator", "us").code == 0
    before, seed = load_node(tmp_path / "n")
    assert hivefs("node", "join", invite(hivefs, key, "--role", "node"), tmp_path / "n", "--again").code == 0
    after, same = load_node(tmp_path / "n")
    assert same == seed and after.listen == before.listen and after.membership is not None and before.membership is not None
    assert after.membership.invitation != before.membership.invitation
    assert {(a.name, a.value) for a in after.membership.attributes} == {
        (a.name, a.value) for a in before.membership.attributes
    }
    hive.create(tmp_path / "other.key")
    foreign = invite(hivefs, tmp_path / "other.key", "--role", "node")
    said = hivefs("node", "join", foreign, tmp_path / "n", "--again")
    assert said.code == 49 and "another hive" in said.err and load_node(tmp_path / "n")[0] == after
    assert hivefs("node", "join", foreign, tmp_path / "none", "--again").code == 39


def test_a_country_that_is_none_is_refused_wherever_it_is_said(hivefs: Run, key: Path, tmp_path: Path) -> None:
    """Else it would be a country of its own, which no rule can name."""
    line = invite(hivefs, key, "--role", "node", "--operator", "us")
    for words in (
        ("node", "join", line, tmp_path / "n", *LISTEN),
        ("node", "join", line, tmp_path / "n", "--again"),
        ("hive", "relabel", "ab" * 32, "--hive", key, "--node", NOBODY),
        ("node", "set", tmp_path / "n"),
        ("invite", "--hive", key),
    ):
        for option in ("--country", "--operator-country", "--parent-country"):
            said = hivefs(*words, option, "UK")
            assert (
                said.code == 60 and f"{option} is wrong: 'UK' is not a country code" in said.err and "say GB." in said.err
            )
            assert said.err.count("\n") == 1 and not said.out and not (tmp_path / "n").exists()
    assert hivefs("node", "join", line, tmp_path / "n", *LISTEN, "--country", "gb").code == 0


def test_what_is_missing_or_contradicts_is_said(hivefs: Run, key: Path, tmp_path: Path) -> None:
    text = invite(hivefs, key, "--role", "node", "--country", "DE")
    missing = hivefs("node", "join", text, tmp_path / "n", *LISTEN)
    assert missing.code == 60 and "--operator" in missing.err
    other = hivefs("node", "join", text, tmp_path / "n", *LISTEN, "--operator", "us", "--country", "CH")
    assert other.code == 49 and "fixed country as 'DE'" in other.err
    hidden = hivefs("node", "join", text, tmp_path / "n", "--listen", "/ip4/0.0.0.0/tcp/4001", "--operator", "us")
    assert hidden.code == 60 and "--announce" in hidden.err
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize("source", ["", "hello", "-", PREFIX + "ABC", "x" * 5000, "/", "nul\0byte"])
def test_what_is_no_invitation(hivefs: Run, tmp_path: Path, source: str) -> None:
    for words in (("node", "join", source, tmp_path / "n", *LISTEN), ("join", source, "--no-password")):
        said = hivefs(*words, stdin="some line\n")
        assert said.code in (49, 60) and len(said.err.splitlines()) == 1, said.err
        assert not (tmp_path / "n").exists() and not (tmp_path / "vault").exists()


def test_an_ended_invitation_is_named_as_such(hivefs: Run, key: Path, tmp_path: Path) -> None:
    node = hivefs("node", "join", ended(key), tmp_path / "n", *LISTEN, "--country", "DE", "--operator", "us")
    client = hivefs("join", ended(key), "--no-password", "--phrase-out", tmp_path / "phrase")
    for said in (node, client):
        assert said.code == 49 and "expired" in said.err
    assert not (tmp_path / "phrase").exists() and not (tmp_path / "vault" / "vault.json").exists()


def test_wrong_roles(hivefs: Run, key: Path, tmp_path: Path) -> None:
    for_node = invite(hivefs, key, "--role", "node", "--node", NOBODY)
    for_client = invite(hivefs, key, "--role", "client", "--node", NOBODY)
    client = hivefs("join", for_node, "--no-password")
    node = hivefs("node", "join", for_client, tmp_path / "n", *LISTEN, "--country", "DE", "--operator", "us")
    assert (client.code, node.code) == (49, 49) and "nodes only" in client.err and "clients only" in node.err


def test_nobody_answers_and_nothing_is_left_behind(hivefs: Run, key: Path, tmp_path: Path) -> None:
    text = invite(hivefs, key, "--role", "both", "--node", NOBODY)
    node = hivefs("node", "join", text, tmp_path / "n", *LISTEN, "--country", "DE", "--operator", "us")
    client = hivefs("join", text, "--no-password", "--phrase-out", tmp_path / "phrase")
    for said in (node, client):
        assert said.code == 32 and len(said.err.splitlines()) == 1
    assert not list((tmp_path / "n").iterdir()) and not (tmp_path / "phrase").exists()
    alone = hivefs("join", invite(hivefs, key), "--no-password")
    assert alone.code == 49 and "names no node" in alone.err
    bad = hivefs("join", text, "--no-password", "--code", "9/3")
    assert bad.code == 60


# ---- revoking ---------------------------------------------------------------------------------------------------


def test_the_list_grows_is_kept_beside_the_key_and_can_be_lifted(hivefs: Run, key: Path) -> None:
    member, ticket = "ab" * 32, ticket_from_text(invite(hivefs, key))
    first = hivefs("hive", "revoke", "--hive", key, "--member", member, "--json")
    assert first.code == 0 and first.json["sequence"] == 1 and first.json["members"] == [member] and not first.json["told"]
    second = hivefs("hive", "revoke", "--hive", key, ticket_to_text(ticket), "--json").json
    assert second["sequence"] == 2 and second["invitations"] == [ticket.invitation.key.hex()]
    assert second["members"] == [member]
    kept = owner.load_list(key, hive.load(key))
    assert kept is not None and kept.sequence == 2 and Path(second["list"]).stat().st_mode & 0o777 == 0o600
    lifted = hivefs("hive", "revoke", "--hive", key, "--lift", member[:10], "--json").json  # known from the list
    assert lifted["sequence"] == 3 and lifted["members"] == [] and len(lifted["invitations"]) == 1
    again = hivefs("hive", "revoke", "--hive", key)
    assert again.code == 0 and "Revocation list 3" in again.out and "No node has it yet" in again.out


@pytest.mark.parametrize(
    "words", [("zz" * 32,), ("abcd",), ("ab" * 32,), ("--member", "abcd"), ("--invitation", "x"), (), ("--lift",)]
)
def test_unknown_ids_are_not_guessed(hivefs: Run, key: Path, words: tuple[str, ...]) -> None:
    said = hivefs("hive", "revoke", "--hive", key, *words)
    assert said.code == 60 and not owner.list_file(key).exists()


def test_a_list_that_is_not_ours_is_not_built_upon(hivefs: Run, key: Path) -> None:
    foreign = revoked.sign_revocations(bytes(32), 9, 0, [], [])
    owner.list_file(key).write_bytes(revoked.revocations_to_bytes(foreign))
    assert hivefs("hive", "revoke", "--hive", key, "--member", "ab" * 32).code == 16
    owner.list_file(key).write_bytes(b"garbage")
    assert hivefs("hive", "revoke", "--hive", key, "--member", "ab" * 32).code == 50


def test_what_was_revoked_while_nobody_could_be_reached_is_not_lost(hivefs: Run, key: Path) -> None:
    said = hivefs("hive", "revoke", "--hive", key, "--member", "ab" * 32, "--node", NOBODY)
    assert said.code == 32
    kept = owner.load_list(key, hive.load(key))
    assert kept is not None and kept.members == (bytes.fromhex("ab" * 32),)


def test_two_copies_of_the_key_are_united() -> None:
    own = hive.HiveKey(bytes([3]) * 32)
    one = revoked.sign_revocations(own.seed, 5, 0, [b"a" * 32], [])
    other = revoked.sign_revocations(own.seed, 7, 0, [b"b" * 32], [b"i" * 32])
    made = owner.changed(own, (one, other), {b"c" * 32}, set(), lift=False)
    assert made.sequence == 8 and made.members == (b"a" * 32, b"b" * 32, b"c" * 32) and made.invitations == (b"i" * 32,)
    assert owner.holds(made, one) and owner.holds(made, other) and not owner.holds(one, other)


def test_members_need_a_node(hivefs: Run, key: Path) -> None:
    assert hivefs("hive", "members", "--hive", key).code == 60
    assert hivefs("hive", "members", "--hive", key, "--node", NOBODY, "--json").code == 32

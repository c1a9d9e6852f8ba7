"""attest, trust, nodes, node vouched, node set, hive relabel as far as they need no running process: exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Run

from hivefs.cli.nodes import word
from hivefs.crypto.keys import public_key
from hivefs.daemon import hive, owner
from hivefs.errors import BadSetting
from hivefs.formats import attestation, member
from hivefs.formats.attestation import attestations_from_text
from hivefs.model.node import Attribute, Evidence, Membership, Role
from hivefs.node.config import load_node

NODE = public_key(bytes([8]) * 32).hex()


def make_node(hivefs: Run, tmp_path: Path, name: str) -> tuple[Path, str]:
    if not (tmp_path / "hive.key").exists():
        hive.create(tmp_path / "hive.key")
    directory = tmp_path / name
    done = hivefs("node", "init", directory, "--hive", tmp_path / "hive.key", "--listen", "/ip4/127.0.0.1/tcp/4001",
                  "--country", "de", "--operator", "me", "--capacity", "1G")  # fmt: skip
    assert done.code == 0, done.err
    return directory, public_key(load_node(directory)[1]).hex()


def test_a_key_is_made_and_vouches(hivefs: Run, tmp_path: Path) -> None:
    key = tmp_path / "notary.key"
    made = hivefs("attest", "--key", key, "--new-key", "--json").json
    assert key.stat().st_mode & 0o777 == 0o600 and made["file"] == str(key)
    assert bytes.fromhex(made["key"]) and made["key"] not in key.read_text().split('"seed"')[1]
    assert hivefs("attest", "--key", key, "--json").json == made, "a notary says its key again"
    again = hivefs("attest", "--key", key, "--new-key")
    assert again.code == 16 and "exists" in again.err.lower()
    done = hivefs("attest", NODE, "--key", key, "--country", "de", "--operator", "Müller", "--asn", "as64500")
    (line,) = attestations_from_text(done.out)
    assert attestation.signed(line) and line.attester.hex() == made["key"] and line.subject.hex() == NODE
    assert line.said == (("asn", "64500"), ("country", "DE"), ("operator", "Müller"))
    assert line.expires_ns - line.issued_ns == 365 * 86_400 * 10**9
    out = tmp_path / "lines"
    for country in ("DE", "FR"):
        value = hivefs(
            "attest", NODE, "--key", key, "--country", country, "--expires", "never", "--out", out, "--json"
        ).json
        assert value["expires_ns"] == 0 and value["says"] == {"country": country} and "attestation" not in value
    assert [dict(a.said)["country"] for a in attestations_from_text(out.read_text())] == ["DE", "FR"]
    key.chmod(0o644)
    assert hivefs("attest", NODE, "--key", key, "--country", "DE").code == 16


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        ((NODE,), 60, "say what you vouch for"),
        (("DE", "--country", "DE"), 60, "not a whole key"),
        ((NODE, "--country", "Germany"), 60, "country code"),
        ((NODE, "--country", "UK"), 60, "'UK' is not a country code of two letters (ISO 3166-1), such as DE; say GB."),
        ((NODE, "--parent-country", "xx"), 60, "--parent-country"),
        ((NODE, "--asn", "x"), 60, "not the number of a network"),
        ((NODE, "--country", "DE", "--expires", "soon"), 60, "not a time"),
        ((NODE, "--country", "DE", "--out", "/nowhere/file"), 60, "cannot be written"),
    ],
)
def test_what_cannot_be_attested(hivefs: Run, tmp_path: Path, words: tuple[str, ...], code: int, reason: str) -> None:
    hivefs("attest", "--key", tmp_path / "k", "--new-key")
    done = hivefs("attest", *words, "--key", tmp_path / "k")
    assert done.code == code and reason in done.err and not done.out


def test_a_key_file_that_is_none_is_refused(hivefs: Run, tmp_path: Path) -> None:
    path = tmp_path / "k"
    for text, code in (
        ("[]", 50),
        ('{"format": "hivefs-hive-key"}', 50),
        ('{"format": "hivefs-attester-key", "version": 9}', 51),
    ):
        path.write_text(text)
        path.chmod(0o600)
        assert hivefs("attest", NODE, "--key", path, "--country", "DE").code == code
    assert hivefs("attest", NODE, "--key", tmp_path / "none", "--country", "DE").code == 16


def test_a_node_takes_what_is_said_of_itself_and_the_newest_of_each_attester(hivefs: Run, tmp_path: Path) -> None:
    directory, node_id = make_node(hivefs, tmp_path, "n")
    other, other_id = make_node(hivefs, tmp_path, "o")
    key, lines = tmp_path / "notary.key", tmp_path / "lines"
    hivefs("attest", node_id, "--key", key, "--new-key", "--country", "DE", "--out", lines)
    assert "Nobody vouches" in hivefs("node", "vouched", directory).out
    assert hivefs("node", "vouched", directory, lines).code == 0
    hivefs("attest", node_id, "--key", key, "--country", "FR", "--out", lines)
    (row,) = hivefs("node", "vouched", directory, lines, "--json").json["attestations"]
    assert row["says"] == {"country": "FR"}
    wrong = hivefs("node", "vouched", other, lines)
    assert wrong.code == 64 and f"about another node ({node_id[:12]}, this is {other_id[:12]})" in wrong.err
    lines.write_text(lines.read_text().replace("A", "B", 1))
    assert hivefs("node", "vouched", directory, lines).code == 64
    assert hivefs("node", "vouched", directory, tmp_path / "none").code == 64
    assert hivefs("node", "vouched", directory, "--drop", row["attester"], "--json").json["attestations"] == []
    assert hivefs("node", "vouched", tmp_path / "nowhere").code == 39


def test_a_node_claims_and_takes_back(hivefs: Run, tmp_path: Path) -> None:
    directory, _ = make_node(hivefs, tmp_path, "n")
    done = hivefs("node", "set", directory, "--parent", "Big Corp", "--parent-country", "us", "--json").json
    assert done["claims"] == {"parent": "Big Corp", "parent_country": "US"}
    done = hivefs("node", "set", directory, "--withdraw", "parent", "--json").json
    assert done["claims"] == {"parent": "", "parent_country": "US"}
    assert "(taken back)" in hivefs("node", "set", directory).out
    assert hivefs("node", "set", directory, "--country", "Germany").code == 60
    written = json.loads((directory / "node.json").read_text())
    for wrong in ({"colour": "red"}, [], {"country": 7}, {"country": "x" * 300}):
        (directory / "node.json").write_text(json.dumps({**written, "claims": wrong}))
        assert hivefs("node", "set", directory).code == 39
    (directory / "node.json").write_text(json.dumps({**written, "attestations": ["00"]}))
    assert hivefs("node", "set", directory).code == 39
    old = {name: value for name, value in written.items() if name not in ("claims", "attestations")}
    (directory / "node.json").write_text(json.dumps(old))
    assert hivefs("node", "set", directory, "--json").json["claims"] == {}, "settings of before there were claims"


def test_what_the_owner_says_of_a_node_is_attested_as_in_an_invitation(hivefs: Run, tmp_path: Path) -> None:
    directory, _ = make_node(hivefs, tmp_path, "n")
    config, _ = load_node(directory)
    assert config.membership is not None
    assert {a.evidence for a in config.membership.attributes} == {Evidence.ATTESTED}


def test_relabelling_keeps_what_is_not_said_and_counts_up(tmp_path: Path) -> None:
    key = hive.create(tmp_path / "hive.key")
    said = (Attribute("country", "DE"), Attribute("parent", "X"), Attribute("parent_country", "US"))
    before = member.sign_member(key.seed, Membership(b"", public_key(bytes([8]) * 32), Role.NODE, said, 1, 99, 4))
    made = owner.relabelled(key, before, [Attribute("country", "FR", Evidence.ATTESTED)], ["parent", "parent_country"], 7)
    assert member.member_valid(made, key.public, 0) and member.age(made) > member.age(before)
    assert made.attributes == (Attribute("country", "FR", Evidence.ATTESTED),)
    assert (made.epoch, made.expires_ns, made.issued_ns, made.roles) == (5, 99, 7, Role.NODE)
    with pytest.raises(BadSetting, match="nothing would change"):
        owner.relabelled(key, before, [Attribute("country", "DE")], [], 7)


def test_without_vault_engine_or_node_there_is_one_sentence(hivefs: Run, tmp_path: Path) -> None:
    hive.create(tmp_path / "hive.key")
    assert hivefs("trust", "--list").code == hivefs("nodes").code == 10
    nobody = hivefs("hive", "relabel", NODE, "--hive", tmp_path / "hive.key", "--country", "DE")
    assert nobody.code == 60 and "at least one node" in nobody.err
    both = hivefs("hive", "relabel", NODE, "--hive", tmp_path / "hive.key", "--country", "DE", "--drop", "country")
    assert both.code == 60 and "country is said and dropped" in both.err


def test_a_value_is_shown_with_how_well_it_is_known() -> None:
    node = {"attributes": {"country": "DE", "operator": ""}, "evidence": {"country": "attested", "operator": "claimed"}}
    words = [word(node, name) for name in ("country", "operator", "operator_country", "parent", "parent_country")]
    assert words == ["DE a", "?", "?", "", ""]


@pytest.mark.parametrize("word", ["\udcff", "a\nb", "\x1b[2J", "\u202egnp", "a\u2028b"])
def test_words_that_cannot_be_shown_are_refused(hivefs: Run, tmp_path: Path, word: str) -> None:
    """The first is what an argument becomes that is no UTF-8."""
    key = tmp_path / "notary.key"
    assert hivefs("attest", "--key", key, "--new-key").code == 0
    hive.create(tmp_path / "hive.key")
    init = ("node", "init", tmp_path / "n", "--hive", tmp_path / "hive.key", "--listen", "/ip4/127.0.0.1/tcp/4001")
    for words in (
        *(("attest", NODE, "--key", key, f"--{name}", word) for name in ("operator", "parent", "hoster", "asn")),
        (*init, "--country", "DE", "--operator", word, "--capacity", "1G"),
        ("hive", "relabel", NODE, "--hive", tmp_path / "hive.key", "--operator", word),
        ("invite", "--hive", tmp_path / "hive.key", "--hoster", word),
        ("trust", NODE, "--name", word),
        ("trust", "--place", word),
        ("policy", "simulate", "--lose", word),
        ("policy", "simulate", "--seize", f"DE,{word}"),
    ):
        done = hivefs(*words)
        assert done.code == 60 and not done.out and done.err.count("\n") == 1 and done.err[:-1].isprintable(), words
    assert not (tmp_path / "n").exists()

"""The command line: loading, secrets, exit codes, sentences instead of tracebacks. No network and no mount here."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import Ran

from hivefs.cli import main as cli
from hivefs.cli.init import parse_code, parse_settings
from hivefs.cli.ledger import differences, oldest, there
from hivefs.cli.sizes import byte_count
from hivefs.cli.status import eta, moving_words
from hivefs.crypto.phrase import secret_from_phrase
from hivefs.daemon import hive
from hivefs.daemon.home import Home
from hivefs.errors import BadSetting

ADDRESS = "/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWDHVcnTjiRxxBovNB2ZiKdYzBViCV2KGL7v2PiR8DapXT"
HEAVY = ("libp2p", "pyfuse3", "lmdb", "zfec", "rich", "trio", "requests")


@pytest.fixture
def hive_file(tmp_path: Path) -> Path:
    hive.create(tmp_path / "hive.key")
    return tmp_path / "hive.key"


def imported_by(*arguments: str) -> set[str]:
    """Modules that a command loads, in a process of its own."""
    code = (
        "import sys; from hivefs.cli.main import run; code = run(sys.argv[1:]);"
        f"print('LOADED', *[m for m in {HEAVY!r} if m in sys.modules]); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.split("LOADED")[1].split())


@pytest.mark.parametrize("arguments", [["--help"], ["init", "--help"], ["node", "init", "--help"], ["version"]])
def test_nothing_heavy_is_loaded(arguments: list[str]) -> None:
    assert imported_by(*arguments) == set()


@pytest.mark.parametrize("name", [*cli.COMMANDS, "node init", "node run", "hive create"])
def test_every_command_has_help(hivefs, name: str) -> None:  # type: ignore[no-untyped-def]
    ran = hivefs(*name.split(), "--help")
    assert ran.code == 0 and ran.out.startswith(f"Usage: hivefs {name}")


def test_a_mistake_in_the_command_line(hivefs) -> None:  # type: ignore[no-untyped-def]
    for arguments in (["nonsense"], ["mount"], ["wait", "--level", "high", "x"], ["init", "--nonsense"]):
        ran = hivefs(*arguments)
        assert ran.code == 2 and "Error" in ran.err and not ran.out


@pytest.mark.parametrize("command", ["mount x", "umount", "status", "wait x", "check"])
def test_no_vault(hivefs, command: str) -> None:  # type: ignore[no-untyped-def]
    ran = hivefs(*command.split())
    assert ran.code == 10 and ran.err.count("\n") == 1 and "hivefs init" in ran.err


def test_no_hive(hivefs) -> None:  # type: ignore[no-untyped-def]
    assert hivefs("init", "--no-password").code == 38
    assert hivefs("down").code == 38


def init(hivefs, hive_file: Path, *more: object, stdin: str = "") -> Ran:  # type: ignore[no-untyped-def]
    return hivefs("init", "--hive", hive_file, "--node", ADDRESS, *more, stdin=stdin)


def test_init_shows_the_phrase_once(hivefs, hive_file: Path, places: Path) -> None:  # type: ignore[no-untyped-def]
    ran = init(hivefs, hive_file, "--no-password")
    assert ran.code == 0
    phrase = " ".join(re.findall(r"\d+ ([a-z]+)", ran.out.split("back.\n", 1)[1].split("Next")[0]))
    home = Home.load(places / "vault")
    assert home.unlock(b"").master == secret_from_phrase(phrase)
    assert home.vault.nodes == (ADDRESS,) and (home.vault.needed, home.vault.total) == (4, 6)
    for path in home.path.rglob("*"):
        if path.is_file():
            assert phrase not in path.read_text()
    assert init(hivefs, hive_file, "--no-password").code == 11


def test_init_for_programs(hivefs, hive_file: Path, places: Path) -> None:  # type: ignore[no-untyped-def]
    ran = init(
        hivefs,
        hive_file,
        "--json",
        "--phrase-out",
        places / "p",
        "--password-file",
        "-",
        "--code",
        "2/3",
        stdin="geheim\nx",
    )
    assert ran.code == 0 and "phrase" not in ran.json and ran.json["lock"] == "password" and ran.json["code"] == "2/3"
    assert (places / "p").stat().st_mode & 0o777 == 0o600
    secrets = Home.load(places / "vault").unlock(b"geheim")
    assert secret_from_phrase((places / "p").read_text()) == secrets.master


def test_a_phrase_file_is_never_overwritten(hivefs, hive_file: Path, places: Path) -> None:  # type: ignore[no-untyped-def]
    (places / "p").write_text("mine")
    ran = init(hivefs, hive_file, "--no-password", "--phrase-out", places / "p")
    assert ran.code == 60 and (places / "p").read_text() == "mine" and not (places / "vault" / "vault.json").exists()


def test_a_phrase_file_goes_when_no_vault_came(hivefs, hive_file: Path, places: Path) -> None:  # type: ignore[no-untyped-def]
    (places / "vault").mkdir()
    (places / "vault" / "photo.jpg").write_text("x")
    ran = init(hivefs, hive_file, "--no-password", "--phrase-out", places / "p")
    assert ran.code == 60 and "photo.jpg" in ran.err and not (places / "p").exists()


def test_secrets_without_a_terminal(hivefs, hive_file: Path, places: Path) -> None:  # type: ignore[no-untyped-def]
    ran = init(hivefs, hive_file)
    assert ran.code == 15 and "--password-file" in ran.err
    ran = hivefs("recover", "--node", ADDRESS)
    assert ran.code == 15 and "--phrase-file" in ran.err
    assert init(hivefs, hive_file, "--password-file", places / "none").code == 60
    assert init(hivefs, hive_file, "--password-file", "-", stdin="\n").code == 60
    assert init(hivefs, hive_file, "--no-password", "--password-file", "-", stdin="x\n").code == 60
    assert not (places / "vault").exists()


def test_opening_with_the_wrong_secret(hivefs, hive_file: Path, places: Path) -> None:  # type: ignore[no-untyped-def]
    (places / "pw").write_text("right\n")
    (places / "wrong").write_text("wrong\n")
    (places / "mnt").mkdir()
    assert init(hivefs, hive_file, "--password-file", places / "pw").code == 0
    assert hivefs("mount", places / "mnt").code == 15
    ran = hivefs("mount", places / "mnt", "--password-file", places / "wrong")
    assert ran.code == 12 and "nothing was opened" in ran.err
    assert hivefs("umount").code == 22 and hivefs("wait", places).code == 22
    ran = hivefs("status", "--json")
    assert ran.code == 0 and ran.json["mount"] is None and ran.json["engine"] is None and ran.json["lock"] == "password"


def test_key_file(hivefs, hive_file: Path, places: Path) -> None:  # type: ignore[no-untyped-def]
    assert init(hivefs, hive_file, "--key-file", places / "key").code == 0
    assert Home.load(places / "vault").unlock((places / "key").read_bytes())
    assert hivefs("mount", places).code == 15
    (places / "key").write_bytes(bytes(32))
    assert hivefs("mount", places, "--key-file", places / "key").code == 12


@pytest.mark.parametrize(
    ("phrase", "words"),
    [("abandon " * 23, "23 words"), ("abandon " * 23 + "xyzzy", "word 24"), ("abandon " * 24, "checksum"), ("", "0 words")],
)
def test_bad_phrases(hivefs, places: Path, phrase: str, words: str) -> None:  # type: ignore[no-untyped-def]
    ran = hivefs("recover", "--node", ADDRESS, "--phrase-file", "-", "--no-password", stdin=phrase + "\n")
    assert ran.code == 13 and words in ran.err and "xyzzy" not in ran.err
    assert not (places / "vault").exists()


def test_bad_node_address(hivefs, hive_file: Path) -> None:  # type: ignore[no-untyped-def]
    for address in ("example.org", ADDRESS[:-5], "/ip4/1.2.3.4/tcp/1"):
        assert hivefs("init", "--hive", hive_file, "--node", address, "--no-password").code == 41


def test_hive_and_node_init(hivefs, places: Path) -> None:  # type: ignore[no-untyped-def]
    ran = hivefs("hive", "create", places / "h.key", "--json")
    assert ran.code == 0 and len(ran.json["hive"]) == 64
    assert (places / "h.key").stat().st_mode & 0o777 == 0o600
    assert hivefs("hive", "create", places / "h.key").code == 16
    node = ("node", "init", places / "n", "--hive", places / "h.key", "--country", "de", "--operator", "me", "--json")
    ran = hivefs(*node, "--listen", "/ip4/0.0.0.0/tcp/4001")
    assert ran.code == 60 and "--announce" in ran.err
    ran = hivefs(*node, "--listen", "/ip4/0.0.0.0/tcp/4001", "--announce", "/ip4/192.0.2.7/tcp/4001", "--capacity", "1G")
    assert ran.code == 0 and ran.json["address"].startswith("/ip4/192.0.2.7/tcp/4001/p2p/12D3KooW")
    assert ran.json["capacity"] == 1 << 30
    assert hivefs(*node, "--listen", "/ip4/127.0.0.1/tcp/4001").code == 39
    assert hivefs(*node, "--listen", "nonsense").code == 41
    assert hivefs(*[{"de": "Germany"}.get(str(a), a) for a in node], "--listen", "/ip4/127.0.0.1/tcp/1").code == 60
    ran = hivefs(*[{"de": "uk", places / "n": places / "m"}.get(a, a) for a in node], "--listen", "/ip4/127.0.0.1/tcp/1")
    assert ran.code == 60 and "--country" in ran.err and "say GB" in ran.err and not (places / "m").exists()
    (places / "h.key").chmod(0o644)
    assert hivefs(*node, "--listen", "/ip4/127.0.0.1/tcp/4001").code == 16


@pytest.mark.parametrize("nodes", [0, 1, 2, 41])
def test_up_refuses_impossible_numbers(hivefs, places: Path, nodes: int) -> None:  # type: ignore[no-untyped-def]
    assert hivefs("up", "--nodes", nodes).code == 60
    assert not (places / "hive").exists()


def test_up_refuses_one_inside_the_other(hivefs, places: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("HIVEFS_HIVE", str(places / "vault" / "hive"))
    assert hivefs("up").code == 60


@pytest.mark.parametrize(("text", "count"), [("64M", 64 << 20), ("1.5G", 3 << 29), ("2TiB", 2 << 40), ("100000000", 10**8)])
def test_sizes(text: str, count: int) -> None:
    assert byte_count(text) == count


def test_wrong_values() -> None:
    for text in ("", "G", "1M", "-5G", "nan", "5X", "inf"):
        with pytest.raises(BadSetting):
            byte_count(text)
    for text in ("4", "6/4", "0/3", "a/b", "1/256"):
        with pytest.raises(BadSetting):
            parse_code(text)
    for text in ("x=1", "node_gone_after_s", "node_gone_after_s=x", "node_gone_after_s=0"):
        with pytest.raises(BadSetting):
            parse_settings((text,))
    assert parse_settings(("node_gone_after_s=5",)) == {"node_gone_after_s": 5}


def test_an_unexpected_error_is_one_sentence(places: Path) -> None:
    (places / "vault" / "run").mkdir(parents=True)
    code = (
        "import sys; from hivefs.cli import main, version\n"
        "def broken(name): raise ZeroDivisionError('secret detail')\n"
        "version._version = broken\nsys.argv = ['hivefs', 'version']\nmain.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    log = places / "vault" / "run" / "cli.log"
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and str(log) in done.stderr
    assert "ZeroDivisionError: secret detail" in log.read_text() and log.stat().st_mode & 0o777 == 0o600
    log.unlink()  # what is in it was meant


def test_prompts_on_a_terminal(hive_file: Path, places: Path) -> None:
    """Asked twice, not echoed; the phrase is shown."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "hivefs", "init", "--hive", str(hive_file), "--node", ADDRESS]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    text, answered, deadline = "", 0, time.monotonic() + 120
    while time.monotonic() < deadline:
        if select.select([master], [], [], 1)[0]:
            try:
                data = os.read(master, 4096)
            except OSError:
                break
            text += data.decode(errors="replace")
        if text.count(": ") > answered and answered < 2:
            os.write(master, b"geheim\n")
            answered += 1
    os.close(master)
    assert process.wait(60) == 0, text
    assert answered == 2 and "geheim" not in text and "Recovery phrase" in text
    assert Home.load(places / "vault").unlock(b"geheim")


def test_eta_says_why() -> None:
    engine: dict[str, Any] = {"placing": {"rate": 1 << 20, "waiting_for": ""}, "repair": {"queue": 0}, "checkpoint": {}}
    mount = {"dirty_bytes": 10 << 20, "published": 1, "committed": 2}
    assert eta({"mount": mount, "engine": engine}) == {"seconds": 10, "reason": "10.0 MiB to place"}
    assert eta({"mount": mount, "engine": None})["seconds"] is None
    waiting = {**engine, "placing": {"rate": 5, "waiting_for": "a node in a third jurisdiction."}}
    assert eta({"mount": mount, "engine": waiting}) == {"seconds": None, "reason": "a node in a third jurisdiction"}
    assert "checkpoint" in eta({"mount": {**mount, "dirty_bytes": 0}, "engine": engine})["reason"]
    published = {**mount, "dirty_bytes": 0, "published": 2}
    assert eta({"mount": published, "engine": engine})["seconds"] == 0
    moving = {"queue": 2, "bytes_left": 6 << 20, "eta_s": 3, "waiting_for": ""}
    assert eta({"mount": published, "engine": {**engine, "moving": moving}}) == {"seconds": 3, "reason": "6.0 MiB to move"}
    stopped = {**moving, "eta_s": None, "waiting_for": "the drive is in use"}
    reason = "6.0 MiB to move, waits: the drive is in use"
    assert eta({"mount": published, "engine": {**engine, "moving": stopped}}) == {"seconds": None, "reason": reason}


def test_what_the_engine_moves_is_one_line() -> None:
    moving = {
        "queue": 0,
        "bytes_left": 0,
        "reasons": {},
        "moved": 3,
        "moved_bytes": 3 << 20,
        "freed_bytes": 5 << 20,
        "rate": 0,
        "eta_s": 0,
        "waiting_for": "",
    }
    assert moving_words(moving) == "nothing now, 3.0 MiB so far, 5.0 MiB of room came back by it"
    evened = moving_words(moving | {"rebalancing": True})
    assert evened == "filling nodes give to others, some each minute, 3.0 MiB so far, 5.0 MiB of room came back by it"
    moving |= {"queue": 2, "bytes_left": 4 << 20, "reasons": {"b": {}, "a": {}}, "rate": 1 << 20, "eta_s": 4}
    assert moving_words(moving) == "4.0 MiB (a, b), 1.0 MiB/s, 4 s left"
    moving |= {"eta_s": None, "waiting_for": "The drive is in use."}
    assert moving_words(moving) == "4.0 MiB (a, b), 1.0 MiB/s, waits: The drive is in use"


def test_the_ledger_says_what_differs() -> None:
    assert differences({"balanced": True, "missing": 0, "unknown": 0}) == "none"
    words = differences({"balanced": False, "missing": 2, "unknown": 3})
    assert "2 shares are missing" in words and "3 shares that nothing names" in words
    assert differences({"balanced": False, "missing": 0, "unknown": 0}) == "not known yet"


def test_the_ledger_says_who_is_not_there_and_how_old_it_is() -> None:
    row = {"availability": 1.0, "state": "online", "revoked": False}
    assert there(row) == "100%" and there({"availability": 0.5}) == "50%", "an engine of an older release"
    assert there({**row, "state": "offline"}) == "away now, 100%" and there({**row, "state": "gone"}) == "given up, 100%"
    assert there({**row, "revoked": True}) == "revoked, 100%"
    rows = [{"receipt": 1, "looked_ns": 10**12}, {"receipt": 2, "looked_ns": 2 * 10**12}, {"receipt": 0, "looked_ns": 0}]
    assert oldest(rows, 3000.0) == " (by receipts up to 33 min 20 s old)" and oldest(rows[2:], 3000.0) == ""

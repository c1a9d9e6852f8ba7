"""What others call themselves is shown, and steers nothing."""

from __future__ import annotations

import pytest

from hivefs.cli import hive_members, main
from hivefs.cli.output import console, plain
from hivefs.errors import PeerUnreachable


def test_a_name_that_looks_like_markup_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("evil[/x]", "Good GmbH (a)[black on black]", "/Photos [old]"):
        console().print(f"operator {name}")
        assert name in capsys.readouterr().out


ESCAPES = "\x1b]0;title\x07", "\x1b[2J", "a\rb", "\x9b31m", "\u202egnp.exe", "\udcff"


@pytest.mark.parametrize("name", ESCAPES)
def test_no_console_passes_the_escapes_of_a_name_on(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("operator", name)
    table.add_row(name, Text(name))
    console().print(f"operator {name}")
    console().print(table)
    console().print(Text(name))
    said = capsys.readouterr().out
    assert said.count("\n") >= 6 and all(c.isprintable() for c in said.replace("\n", ""))


def test_colours_and_bars_of_our_own_stay() -> None:
    import io

    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    out = console()
    file = io.StringIO()
    terminal = type(out)(file=file, force_terminal=True, color_system="standard", markup=False)
    assert isinstance(terminal, Console)
    terminal.print(Text("offline\x1b[2J", style="red"))
    assert "\x1b[31moffline" in file.getvalue() and "\x1b[2J" not in file.getvalue()
    with Live(Text("one"), console=terminal, auto_refresh=False) as live:
        live.update(Text("two"), refresh=True)
    assert "\x1b[?25l" in file.getvalue() and "\x1b[?25h" in file.getvalue(), "the cursor goes and comes back"


def test_a_name_is_one_line() -> None:
    assert plain("Good\nnode 2  online\x1b[1m Ü 株") == "Good?node 2  online?[1m Ü 株"
    assert plain("山田\u3000商店") == "山田\u3000商店"


def test_a_hostile_member_is_listed_and_steers_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """What newcomers claim in a membership stays readable, whatever it is."""
    said = [{"name": "operator", "value": "evil[/x]\x1b[2J\nfeedfeedfeedfeed  node  member", "evidence": "claimed"}]
    row = {
        "id": bytes(32), "roles": ["node"], "by": "owner", "invitation": None, "issued_ns": 1, "expires_ns": 0,
        "revoked": False, "attributes": said, "addresses": [],
    }  # fmt: skip
    listed = {"sequence": 0, "members": [], "invitations": []}
    hive_members._show({"members": [row], "revocations": listed, "failed": {"/ip4/1\x1b[2J": "no\nanswer"}})
    lines = capsys.readouterr().out.splitlines()
    assert "evil[/x]?[2J?feedfeed" in lines[1] and len(lines) == 3 and all(map(str.isprintable, lines))


def test_a_refusal_that_repeats_words_of_others_is_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main._say(PeerUnreachable(address="/dns/\x1b[2J", reason="x\nhivefs: all is well")) == PeerUnreachable.exit_code
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "\x1b" not in said

"""``hivefs policy check``"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hivefs.cli.asking import ask_engine
from hivefs.cli.output import console, json_option, show_json
from hivefs.cli.secrets import unlock_options
from hivefs.daemon.home import DEFAULT_CODE, Home, default_home
from hivefs.errors import BadSetting, PolicyInfeasible, VaultMissing
from hivefs.formats.policy import MAX_TEXT_BYTES
from hivefs.placement.language import decode, parse
from hivefs.placement.language_text import says_nothing
from hivefs.placement.policy import Policy


def text_of(file: Path) -> str:
    """The text in a file ("-": standard input). Raises BadPolicy, BadSetting."""
    try:
        with click.open_file(str(file), "rb") as opened:
            return decode(opened.read(MAX_TEXT_BYTES + 1))
    except OSError as error:
        raise BadSetting(name="FILE", reason=f"{file} cannot be read ({error.strerror or error})") from None


@click.command("check")
@click.argument("file", required=False, type=click.Path(path_type=Path, allow_dash=True))
@click.option("--text-only", is_flag=True, help="Do not ask the engine whether the nodes can keep it.")
@unlock_options
@json_option
def command(file: Path | None, text_only: bool, password_file: str | None, key_file: Path | None, as_json: bool) -> None:
    """Check a policy.toml: the text, with line and column of a mistake (exit code 62), and whether the nodes there are can
    keep it (31). Without FILE the one in force. Nothing is changed.
    """
    if text_only:
        if file is None:
            raise click.UsageError("--text-only needs a FILE.")
        _text_only(text_of(file), as_json)
        return
    home = Home.load(default_home())
    text = None if file is None else text_of(file)
    if text is not None:
        parse(text, home.policy())
    else:
        text = ask_engine(home, "policy_get", None, password_file, key_file, visible=not as_json)["text"]
    found = ask_engine(home, "policy_check", {"text": text}, password_file, key_file, visible=not as_json)
    found["empty"] = says_nothing(text)
    _say(found, as_json)
    for name in found["in_use"]:
        if found["policies"][name]:
            raise PolicyInfeasible(reason=f"policy {name}: {found['policies'][name]}")
    if found["metadata"]:
        raise PolicyInfeasible(reason=f"policy of the metadata: {found['metadata']}")


def _text_only(text: str, as_json: bool) -> None:
    """Works where there is no vault too, such as on the machine of who reviews the text."""
    try:
        default, whose = Home.load(default_home()).policy(), "vault"
    except VaultMissing:
        default, whose = Policy(*DEFAULT_CODE), "init"
    made = parse(text, default)
    found = {
        "policies": dict.fromkeys(made.policies, ""),
        "in_use": list(made.in_use()),
        "metadata": "",
        "default": whose,
        "empty": says_nothing(text),
    }
    _say(found, as_json)
    if whose == "init" and not as_json:
        code = f"{default.needed}/{default.total}"
        click.echo(f"There is no vault here: what the text leaves out is as after 'hivefs init' (code {code}).")


def _say(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show_json(found)
        return
    from rich.table import Table

    table = Table("policy", "used", "with the nodes there are", box=None, padding=(0, 2, 0, 0))
    for name, reason in found["policies"].items():
        table.add_row(name, "yes" if name in found["in_use"] else "no", reason or "can be kept")
    table.add_row("(metadata)", "yes", found["metadata"] or "can be kept")
    if "nodes" in found:
        console().print(table)
    else:
        click.echo(f"The text is right; {len(found['policies'])} policies.")
    if found["empty"]:
        click.echo("The text is empty: the vault's own default holds for everything where it is in force.")

"""``hivefs policy check``"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hivefs.cli.asking import ask_engine
from hivefs.cli.output import console, json_option, show_json
from hivefs.cli.secrets import unlock_options
from hivefs.daemon.home import Home, default_home
from hivefs.errors import BadSetting, PolicyInfeasible
from hivefs.formats.policy import MAX_TEXT_BYTES
from hivefs.placement.language import decode, parse


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
    home = Home.load(default_home())
    text = None if file is None else text_of(file)
    if text is not None:
        made = parse(text, home.policy())
        if text_only:
            _say({"policies": dict.fromkeys(made.policies, ""), "in_use": list(made.in_use()), "metadata": ""}, as_json)
            return
    if text is None:
        text = ask_engine(home, "policy_get", None, password_file, key_file, visible=not as_json)["text"]
    found = ask_engine(home, "policy_check", {"text": text}, password_file, key_file, visible=not as_json)
    _say(found, as_json)
    for name in found["in_use"]:
        if found["policies"][name]:
            raise PolicyInfeasible(reason=f"policy {name}: {found['policies'][name]}")
    if found["metadata"]:
        raise PolicyInfeasible(reason=f"policy of the metadata: {found['metadata']}")


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

"""``hivefs policy set``"""

from __future__ import annotations

from pathlib import Path

import click

from hivefs.cli.asking import ask_engine, nothing_there, vault_path
from hivefs.cli.output import json_option, plain
from hivefs.cli.policy_apply import apply
from hivefs.cli.secrets import unlock_options
from hivefs.daemon.home import Home, default_home
from hivefs.errors import BadSetting
from hivefs.placement.language import parse
from hivefs.placement.language_text import default_text, with_path


@click.command("set")
@click.argument("path")
@click.argument("name", required=False)
@click.option("--remove", is_flag=True, help="PATH has no policy of its own any more.")
@click.option("--force", is_flag=True, help="Even if the nodes there are cannot keep it: then new data waits for others.")
@unlock_options
@json_option
def command(
    path: str,
    name: str | None,
    remove: bool,
    force: bool,
    password_file: str | None,
    key_file: Path | None,
    as_json: bool,
) -> None:
    """Set the policy of everything at and below PATH (in the drive, or below its mount point) to NAME. The rest of the text
    stays as it is, with its comments. Where there is nothing in the drive yet, that is said: the policy holds for what
    comes.
    """
    if (name is None) != remove:
        raise click.UsageError("say NAME, or --remove and no NAME")
    home = Home.load(default_home())
    inside = vault_path(home, path)
    found = ask_engine(home, "policy_get", None, password_file, key_file, visible=not as_json)
    before = found["text"] or default_text(home.policy())
    parse(before, home.policy())
    text = with_path(before, inside, name)
    if name is None and text == before:
        raise BadSetting(name="PATH", reason=f"{plain(inside)} in the drive has no policy of its own; nothing was changed")
    # The path inside of the drive, as it was understood: one of another place on this machine would be taken for that.
    said = (
        f"{plain(inside)} in the drive has no policy of its own."
        if name is None
        else f"{plain(inside)} in the drive: {name}."
    )
    missing, words = (False, "")
    if name is not None:
        missing, words = nothing_there(home, path, password_file, key_file, visible=not as_json)
    apply(home, text, force, password_file, key_file, as_json, said, {"nothing_there": missing})
    if missing and not as_json:
        click.echo(f"Note: {words}", err=True)

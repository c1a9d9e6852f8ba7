"""``hivefs policy set``"""

from __future__ import annotations

from pathlib import Path

import click

from hivefs.cli.asking import ask_engine, vault_path
from hivefs.cli.output import json_option
from hivefs.cli.policy_apply import apply
from hivefs.cli.secrets import unlock_options
from hivefs.daemon.home import Home, default_home
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
    stays as it is, with its comments.
    """
    if (name is None) != remove:
        raise click.UsageError("say NAME, or --remove and no NAME")
    home = Home.load(default_home())
    inside = vault_path(home, path)
    found = ask_engine(home, "policy_get", None, password_file, key_file, visible=not as_json)
    text = with_path(found["text"] or default_text(home.policy()), inside, name)
    apply(home, text, force, password_file, key_file, as_json)

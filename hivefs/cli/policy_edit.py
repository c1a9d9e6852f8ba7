"""``hivefs policy edit``"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from hivefs.cli.asking import ask_engine
from hivefs.cli.output import json_option, show_json
from hivefs.cli.policy_apply import apply
from hivefs.cli.secrets import unlock_options
from hivefs.daemon.home import Home, default_home, write_file
from hivefs.errors import HivefsError
from hivefs.placement.language_text import default_text


@click.command("edit")
@click.option("--force", is_flag=True, help="Even if the nodes there are cannot keep it: then new data waits for others.")
@unlock_options
@json_option
def command(force: bool, password_file: str | None, key_file: Path | None, as_json: bool) -> None:
    """Open the text in your editor (EDITOR) and put it into force when it is saved. A mistake can be mended at once."""
    home = Home.load(default_home())
    found = ask_engine(home, "policy_get", None, password_file, key_file, visible=not as_json)
    before = found["text"] or default_text(home.policy())
    text = before
    while True:
        edited = click.edit(text, extension=".toml")
        if edited is None or edited == before:
            if as_json:
                show_json({"changed": False})
            else:
                click.echo("Nothing was changed.")
            return
        text = edited
        try:
            apply(home, text, force, password_file, key_file, as_json)
            return
        except HivefsError as error:
            if sys.stdin.isatty():
                click.echo(f"hivefs: {error}", err=True)
                if click.confirm("Edit again?", default=True, err=True):
                    continue
            _keep(home, text)
            raise


def _keep(home: Home, text: str) -> None:
    """What was written is not lost because it was refused."""
    path = home.run / "policy-refused.toml"
    write_file(path, text.encode("utf-8", "surrogateescape"))
    click.echo(f"Your text is in {path}: hivefs policy apply {path}", err=True)

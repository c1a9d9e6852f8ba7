"""``hivefs policy show``"""

from __future__ import annotations

from pathlib import Path

import click

from hivefs.cli.asking import ask_engine
from hivefs.cli.output import json_option, show_json
from hivefs.cli.secrets import unlock_options
from hivefs.daemon.home import Home, default_home
from hivefs.placement.language_text import default_text


@click.command("show")
@unlock_options
@json_option
def command(password_file: str | None, key_file: Path | None, as_json: bool) -> None:
    """Print the text of the policies in force. Of a vault that has none, the text that says what holds."""
    home = Home.load(default_home())
    found = ask_engine(home, "policy_get", None, password_file, key_file, visible=not as_json)
    text = found["text"] or default_text(home.policy())
    if as_json:
        show_json({**found, "text": text})
    else:
        click.echo(text, nl=not text.endswith("\n"))

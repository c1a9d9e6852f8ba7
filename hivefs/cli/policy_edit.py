"""``hivefs policy edit``"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

from hivefs.cli.asking import ask_engine
from hivefs.cli.output import json_option, show_json
from hivefs.cli.policy_apply import apply
from hivefs.cli.policy_check import text_of
from hivefs.cli.secrets import unlock_options
from hivefs.daemon.home import Home, default_home, write_file
from hivefs.errors import HivefsError
from hivefs.placement.language_text import default_text, says_nothing


@click.command("edit")
@click.option("--force", is_flag=True, help="Even if the nodes there are cannot keep it: then new data waits for others.")
@unlock_options
@json_option
def command(force: bool, password_file: str | None, key_file: Path | None, as_json: bool) -> None:
    """Open the text in your editor (EDITOR) and put it into force when it is saved. A mistake can be mended at once. An
    empty text changes nothing.
    """
    home = Home.load(default_home())
    found = ask_engine(home, "policy_get", None, password_file, key_file, visible=not as_json)
    before = (found["text"] or default_text(home.policy())).encode()
    # The file is ours and not click's, which removes its own when the editor is interrupted.
    with tempfile.TemporaryDirectory(prefix="hivefs-") as place:
        file = Path(place) / "policy.toml"
        write_file(file, before)
        try:
            changed = _edit(home, file, before, force, password_file, key_file, as_json)
        except BaseException:  # also Ctrl-C, wherever it comes: what was written is not lost
            _keep(home, file, before)
            raise
    if not changed:
        if as_json:
            show_json({"changed": False})
        else:
            click.echo("Nothing was changed.")


def _edit(
    home: Home, file: Path, before: bytes, force: bool, password_file: str | None, key_file: Path | None, as_json: bool
) -> bool:
    """Until it is in force; False when it was left as it was."""
    while True:
        refused = file.read_bytes()
        click.edit(filename=str(file))
        edited = file.read_bytes() if file.exists() else before  # who removes the file wants no change
        if edited == before:
            return False
        try:
            if not force and says_nothing(text_of(file)):
                if edited.strip():
                    _keep(home, file, before)  # comments
                click.echo("The text is empty: all rules would go (with --force they do).", err=True)
                return False
            if edited == refused:  # closed without a change: the user gave up
                _keep(home, file, before)
                return False
            apply(home, text_of(file), force, password_file, key_file, as_json)
            return True
        except HivefsError as error:
            if not sys.stdin.isatty():
                raise
            click.echo(f"hivefs: {error}", err=True)
            if not click.confirm("Edit again?", default=True, err=True):
                raise


def _keep(home: Home, file: Path, before: bytes) -> None:
    text = file.read_bytes() if file.exists() else before
    if text == before:
        return
    path = home.run / "policy-refused.toml"
    write_file(path, text)
    click.echo(f"Your text is in {path}: hivefs policy apply {path}", err=True)

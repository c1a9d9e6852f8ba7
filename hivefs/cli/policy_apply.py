"""``hivefs policy apply``"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from hivefs.cli.asking import ask_engine
from hivefs.cli.output import json_option, show_json
from hivefs.cli.policy_check import text_of
from hivefs.cli.secrets import unlock_options
from hivefs.daemon.home import Home, default_home
from hivefs.errors import BadPolicy
from hivefs.placement.language import parse
from hivefs.placement.language_text import says_nothing


def apply(
    home: Home,
    text: str,
    force: bool,
    password_file: str | None,
    key_file: Path | None,
    as_json: bool,
    said: str = "The policies are in force.",
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Put a text into force and say so, and what waits; ``more`` is what else programs are told. Raises BadPolicy,
    PolicyInfeasible (without ``force``).
    """
    parse(text, home.policy())
    value = {"text": text, "force": force}
    found: dict[str, Any] = ask_engine(home, "policy_set", value, password_file, key_file, visible=not as_json)
    if as_json:
        show_json({**found, **(more or {})})
        return found
    click.echo(said)
    for name in found["in_use"]:
        if found["policies"][name]:
            click.echo(f"Data of policy {name} waits: {found['policies'][name]}")
    if found["metadata"]:
        click.echo(f"The metadata waits: {found['metadata']}")
    return found


@click.command("apply")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--force", is_flag=True, help="Even if the nodes cannot keep it (then new data waits), or it is empty.")
@unlock_options
@json_option
def command(file: Path, force: bool, password_file: str | None, key_file: Path | None, as_json: bool) -> None:
    """Put the policies in FILE into force. Data that is placed moves until they hold; what a text does not say is as in the
    vault's own default. A text that says nothing at all needs --force.
    """
    home, text = Home.load(default_home()), text_of(file)
    if says_nothing(text) and not force:
        raise BadPolicy(
            line=1, column=1, reason="it is empty, so that all rules would go (nothing was changed; see --force)"
        )
    apply(home, text, force, password_file, key_file, as_json)

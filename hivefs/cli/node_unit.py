"""``hivefs node unit DIRECTORY``"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from hivefs.cli.output import json_option, show_json


@click.command("unit")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--user", default="", help="User that runs it  [default: the owner of DIRECTORY].")
@click.option("--metrics", default="", metavar="ADDRESS:PORT", help="As in 'hivefs node run'.")
@json_option
def command(directory: Path, user: str, metrics: str, as_json: bool) -> None:
    """Print a systemd unit that runs the node in DIRECTORY: save it as /etc/systemd/system/hivefs-node.service."""
    from hivefs.daemon.unit import unit_for

    text = unit_for(directory.absolute(), Path(sys.executable), user, metrics)
    if as_json:
        show_json({"unit": text})
    else:
        click.echo(text, nl=False)

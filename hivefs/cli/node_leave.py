"""``hivefs node leave DIRECTORY``"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from hivefs.cli.node_status import progress
from hivefs.cli.output import json_option, show_json
from hivefs.errors import NodeProblem

EVERY = 1.0


@click.command("leave")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--cancel", is_flag=True, help="Stay after all.")
@click.option("--wait", is_flag=True, help="Wait until nothing is kept here any more.")
@json_option
def command(directory: Path, cancel: bool, wait: bool, as_json: bool) -> None:
    """Leave the hive in good order: the node in DIRECTORY takes no new shares, and those it has move elsewhere.

    Said again it shows how far that is. The node must go on running until it says that it can be switched off.
    """
    from hivefs.daemon.node_control import leave, status

    if cancel and wait:
        raise click.UsageError("--cancel does not wait")
    directory = directory.absolute()
    running = leave(directory, cancel)
    if cancel:
        if as_json:
            show_json({"leaving": None, "running": running})
        else:
            click.echo("The node stays." if running else "The node stays; it does not run now.")
        return
    if not running:
        reason = "it does not run; it begins to leave when it does, and must run until its shares have moved"
        raise NodeProblem(path=directory, reason=reason)
    value = status(directory)
    last = ""
    while wait and not _leaving(directory, value)["done"]:
        words = progress(value["leaving"])
        if words != last:
            click.echo(words, err=True)
            last = words
        time.sleep(EVERY)
        value = status(directory)
        if not value["running"]:
            raise NodeProblem(path=directory, reason="it was stopped while its shares moved")
    if as_json:
        show_json({"leaving": value["leaving"], "running": True})
    else:
        click.echo(progress(_leaving(directory, value)).capitalize() + ".")


def _leaving(directory: Path, value: dict[str, Any]) -> dict[str, Any]:
    if value["leaving"] is None:
        raise NodeProblem(path=directory, reason="somebody made it stay after all")
    found: dict[str, Any] = value["leaving"]
    return found

"""``hivefs node ...``"""

from __future__ import annotations

import click

from hivefs.cli.lazy import LazyGroup

SUMMARIES = {
    "init": "Make a storage node with the hive owner's key.",
    "join": "Make a storage node by an invitation.",
    "run": "Run a storage node in the foreground.",
}


@click.command("node", cls=LazyGroup, summaries=SUMMARIES, prefix="node_")
def command() -> None:
    """Make and run a storage node."""

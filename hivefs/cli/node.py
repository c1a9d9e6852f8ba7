"""``hivefs node ...``"""

from __future__ import annotations

import click

from hivefs.cli.lazy import LazyGroup

SUMMARIES = {
    "init": "Make a storage node with the hive owner's key.",
    "join": "Make a storage node by an invitation.",
    "run": "Run a storage node in the foreground.",
    "set": "Change what a node gives: capacity, caps, quiet hours.",
    "vouched": "Take attestations about a node, to be passed on.",
    "status": "Show what a node keeps and what went over its line.",
    "leave": "Leave the hive in good order.",
    "unit": "Print a systemd unit for a node.",
}


@click.command("node", cls=LazyGroup, summaries=SUMMARIES, prefix="node_")
def command() -> None:
    """Make, run and look after a storage node."""

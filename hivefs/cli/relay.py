"""``hivefs relay ...``"""

from __future__ import annotations

import click

from hivefs.cli.lazy import LazyGroup

SUMMARIES = {
    "serve": "Be a relay for nodes of the hive that nobody can dial.",
    "accept": "Let a node of yours be reached through relays.",
    "dial": "Let your vault reach nodes through relays.",
}


@click.command("relay", cls=LazyGroup, summaries=SUMMARIES, prefix="relay_")
def command() -> None:
    """Experimental: reach nodes behind a router, through another machine of the hive."""

"""``hivefs dht ...``"""

from __future__ import annotations

import click

from hivefs.cli.lazy import LazyGroup

SUMMARIES = {
    "serve": "Be a member of a DHT, and tell the addresses of nodes there.",
    "find": "Look for nodes that are away under another address.",
}


@click.command("dht", cls=LazyGroup, summaries=SUMMARIES, prefix="dht_")
def command() -> None:
    """Experimental: find nodes that changed their address, by a DHT that you and others run."""

"""``hivefs hive ...``"""

from __future__ import annotations

import click

from hivefs.cli.lazy import LazyGroup

SUMMARIES = {
    "create": "Make the owner's key of a new hive.",
    "members": "Show who belongs to the hive, and who was revoked.",
    "relabel": "Say something else of a node than before.",
    "revoke": "Take back memberships and invitations.",
}


@click.command("hive", cls=LazyGroup, summaries=SUMMARIES, prefix="hive_")
def command() -> None:
    """Make a hive of your own: its owner's key lets nodes and clients in."""

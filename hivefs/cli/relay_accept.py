"""``hivefs relay accept``"""

from __future__ import annotations

from pathlib import Path

import click

from hivefs.cli.output import json_option, show_json


@click.command("accept")
@click.option(
    "--node",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIRECTORY",
    help="The node of this machine that nobody can dial.",
)
@click.option("--relay", multiple=True, required=True, metavar="ADDRESS", help="A relay of the hive, with its /p2p/ part.")
@json_option
def command(node: Path, relay: tuple[str, ...], as_json: bool) -> None:
    """Reserve at relays for a node, and tell others of them, until it is interrupted. Experimental.

    Each relay asks its own node whether yours belongs to the hive, and that has to have heard of it: so start yours first.
    What goes through is encrypted between your node and those who use it. They have to allow relays ('hivefs relay dial').
    """
    from hivefs.daemon.relay import accept  # loads libp2p: slow

    def told(address: str) -> None:
        if as_json:
            show_json({"relay": address})
        else:
            click.echo(f"Reached through {address} (Ctrl-C stops it)")

    accept(node.absolute(), list(dict.fromkeys(relay)), told)

"""``hivefs dht serve``"""

from __future__ import annotations

from pathlib import Path

import click

from hivefs.cli.output import json_option, show_json


@click.command("serve")
@click.option("--listen", multiple=True, metavar="ADDRESS", help="Where to listen, such as /ip4/0.0.0.0/tcp/4101.")
@click.option("--peer", multiple=True, metavar="ADDRESS", help="Another member of the DHT, with its /p2p/ part.")
@click.option(
    "--node",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIRECTORY",
    help="A node that runs on this machine, whose addresses are told.",
)
@json_option
def command(listen: tuple[str, ...], peer: tuple[str, ...], node: tuple[Path, ...], as_json: bool) -> None:
    """Be a member of a DHT until it is interrupted. Experimental.

    Members see where the nodes are that others tell or look for, and who asks. Nothing secret is in this process.
    """
    from hivefs.daemon.dht import serve  # loads all of libp2p: slow

    if not listen and not node:
        raise click.UsageError("say --listen, --node or both")

    def told(addresses: list[str]) -> None:
        if as_json:
            show_json({"addresses": addresses})
        else:
            click.echo(f"Serving at {', '.join(addresses) or 'no address'} (Ctrl-C stops it)")

    serve(listen, peer, [directory.absolute() for directory in node], told)

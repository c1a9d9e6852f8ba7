"""``hivefs dht find``"""

from __future__ import annotations

import time
from typing import Any

import click

from hivefs.cli.output import json_option, plain, show_json
from hivefs.daemon.home import Home, default_home


@click.command("find")
@click.option("--peer", multiple=True, required=True, metavar="ADDRESS", help="A member of the DHT, with its /p2p/ part.")
@json_option
def command(peer: tuple[str, ...], as_json: bool) -> None:
    """Look in a DHT for the nodes of this vault's hive that are away, and tell the engine where they are. Experimental.

    The drive has to be mounted. What is found counts only with the hive owner's and the node's signatures.
    """
    import trio

    from hivefs.cli.drive import ask
    from hivefs.cli.nodes import all_of
    from hivefs.daemon import dht  # loads all of libp2p: slow
    from hivefs.formats.member import entry_to_bytes

    home = Home.load(default_home())
    away = dht.known(trio.run(all_of, home, "nodes"))
    found = dht.find(peer, away, home.vault.hive_key, time.time_ns()) if away else {}
    learnt = 0
    if found:
        learnt = trio.run(ask, home, "engine", "learn", [entry_to_bytes(entry) for entry in found.values()])
    rows: list[dict[str, Any]] = [
        {"id": node.hex(), "addresses": list(found[node].address.reachable) if node in found else None} for node in away
    ]
    if as_json:
        show_json({"away": rows, "learnt": learnt})
        return
    if not rows:
        click.echo("No node is away.")
    for row in rows:
        addresses = plain(", ".join(row["addresses"] or ()))
        click.echo(f"{row['id'][:12]}  {addresses or 'nothing is known of it there'}")

"""``hivefs relay serve``"""

from __future__ import annotations

from pathlib import Path

import click

from hivefs.cli.output import json_option, show_json, size
from hivefs.cli.sizes import byte_count

MOST_NODES, MOST_CIRCUITS = 128, 256
"""Each is a connection of the relay, which has 512 (transport/limits.py), others that come and go among them. With more it
would end those that wait for circuits to make room.
"""


@click.command("serve")
@click.option("--listen", multiple=True, required=True, metavar="ADDRESS", help="Where to listen: /ip4/0.0.0.0/tcp/4102.")
@click.option(
    "--node",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIRECTORY",
    help="A node of the hive that runs on this machine; it says who may reserve.",
)
@click.option(
    "--nodes", default=32, type=click.IntRange(1, MOST_NODES), show_default=True, help="Most nodes that are relayed."
)
@click.option(
    "--circuits", default=128, type=click.IntRange(1, MOST_CIRCUITS), show_default=True, help="Most connections at once."
)
@click.option("--circuit-bytes", default="64G", show_default=True, help="After so many bytes a connection ends.")
@click.option(
    "--circuit-seconds",
    default=86_400,
    type=click.IntRange(1, 30 * 86_400),
    show_default=True,
    help="After so many seconds a connection ends.",
)
@json_option
def command(
    listen: tuple[str, ...],
    node: Path,
    nodes: int,
    circuits: int,
    circuit_bytes: str,
    circuit_seconds: int,
    as_json: bool,
) -> None:
    """Be a relay until it is interrupted. Experimental.

    Only nodes of the hive can reserve. It sees who speaks with them, when, and how many bytes; what is said is encrypted
    between the two ends. An end that is cut off by a limit connects again.
    """
    from hivefs.daemon.relay import serve  # loads libp2p: slow
    from hivefs.transport.relay import Bounds

    most = byte_count(circuit_bytes)
    bounds = Bounds(nodes=nodes, circuits=circuits, circuit_bytes=most, circuit_seconds=circuit_seconds)

    def told(addresses: list[str]) -> None:
        if as_json:
            show_json({"addresses": addresses})
        else:
            click.echo(f"Relaying at {', '.join(addresses)}, {size(most)} a connection (Ctrl-C stops it)")

    serve(node.absolute(), listen, bounds, told)

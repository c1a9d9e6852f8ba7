"""``hivefs node init DIRECTORY``"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from hivefs.cli.node_caps import ChangeCaps, cap_options
from hivefs.cli.node_labels import SAYS, label_options
from hivefs.cli.output import json_option, show_json
from hivefs.cli.sizes import byte_count
from hivefs.daemon import hive
from hivefs.daemon.node_process import Labels
from hivefs.model.node import Evidence
from hivefs.node.caps import Caps


@click.command("init")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--hive", "hive_file", required=True, type=click.Path(path_type=Path), help="The hive owner's key file.")
@click.option("--listen", required=True, help="Address to listen on: /ip4/ADDRESS/tcp/PORT.")
@click.option("--announce", default="", help="Address that others dial instead, when it differs (0.0.0.0, NAT).")
@click.option("--capacity", default="10G", show_default=True, help="Most bytes of shares: 500M, 50G, 2T.")
@label_options(SAYS, required=("country", "operator"))
@click.option(
    "--evidence",
    type=click.Choice([e.name.lower() for e in Evidence]),
    default="attested",
    show_default=True,
    help="How well you, the hive's owner, know this.",
)
@click.option("--lan", is_flag=True, help="Tell and look for nodes of this hive on the local network (mDNS).")
@click.option("--bootstrap", multiple=True, help="Address of another node of the hive; may be repeated.")
@cap_options
@json_option
def command(
    directory: Path,
    hive_file: Path,
    listen: str,
    announce: str,
    capacity: str,
    labels: Labels,
    evidence: str,
    lan: bool,
    bootstrap: tuple[str, ...],
    change_caps: ChangeCaps,
    as_json: bool,
) -> None:
    """Make a storage node in DIRECTORY: identity, membership certificate, empty share store."""
    labels = replace(labels, operator_country=labels.operator_country or labels.country)
    size = byte_count(capacity)
    caps = change_caps(Caps())
    key = hive.load(hive_file)
    from hivefs.daemon.node import make_node  # loads libp2p: slow

    address = make_node(
        directory.absolute(), key, listen, size, labels, bootstrap, announce, lan, caps, Evidence[evidence.upper()]
    )
    if as_json:
        show_json({"address": address, "directory": directory.absolute(), "capacity": size})
    else:
        click.echo(f"Node {address}\nRun it: hivefs node run {directory}")

"""``hivefs node init DIRECTORY``"""

from __future__ import annotations

from pathlib import Path

import click

from hivefs.cli.node_caps import cap_options, changed_caps
from hivefs.cli.output import json_option, show_json
from hivefs.cli.sizes import byte_count
from hivefs.daemon import hive
from hivefs.daemon.node_process import Labels
from hivefs.node.caps import Caps


@click.command("init")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--hive", "hive_file", required=True, type=click.Path(path_type=Path), help="The hive owner's key file.")
@click.option("--listen", required=True, help="Address to listen on: /ip4/ADDRESS/tcp/PORT.")
@click.option("--announce", default="", help="Address that others dial instead, when it differs (0.0.0.0, NAT).")
@click.option("--capacity", default="10G", show_default=True, help="Most bytes of shares: 500M, 50G, 2T.")
@click.option("--country", required=True, help="Country where the machine stands (two letters).")
@click.option("--operator", required=True, help="Who runs it: a name that is the same on all nodes of this operator.")
@click.option("--operator-country", default="", help="Country of the operator  [default: that of the machine].")
@click.option("--parent", default="", help="The operator's parent company, if it has one.")
@click.option("--parent-country", default="", help="Country of the parent company.")
@click.option("--hoster", default="", help="Whose data centre it is.")
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
    country: str,
    operator: str,
    operator_country: str,
    parent: str,
    parent_country: str,
    hoster: str,
    lan: bool,
    bootstrap: tuple[str, ...],
    max_upload: str | None,
    max_download: str | None,
    quiet_hours: str | None,
    quiet_upload: str | None,
    quiet_download: str | None,
    as_json: bool,
) -> None:
    """Make a storage node in DIRECTORY: identity, membership certificate, empty share store."""
    labels = Labels(country, operator, operator_country or country, parent, parent_country, hoster)
    size = byte_count(capacity)
    caps = changed_caps(Caps(), max_upload, max_download, quiet_hours, quiet_upload, quiet_download)
    key = hive.load(hive_file)
    from hivefs.daemon.node import make_node  # loads libp2p: slow

    address = make_node(directory.absolute(), key, listen, size, labels, bootstrap, announce, lan, caps)
    if as_json:
        show_json({"address": address, "directory": directory.absolute(), "capacity": size})
    else:
        click.echo(f"Node {address}\nRun it: hivefs node run {directory}")

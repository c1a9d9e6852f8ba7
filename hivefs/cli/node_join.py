"""``hivefs node join INVITATION DIRECTORY``"""

from __future__ import annotations

from pathlib import Path

import click

from hivefs.cli.node_caps import ChangeCaps, cap_options
from hivefs.cli.node_labels import SAYS, label_options
from hivefs.cli.output import json_option, show_json
from hivefs.cli.secrets import read_ticket
from hivefs.cli.sizes import byte_count
from hivefs.daemon.node_process import Labels
from hivefs.errors import BadSetting
from hivefs.model.node import Attribute, Ticket
from hivefs.node.caps import Caps


@click.command("join")
@click.argument("invitation")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--again", is_flag=True, help="The node is there already: give it a new membership.")
@click.option("--listen", default="", help="Address to listen on: /ip4/ADDRESS/tcp/PORT.")
@click.option("--announce", default="", help="Address that others dial instead, when it differs (0.0.0.0, NAT).")
@click.option("--capacity", default="10G", show_default=True, help="Most bytes of shares: 500M, 50G, 2T.")
@label_options(SAYS)
@click.option("--lan", is_flag=True, help="Tell and look for nodes of this hive on the local network (mDNS).")
@cap_options
@json_option
def command(
    invitation: str,
    directory: Path,
    again: bool,
    listen: str,
    announce: str,
    capacity: str,
    labels: Labels,
    lan: bool,
    change_caps: ChangeCaps,
    as_json: bool,
) -> None:
    """Make a storage node in DIRECTORY, in the hive that INVITATION is from.

    INVITATION is the line itself, the file that holds it, or - for standard input. Arguments can be seen by other users of
    this machine: prefer a file or -. What you say of the node counts as claimed; leave out what the owner fixed.
    """
    size = byte_count(capacity)
    caps = change_caps(Caps())
    ticket = read_ticket(invitation)
    if again:
        _again(directory.absolute(), ticket, labels, as_json)
        return
    if not listen:
        raise BadSetting(name="--listen", reason="say the address to listen on: /ip4/ADDRESS/tcp/PORT")
    claimed = claims(ticket, labels)
    from hivefs.daemon.node import join_node  # loads libp2p: slow

    address, asked = join_node(directory.absolute(), ticket, listen, size, claimed, announce, lan, caps)
    if as_json:
        show_json({"address": address, "directory": directory.absolute(), "capacity": size, "let_in_by": asked or None})
        return
    click.echo(f"Node {address}")
    click.echo(f"Let in by {asked}" if asked else "The invitation names no node: it was not asked whether it holds.")
    click.echo(f"Run it: hivefs node run {directory}")


def _again(directory: Path, ticket: Ticket, labels: Labels, as_json: bool) -> None:
    from hivefs.daemon.node import rejoin_node  # loads libp2p: slow

    said = labels.attributes()
    asked = rejoin_node(directory, ticket, claims(ticket, labels) if said else ())
    if as_json:
        show_json({"directory": directory, "let_in_by": asked or None})
    else:
        click.echo(f"The node in {directory} has a new membership; start it again if it runs: hivefs node run {directory}")


def claims(ticket: Ticket, labels: Labels) -> tuple[Attribute, ...]:
    """What the node says of itself. Raises BadSetting when country or operator are neither said nor fixed."""
    said = {a.name: a for a in labels.attributes()}
    fixed = {a.name: a.value for a in ticket.invitation.attributes}
    for name in ("country", "operator"):
        if name not in said and name not in fixed:
            raise BadSetting(name=f"--{name}", reason="it is needed, the invitation does not fix it")
    if "operator_country" not in said and "operator_country" not in fixed:
        country = said["country"].value if "country" in said else fixed["country"]
        said["operator_country"] = Attribute("operator_country", country)
    return tuple(said.values())

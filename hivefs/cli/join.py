"""``hivefs join INVITATION``"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import click

from hivefs.cli.init import make_vault, parse_code, parse_settings, show_vault
from hivefs.cli.output import json_option, show_json
from hivefs.cli.secrets import lock_options, new_lock, open_vault, read_ticket
from hivefs.daemon.home import Home, Secrets, default_home
from hivefs.errors import BadInvitation, VaultExists
from hivefs.formats.member import accept
from hivefs.formats.vault import SETTINGS
from hivefs.model.node import Membership, Role, Ticket

MOST_NODES = 64


@click.command("join")
@click.argument("invitation")
@click.option("--again", is_flag=True, help="The vault is there already: give it a new membership in its hive.")
@lock_options
@click.option("--phrase-out", type=click.Path(path_type=Path), help="Write the recovery phrase to a new file, not here.")
@click.option("--code", default="4/6", show_default=True, help="NEEDED/TOTAL shares.")
@click.option("--set", "settings", multiple=True, metavar="NAME=NUMBER", help=f"A setting: {', '.join(SETTINGS)}.")
@json_option
def command(
    invitation: str,
    again: bool,
    password_file: str | None,
    key_file: Path | None,
    no_password: bool,
    phrase_out: Path | None,
    code: str,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make a vault in HIVEFS_HOME, in the hive that INVITATION is from.

    INVITATION is the line itself, the file that holds it, or - for standard input (there it comes before a password).
    Arguments can be seen by other users of this machine: prefer a file or -.
    """
    home = default_home()
    if again:
        _again(Home.load(home), read_ticket(invitation), password_file, key_file, as_json)
        return
    if (home / "vault.json").exists():
        raise VaultExists(home=home)
    chosen, pair = parse_settings(settings), parse_code(code)
    ticket = read_ticket(invitation)
    lock = new_lock(password_file, key_file, no_password)
    member = partial(let_in, ticket)
    made, _, phrase = make_vault(home, lock, member, ticket.addresses, pair, chosen, phrase_out)
    show_vault(made, phrase, pair, lock, phrase_out, as_json)


def let_in(ticket: Ticket, secrets: Secrets) -> Membership:
    """The certificate of a vault by invitation, once a node let it in."""
    if not ticket.addresses:
        raise BadInvitation(reason="it names no node to ask; it was made for the first node of a hive")
    owner = secrets.keys().owner_seed
    membership = accept(ticket, owner, Role.CLIENT, (), time.time_ns())
    import trio

    from hivefs.daemon.joining import ask_in  # loads libp2p: slow

    trio.run(ask_in, membership, owner, secrets.device_seed, ticket.addresses)
    return membership


def _again(home: Home, ticket: Ticket, password_file: str | None, key_file: Path | None, as_json: bool) -> None:
    if ticket.invitation.hive_key != home.vault.hive_key:
        raise BadInvitation(reason="it is from another hive than this vault")
    secrets = open_vault(home, password_file, key_file)
    membership = let_in(ticket, secrets)
    nodes = tuple(dict.fromkeys([*ticket.addresses, *home.vault.nodes]))[:MOST_NODES]
    home.change(secrets, membership=membership, nodes=nodes)
    if as_json:
        show_json({"home": home.path, "vault_id": home.vault.vault_id})
    else:
        click.echo(f"The vault in {home.path} has a new membership; if it is mounted, unmount and mount it again")

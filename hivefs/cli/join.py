"""``hivefs join INVITATION``"""

from __future__ import annotations

import time
from pathlib import Path

import click

from hivefs.cli.init import make_vault, parse_code, parse_settings, show_vault
from hivefs.cli.output import json_option
from hivefs.cli.secrets import lock_options, new_lock, read_ticket
from hivefs.daemon.home import Secrets, default_home
from hivefs.errors import BadInvitation, VaultExists
from hivefs.formats.member import accept
from hivefs.formats.vault import SETTINGS
from hivefs.model.node import Membership, Role


@click.command("join")
@click.argument("invitation")
@lock_options
@click.option("--phrase-out", type=click.Path(path_type=Path), help="Write the recovery phrase to a new file, not here.")
@click.option("--code", default="4/6", show_default=True, help="NEEDED/TOTAL shares.")
@click.option("--set", "settings", multiple=True, metavar="NAME=NUMBER", help=f"A setting: {', '.join(SETTINGS)}.")
@json_option
def command(
    invitation: str,
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
    if (home / "vault.json").exists():
        raise VaultExists(home=home)
    chosen, pair = parse_settings(settings), parse_code(code)
    ticket = read_ticket(invitation)
    if not ticket.addresses:
        raise BadInvitation(reason="it names no node to ask; it was made for the first node of a hive")
    lock = new_lock(password_file, key_file, no_password)

    def join(secrets: Secrets) -> Membership:
        import trio

        from hivefs.daemon.joining import ask_in  # loads libp2p: slow

        owner = secrets.keys().owner_seed
        membership = accept(ticket, owner, Role.CLIENT, (), time.time_ns())
        trio.run(ask_in, membership, owner, secrets.device_seed, ticket.addresses)
        return membership

    made, _, phrase = make_vault(home, lock, join, ticket.addresses, pair, chosen, phrase_out)
    show_vault(made, phrase, pair, lock, phrase_out, as_json)

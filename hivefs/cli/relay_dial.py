"""``hivefs relay dial``"""

from __future__ import annotations

from pathlib import Path

import click

from hivefs.cli.output import json_option, show_json
from hivefs.cli.secrets import open_vault, unlock_options
from hivefs.daemon.home import Home, default_home


@click.command("dial")
@click.option("--off", is_flag=True, help="Reach nodes at their own addresses only, as it is without this command.")
@unlock_options
@json_option
def command(off: bool, password_file: str | None, key_file: Path | None, as_json: bool) -> None:
    """Let this vault reach nodes through the relays that they name. Experimental.

    Only such nodes that none of their own addresses leads to. The relay sees when you speak with them and how much, and
    your address. A running engine takes it at once.
    """
    import trio

    from hivefs.cli.drive import ask_or_none

    home = Home.load(default_home())
    secrets = open_vault(home, password_file, key_file)
    settings = {name: value for name, value in home.vault.settings.items() if name != "relays"}
    home.change(secrets, settings=settings if off else {**settings, "relays": 1})
    told = trio.run(ask_or_none, home, "engine", "relays", not off) is not None
    if as_json:
        show_json({"relays": not off, "running": told})
        return
    click.echo("Relays are not used." if off else "Nodes that nothing else leads to are reached through relays.")
    click.echo("The running engine has taken it." if told else "No engine runs; it takes this when it starts.")

"""``hivefs down``"""

from __future__ import annotations

import click

from hivefs.cli.output import json_option, show_json
from hivefs.daemon.embedded import EmbeddedHive, default_hive
from hivefs.daemon.home import Home, default_home
from hivefs.errors import VaultMissing


@click.command("down")
@json_option
def command(as_json: bool) -> None:
    """Stop the nodes of the embedded hive. Nothing is deleted; 'hivefs up' starts them again.

    A drive that is mounted stays mounted and works with what is on this machine. The engine of one that is not is
    stopped too; what it has not placed yet is kept here and placed the next time.
    """
    path = default_hive()
    hive = EmbeddedHive.load(path)
    engine = _stop_engine(hive)
    stopped = hive.stop()
    if as_json:
        show_json({"hive": path, "stopped": stopped, "engine_stopped": engine})
    else:
        click.echo(f"Stopped {stopped} nodes of the hive in {path}")


def _stop_engine(hive: EmbeddedHive) -> bool:
    """The engine of the vault in HIVEFS_HOME, if that vault is in this hive and not mounted."""
    try:
        home = Home.load(default_home())
    except VaultMissing:
        return False
    if home.vault.hive_key != hive.key().public:
        return False
    import trio

    from hivefs.cli.drive import stop_engine

    return trio.run(stop_engine, home)

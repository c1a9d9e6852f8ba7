"""``hivefs mount MOUNTPOINT``"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import click

from hivefs.cli.drive import mount_drive, signals_for
from hivefs.cli.output import json_option, show_json
from hivefs.cli.secrets import open_vault, unlock_options
from hivefs.daemon.home import Home, default_home


@click.command("mount")
@click.argument("mountpoint", type=click.Path(path_type=Path))
@unlock_options
@click.option("--foreground", is_flag=True, help="Stay in the foreground; Ctrl-C unmounts.")
@click.option("--allow-other", is_flag=True, help="Other users of this machine see the drive too.")
@click.option("--read-only", is_flag=True, help="Nothing can be changed.")
@json_option
def command(
    mountpoint: Path,
    password_file: str | None,
    key_file: Path | None,
    foreground: bool,
    allow_other: bool,
    read_only: bool,
    as_json: bool,
) -> int:
    """Mount the vault of HIVEFS_HOME at MOUNTPOINT, an empty directory, and start the engine.

    A dead mount that a killed process left there is taken away first.
    """
    home = Home.load(default_home())
    secrets = open_vault(home, password_file, key_file)
    options = {"allow_other": allow_other, "read_only": read_only}
    started = mount_drive(home, secrets, mountpoint, options, foreground=foreground)
    with signals_for(started) if foreground else nullcontext():
        if as_json:
            show_json({"mountpoint": mountpoint.absolute(), "pid": started.pid, **started.info})
        else:
            click.echo(f"Mounted at {mountpoint.absolute()}" + (" (Ctrl-C unmounts)" if foreground else ""))
        return abs(started.process.wait()) if foreground else 0

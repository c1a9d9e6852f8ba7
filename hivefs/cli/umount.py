"""``hivefs umount``"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from hivefs.cli.drive import mounted_at, place_of, take_stale, unmount_drive
from hivefs.cli.output import json_option, show_json
from hivefs.daemon.home import Home, default_home
from hivefs.errors import NotMounted, NotReached


@click.command("umount")
@click.argument("mountpoint", type=click.Path(path_type=Path), required=False)
@click.option(
    "--wait", "wait_s", type=float, default=0.0, metavar="S", help="First wait until all is safe, at most S seconds."
)
@json_option
def command(mountpoint: Path | None, wait_s: float, as_json: bool) -> None:
    """Unmount the drive of HIVEFS_HOME.

    Everything is on this machine's disk when this returns; the engine goes on placing in the background and ends when
    it is done. With --wait everything is made safe in the hive first (exit code 56 when that was not reached in time;
    it is unmounted all the same). With MOUNTPOINT nothing is done unless the drive is there (22), or what a killed mount
    process left, which is taken away.
    """
    home = Home.load(default_home())
    late: NotReached | None = None
    try:
        if wait_s > 0:
            late = _wait(home, wait_s, mountpoint)
        place = unmount_drive(home, mountpoint)
    except NotMounted:
        if mountpoint is None or not take_stale(place_of(mountpoint)):
            raise
        place = str(place_of(mountpoint))
    if as_json:
        show_json({"unmounted": place})
    else:
        click.echo(f"Unmounted {place}")
    if late is not None:
        raise late


def _wait(home: Home, seconds: float, only: Path | None) -> NotReached | None:
    """Wait until the whole drive is guaranteed; the error, to be raised after the unmount, when it is not in time."""
    import trio

    from hivefs.cli.wait import wait_for

    mountpoint = Path(mounted_at(home, only)["mountpoint"])
    try:
        trio.run(wait_for, home, (mountpoint,), "guaranteed", seconds, sys.stderr.isatty())
    except NotReached as error:
        return error
    return None

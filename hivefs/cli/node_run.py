"""``hivefs node run DIRECTORY``"""

from __future__ import annotations

from pathlib import Path

import click

from hivefs.daemon import priority
from hivefs.daemon.launch import Report, take_frame
from hivefs.errors import HivefsError


@click.command("run")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--metrics", default="", metavar="ADDRESS:PORT", help="Serve Prometheus metrics there (127.0.0.1 by default)."
)
@click.option("--started", is_flag=True, hidden=True, help="Another HiveFS process started this one and listens.")
def command(directory: Path, metrics: str, started: bool) -> None:
    """Run the storage node in DIRECTORY until it is interrupted."""
    frame, report = take_frame() if started else ({}, Report(None))
    if frame.get("background"):
        priority.give_way(priority.NODE)  # it shares the machine with the drive that uses it

    def told(addresses: tuple[str, ...]) -> None:
        if not started:
            click.echo(f"Serving at {', '.join(addresses)} (Ctrl-C stops it)")

    try:
        from hivefs.daemon.node import run  # loads libp2p: slow

        run(directory.absolute(), report, told, metrics)
    except HivefsError as error:
        report.failed(error)
        raise

"""``hivefs hive create FILE``"""

from __future__ import annotations

from pathlib import Path

import click

from hivefs.cli.output import json_option, show_json
from hivefs.daemon import hive


@click.command("create")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def command(file: Path, as_json: bool) -> None:
    """Make a hive: its owner's key goes into FILE, which must not exist.

    Whoever has FILE decides which nodes and clients belong to the hive. Keep it safe; no node needs it to run.
    """
    key = hive.create(file)
    if as_json:
        show_json({"hive": key.public, "file": file})
    else:
        click.echo(f"Hive {key.public.hex()}\nIts owner's key is in {file}; keep it safe.")
        click.echo(f"Next: hivefs node init DIRECTORY --hive {file} --listen /ip4/.../tcp/PORT --country .. --operator ..")

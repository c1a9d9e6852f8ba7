"""``hivefs node set DIRECTORY``"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from hivefs.cli.node_caps import ChangeCaps, cap_options
from hivefs.cli.output import json_option, show_json, size
from hivefs.cli.sizes import byte_count


@click.command("set")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--capacity", default=None, help="Most bytes of shares: 500M, 50G, 2T. Less than is used takes nothing new.")
@cap_options
@json_option
def command(
    directory: Path,
    capacity: str | None,
    change_caps: ChangeCaps,
    as_json: bool,
) -> None:
    """Change what the node in DIRECTORY gives. A running node takes it at once; without options it is shown."""
    from hivefs.daemon.node_control import change
    from hivefs.node.config import NodeConfig
    from hivefs.node.running import caps_value

    count = None if capacity is None else byte_count(capacity)

    def changed(config: NodeConfig) -> NodeConfig:
        caps = change_caps(config.caps)
        return replace(config, caps=caps, capacity=config.capacity if count is None else count)

    config, running = change(directory.absolute(), changed)
    value = {"capacity": config.capacity, **caps_value(config.caps), "running": running}
    if as_json:
        show_json(value)
        return
    click.echo(f"capacity        {size(config.capacity)}")
    for name in ("upload", "download", "quiet_hours", "quiet_upload", "quiet_download"):
        found = value[name]
        if name == "quiet_hours":
            words = str(found or "none")
        else:
            words = "no cap" if found is None else f"{size(float(str(found)))}/s" if found else "no shares"
        click.echo(f"{name.replace('_', ' '):15} {words}")
    click.echo("The running node has taken it." if running else "The node does not run; it takes this when it starts.")

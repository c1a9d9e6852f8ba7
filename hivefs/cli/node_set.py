"""``hivefs node set DIRECTORY``"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from hivefs.cli.node_caps import ChangeCaps, cap_options
from hivefs.cli.node_labels import label_options
from hivefs.cli.output import json_option, show_json, size
from hivefs.cli.sizes import byte_count
from hivefs.daemon.node_process import Labels
from hivefs.errors import BadSetting

CLAIMS = {
    "country": "Claim another country where the machine stands (two letters).",
    "operator": "Claim another operator.",
    "operator_country": "Claim another country of the operator.",
    "parent": "Claim a parent company of the operator.",
    "parent_country": "Claim another country of the parent company.",
    "hoster": "Claim another data centre.",
}


@click.command("set")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--capacity", default=None, help="Most bytes of shares: 500M, 50G, 2T. Less than is used takes nothing new.")
@click.option("--credit", default=None, help="Id of the vault that is credited with this node's room; 'none' for none.")
@label_options(CLAIMS)
@click.option("--withdraw", multiple=True, type=click.Choice(sorted(CLAIMS)), help="Take back a claim of its own.")
@cap_options
@json_option
def command(
    directory: Path,
    capacity: str | None,
    credit: str | None,
    labels: Labels,
    withdraw: tuple[str, ...],
    change_caps: ChangeCaps,
    as_json: bool,
) -> None:
    """Change what the node in DIRECTORY gives, and what it says of itself. A running node takes it at once; without options
    it is shown.

    What it says (--country, --parent, ...) is a claim, and spreads by itself. One that contradicts what the hive's owner or
    an attester said makes that unknown to all: ask the owner for 'hivefs hive relabel' then.
    """
    from hivefs.daemon.node_control import change
    from hivefs.node.config import NodeConfig, check_credits
    from hivefs.node.running import caps_value

    said = {a.name: a.value for a in labels.attributes()} | dict.fromkeys(withdraw, "")
    count = None if capacity is None else byte_count(capacity)
    credited = None
    if credit is not None:
        try:
            credited = check_credits("" if credit == "none" else credit.lower())
        except ValueError:
            raise BadSetting(name="credit", reason="it is a vault's id, 32 hex digits, or 'none'") from None

    def changed(config: NodeConfig) -> NodeConfig:
        caps = change_caps(config.caps)
        claims = tuple(sorted({**dict(config.claims), **said}.items()))
        return replace(
            config,
            caps=caps,
            claims=claims,
            capacity=config.capacity if count is None else count,
            credits=config.credits if credited is None else credited,
        )

    config, running = change(directory.absolute(), changed)
    value = {
        "capacity": config.capacity,
        "claims": dict(config.claims),
        "credits": config.credits or None,
        **caps_value(config.caps),
        "running": running,
    }
    if as_json:
        show_json(value)
        return
    click.echo(f"capacity        {size(config.capacity)}")
    click.echo(f"credits vault   {config.credits or 'none'}")
    for name in ("upload", "download", "quiet_hours", "quiet_upload", "quiet_download"):
        found = value[name]
        if name == "quiet_hours":
            words = str(found or "none")
        else:
            words = "no cap" if found is None else f"{size(float(str(found)))}/s" if found else "no shares"
        click.echo(f"{name.replace('_', ' '):15} {words}")
    for name, claim in config.claims:
        click.echo(f"{name.replace('_', ' '):15} {claim or '(taken back)'}")
    click.echo("The running node has taken it." if running else "The node does not run; it takes this when it starts.")

"""``hivefs node status DIRECTORY``"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from hivefs.cli.output import console, duration, json_option, show_json, size


@click.command("status")
@click.argument("directory", type=click.Path(path_type=Path))
@json_option
def command(directory: Path, as_json: bool) -> None:
    """Show what the node in DIRECTORY keeps, and what went over its line, whether it runs or not."""
    from hivefs.daemon.node_control import status

    value = status(directory.absolute())
    if as_json:
        show_json(value)
    else:
        _show(value)


def _show(value: dict[str, Any]) -> None:
    from rich.table import Table

    facts = Table.grid(padding=(0, 2))
    if value["running"]:
        facts.add_row("node", f"runs (pid {value['pid']}) since {duration(value['up_seconds'])}")
        facts.add_row("conversations", str(value["conversations"]))
        facts.add_row("dropped", f"{value['dropped']} damaged shares since its start")
    else:
        facts.add_row("node", "does not run")
    facts.add_row("shares", f"{value['shares']} of {value['vaults']} vaults")
    facts.add_row("used", f"{size(value['used'])} of {size(value['capacity'])}")
    leases = value["leases"]
    last = "" if not leases["last_end_ns"] else f", the last in {_days(leases['last_end_ns'])} days"
    facts.add_row("leases", f"{leases['count']}, {leases['end_soon']} end within 7 days{last}")
    caps = value["caps"]
    facts.add_row("caps", f"gives {_rate(caps['upload'])}, takes {_rate(caps['download'])}")
    if caps["quiet_hours"]:
        now = ", now" if value.get("quiet") else ""
        given, taken = _rate(caps["quiet_upload"]), _rate(caps["quiet_download"])
        facts.add_row("quiet hours", f"{caps['quiet_hours']}{now}: gives {given}, takes {taken}")
    for relay in value["relays"]:
        facts.add_row("relay", relay)
    if value["leaving"] is not None:
        facts.add_row("leaving", progress(value["leaving"]))
    days = Table("day", "peers", "came", "went", "requests", "refused", box=None, padding=(0, 2, 0, 0))
    for day in value["days"]:
        for peer, traffic in day.items():
            if peer != "day":
                asked, refused = sum(traffic["requests"].values()), sum(traffic["refusals"].values())
                days.add_row(day["day"], peer, size(traffic["in"]), size(traffic["out"]), str(asked), str(refused))
    out = console()
    out.print(facts)
    if value["days"]:
        out.print(days)


def _days(end_ns: int) -> int:
    return max(0, round((end_ns / 1e9 - time.time()) / 86_400))


def _rate(value: int | None) -> str:
    return "without a cap" if value is None else f"{size(value)}/s" if value else "no shares"


def progress(leaving: dict[str, Any]) -> str:
    """How far a node is that leaves, in words."""
    if leaving["done"]:
        return "nothing is kept here any more; the node can be switched off"
    eta = "" if leaving["eta_s"] is None else f", about {duration(leaving['eta_s'])}"
    minutes = leaving["still_s"] // 60
    if minutes:
        eta = f"; none has gone for {minutes} min: the vaults are away, or no other node has room under their policies"
    return f"{leaving['leases']} of {leaving['leases_at_start']} leases are left, of {leaving['vaults']} vaults{eta}"

"""``hivefs ledger``"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click
import trio

from hivefs.cli.drive import ask
from hivefs.cli.nodes import all_of
from hivefs.cli.output import console, duration, json_option, show_json, size
from hivefs.daemon.home import Home, default_home

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.command("ledger")
@json_option
def command(as_json: bool) -> None:
    """Show the accounts: the receipts of all nodes against the engine's own book, and the vault's entitlement.

    Nodes sign what they hold for the vault, about once an hour; a difference is mended by the engine. The entitlement
    is what nodes that credit this vault ('hivefs node set --credit') offer, times how much of the time they are
    there, over what a byte of data takes in shares. It limits the drive only with the setting enforce_entitlement.
    Needs a running engine.
    """
    value = trio.run(accounts, Home.load(default_home()))
    if as_json:
        show_json(value)
    else:
        console().print(picture(value))


async def accounts(home: Home) -> dict[str, Any]:
    """The sums, and all nodes, some hundreds with each answer."""
    value: dict[str, Any] = await ask(home, "engine", "ledger", {"nodes": False})
    if value["nodes"] is None:  # else the engine is of an older release
        value["nodes"] = await all_of(home, "ledger_nodes")
    return value


def picture(value: dict[str, Any]) -> RenderableType:
    """For people."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2))
    facts.add_row("vault", value["vault_id"])
    facts.add_row("data", f"{size(value['data_bytes'])}, each byte takes {value['expansion']:g} in shares")
    enforced = "enforced" if value["enforced"] else "shown, not enforced"
    facts.add_row("entitlement", f"{size(value['entitlement'])} ({enforced})")
    facts.add_row("receipts", f"{value['leases']} shares by the nodes' receipts, {value['book_shares']} by the book")
    facts.add_row("differences", f"{differences(value)}{oldest(value['nodes'], time.time())}")
    table = Table("node", "receipt", "shares", "bytes", "book", "there", "credits us", "", box=None, padding=(0, 2, 0, 0))
    for row in sorted(value["nodes"], key=lambda row: str(row["id"])):
        age = f"{duration(time.time() - row['looked_ns'] / 1e9)} ago" if row["receipt"] else "none yet"
        words = row["problem"] or differences(row)
        table.add_row(
            row["id"][:12],
            age,
            str(row["leases"]),
            size(row["bytes"]),
            str(row["book_shares"]),
            there(row),
            size(row["capacity"]) if row["credits"] == value["vault_id"] else "",
            Text(words, style="red" if row["problem"] else ""),
        )
    return Group(facts, table)


def there(row: dict[str, Any]) -> str:
    """How much of the time a node is there, and when it is not there now, that first."""
    state = "revoked" if row.get("revoked") else row.get("state", "online")
    words = {"online": "", "offline": "away now, ", "gone": "given up, "}.get(state, f"{state}, ")
    return f"{words}{row['availability']:.0%}"


def oldest(nodes: list[dict[str, Any]], now: float) -> str:
    """How old the oldest of the receipts is that the sums rest on: data may have moved since. Empty when there is none."""
    looked = [row["looked_ns"] for row in nodes if row["receipt"]]
    return f" (by receipts up to {duration(now - min(looked) / 1e9)} old)" if looked else ""


def differences(value: dict[str, Any]) -> str:
    """What the nodes and the book do not agree on."""
    if value["balanced"]:
        return "none"
    found = []
    if value["missing"]:
        found.append(f"{value['missing']} shares are missing and are made again")
    if value["unknown"]:
        found.append(f"{value['unknown']} shares that nothing names, deleted when that is certain")
    return "; ".join(found) or "not known yet"

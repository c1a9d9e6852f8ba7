"""``hivefs nodes``"""

from __future__ import annotations

from typing import Any

import click

from hivefs.cli.output import console, json_option, show_json, size
from hivefs.daemon.home import Home, default_home

STYLES = {"online": "green", "offline": "yellow", "gone": "red"}
COLUMNS = ("country", "operator", "operator_country", "parent", "parent_country")
MOST = 500
LETTER = {"claimed": "c", "registry": "r", "measured": "m", "attested": "a"}


@click.command("nodes")
@json_option
def command(as_json: bool) -> None:
    """Show the nodes of the hive as this vault sees them: state, room, and what is known of each.

    Behind each value is how well it is known: a attested by a key that you trust, m measured, r from your table, c claimed.
    A question mark is unknown, which counts against every authority. The drive has to be mounted.
    """
    import trio

    found: list[dict[str, Any]] = trio.run(all_of, Home.load(default_home()), "nodes")
    rows = sorted(found, key=lambda n: (n["attributes"].get("country", ""), n["id"]))
    if as_json:
        show_json(rows)
        return
    from rich.table import Table
    from rich.text import Text

    titles = ("node", "state", *(name.replace("_", " ") for name in COLUMNS), "free", "problems")
    table = Table(*titles, box=None, padding=(0, 2, 0, 0))
    for node in rows:
        state = (
            node["state"] + (", by relay" if node.get("relayed") else "") + (", leaves" if node.get("leaving_s") else "")
        )
        problems = [*node.get("unsure", []), *([node["last_problem"]] if node.get("last_problem") else [])]
        table.add_row(
            node["id"][:12],
            Text(state, style=STYLES.get(node["state"], "")),
            *(Text(word(node, name)) for name in COLUMNS),
            size(node["free"]),
            Text("; ".join(problems)),
        )
    console().print(table)


async def all_of(home: Home, method: str) -> list[dict[str, Any]]:
    """All that a method of the engine tells of nodes, some hundreds with each answer."""
    from hivefs.daemon import control

    found: list[dict[str, Any]] = []
    async with control.connect(home.run, "engine") as engine:
        after: bytes | None = None
        while more := await engine.call(method, {"after": after, "most": MOST}):
            found += more
            after = bytes.fromhex(more[-1]["id"])
    return found


def word(node: dict[str, Any], name: str) -> str:
    """A value and how well it is known; nothing for a parent of which nobody speaks."""
    if name not in node["attributes"]:
        return "" if name.startswith("parent") else "?"
    value = node["attributes"][name]
    return f"{value} {LETTER.get(node['evidence'][name], '')}" if value else "?"

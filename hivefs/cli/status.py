"""``hivefs status``"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click
import trio

from hivefs.cli.drive import ask_or_none
from hivefs.cli.output import console, duration, json_option, show_json, size
from hivefs.daemon.home import Home, default_home

if TYPE_CHECKING:
    from rich.console import RenderableType


QUEUES = {
    "placing": "pieces on their way into stripes",
    "offered": "placed pieces that the drive has not taken yet",
    "checkpoint": "records for the next checkpoint",
    "evacuate": "metadata stripes that the next checkpoint empties",
    "repair": "stripes to repair",
    "repair_later": "stripes that miss few of many shares and can wait",
    "moving": "",  # the sum of the next two
    "repack": "jobs that move pieces into other stripes",
    "rebalance": "shares to move to emptier nodes",
    "audit": "shares that nodes owe an answer for",
    "sweep": "nodes of which all shares are looked at",
    "leases": "nodes at which leases are to be renewed",
    "garbage": "shares to delete",
    "doomed": "entries to forget after the next checkpoint",
    "unknown": "shares at nodes that nothing names",
    "spares": "old copies of shares that are kept for a while",
    "definitions": "old policies and descriptions of nodes to forget",
    "reputation": "nodes whose conduct is still to be written down",
}
"""The engine's queues (daemon/engine_queues.py) in words, after a number."""


CLOCK_DOUBTED = "most nodes say another time, so nothing is forgotten: is the clock of this machine right?"


@click.command("status")
@click.option("--watch", is_flag=True, help="Show it anew every second until Ctrl-C.")
@json_option
def command(watch: bool, as_json: bool) -> None:
    """Show the drive, the engine, the nodes, and how much is safe already.

    local: on this machine; remote: enough shares of it are on nodes; guaranteed: the placement is proved, and
    all shares are placed or so many that repair waits (docs/policies.md). Exit code 0 whether mounted or not; --json says
    so in "mount" and "engine" (null: not running).
    """
    home = Home.load(default_home())
    if as_json:
        show_json(gather(home))
    elif watch:
        _watch(home)
    else:
        console().print(picture(gather(home)))


def gather(home: Home) -> dict[str, Any]:
    """Everything that both processes say; null where one does not run."""

    async def both() -> tuple[Any, Any]:
        return await ask_or_none(home, "mount", "status"), await ask_or_none(home, "engine", "status")

    mount, engine = trio.run(both)
    vault = home.vault
    value = {
        "home": home.path,
        "vault_id": vault.vault_id,
        "code": f"{vault.needed}/{vault.total}",
        "lock": vault.wrap.method,
        "mount": mount,
        "engine": engine,
    }
    value["levels"] = None if mount is None else {"local": mount["dirty_bytes"], **((engine or {}).get("levels") or {})}
    value["eta"] = eta(value)
    return value


def eta(value: dict[str, Any]) -> dict[str, Any]:
    """Seconds until everything is guaranteed (null: not known) and why it is not now."""
    mount, engine = value["mount"] or {}, value["engine"]
    if engine is None:
        return {"seconds": None, "reason": "the engine does not run"}
    if engine.get("starting"):
        return {"seconds": None, "reason": "the engine reads what it knows of the nodes, and begins then"}
    left = mount.get("dirty_bytes", 0)
    placing, repair, checkpoint = engine.get("placing", {}), engine.get("repair", {}), engine.get("checkpoint", {})
    waiting = placing.get("waiting_for") or checkpoint.get("waiting_for")
    if repair.get("queue"):
        waiting = waiting or repair.get("waiting_for")
    waiting = (engine.get("disk") or {}).get("waiting_for") or waiting
    if waiting:
        return {"seconds": None, "reason": str(waiting).rstrip(".")}
    rate = placing.get("rate", 0)
    if left and mount.get("yielding"):
        return {"seconds": None, "reason": f"{size(left)} to place, when the drive is not in use or after a while"}
    if left:
        return {"seconds": round(left / rate) if rate else None, "reason": f"{size(left)} to place"}
    if repair.get("queue"):
        return {"seconds": None, "reason": f"{repair['queue']} stripes to repair"}
    moving = engine.get("moving") or {}
    if moving.get("queue"):
        return {"seconds": moving.get("eta_s"), "reason": f"{size(moving['bytes_left'])} to move{_waits(moving)}"}
    if words := elsewhere_words(moving):
        return {"seconds": None, "reason": words}
    if mount and mount.get("published", 0) < mount.get("committed", 0):
        return {"seconds": None, "reason": "the next checkpoint is not out yet"}
    return {"seconds": 0, "reason": "everything is placed"}


def repair_words(repair: dict[str, Any]) -> str:
    """What repair does, and what waits or was done because of old copies."""
    words = [f"{repair['queue']} stripes wait, {repair['repaired']} repaired"]
    if repair.get("waiting_for_copies"):
        words.append(f"{repair['waiting_for_copies']} until old copies are deleted")
    if repair.get("risked"):
        words.append(f"{repair['risked']} about to be lost repaired without regard to old copies at nodes given up")
    return ", ".join(words)


def picture(value: dict[str, Any]) -> RenderableType:
    """For people."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    mount, engine = value["mount"], value["engine"]
    facts = Table.grid(padding=(0, 2))
    facts.add_row("vault", f"{value['vault_id'].hex()}  ({value['home']}, code {value['code']})")
    if mount is None:
        facts.add_row("drive", Text("not mounted", style="yellow"))
    else:
        facts.add_row("drive", f"mounted at {mount.get('mountpoint', '?')} (pid {mount.get('pid', '?')})")
        facts.add_row("to place", f"{size(mount.get('dirty_bytes', 0))} in {mount.get('dirty_slots', 0)} pieces")
        for level, count in value["levels"].items():
            facts.add_row(f"  {level}", size(count))
    if engine is None:
        facts.add_row("engine", Text("not running", style="yellow"))
        return facts
    facts.add_row("engine", f"running (pid {engine.get('pid', '?')})" + (", finishing" if engine.get("draining") else ""))
    if (disk := engine.get("disk") or {}) and disk["waiting_for"]:
        facts.add_row("disk", Text(disk["waiting_for"], style="red"))
    if engine.get("clock_doubted"):
        facts.add_row("clock", Text(CLOCK_DOUBTED, style="red"))
    if damaged := engine.get("damaged"):
        facts.add_row("damaged", Text("\n".join(damaged_words(damaged)), style="red"))
    wait = value["eta"]
    time_left = "" if wait["seconds"] is None else f"{duration(wait['seconds'])}, " if wait["seconds"] else ""
    facts.add_row("until safe", f"{time_left}{wait['reason']}")
    placing, repair, point = engine["placing"], engine["repair"], engine["checkpoint"]
    facts.add_row("placing", f"{size(placing['rate'])}/s, {size(placing['bytes'])} in {placing['stripes']} stripes so far")
    facts.add_row("repair", repair_words(repair))
    if (moving := engine.get("moving")) and (
        moving["queue"] or moving["moved"] or moving.get("rebalancing") or elsewhere_words(moving)
    ):
        facts.add_row("moving", moving_words(moving))
    if queues := queue_words(engine.get("queues") or {}):
        facts.add_row("waiting", "\n".join(queues))
    if audit := engine.get("audit"):
        facts.add_row("trust", trust_words(audit, engine.get("spares") or {}))
    if policies := engine.get("policies"):
        facts.add_row("policies", policy_words(policies))
        facts.add_row("head", freshness_words(policies["freshness"]))
    age = "never" if not point["published_ns"] else f"{duration(time.time() - point['published_ns'] / 1e9)} ago"
    facts.add_row("checkpoint", f"number {point['sequence']}, {age}, {point['level']}")
    if engine.get("capacity"):
        facts.add_row("room", f"{size(engine['capacity']['free'])} of {size(engine['capacity']['total'])} free in the hive")
    facts.add_row("cache", size(engine["cache_bytes"]))
    return Group(facts, _nodes(engine["nodes"], engine["nodes_in_state"]))


def queue_words(queues: dict[str, int]) -> list[str]:
    """What waits, a line for each queue that is not empty. One of another release of the engine has only its name."""
    return [f"{count} {QUEUES.get(duty, duty)}" for duty, count in queues.items() if count and QUEUES.get(duty, duty)]


def damaged_words(damaged: list[dict[str, str]]) -> list[str]:
    """A line for each record of a node that does not open, of very many for the first."""
    words = [f"node {found['id'][:12]}: {found['words']}" for found in damaged[:8]]
    return [*words, f"and {len(damaged) - 8} more"] if len(damaged) > 8 else words


def trust_words(audit: dict[str, Any], spares: dict[str, Any]) -> str:
    """Audits, and what follows from them, in one line."""
    words = [f"{audit['passed']} audits passed, {audit['failed']} failed"]
    if audit["owed"]:
        words.append(f"{audit['owed']} shares owed")
    if audit["sweeps"]:
        words.append(f"all shares of {audit['sweeps']} nodes are looked at")
    if audit["suspended"]:
        words.append(f"{audit['suspended']} nodes out of trust")
    if spares.get("waiting"):
        words.append(f"{spares['waiting']} old copies of shares kept")
    if audit["cut_off"]:
        words.append("most nodes are away at once, so nobody is given up soon")
    return ", ".join(words)


def trust_of(node: dict[str, Any]) -> str:
    """That a node is out of trust, and how it comes back: by right answers to audits and reads of what it still holds."""
    left = node.get("answers_left")
    return f", out of trust until about {left} more right answers" if left else ", out of trust"


def policy_words(policies: dict[str, Any]) -> str:
    """Policies with their codes, and how much is not as they say, in one line."""
    if policies.get("problem"):
        return f"cannot be read, so nothing is placed or moved ('hivefs policy edit' mends it): {policies['problem']}"
    words = ", ".join(f"{name} {code}" for name, code in policies["codes"].items())
    out = ", ".join(f"{size(count)} of {name}" for name, count in policies["out_of_policy"].items() if count)
    return f"{words}; out of policy: {out}" if out else words


def freshness_words(fresh: dict[str, Any]) -> str:
    """Whether a device can know that a head is the newest, in one line."""
    kept = f"kept by {fresh['nodes']} nodes"
    return f"{kept}; freshness here: {fresh['remembering_device']}; on a fresh device: {fresh['fresh_device']}"


def elsewhere_words(moving: dict[str, Any]) -> str:
    """Which data lies by another policy than its files have; empty when none does. An engine of before does not say it."""
    found = moving.get("elsewhere") or {"stripes": {}, "asking": False}
    counts = ", ".join(f"{count} to {name}" for name, count in found["stripes"].items())
    if counts:
        why = f" ({found['problems']})" if found["problems"] else ""
        return f"stripes wait to be moved to the policy of their files: {counts}{why}{_waits(moving)}"
    return "it is being looked which policies files have now" if found["asking"] else ""


def moving_words(moving: dict[str, Any]) -> str:
    """What the engine moves of its own accord, in one line."""
    if not moving["queue"] and (words := elsewhere_words(moving)):
        return words
    if not moving["queue"]:
        now = "nothing now"
        if moving.get("rebalancing"):  # a little of it, then a look at how full they are then
            now = "filling nodes give to others, some each minute" + _waits(moving)
        return f"{now}, {size(moving['moved_bytes'])} so far, {size(moving['freed_bytes'])} of room came back by it"
    why = ", ".join(sorted(moving["reasons"]))
    left = "" if moving["eta_s"] is None else f", {duration(moving['eta_s'])} left"
    return f"{size(moving['bytes_left'])} ({why}), {size(moving['rate'])}/s{left}{_waits(moving)}"


def _waits(moving: dict[str, Any]) -> str:
    """Why nothing is moved now, behind how much is to be; empty when it goes on."""
    return f", waits: {moving['waiting_for'].rstrip('.')}" if moving["waiting_for"] else ""


def _nodes(nodes: list[dict[str, Any]], counts: dict[str, int]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table("node", "state", "country", "operator", "free", "problem", box=None, padding=(0, 2, 0, 0))
    styles = {"online": "green", "offline": "yellow", "gone": "red"}
    for node in sorted(nodes, key=lambda n: (n["attributes"].get("country", ""), n["id"])):
        said = node["attributes"]
        table.add_row(
            node["id"][:12],
            Text(
                node["state"]
                + (", by relay" if node.get("relayed") else "")
                + (", leaves" if node.get("leaving_s") else "")
                + (trust_of(node) if node.get("suspended") else ""),
                style=styles.get(node["state"], ""),
            ),
            said.get("country") or "?",
            said.get("operator") or "?",
            size(node["free"]),
            str(node.get("last_problem") or ""),
        )
    if (more := sum(counts.values()) - len(nodes)) > 0:
        words = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        table.add_row(f"and {more} more", f"(all: {words}; see 'hivefs nodes')")
    return table


def _watch(home: Home) -> None:
    from rich.live import Live

    with Live(picture(gather(home)), console=console(), refresh_per_second=4) as live:
        while True:
            time.sleep(1)
            live.update(picture(gather(home)))

"""``hivefs policy explain``"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hivefs.cli.asking import ask_engine, vault_path
from hivefs.cli.output import console, json_option, plain, show_json
from hivefs.cli.secrets import unlock_options
from hivefs.daemon.home import Home, default_home

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.command("explain")
@click.argument("path")
@unlock_options
@json_option
def command(path: str, password_file: str | None, key_file: Path | None, as_json: bool) -> None:
    """Show for everything at and below PATH who holds what, and prove the guarantees.

    Of each rule the stripe is shown that is nearest to breaking it. Evidence: a attested, m measured, r registry,
    c claimed.
    """
    home = Home.load(default_home())
    value = {"path": vault_path(home, path)}
    found = ask_engine(home, "policy_explain", value, password_file, key_file, visible=not as_json)
    if as_json:
        show_json(found)
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    out = console()
    codes = ", ".join(f"{count} of {code}" for code, count in found["codes"].items()) or "none"
    out.print(f"{plain(found['path'])}: policy {found['policy']}, {found['files']} files, stripes: {codes}")
    if found["missing_shares"]:
        out.print(missing_words(found))
    if found["local"]:
        out.print(f"{found['local']} files are not wholly placed yet: some of them is only on this machine")
    for name, policy in found["policies"].items():
        if policy["limits"]:
            out.print(f"policy {name}: {policy['limits']}")
        for code, words in policy["repair"].items():
            out.print(f"policy {name}: repair of {code} begins {words}")
        if policy["infeasible"]:
            out.print(f"policy {name} waits: {policy['infeasible']}")
    out.print()
    out.print(holders_table(found["holders"], found["more_holders"]))
    out.print()
    for what, part in (("data", found), ("metadata", found["metadata"])):
        out.print(f"{what}: {part['proved']} stripes proved, {part['failing']} not")
        for proof in part["proofs"]:
            for line in proof_lines(proof):
                out.print(f"  {line}")
        for reason in part["reasons"]:
            out.print(f"  not proved: {reason}")
    fresh = found["freshness"]
    out.print(f"freshness of the head: on a device that remembers {fresh['remembering']}; on a fresh one {fresh['fresh']}")
    for words in looked_words(found):
        out.print(words)


def looked_words(found: dict[str, Any]) -> list[str]:
    """A line where files changed while they were looked at, else none. An engine of another release does not say."""
    looked = found.get("looked", {})
    if not looked.get("changed"):
        return []
    began, ended = (time.strftime("%H:%M:%S", time.localtime(looked[end] / 1e9)) for end in ("from_ns", "to_ns"))
    return [
        f"files changed meanwhile: each was looked at once between {began} and {ended}, as it was then; one that was moved "
        "or renamed may be missing"
    ]


def missing_words(found: dict[str, Any]) -> str:
    """How many shares nobody has, in one line."""
    count = found["missing_shares"]
    return f"{count} share{' is' if count == 1 else 's are'} missing now and will be made again"


def proof_lines(proof: dict[str, Any]) -> list[str]:
    """The two guarantees of one rule with their numbers."""
    lines = []
    head = f"{proof['policy']}, {proof['family']}"
    secret, free = proof["no_reassembly"], proof["no_hostage"]
    if secret is not None:
        word = "holds" if secret["holds"] else "DOES NOT HOLD"
        who = " and ".join(secret["worst"]) or "nobody"
        numbers = f"{who} at most {secret['shares']} shares, {proof['needed']} of {proof['total']} rebuild"
        lines.append(f"{head}: no reassembly by {secret['coalition']} {word}: {numbers}")
    if free is not None:
        word = "holds" if free["holds"] else "DOES NOT HOLD"
        who = " and ".join(free["worst"]) or "nobody"
        numbers = f"without {who} {free['remaining']} shares remain, {free['must_remain']} must"
        lines.append(f"{head}: no hostage of {free['lose']} {word}: {numbers}")
    return lines


def holders_table(holders: list[dict[str, Any]], more: int) -> RenderableType:
    """Who holds how many shares, and under whose authority; ``more`` nodes are left out."""
    from rich.table import Table

    columns = ("country", "operator", "operator_country", "parent", "parent_country")
    table = Table("node", "shares", "state", *(c.replace("_", "'s ") for c in columns), box=None, padding=(0, 2, 0, 0))

    def said(holder: dict[str, Any], name: str) -> str:
        value = holder["attributes"].get(name)
        return f"{value} ({holder['evidence'][name][0]})" if value else "" if name.startswith("parent") else "?"

    for holder in holders:
        values = [said(holder, name) for name in columns]
        table.add_row(holder["node"][:12], str(holder["shares"]), holder["state"], *values)
    if more:
        table.add_row(f"and {more} more")
    return table

"""``hivefs hive members``"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hivefs.cli.hive_source import hive_options, load_hive, some_node
from hivefs.cli.output import console, json_option, plain, show_json
from hivefs.model.node import Membership, Role

if TYPE_CHECKING:
    from hivefs.daemon.owner import Known


@click.command("members")
@hive_options
@json_option
def command(hive_file: Path | None, nodes: tuple[str, ...], as_json: bool) -> None:
    """Show the members of the hive that its nodes have heard of, how well their attributes are known, and who is revoked.

    Of clients a node knows those that came to it, and those that joined by invitation.
    """
    import trio

    from hivefs.daemon import owner

    path, key, addresses = load_hive(hive_file, nodes)
    some_node(addresses)
    known = owner.Known(revoked=owner.load_list(path, key))
    trio.run(owner.ask, key, addresses, known)
    if not known.answered:
        raise next(iter(known.failed.values()))
    for subject, entry in known.entries.items():
        known.members.setdefault(subject, entry.membership)
    value = report(known, key.public)
    if as_json:
        show_json(value)
    else:
        _show(value)


def report(known: Known, hive_key: bytes) -> dict[str, Any]:
    """Everything, for programs."""
    made = known.revoked
    rows = [
        _row(m, known, made is not None and made.covers(m))
        for m in sorted(known.members.values(), key=lambda m: (m.roles, m.issued_ns, m.subject))
        if m.subject != hive_key
    ]
    listed = {
        "sequence": 0 if made is None else made.sequence,
        "issued_ns": 0 if made is None else made.issued_ns,
        "members": [] if made is None else list(made.members),
        "invitations": [] if made is None else list(made.invitations),
    }
    return {
        "hive": hive_key,
        "members": rows,
        "revocations": listed,
        "answered": len(known.answered),
        "failed": {address: str(error) for address, error in known.failed.items()},
    }


def _row(member: Membership, known: Known, revoked: bool) -> dict[str, Any]:
    entry = known.entries.get(member.subject)
    return {
        "id": member.subject,
        "roles": [role.name.lower() for role in Role if role & member.roles and role.name],
        "by": "owner" if member.invitation is None else "invitation",
        "invitation": None if member.invitation is None else member.invitation.key,
        "issued_ns": member.issued_ns,
        "expires_ns": member.expires_ns,
        "revoked": revoked,
        "attributes": [{"name": a.name, "value": a.value, "evidence": a.evidence.name.lower()} for a in member.attributes],
        "addresses": [] if entry is None else list(entry.address.reachable),
    }


def _show(value: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("member", "role", "since", "let in by", "state", "attributes", box=None, padding=(0, 2, 0, 0))
    for row in value["members"]:
        by = row["invitation"].hex()[:12] if row["invitation"] else "the owner"
        since = time.strftime("%Y-%m-%d", time.localtime(row["issued_ns"] / 1e9))
        said = plain(", ".join(f"{a['name']} {a['value']} ({a['evidence']})" for a in row["attributes"]))
        state = Text("revoked", style="red") if row["revoked"] else Text("member")
        table.add_row(row["id"].hex()[:16], ", ".join(row["roles"]), since, by, state, Text(said))
    out = console()
    out.print(table)
    listed = value["revocations"]
    if listed["sequence"]:
        counts = f"{len(listed['members'])} members and {len(listed['invitations'])} invitations"
        out.print(f"Revocation list {listed['sequence']}: {counts}")
    for address, reason in value["failed"].items():
        out.print(Text(plain(f"not asked: {address}: {reason}"), style="yellow"))

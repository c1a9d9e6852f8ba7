"""``hivefs invite``"""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from hivefs.cli.hive_source import hive_options, load_hive
from hivefs.cli.node_labels import FIXES, label_options
from hivefs.cli.output import json_option, show_json
from hivefs.cli.secrets import write_secret
from hivefs.crypto.keys import public_key
from hivefs.daemon.node_process import Labels
from hivefs.errors import BadSetting
from hivefs.formats.invite import MAX_ADDRESSES, MAX_USES, sign_invitation, ticket_to_text
from hivefs.model.ids import KEY_BYTES
from hivefs.model.node import Attribute, Evidence, Invitation, Role, Ticket

ROLES = {"client": Role.CLIENT, "node": Role.NODE, "both": Role.CLIENT | Role.NODE}
UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
LONGEST_SECONDS = 100 * 366 * 86_400


def seconds(text: str, name: str) -> int:
    """'36h' -> 129600; raises BadSetting."""
    cleaned = text.strip().lower()
    if not (cleaned[-1:] in UNITS and cleaned[:-1].isascii() and cleaned[:-1].isdigit() and len(cleaned) < 9):
        raise BadSetting(name=name, reason=f"'{text}' is not a time such as 30m, 36h, 7d or 4w")
    count = int(cleaned[:-1]) * UNITS[cleaned[-1]]
    if not 0 < count <= LONGEST_SECONDS:
        raise BadSetting(name=name, reason="it is more than nothing and at most a hundred years")
    return count


@click.command("invite")
@hive_options
@click.option(
    "--role", type=click.Choice(sorted(ROLES)), default="client", show_default=True, help="What newcomers may be."
)
@click.option("--uses", type=click.IntRange(1, MAX_USES), default=1, show_default=True, help="How many may join by it.")
@click.option("--expires", default="7d", show_default=True, help="How long one can join: 30m, 36h, 7d, 4w.")
@click.option("--member-for", default="", help="How long the memberships last, from now  [default: for ever].")
@label_options(FIXES)
@click.option(
    "--evidence",
    type=click.Choice([e.name.lower() for e in Evidence]),
    default="attested",
    show_default=True,
    help="How well you know what you fix.",
)
@click.option("--qr", is_flag=True, help="Show it as a QR code too.")
@click.option("--out", type=click.Path(path_type=Path), help="Write it to a new file that only you can read, not here.")
@json_option
def command(
    hive_file: Path | None,
    nodes: tuple[str, ...],
    role: str,
    uses: int,
    expires: str,
    member_for: str,
    labels: Labels,
    evidence: str,
    qr: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Make an invitation to the hive: one line of text.

    Whoever has the line can join until it is used up or has expired, so send it as you would send a key. Nothing is sent
    to any node now; a hive's first node is invited without --node.
    """
    known = Evidence[evidence.upper()]
    fixed = tuple(Attribute(a.name, a.value, known) for a in labels.attributes())
    now = time.time_ns()
    ends = now + seconds(expires, "--expires") * 10**9
    until = now + seconds(member_for, "--member-for") * 10**9 if member_for else 0
    if len(nodes) > MAX_ADDRESSES:
        raise BadSetting(name="--node", reason=f"an invitation holds at most {MAX_ADDRESSES} addresses")
    _, key, addresses = load_hive(hive_file, nodes)
    seed = os.urandom(KEY_BYTES)
    bare = Invitation(key.public, public_key(seed), ROLES[role], fixed, now, ends, uses, until)
    invitation = sign_invitation(key.seed, bare)
    text = ticket_to_text(Ticket(invitation, seed, addresses[: 3 if hive_file is None else MAX_ADDRESSES]))
    if out is not None:
        write_secret(out, text, "--out")
    if as_json:
        value = {"id": invitation.key, "hive": key.public, "role": role, "uses": uses, "expires_ns": ends}
        show_json({**value, "out": out} if out is not None else {**value, "invitation": text})
        return
    click.echo(text if out is None else f"The invitation is in {out}")
    if qr:
        click.echo(qr_code(text))
    node = "hivefs node join - DIRECTORY --listen /ip4/.../tcp/PORT"
    node += "".join(f" --{name} .." for name in ("country", "operator") if name not in {a.name for a in fixed})
    command = {"client": "hivefs join -", "node": node}.get(role, f"hivefs join -, or {node}")
    click.echo(
        f"For {uses} {'newcomer' if uses == 1 else 'newcomers'}, who join with: {command}\n"
        f"To take it back: hivefs hive revoke --invitation {invitation.key.hex()}",
        err=True,
    )


def qr_code(text: str) -> str:
    """For a terminal. Raises BadSetting."""
    try:
        import segno
    except ImportError:
        raise BadSetting(name="--qr", reason="the Python package 'segno' is not installed") from None
    from io import StringIO

    out = StringIO()
    try:
        segno.make_qr(text, error="l").terminal(out=out, compact=True, border=2)
    except segno.DataOverflowError:
        raise BadSetting(name="--qr", reason="the invitation is too long for a QR code; say fewer addresses") from None
    return out.getvalue().rstrip("\n")

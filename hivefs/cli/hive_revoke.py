"""``hivefs hive revoke``"""

from __future__ import annotations

from pathlib import Path

import click

from hivefs.cli.hive_source import hive_options, load_hive
from hivefs.cli.output import json_option, show_json
from hivefs.errors import BadSetting
from hivefs.formats.invite import is_ticket, ticket_from_text
from hivefs.model.ids import KEY_BYTES


@click.command("revoke")
@click.argument("ids", nargs=-1)
@hive_options
@click.option("--member", "members", multiple=True, help="Whole id of a member that no node has to know.")
@click.option("--invitation", "invitations", multiple=True, help="Whole id of an invitation: all who joined by it go.")
@click.option("--lift", is_flag=True, help="Take these off the list again.")
@json_option
def command(
    ids: tuple[str, ...],
    hive_file: Path | None,
    nodes: tuple[str, ...],
    members: tuple[str, ...],
    invitations: tuple[str, ...],
    lift: bool,
    as_json: bool,
) -> None:
    """Revoke members and invitations. IDS are those of 'hivefs hive members' (their beginning is enough), or an invitation.

    The list is signed, kept beside the owner's key, and given to every node that can be reached; nodes and clients pass it
    on. Without IDS the list is given to the nodes again.
    """
    import trio

    from hivefs.daemon import owner

    path, key, addresses = load_hive(hive_file, nodes)
    own = owner.load_list(path, key)
    known = owner.Known(revoked=own)
    if addresses:
        trio.run(owner.ask, key, addresses, known)
        for subject, entry in known.entries.items():
            known.members.setdefault(subject, entry.membership)
    keys = {_whole(text, "--member") for text in members}
    of_invitations = {_whole(text, "--invitation") for text in invitations}
    for text in ids:
        if is_ticket(text):
            of_invitations.add(ticket_from_text(text).invitation.key)
        else:
            found, is_invitation = owner.resolve(text, known, known.revoked)
            (of_invitations if is_invitation else keys).add(found)
    if keys or of_invitations or (own is not None and known.revoked is not None and not owner.holds(known.revoked, own)):
        made = owner.changed(key, (own, known.revoked), keys, of_invitations, lift)
    elif known.revoked is not None and not lift:
        made = known.revoked
    else:
        raise BadSetting(name="IDS", reason="say whom to revoke; there is no list yet that could be given to the nodes")
    owner.save_list(path, made)
    told = trio.run(owner.tell, key, addresses, made, known) if addresses else 0
    if addresses and not told:
        raise next(iter(known.failed.values()))
    if as_json:
        show_json(
            {
                "sequence": made.sequence,
                "members": list(made.members),
                "invitations": list(made.invitations),
                "told": told,
                "list": owner.list_file(path),
            }
        )
        return
    click.echo(f"Revocation list {made.sequence}: {len(made.members)} members, {len(made.invitations)} invitations")
    if told:
        click.echo(f"{told} nodes have it now; they pass it on.")
    else:
        click.echo(f"No node has it yet: it is in {owner.list_file(path)}; say --node ADDRESS to give it to the hive.")


def _whole(text: str, option: str) -> bytes:
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise BadSetting(name=option, reason=f"it is the whole id, {2 * KEY_BYTES} hexadecimal digits")
    return key

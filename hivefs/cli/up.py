"""``hivefs up [--nodes N] [MOUNTPOINT]``"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hivefs.cli.init import let_in_by, make_vault, show_phrase
from hivefs.cli.output import json_option, show_json
from hivefs.cli.secrets import lock_options, new_lock, open_vault
from hivefs.daemon.embedded import DEFAULT_NODES, NODE_GONE_AFTER_S, EmbeddedHive, Member, default_hive
from hivefs.daemon.home import Home, Secrets, default_home
from hivefs.errors import BadSetting, HiveMissing, HiveProblem, MountpointProblem, VaultMissing


@click.command("up")
@click.argument("mountpoint", type=click.Path(path_type=Path), required=False)
@click.option("--nodes", type=int, help=f"Number of nodes of a new hive  [default: {DEFAULT_NODES}].")
@click.option("--capacity", help="Room of each node of a new hive: 500M, 50G  [default: 70 % of the free disk in all].")
@lock_options
@click.option("--phrase-out", type=click.Path(path_type=Path), help="Write a new vault's phrase to a new file, not here.")
@json_option
def command(
    mountpoint: Path | None,
    nodes: int | None,
    capacity: str | None,
    password_file: str | None,
    key_file: Path | None,
    no_password: bool,
    phrase_out: Path | None,
    as_json: bool,
) -> None:
    """Start the embedded hive in HIVEFS_HIVE: real node processes on this machine, to try HiveFS out.

    With MOUNTPOINT a vault is made in HIVEFS_HOME when there is none, and mounted. Calling it again starts what does
    not run. The nodes are labelled with four jurisdictions, but stand on one machine: this shows how HiveFS works, it
    does not protect against losing the machine.
    """
    hive_path, home_path = default_hive(), default_home()
    _apart(hive_path, home_path)
    hive = _hive(hive_path, nodes, capacity)

    def told(member: Member) -> None:
        if not as_json:
            click.echo(f"node {member.number}: {member.country}, operator {member.operator}")

    started = hive.start(told)
    result: dict[str, Any] = {
        "hive": hive_path,
        "code": f"{hive.needed}/{hive.total}",
        "started": len(started),
        "nodes": [
            {"number": m.number, "pid": m.pid, "address": m.address, "country": m.country, "operator": m.operator}
            for m in hive.members()
        ],
    }
    if not as_json:
        click.echo(
            f"The hive runs: {len(result['nodes'])} nodes, any {hive.needed} of {hive.total} shares rebuild a stripe "
            f"({hive_path})"
        )
    if mountpoint is not None:
        result |= _drive(home_path, hive, mountpoint, (password_file, key_file, no_password), phrase_out, as_json)
    if as_json:
        show_json(result)


def _hive(path: Path, nodes: int | None, capacity: str | None) -> EmbeddedHive:
    try:
        hive = EmbeddedHive.load(path)
    except HiveMissing:
        from hivefs.cli.sizes import byte_count

        room = None if capacity is None else byte_count(capacity)
        return EmbeddedHive.create(path, DEFAULT_NODES if nodes is None else nodes, room)
    if nodes is not None and nodes != len(hive.addresses):
        raise HiveProblem(path=path, reason=f"it has {len(hive.addresses)} nodes already; --nodes is for a new one")
    return hive


def _drive(
    path: Path,
    hive: EmbeddedHive,
    mountpoint: Path,
    lock: tuple[str | None, Path | None, bool],
    phrase_out: Path | None,
    quiet: bool,
) -> dict[str, Any]:
    """Make the vault where there is none, and mount it where it is not mounted yet."""
    import trio

    from hivefs.cli.drive import ask_or_none

    place = mountpoint.absolute()
    result: dict[str, Any] = {"mountpoint": place}
    try:
        home = Home.load(path)
    except VaultMissing:
        home, secrets, phrase = _new_vault(path, hive, lock, phrase_out)
        result |= {"phrase_out": phrase_out} if phrase_out else {"phrase": phrase}
        if not quiet:
            click.echo(f"New vault {home.vault.vault_id.hex()} in {home.path} (lock: {home.vault.wrap.method})")
            show_phrase(phrase, phrase_out)
        result["pid"] = _mount(home, secrets, place)
    else:
        status = trio.run(ask_or_none, home, "mount", "status")
        if status is None or Path(status["mountpoint"]) != place.resolve():
            result["pid"] = _mount(home, open_vault(home, lock[0], lock[1]), place)
        else:
            result["pid"] = status["pid"]
    if not quiet:
        click.echo(f"Mounted at {place}")
    return {"home": home.path, "vault_id": home.vault.vault_id, **result}


def _new_vault(
    path: Path, hive: EmbeddedHive, lock: tuple[str | None, Path | None, bool], phrase_out: Path | None
) -> tuple[Home, Secrets, str]:
    chosen = new_lock(*lock, default_none=True)
    settings = {"node_gone_after_s": NODE_GONE_AFTER_S}
    member, code = let_in_by(hive.key().seed), (hive.needed, hive.total)
    return make_vault(path, chosen, member, hive.addresses, code, settings, phrase_out)


def _mount(home: Home, secrets: Secrets, place: Path) -> int:
    """The pid of the new mount process."""
    from hivefs.cli.drive import mount_drive

    try:
        place.mkdir(parents=True)
    except FileExistsError:
        pass  # or a dead mount, which the mount process takes away
    except OSError as error:
        raise MountpointProblem(mountpoint=place, reason=f"it cannot be made: {error.strerror}") from error
    return mount_drive(home, secrets, place, {}, foreground=False).pid


def _apart(hive: Path, home: Path) -> None:
    one, other = hive.resolve(), home.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise BadSetting(name="HIVEFS_HIVE", reason=f"{hive} and HIVEFS_HOME ({home}) must not lie inside each other")

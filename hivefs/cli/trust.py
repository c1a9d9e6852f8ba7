"""``hivefs trust``"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from hivefs.cli.attest import attestations_in, whole_key
from hivefs.cli.output import console, json_option, show_json
from hivefs.daemon.home import Home, default_home
from hivefs.errors import BadSetting
from hivefs.model.words import showable


@click.command("trust")
@click.argument("key", default="")
@click.option("--name", default="", help="Your own name for the key.")
@click.option("--owner", is_flag=True, help="Trust the hive's owner: what it signs of nodes counts as it says.")
@click.option("--remove", is_flag=True, help="Trust the key no more.")
@click.option("--take", type=click.Path(path_type=Path), help="Take the attestations in a file (of keys you trust).")
@click.option("--registry", type=click.Path(path_type=Path), help="Use a table of networks (CSV); 'none' for no table.")
@click.option("--place", default=None, help="Where this machine is: LATITUDE,LONGITUDE or a country; 'none' for not known.")
@click.option("--list", "show", is_flag=True, help="Show whom this vault trusts.")
@json_option
def command(
    key: str,
    name: str,
    owner: bool,
    remove: bool,
    take: Path | None,
    registry: Path | None,
    place: str | None,
    show: bool,
    as_json: bool,
) -> None:
    """Say who may vouch for nodes: KEY is that of an attester ('hivefs attest'). Nobody is trusted from the start.

    What nobody vouches for whom you trust is claimed, and policies that ask for more (evidence = "attested") count it as
    unknown. Keys and attestations belong to the vault and come back with it; table and place belong to this machine. The
    table has lines NETWORK,COUNTRY,ASN,HOSTER. With a place, a node that answers faster than light could go and come is not
    where it says. The drive has to be mounted.
    """
    for option, word in (("--name", name), ("--place", place or "")):
        if not showable(word):  # also what is no UTF-8, which could not even be sent to the engine
            raise BadSetting(name=option, reason="it has characters that cannot be shown")
    home = Home.load(default_home())
    if owner:
        if key:
            raise BadSetting(name="--owner", reason="say a key or --owner, not both")
        key, name = home.vault.hive_key.hex(), name or "the hive's owner"
    did: dict[str, Any] = {}
    if key:
        wanted = whole_key(key, "KEY")
        done = _ask(home, "evidence_distrust" if remove else "evidence_trust", {"key": wanted, "name": name})
        if remove and not done:
            raise BadSetting(name="KEY", reason=f"{key} is not trusted")
        did["removed" if remove else "trusted"] = wanted
    elif remove:
        raise BadSetting(name="KEY", reason="say which key to trust no more")
    if take is not None:
        did["taken"] = _ask(home, "evidence_take", attestations_in(take))
    if registry is not None:
        did["registry"] = _registry(home, registry)
    if place is not None:
        did["place"] = _ask(home, "evidence_place", place)
    if show or not did:
        _show(_ask(home, "evidence", None), as_json)
    elif as_json:
        show_json(did)
    else:
        _say(did)


def _say(did: dict[str, Any]) -> None:
    for what, value in did.items():
        match what:
            case "trusted":
                click.echo(f"Attestations of {value.hex()} count for this vault.")
            case "removed":
                click.echo(f"Attestations of {value.hex()} count no more.")
            case "taken":
                click.echo(f"{value} attestations were news.")
            case "registry":
                click.echo(f"The table has {value['rows']} networks." if value else "No table is used any more.")
            case "place":
                click.echo(f"This machine is at {value}." if value else "Where this machine is, is not known.")


def _ask(home: Home, method: str, value: Any) -> Any:
    import trio

    from hivefs.cli.drive import ask

    return trio.run(ask, home, "engine", method, value, 60.0)


def _registry(home: Home, path: Path) -> Any:
    if str(path) == "none":
        return _ask(home, "evidence_registry", None)
    from hivefs.daemon import registry_file

    with registry_file.handed_over(home.engine, registry_file.read_csv(path)) as name:
        return _ask(home, "evidence_registry", name)


def _show(value: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show_json(value)
        return
    from rich.table import Table
    from rich.text import Text

    out = console()
    if value["trusted"]:
        table = Table("key", "name", "since", "attested nodes", box=None, padding=(0, 2, 0, 0))
        for row in value["trusted"]:
            since = time.strftime("%Y-%m-%d", time.localtime(row["since_ns"] / 1e9))
            table.add_row(row["key"].hex(), Text(row["name"]), since, str(row["nodes"]))
        out.print(table)
    else:
        out.print("Nobody is trusted: what nodes and the hive's owner say counts as claimed.")
    table_words = "none" if value["registry"] is None else f"{value['registry']['rows']} networks"
    out.print(f"table {table_words}; place of this machine {value['place'] or 'not known'}")

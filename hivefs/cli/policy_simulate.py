"""``hivefs policy simulate``"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hivefs.cli.asking import ask_engine, vault_path
from hivefs.cli.output import console, json_option, plain, show_json
from hivefs.cli.policy_explain import looked_words
from hivefs.cli.secrets import unlock_options
from hivefs.daemon.home import Home, default_home
from hivefs.errors import BadSetting
from hivefs.model.words import showable


@click.command("simulate")
@click.option("--lose", multiple=True, metavar="WHO,...", help="All nodes under these authorities are gone.")
@click.option("--seize", multiple=True, metavar="WHO,...", help="These authorities put together all shares they can get.")
@click.option(
    "--nodes-gone",
    type=click.IntRange(0, 1_000_000),
    default=0,
    metavar="N",
    help="And N more nodes: for each file those that hurt it most.",
)
@click.option("--path", default="/", help="Only what is at and below this path  [default: everything].")
@unlock_options
@json_option
def command(
    lose: tuple[str, ...],
    seize: tuple[str, ...],
    nodes_gone: int,
    path: str,
    password_file: str | None,
    key_file: Path | None,
    as_json: bool,
) -> None:
    """Show what would be left, and what could be put together. Nothing is changed.

    WHO is a country (DE), a bloc (EU), or operator:NAME, hoster:NAME, asn:NUMBER, subnet:NET. A node of which it is not
    known counts as under all of them. What is seized is sealed: without the keys of the vault it cannot be read.
    """
    for word in (*lose, *seize):
        if not showable(word):  # also what is no UTF-8, which could not even be sent to the engine
            raise BadSetting(name="--lose or --seize", reason=f"'{plain(word)}' has characters that cannot be shown")
    home = Home.load(default_home())
    value = {
        "lose": _words(lose),
        "seize": _words(seize),
        "nodes_gone": nodes_gone,
        "path": "/" if path == "/" else vault_path(home, path),
    }
    found = ask_engine(home, "policy_simulate", value, password_file, key_file, visible=not as_json)
    if as_json:
        show_json({**value, **found})
    else:
        _print(value, found)


def _words(said: tuple[str, ...]) -> list[str]:
    return [word.strip() for text in said for word in text.split(",") if word.strip()]


def _print(value: dict[str, Any], found: dict[str, Any]) -> None:
    from rich.table import Table

    rows = [("readable", "readable"), ("of these endangered (no share to spare)", "endangered"), ("lost", "lost")]
    if value["seize"]:
        who = " and ".join(value["seize"])
        rows += [(f"{who} could put together", "whole"), (f"{who} could put together in part", "partly")]
    table = Table("", "files", "stripes of metadata", box=None, padding=(0, 2, 0, 0))
    table.add_row("all", str(found["files"]["files"]), str(found["metadata_stripes"]["files"]))
    for words, key in rows:
        table.add_row(words, str(found["files"][key]), str(found["metadata_stripes"][key]))
    out = console()
    out.print(
        f"{found['nodes_left']} of {found['nodes']} nodes are left" + (" before more go" if value["nodes_gone"] else "")
    )
    out.print(table)
    if value["nodes_gone"]:
        low, high = found["files"]["least_expected"], found["files"]["most_expected"]
        bounds = f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"between {low:.3g} and {high:.3g}"
        out.print(
            f"lost: by the {value['nodes_gone']} nodes that hurt each file most, so what is readable is so whichever go; "
            f"with random ones {bounds} files are lost on average"
        )
    if found["local"]:
        out.print(f"{found['local']} files are partly only on this machine and are counted by what is placed")
    for words in looked_words(found):
        out.print(words)

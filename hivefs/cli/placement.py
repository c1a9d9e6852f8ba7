"""``hivefs placement``"""

from __future__ import annotations

from pathlib import Path

import click

from hivefs.cli.asking import ask_engine, vault_path
from hivefs.cli.output import console, json_option, show_json
from hivefs.cli.policy_explain import holders_table, missing_words
from hivefs.cli.secrets import unlock_options
from hivefs.daemon.home import Home, default_home


@click.command("placement")
@click.argument("path")
@unlock_options
@json_option
def command(path: str, password_file: str | None, key_file: Path | None, as_json: bool) -> None:
    """Show which nodes hold shares of what is at and below PATH, and whether its placement is proved."""
    home = Home.load(default_home())
    value = {"path": vault_path(home, path)}
    found = ask_engine(home, "policy_explain", value, password_file, key_file, visible=not as_json)
    if as_json:
        keys = (
            "path",
            "policy",
            "files",
            "local",
            "stripes",
            "proved",
            "failing",
            "missing_shares",
            "codes",
            "holders",
            "more_holders",
        )
        show_json({key: found[key] for key in keys})
        return
    out = console()
    out.print(holders_table(found["holders"], found["more_holders"]))
    state = "all proved" if not found["failing"] else f"{found['failing']} not proved"
    out.print(f"{found['files']} files in {found['stripes']} stripes ({state}), policy {found['policy']}")
    if found["missing_shares"]:
        out.print(missing_words(found))
    if found["local"]:
        out.print(f"{found['local']} files are not wholly placed yet")

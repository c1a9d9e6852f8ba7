"""``hivefs recover --node ADDRESS``"""

from __future__ import annotations

import os
from pathlib import Path

import click

from hivefs.cli.output import json_option, show_json
from hivefs.cli.secrets import lock_options, new_lock, read_phrase
from hivefs.crypto.phrase import secret_from_phrase
from hivefs.daemon.home import Home, Secrets, default_home
from hivefs.errors import VaultExists


@click.command("recover")
@click.option("--node", "address", required=True, help="Address of any node of the hive.")
@click.option("--phrase-file", help="File with the recovery phrase; - is standard input.")
@lock_options
@json_option
def command(
    address: str,
    phrase_file: str | None,
    password_file: str | None,
    key_file: Path | None,
    no_password: bool,
    as_json: bool,
) -> None:
    """Bring a vault back on a machine that has nothing but its recovery phrase.

    Fetches the newest head from the hive; names and contents follow as they are needed. Mount it afterwards. From
    standard input the phrase is the first line and the password the second.
    """
    home = default_home()
    if (home / "vault.json").exists():
        raise VaultExists(home=home)
    master = secret_from_phrase(read_phrase(phrase_file))
    lock = new_lock(password_file, key_file, no_password)
    import trio

    from hivefs.daemon.recover import recover

    draft = Home.prepare(home, Secrets(master, os.urandom(32)), lock)

    def report(text: str) -> None:
        if not as_json:
            click.echo(text)

    trio.run(recover, draft, draft.pending.keys(), address, report)
    made = Home.load(home)
    if as_json:
        show_json({"home": made.path, "vault_id": made.vault.vault_id, "device": made.vault.number})
    else:
        click.echo(f"Vault {made.vault.vault_id.hex()} is back in {made.path}\nNext: hivefs mount MOUNTPOINT")

"""``hivefs init``"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import click

from hivefs.cli.output import json_option, show_json
from hivefs.cli.secrets import lock_options, new_lock, write_phrase
from hivefs.crypto.phrase import phrase_from_secret
from hivefs.daemon import hive
from hivefs.daemon.embedded import EmbeddedHive, default_hive
from hivefs.daemon.home import DEFAULT_CODE, Home, Lock, Secrets, client_membership, default_home
from hivefs.errors import BadSetting, HivefsError, VaultExists
from hivefs.formats.vault import SETTINGS, check_setting
from hivefs.model.node import Membership


def make_vault(
    home: Path,
    lock: Lock,
    membership: Callable[[Secrets], Membership],
    nodes: tuple[str, ...],
    code: tuple[int, int],
    settings: dict[str, int],
    phrase_out: Path | None,
) -> tuple[Home, Secrets, str]:
    """A new vault and its recovery phrase, which is in ``phrase_out`` before the vault exists. ``membership`` gives the
    certificate of the vault's owner key.
    """
    if (home / "vault.json").exists():
        raise VaultExists(home=home)
    secrets = Secrets(os.urandom(32), os.urandom(32))
    phrase = phrase_from_secret(secrets.master)
    if phrase_out is not None:
        write_phrase(phrase_out, phrase)
    try:
        made = Home.create_as(home, secrets, lock, membership(secrets), nodes, *code, settings)
    except HivefsError:
        if phrase_out is not None:
            phrase_out.unlink()
        raise
    return made, secrets, phrase


def let_in_by(hive_seed: bytes) -> Callable[[Secrets], Membership]:
    """What the hive's owner signs for a vault of its own."""
    return lambda secrets: client_membership(hive_seed, secrets.keys().owner_key, time.time_ns())


def show_vault(made: Home, phrase: str, code: tuple[int, int], lock: Lock, phrase_out: Path | None, as_json: bool) -> None:
    """The new vault and what comes next."""
    if as_json:
        value = {"home": made.path, "vault_id": made.vault.vault_id, "code": f"{code[0]}/{code[1]}", "lock": lock.method}
        show_json({**value, "phrase_out": phrase_out} if phrase_out else {**value, "phrase": phrase})
        return
    click.echo(f"Vault {made.vault.vault_id.hex()} is in {made.path}")
    show_phrase(phrase, phrase_out)
    click.echo("Next: hivefs mount MOUNTPOINT")


def show_phrase(phrase: str, phrase_out: Path | None) -> None:
    """Once: on standard output in four lines, or where it was written."""
    if phrase_out is not None:
        click.echo(f"The recovery phrase is in {phrase_out}; move it to a safe place away from this machine.")
        return
    words = phrase.split()
    click.echo("\nRecovery phrase: write it down, it is shown this once. It alone brings everything back.\n")
    for row in range(0, len(words), 6):
        click.echo("    " + "  ".join(f"{i + 1:2} {words[i]:<9}" for i in range(row, row + 6)).rstrip())
    click.echo()


def parse_settings(pairs: tuple[str, ...]) -> dict[str, int]:
    """NAME=VALUE, checked; raises BadSetting."""
    settings = {}
    for pair in pairs:
        name, mark, value = pair.partition("=")
        if not mark or not value.strip().isdigit():
            raise BadSetting(name=name, reason="say NAME=NUMBER")
        settings[name] = check_setting(name, int(value))
    return settings


def parse_code(text: str) -> tuple[int, int]:
    """'4/6' -> (4, 6); raises BadSetting."""
    needed, _, total = text.partition("/")
    if not (needed.isdigit() and total.isdigit() and 1 <= int(needed) <= int(total) <= 255):
        raise BadSetting(name="--code", reason=f"'{text}' is not NEEDED/TOTAL such as 4/6")
    return int(needed), int(total)


@click.command("init")
@lock_options
@click.option("--phrase-out", type=click.Path(path_type=Path), help="Write the recovery phrase to a new file, not here.")
@click.option(
    "--hive", "hive_file", type=click.Path(path_type=Path), help="The hive owner's key file  [default: embedded]."
)
@click.option("--node", "nodes", multiple=True, help="Address of a node of that hive; repeat it for several.")
@click.option("--code", help="NEEDED/TOTAL shares  [default: 4/6, or what suits the embedded hive].")
@click.option("--set", "settings", multiple=True, metavar="NAME=NUMBER", help=f"A setting: {', '.join(SETTINGS)}.")
@json_option
def command(
    password_file: str | None,
    key_file: Path | None,
    no_password: bool,
    phrase_out: Path | None,
    hive_file: Path | None,
    nodes: tuple[str, ...],
    code: str | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make a vault in HIVEFS_HOME.

    The recovery phrase is shown once. The password or key file only protects the copy of the secret on this machine.
    """
    home = default_home()
    if (home / "vault.json").exists():
        raise VaultExists(home=home)
    chosen = parse_settings(settings)
    if hive_file is None:
        if nodes:
            raise BadSetting(name="--node", reason="say which hive they belong to with --hive FILE")
        embedded = EmbeddedHive.load(default_hive())
        seed, addresses = embedded.key().seed, embedded.addresses
        pair = (embedded.needed, embedded.total)
    else:
        if not nodes:
            raise BadSetting(name="--node", reason="say the address of at least one node of the hive")
        from hivefs.transport.addresses import split_address  # loads libp2p: a second

        for address in nodes:
            split_address(address)
        seed, addresses, pair = hive.load(hive_file).seed, nodes, DEFAULT_CODE
    if code is not None:
        pair = parse_code(code)
    lock = new_lock(password_file, key_file, no_password)
    made, _, phrase = make_vault(home, lock, let_in_by(seed), addresses, pair, chosen, phrase_out)
    show_vault(made, phrase, pair, lock, phrase_out, as_json)

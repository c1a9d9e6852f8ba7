"""Where secrets come from: files, standard input ("-"), or a prompt where there is a terminal. Never from arguments."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from hivefs.daemon.home import Home, Lock, Secrets, make_key_file, read_key_file, write_file
from hivefs.errors import BadInvitation, BadSetting, SecretNeeded
from hivefs.formats.invite import PREFIX, is_ticket, ticket_from_text
from hivefs.model.node import Ticket

F = TypeVar("F", bound=Callable[..., Any])
_LONGEST = 64 << 10
_LONGEST_NAME = 255


def unlock_options(function: F) -> F:
    """What opens an existing vault."""
    function = click.option("--key-file", type=click.Path(path_type=Path), help="The key file that opens the vault.")(
        function
    )
    return click.option("--password-file", help="File with the password in its first line; - is standard input.")(function)


def lock_options(function: F) -> F:
    """What a new vault will be opened with."""
    function = click.option("--no-password", is_flag=True, help="No lock: whoever reads HIVEFS_HOME can open the vault.")(
        function
    )
    function = click.option(
        "--key-file", type=click.Path(path_type=Path), help="Lock with a key file, which is made if it is missing."
    )(function)
    return click.option("--password-file", help="File with the password in its first line; - is standard input.")(function)


def new_lock(password_file: str | None, key_file: Path | None, no_password: bool, *, default_none: bool = False) -> Lock:
    """The lock of a new vault. Asks on a terminal when nothing was said; otherwise raises SecretNeeded, or chooses no
    lock where ``default_none``.
    """
    if sum((password_file is not None, key_file is not None, no_password)) > 1:
        raise BadSetting(name="lock", reason="give one of --password-file, --key-file and --no-password")
    if no_password:
        return Lock("none")
    if key_file is not None:
        return Lock("keyfile", read_key_file(key_file) if key_file.exists() else make_key_file(key_file))
    if password_file is not None:
        password = secret_line(password_file, "password")
        if not password:
            raise BadSetting(name="--password-file", reason="the password is empty; say --no-password for none")
        return Lock("password", password.encode())
    if _terminal():
        password = click.prompt(
            "Password for this vault (Enter for none)",
            hide_input=True,
            confirmation_prompt=True,
            default="",
            show_default=False,
            err=True,
        )
        return Lock("password", password.encode()) if password else Lock("none")
    if default_none:
        return Lock("none")
    raise SecretNeeded(what="password", option="--password-file, --key-file or --no-password")


def open_vault(home: Home, password_file: str | None, key_file: Path | None) -> Secrets:
    """Unlock, with what the vault's own lock asks for."""
    method = home.vault.wrap.method
    if method == "keyfile":
        if key_file is None:
            raise SecretNeeded(what="key file", option="--key-file")
        return home.unlock(read_key_file(key_file))
    if method == "password":
        if password_file is not None:
            return home.unlock(secret_line(password_file, "password").encode())
        if not _terminal():
            raise SecretNeeded(what="password", option="--password-file")
        return home.unlock(click.prompt("Password of the vault", hide_input=True, err=True).encode())
    return home.unlock(b"")


def read_phrase(phrase_file: str | None) -> str:
    """The recovery phrase: all words of the file (or of one line of standard input), or asked for."""
    if phrase_file == "-":
        return secret_line("-", "recovery phrase")
    if phrase_file is not None:
        return " ".join(_read(phrase_file, "recovery phrase").split())
    if not _terminal():
        raise SecretNeeded(what="recovery phrase", option="--phrase-file")
    return str(click.prompt("Recovery phrase (24 words)", err=True))


def read_ticket(source: str) -> Ticket:
    """An invitation: the text itself, "-" for the next line of standard input, or a file that holds it. As an argument all
    users of the machine can see it while the command runs. Raises BadInvitation, BadSetting.
    """
    if is_ticket(source):
        return ticket_from_text(source)
    if source == "-":
        return ticket_from_text(secret_line("-", "invitation"))
    if not source or "\0" in source or len(source) > _LONGEST_NAME or not Path(source).exists():
        # Not repeated: it may be an invitation whose beginning got lost.
        raise BadInvitation(reason=f"it does not begin with {PREFIX}, and there is no file of that name")
    return ticket_from_text(_read(source, "invitation"))


def write_phrase(path: Path, phrase: str) -> None:
    """Into a new file, 0600."""
    write_secret(path, phrase, "--phrase-out")


def write_secret(path: Path, text: str, option: str) -> None:
    """One line into a new file, 0600; raises BadSetting for the option."""
    try:
        write_file(path, text.encode() + b"\n", new=True)
    except OSError as error:
        raise BadSetting(name=option, reason=f"{path} cannot be written: {error.strerror}") from error


def secret_line(source: str, what: str) -> str:
    """The first line of a file, or the next line of standard input for "-", without its line end."""
    text = sys.stdin.readline(_LONGEST) if source == "-" else _read(source, what)
    return text.split("\n", 1)[0].removesuffix("\r")


def _read(source: str, what: str) -> str:
    try:
        with Path(source).open(encoding="utf-8") as file:
            return file.read(_LONGEST)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise BadSetting(name=f"file of the {what}", reason=f"{source} cannot be read: {reason}") from error


def _terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()

"""What the commands about policies have in common: an engine to ask, mounted or not, and paths inside of the drive."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import trio

from hivefs.cli.check import Bar
from hivefs.cli.drive import ask_or_none, need_engine
from hivefs.cli.output import plain
from hivefs.cli.secrets import open_vault
from hivefs.daemon import control
from hivefs.daemon.home import Home
from hivefs.errors import BadSetting
from hivefs.placement.language import bad_path

ANSWER_SECONDS = 300.0
"""The engine says how far it is every second or so; after this it does not work any more."""


def ask_engine(
    home: Home, name: str, value: Any, password_file: str | None, key_file: Path | None, *, visible: bool
) -> Any:
    """One call to the engine, which is started when none runs; progress on a terminal if ``visible``."""
    need_engine(home, lambda: open_vault(home, password_file, key_file))
    return trio.run(_call, home, name, value, visible)


async def _call(home: Home, name: str, value: Any, visible: bool) -> Any:
    async with control.connect(home.run, "engine") as engine:
        with Bar(visible) as bar:
            return await engine.call(name, value, timeout=ANSWER_SECONDS, progress=bar.show)


def vault_path(home: Home, path: str) -> str:
    """The place inside of the drive that is meant: of a path below the mount point, or one in the drive as it is. Raises
    BadSetting.
    """
    drive, whole = _mountpoint(home), _on_this_machine(path)
    if drive and (whole == drive or whole.startswith(drive.rstrip("/") + "/")):
        path = "/" + whole[len(drive) :].strip("/")
    reason = bad_path(path)
    if reason:
        raise BadSetting(
            name="PATH",
            reason=f"the path '{click.format_filename(path)}' {reason}, or below the mount point of a mounted drive",
        )
    return "/" + path.strip("/")


def nothing_there(
    home: Home, path: str, password_file: str | None, key_file: Path | None, *, visible: bool
) -> tuple[bool, str]:
    """Whether nothing is at ``path`` in the drive, as vault_path() understands it, and then words about it. ``path`` is as
    it was said: it may be one of this machine that was taken for one in the drive.
    """
    inside, drive = vault_path(home, path), _mountpoint(home)
    if drive:
        there = os.path.lexists(drive.rstrip("/") + inside)
    else:
        there = ask_engine(home, "policy_there", {"path": inside}, password_file, key_file, visible=visible)["there"]
    if there:
        return False, ""
    said = f"There is nothing at {plain(inside)} in the drive yet."
    if plain(inside) == plain(path.rstrip("/")) and os.path.lexists(path):
        said += f" What is at {plain(inside)} on this machine is not in the drive: paths are those inside of the drive."
    return True, said


def _mountpoint(home: Home) -> str:
    """Where the drive is mounted; "" when it is not."""
    status = trio.run(ask_or_none, home, "mount", "status")
    return "" if status is None else os.path.normpath(str(status["mountpoint"]))


def _on_this_machine(path: str) -> str:
    """``path`` from the root on; "" when the working directory was removed."""
    try:
        return os.path.normpath(Path.cwd() / path)
    except OSError:
        return ""

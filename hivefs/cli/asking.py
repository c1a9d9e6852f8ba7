"""What the commands about policies have in common: an engine to ask, mounted or not, and paths inside of the drive."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import trio

from hivefs.cli.check import Bar
from hivefs.cli.drive import ask_or_none, need_engine
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
    status = trio.run(ask_or_none, home, "mount", "status")
    try:
        whole = os.path.normpath(Path.cwd() / path)
    except OSError:  # the working directory was removed
        whole = ""
    if status is not None:
        drive = os.path.normpath(str(status["mountpoint"]))
        if whole == drive or whole.startswith(drive.rstrip("/") + "/"):
            path = "/" + whole[len(drive) :].strip("/")
    reason = bad_path(path)
    if reason:
        raise BadSetting(
            name="PATH",
            reason=f"the path '{click.format_filename(path)}' {reason}, or below the mount point of a mounted drive",
        )
    return "/" + path.strip("/")

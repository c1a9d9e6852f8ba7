"""``hivefs wait``"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click
import trio

from hivefs.cli.drive import ANSWER_SECONDS, ask_or_none
from hivefs.cli.output import console, json_option, show_json
from hivefs.daemon import control
from hivefs.daemon.home import Home, default_home
from hivefs.errors import NotReached, PathNotInDrive

PAUSE = 1.0
STEP_SECONDS = 120.0
"""The drive tells how far it is every second or so; after this it does not work any more."""


@click.command("wait")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--level", type=click.Choice(["local", "remote", "guaranteed"]), default="guaranteed", show_default=True)
@click.option("--timeout", type=float, metavar="S", help="Give up after S seconds  [default: never].")
@json_option
def command(paths: tuple[Path, ...], level: str, timeout: float | None, as_json: bool) -> None:
    """Return when everything below every PATH is safe at LEVEL."""
    home = Home.load(default_home())
    files = trio.run(wait_for, home, paths, level, float("inf") if timeout is None else timeout, not as_json)
    if as_json:
        show_json({"level": level, "files": files})


async def wait_for(home: Home, paths: tuple[Path, ...], level: str, timeout: float, visible: bool) -> int:
    """Files that reached ``level``; raises NotReached after ``timeout`` seconds."""
    with _Progress(visible, level) as progress:
        with trio.move_on_after(timeout):
            async with control.connect(home.run, "mount") as mount:
                drive = Path((await mount.call("status", timeout=ANSWER_SECONDS))["mountpoint"])
                inos = [_ino(path, drive) for path in paths]
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_hurry, home)
                    files = 0
                    for ino in inos:
                        value = {"ino": ino, "level": level}
                        total, _ = await mount.call("wait", value, timeout=STEP_SECONDS, progress=progress.show)
                        files += int(total)
                    nursery.cancel_scope.cancel()
                    return files
    raise NotReached(level=level, done=progress.done, total=progress.total, reason=await _reason(home))


async def _hurry(home: Home) -> None:
    """Ask the engine again and again not to wait for more to pack together; it may start or restart meanwhile."""
    while True:
        await ask_or_none(home, "engine", "hurry")
        await trio.sleep(PAUSE)


async def _reason(home: Home) -> str:
    from hivefs.cli.status import eta

    mount, engine = await ask_or_none(home, "mount", "status"), await ask_or_none(home, "engine", "status")
    return str(eta({"mount": mount, "engine": engine})["reason"])


def _ino(path: Path, drive: Path) -> int:
    try:
        here, there = os.lstat(path), os.lstat(drive)
    except OSError as error:
        raise PathNotInDrive(path=f"{path} ({error.strerror})") from error
    if here.st_dev != there.st_dev:
        raise PathNotInDrive(path=path)
    return here.st_ino


class _Progress:
    """A bar on a terminal, nothing elsewhere."""

    done = total = 0

    def __init__(self, visible: bool, level: str) -> None:
        self._visible = visible and sys.stderr.isatty()
        self._level = level

    def __enter__(self) -> _Progress:
        if self._visible:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar: Any = Progress(*columns, console=console(err=True), transient=True)
            self._task = self._bar.add_task(f"files {self._level}")
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._visible:
            self._bar.stop()

    def show(self, step: Any) -> None:
        """Move the bar; a step is [total, done]."""
        self.total, self.done = step
        if self._visible:
            self._bar.update(self._task, completed=self.done, total=self.total)

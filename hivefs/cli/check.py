"""``hivefs check``"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import trio

from hivefs.cli.drive import need_engine
from hivefs.cli.output import console, json_option, plain, show_json
from hivefs.cli.secrets import open_vault, unlock_options
from hivefs.daemon import control
from hivefs.daemon.home import Home, default_home
from hivefs.errors import CheckFailed


@click.command("check")
@click.option("--data", is_flag=True, help="Read and verify every share of every node.")
@click.option("--placement", is_flag=True, help="Prove every certificate of a placement again, without any node.")
@unlock_options
@json_option
def command(data: bool, placement: bool, password_file: str | None, key_file: Path | None, as_json: bool) -> None:
    """Check names, inodes, maps, chunks, stripes and shares; exit code 54 when something is wrong.

    A problem is something wrong or lost; a notice is something that is being put right by itself. Works mounted or not
    (then it may ask for the password, to start the engine). With --placement only the certificates are looked at: was each
    stripe proved at its time under its policy, and does its policy of today hold on what is known of the nodes today?
    """
    home = Home.load(default_home())
    need_engine(home, lambda: open_vault(home, password_file, key_file))
    findings = trio.run(_check, home, {"data": data, "placement": placement}, not as_json)
    problems = sum(f.get("count", 1) for f in findings if f["problem"])
    if as_json:
        show_json({"problems": problems, "findings": findings})
    else:
        for finding in findings:
            click.echo(f"{'problem' if finding['problem'] else 'notice'}: {finding['kind']}: {plain(finding['detail'])}")
        if not problems:
            click.echo("No problems found.")
    if problems:
        raise CheckFailed(problems=problems)


async def _check(home: Home, what: dict[str, bool], visible: bool) -> list[dict[str, Any]]:
    async with control.connect(home.run, "engine") as engine:
        with Bar(visible) as bar:
            findings: list[dict[str, Any]] = await engine.call("check", what, timeout=300.0, progress=bar.show)
            return findings


class Bar:
    """A progress bar on a terminal, nothing elsewhere. A step is [what, done, total]; a total of 0 is not known."""

    def __init__(self, visible: bool) -> None:
        self._visible = visible and sys.stderr.isatty()
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Bar:
        if self._visible:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar: Any = Progress(*columns, console=console(err=True))
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._visible:
            self._bar.stop()

    def show(self, step: Any) -> None:
        """Move the bar of one kind of work."""
        if not self._visible:
            return
        what, done, total = step
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(str(what))
        self._bar.update(self._tasks[what], completed=done, total=total or None)

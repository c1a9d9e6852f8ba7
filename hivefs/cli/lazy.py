"""A group of commands that are loaded when they are called: their summaries stand in a table."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from hivefs.cli.early import Loading


class LazyGroup(click.Group):
    """Command NAME lies in module ``hivefs.cli.`` + prefix + NAME as the attribute ``command``."""

    def __init__(self, *args: Any, summaries: Mapping[str, str], prefix: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._summaries = summaries
        self._prefix = prefix

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table."""
        return list(self._summaries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load it."""
        if cmd_name not in self._summaries:
            return None
        with Loading():
            command: click.Command = import_module(f"hivefs.cli.{self._prefix}{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """From the table, without loading anything."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self._summaries.items()))

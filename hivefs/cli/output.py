"""What commands have in common when they speak: JSON or words, sizes, times, a console for people."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hivefs.model.words import showable, shown

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

F = TypeVar("F", bound=Callable[..., Any])


def json_option(function: F) -> F:
    """``--json``: the same content for programs; keys stay, new ones may come."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(function)


def show_json(value: Any) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(value, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be shown as JSON")


def plain(text: str) -> str:
    """Words of others on one line: what could steer a terminal or look like another line is shown as "?"."""
    return shown(text)


def console(*, err: bool = False) -> Console:
    """A rich console for people; colours only on a terminal. Escapes in what is printed are shown as "?", whoever wrote
    them; ends of lines stay, so names of others go through ``plain`` where one could make a line of its own.
    """
    from rich.console import Console
    from rich.segment import Segment

    class Plain(Console):
        """The last word on all text; rich's own colours and movements are no text."""

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                text, style, control = segment
                if control is None and not showable(text):
                    segment = Segment("\n".join(map(plain, text.split("\n"))), style)
                yield segment

    made = Plain(stderr=err, highlight=False, soft_wrap=True, markup=False)  # names of others are no markup
    if not made.is_terminal:
        made.width = 200  # nobody looks at the width of a file or a pipe
    return made


def size(count: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return ""


def duration(seconds: float) -> str:
    """75 -> '1 min 15 s'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

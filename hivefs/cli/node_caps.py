"""The options of ``hivefs node init`` and ``hivefs node set`` that say how much of its line a node gives."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import click

from hivefs.cli.sizes import rate
from hivefs.node.caps import Caps, hours_from_text

ChangeCaps: TypeAlias = Callable[[Caps], Caps]
"""Raises BadSetting."""

_OPTIONS = (
    ("--max-upload", "RATE", "Most bytes of shares given a second: 10M, 500K, 'none'."),
    ("--max-download", "RATE", "Most bytes of shares taken a second."),
    ("--quiet-hours", "HOURS", "When other caps hold, by this machine's clock: 08:00-18:00,22:00-01:30; '' for never."),
    ("--quiet-upload", "RATE", "As --max-upload, in the quiet hours; 0 gives no shares then, 'same' is as always."),
    ("--quiet-download", "RATE", "As --max-download, in the quiet hours."),
)

_NAMES = tuple(option.removeprefix("--").replace("-", "_") for option, _, _ in _OPTIONS)


def cap_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options; the command gets ``change_caps``, which gives caps with what was said."""

    @functools.wraps(function)
    def call(*arguments: Any, **words: Any) -> Any:
        said = {name: words.pop(name) for name in _NAMES}
        return function(*arguments, change_caps=functools.partial(changed_caps, **said), **words)

    made: Callable[..., Any] = call
    for name, metavar, text in reversed(_OPTIONS):
        made = click.option(name, default=None, metavar=metavar, help=text)(made)
    return made


def changed_caps(
    caps: Caps,
    max_upload: str | None,
    max_download: str | None,
    quiet_hours: str | None,
    quiet_upload: str | None,
    quiet_download: str | None,
) -> Caps:
    """``caps`` with what was said. Raises BadSetting."""
    return replace(
        caps,
        upload=caps.upload if max_upload is None else rate(max_upload, "--max-upload"),
        download=caps.download if max_download is None else rate(max_download, "--max-download"),
        quiet_hours=caps.quiet_hours if quiet_hours is None else hours_from_text(quiet_hours),
        quiet_upload=caps.quiet_upload if quiet_upload is None else rate(quiet_upload, "--quiet-upload"),
        quiet_download=caps.quiet_download if quiet_download is None else rate(quiet_download, "--quiet-download"),
    )

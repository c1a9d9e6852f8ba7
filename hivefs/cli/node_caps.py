"""The options of ``hivefs node init`` and ``hivefs node set`` that say how much of its line a node gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import click

from hivefs.cli.sizes import rate
from hivefs.node.caps import Caps, hours_from_text

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    ("--max-upload", "RATE", "Most bytes of shares given a second: 10M, 500K, 'none'."),
    ("--max-download", "RATE", "Most bytes of shares taken a second."),
    ("--quiet-hours", "HOURS", "When other caps hold, by this machine's clock: 08:00-18:00,22:00-01:30; '' for never."),
    ("--quiet-upload", "RATE", "As --max-upload, in the quiet hours; 0 gives no shares then, 'same' is as always."),
    ("--quiet-download", "RATE", "As --max-download, in the quiet hours."),
)


def cap_options(function: F) -> F:
    """Adds the options; each is None when it was not said."""
    for name, metavar, words in reversed(_OPTIONS):
        function = click.option(name, default=None, metavar=metavar, help=words)(function)
    return function


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

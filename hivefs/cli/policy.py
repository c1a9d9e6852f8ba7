"""``hivefs policy ...``"""

from __future__ import annotations

import click

from hivefs.cli.lazy import LazyGroup

SUMMARIES = {
    "show": "Show the policies in force.",
    "check": "Check a policy.toml, or whether the nodes can keep the one in force.",
    "apply": "Put a policy.toml into force.",
    "edit": "Edit the policies in your editor.",
    "set": "Set the policy of a path.",
    "explain": "Show who holds what at a path, and prove it.",
    "simulate": "Show what would be left if authorities or nodes were lost.",
}


@click.command("policy", cls=LazyGroup, summaries=SUMMARIES, prefix="policy_")
def command() -> None:
    """Say which authorities must never read or withhold your data, and see it proved (docs/policies.md)."""

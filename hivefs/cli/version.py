"""``hivefs version``"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import click

from hivefs import __version__
from hivefs.cli.output import json_option, show_json
from hivefs.content import product

PARTS = ("pyfuse3", "trio", "lmdb", "cryptography", "zfec", "libp2p")


@click.command("version")
@json_option
def command(as_json: bool) -> None:
    """Show the version of HiveFS and of what it stands on."""
    parts = {"hivefs": __version__, "python": platform.python_version(), **{name: _version(name) for name in PARTS}}
    parts["isa-l"] = product.LIBRARY if product.available() else "not installed"
    if as_json:
        show_json(parts)
    else:
        click.echo("\n".join(f"{name} {number}" for name, number in parts.items()))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"

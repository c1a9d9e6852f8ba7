"""Which hive an owner's command is about: a key file, or the embedded hive; and the nodes that can be asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from hivefs.daemon import hive
from hivefs.daemon.embedded import EmbeddedHive, default_hive
from hivefs.daemon.hive import HiveKey
from hivefs.errors import BadSetting

F = TypeVar("F", bound=Callable[..., Any])


def hive_options(function: F) -> F:
    """``--hive FILE`` and ``--node ADDRESS``."""
    function = click.option("--node", "nodes", multiple=True, help="Address of a node of the hive; repeat it for several.")(
        function
    )
    return click.option(
        "--hive", "hive_file", type=click.Path(path_type=Path), help="The hive owner's key file  [default: embedded]."
    )(function)


def load_hive(hive_file: Path | None, nodes: tuple[str, ...]) -> tuple[Path, HiveKey, tuple[str, ...]]:
    """Key file, key and addresses to ask; the embedded hive's own unless others were said. Raises KeyFileProblem, Corrupt,
    HiveMissing, BadAddress.
    """
    if hive_file is None:
        embedded = EmbeddedHive.load(default_hive())
        path, addresses = embedded.path / "hive.key", embedded.addresses
    else:
        path, addresses = hive_file, ()
    if nodes:
        from hivefs.transport.addresses import split_address  # loads libp2p: a second

        for address in nodes:
            split_address(address)
    return path, hive.load(path), nodes or addresses


def some_node(addresses: tuple[str, ...]) -> None:
    """Raise BadSetting when there is nobody to ask."""
    if not addresses:
        raise BadSetting(name="--node", reason="say the address of at least one node of the hive")

"""A real engine in a vault that was never mounted: it answers, and lets the first mount have the metadata it made."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from mount_tools import LIMIT, Mounted

from hivefs.cli.drive import start_engine, stop_engine
from hivefs.daemon import control
from hivefs.errors import StoreDamaged

pytestmark = pytest.mark.fuse


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Mounted]:
    """Not mounted; a vault of no hive, so that nothing is ever placed and the engine goes on to try."""
    made = Mounted(tmp_path)
    try:
        yield made
    finally:
        made.clean()
        trio.run(stop_engine, made.home)


def ask(vault: Mounted, name: str, value: Any = None) -> Any:
    async def call() -> Any:
        async with control.connect(vault.home.run, "engine") as engine:
            return await engine.call(name, value, timeout=LIMIT)

    return trio.run(call)


def test_an_engine_before_the_first_mount_does_no_harm(vault: Mounted) -> None:
    start_engine(vault.home, vault.secrets)
    assert ask(vault, "policy_get")["text"] == ""
    assert ask(vault, "check") == []
    assert not any(found["problem"] for found in ask(vault, "check", {"placement": True}))
    assert ask(vault, "policy_there", {"path": "/Later"})["there"] is False
    vault.mount()
    (vault.path / "Later").mkdir()
    vault.unmount()
    trio.run(stop_engine, vault.home)
    shutil.rmtree(vault.home.metadata)
    with pytest.raises(StoreDamaged, match="it is not there"):
        vault.mount()
    start_engine(vault.home, vault.secrets)
    for name, value in (("check", None), ("policy_there", {"path": "/Later"})):
        with pytest.raises(StoreDamaged, match="it is not there"):
            ask(vault, name, value)

"""What processes say whose starter is killed, at any moment: nothing. Else it would stand in the log of engine or mount."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from hivefs.daemon import launch
from hivefs.daemon.thinking import LENGTH, packed
from hivefs.errors import HivefsError

CHILDREN = ("hivefs.daemon.thinking", "hivefs.daemon.looking")


@pytest.mark.parametrize("module", CHILDREN)
@pytest.mark.parametrize("asked", [b"", b"\x00", packed(b"x" * 100_000)[:70_000], packed(b"x" * 1000)[: LENGTH + 1]])
def test_a_child_whose_engine_is_gone_ends_without_a_word(module: str, asked: bytes) -> None:
    command = [sys.executable, "-P", "-m", module]
    done = subprocess.run(command, input=asked, capture_output=True, timeout=120, check=False, env=launch.environment())
    assert (done.returncode, done.stderr) == (0, b"")
    assert int.from_bytes(done.stdout[:LENGTH], "big") == len(done.stdout) - LENGTH, "it said its release, and no more"


@pytest.mark.parametrize("module", CHILDREN)
def test_a_child_to_which_nobody_listens_ends_without_a_word(module: str) -> None:
    command = [sys.executable, "-P", "-m", module]
    pipes: dict[str, Any] = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    with subprocess.Popen(command, env=launch.environment(), **pipes) as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(120) == 0


def test_what_is_started_has_its_frame_before_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a starter that is killed just then leaves an engine that finds nothing on its standard input."""
    waiting: list[int] = []

    def no_process(*_: Any, stdin: int, **__: Any) -> Any:
        waiting.append(struct.unpack("i", fcntl.ioctl(stdin, termios.FIONREAD, bytes(4)))[0])
        raise OSError("no process")

    monkeypatch.setattr(subprocess, "Popen", no_process)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(HivefsError, match="no process"):
        launch.begin([], {"home": "x" * 1000}, tmp_path / "log", lambda reason: HivefsError(detail=reason))
    assert waiting[0] > 1000
    assert set(os.listdir("/proc/self/fd")) <= set(before)  # others of this process may be closed meanwhile

"""What tests with processes of the hivefs command share."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """Start ``hivefs WORDS``; the process and its first line. What it logs is in ``log-N``, by their order."""
    started: list[subprocess.Popen[str]] = []

    def one(*words: object) -> tuple[subprocess.Popen[str], str]:
        with (tmp_path / f"log-{len(started)}").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "hivefs", *map(str, words)], stdout=subprocess.PIPE, stderr=log, text=True
            )
        started.append(process)
        assert process.stdout is not None
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=lambda: lines.put(process.stdout.readline()), daemon=True).start()  # type: ignore[union-attr]
        return process, lines.get(timeout=90)

    yield one
    for process in started:
        process.kill()
        process.wait(100)

"""A command that takes long shows how far it is on a terminal, and Ctrl-C ends it and what the engine does for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from hivefs.daemon import control
from hivefs.daemon.home import Home, Lock, Secrets
from hivefs.daemon.launch import environment


@pytest.mark.parametrize(
    ("words", "method", "what"),
    [
        (("policy", "explain", "/"), "policy_explain", "stripes"),
        (("check", "--placement"), "check", "certificates"),
    ],
)
def test_progress_is_shown_and_an_interrupt_ends_the_look(
    tmp_path: Path, words: tuple[str, ...], method: str, what: str
) -> None:
    home = Home.create(tmp_path / "vault", Secrets(bytes(32), bytes([9]) * 32), Lock("none"), bytes([7]) * 32, (), 4, 8, {})
    begun, ended = trio.Event(), trio.Event()

    async def look(value: Any, report: control.Report) -> None:
        try:
            begun.set()
            for done in range(1, 1 << 30):
                await report([what, 1000 * done, 0])
                await trio.sleep(0.1)
        finally:
            ended.set()

    methods = control.Methods({"status": lambda _: {}})
    methods.add_stream(method, look)
    ours, theirs = os.openpty()

    async def shown() -> str:
        found = ""
        while what not in found:
            found += (await trio.to_thread.run_sync(os.read, ours, 4096, abandon_on_cancel=True)).decode(errors="replace")
        return found

    async def go() -> int:
        with trio.fail_after(100):
            async with trio.open_nursery() as nursery:
                await nursery.start(control.serve, home.run, "engine", methods)
                command = [sys.executable, "-P", "-m", "hivefs", *words]
                env = {**environment(), "HIVEFS_HOME": str(home.path), "TERM": "xterm"}
                process = await trio.lowlevel.open_process(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=theirs, env=env, cwd="/"
                )
                try:
                    await begun.wait()
                    assert what in await shown()
                    process.send_signal(signal.SIGINT)
                    await ended.wait()
                    code = await process.wait()
                finally:
                    if process.poll() is None:
                        process.kill()
                nursery.cancel_scope.cancel()
        return code

    try:
        assert trio.run(go) == 130
    finally:
        os.close(ours)
        os.close(theirs)

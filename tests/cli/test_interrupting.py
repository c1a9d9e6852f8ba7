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

from hivefs.cli import early
from hivefs.daemon import control
from hivefs.daemon.home import Home, Lock, Secrets
from hivefs.daemon.launch import environment
from hivefs.errors import Interrupted


def begun(words: tuple[str, ...], home: Path, stop_at: str, **more: Any) -> subprocess.Popen[bytes]:
    """The command in a process that sends itself SIGINT when it begins to load the module ``stop_at``."""
    program = (
        "import os, signal, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, *more):\n"
        f"        if name == {stop_at!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Watch())\n"
        f"sys.argv = {['hivefs', *words]!r}\n"
        "from hivefs.__main__ import main\n"
        "main()\n"
    )
    command = [sys.executable, "-P", "-c", program]
    env = {**environment(), "HIVEFS_HOME": str(home)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, **{"stdin": subprocess.DEVNULL, "stdout": pipe, "stderr": pipe, "env": env, **more})


@pytest.mark.parametrize("module", ["hivefs.cli.main", "click", "hivefs.errors", "hivefs.cli.policy_show", "trio"])
def test_an_interrupt_while_modules_are_loaded_is_one_sentence(tmp_path: Path, module: str) -> None:
    with begun(("policy", "show"), tmp_path, module) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (130, b"", early.SAID)
    assert early.SAID.decode() == f"hivefs: {Interrupted()}\n" and Interrupted.exit_code == early.CODE
    assert not (tmp_path / "run").exists()


def test_an_interrupt_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As of a shell's command in the background."""

    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    with begun(("version",), tmp_path, "click", preexec_fn=ignore) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and out and not err


@pytest.mark.parametrize("words", [("policy", "check", "/nowhere"), ("--help",), ("status",)])
@pytest.mark.parametrize("closed", ["both", "stdout"])
def test_a_closed_pipe_is_no_mistake_of_hivefs(tmp_path: Path, words: tuple[str, ...], closed: str) -> None:
    home = Home.create(tmp_path / "vault", Secrets(bytes(32), bytes([9]) * 32), Lock("none"), bytes([7]) * 32, (), 4, 8, {})
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        stderr = theirs if closed == "both" else subprocess.PIPE
        with begun(words, home.path, "", stdout=theirs, stderr=stderr) as process:
            err = process.communicate(timeout=120)[1] or b""
    finally:
        os.close(theirs)
    assert not (home.run / "cli.log").exists(), (home.run / "cli.log").read_text()
    assert b"Traceback" not in err and b"Broken" not in err and b"mistake in HiveFS" not in err
    assert process.returncode != 1
    if closed == "both":
        assert process.returncode == 141


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

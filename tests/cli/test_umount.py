"""``hivefs umount MOUNTPOINT`` means the drive that is there, and no other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from hivefs.cli import drive as drive_commands
from hivefs.daemon import control
from hivefs.daemon.home import Home, Lock, Secrets
from hivefs.daemon.launch import environment


def umount(home: Home, drive: Path, *words: str, cwd: Path) -> tuple[int, str, list[str]]:
    """The command with a mount process of ``home`` that says it is at ``drive``: exit code, words, what that was asked."""
    asked: list[str] = []

    def note(name: str, answer: Any) -> control.Method:
        def call(_: Any) -> Any:
            asked.append(name)
            return answer

        return call

    here = {"mountpoint": str(drive), "pid": 1 << 30}  # above all that Linux gives: that process has gone
    methods = control.Methods({"status": lambda _: here, "unmount": note("unmount", None)})

    async def wait(value: Any, report: control.Report) -> list[int]:
        asked.append("wait")
        return [0, 0]

    methods.add_stream("wait", wait)

    async def go() -> tuple[int, str]:
        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                await nursery.start(control.serve, home.run, "mount", methods)
                command = [sys.executable, "-P", "-m", "hivefs", "umount", *words]
                env = {**environment(), "HIVEFS_HOME": str(home.path)}
                done = await trio.run_process(
                    command, capture_stdout=True, stderr=subprocess.STDOUT, check=False, env=env, cwd=cwd
                )
                nursery.cancel_scope.cancel()
        return done.returncode, done.stdout.decode()

    code, said = trio.run(go)
    return code, said, asked


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "vault", Secrets(bytes(32), bytes([9]) * 32), Lock("none"), bytes([7]) * 32, (), 4, 8, {})


def test_nothing_is_unmounted_when_the_drive_is_elsewhere(home: Home, tmp_path: Path) -> None:
    drive, other = tmp_path / "m", tmp_path / "m2"
    drive.mkdir()
    other.mkdir()
    for words in (("/zzz",), (str(drive / "below"),), (str(other), "--wait", "60")):
        code, said, asked = umount(home, drive, *words, cwd=tmp_path)
        assert code == 22 and asked == [], (words, said)
        assert said == (
            f"hivefs: No drive is mounted from {home.path} at {words[0]} (it is mounted at {drive}); "
            "mount it with 'hivefs mount MOUNTPOINT'.\n"
        )


def test_the_drive_is_found_by_any_name_of_its_place(home: Home, tmp_path: Path) -> None:
    drive = tmp_path / "m"
    drive.mkdir()
    (tmp_path / "link").symlink_to(drive)
    (tmp_path / "around").symlink_to(tmp_path)
    for word in ("", "around/m/", "link", "m/../m"):
        code, said, asked = umount(home, drive, *filter(None, [word]), cwd=tmp_path)
        assert (code, asked) == (0, ["unmount"]), (word, said)
        assert said == f"Unmounted {drive}\n"


def test_a_dead_drive_is_looked_for_as_mounts_are_listed(tmp_path: Path) -> None:
    (tmp_path / "around").symlink_to(tmp_path)
    assert drive_commands.place_of(tmp_path / "around" / "x" / ".." / "m") == tmp_path.resolve() / "m"

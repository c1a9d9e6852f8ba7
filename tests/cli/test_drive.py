"""The commands with a real hive, a real mount and a real engine: what a user does, and what can go wrong then."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from hivefs.cli.drive import stop_engine
from hivefs.daemon.embedded import EmbeddedHive
from hivefs.daemon.home import Home
from hivefs.daemon.launch import start_time, wait_gone
from hivefs.errors import VaultMissing
from hivefs.fuse.mounting import mounts_at

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedHive]:
    made = EmbeddedHive.create(tmp_path_factory.mktemp("hive") / "hive", 4, 256 << 20)
    made.start()
    yield made
    made.stop()


class User:
    """Someone at a shell, with a vault of their own in the hive of the module."""

    def __init__(self, base: Path, hive: EmbeddedHive) -> None:
        self.home, self.drive, self.phrase = base / "vault", base / "drive", base / "phrase"
        self.hive = hive
        self.drive.mkdir()

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "HIVEFS_HOME": str(self.home), "HIVEFS_HIVE": str(self.hive.path), "PYTHONPATH": str(ROOT)}

    def start(self, *arguments: object, **more: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "hivefs", *(str(a) for a in arguments)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=self.environment, text=True, start_new_session=True, **{**pipes, **more})

    def run(self, *arguments: object, code: int = 0, stdin: str = "") -> str:
        process = self.start(*arguments)
        out, err = process.communicate(stdin, timeout=200)
        assert process.returncode == code, f"{arguments}: {process.returncode}, {out}{err}"
        assert "Traceback" not in err and (err.count("\n") == 1 if code else True), err
        return err if code else out

    def json(self, *arguments: object, stdin: str = "") -> Any:
        return json.loads(self.run(*arguments, "--json", stdin=stdin))

    def mounted(self) -> bool:
        return bool(mounts_at(self.drive))

    def status(self, process: str) -> dict[str, Any]:
        """The status when that process says something in it."""
        status: dict[str, Any] = {}

        def answers() -> bool:
            status.update(self.json("status"))
            return status[process] is not None

        until(answers)
        return status

    def kill(self, process: str) -> None:
        pid = self.status(process)[process]["pid"]
        born = start_time(pid)
        os.kill(pid, signal.SIGKILL)
        assert born is not None and wait_gone(pid, born, 60)

    def stop_engine(self) -> None:
        """As 'down' does, which would stop the nodes as well."""
        with contextlib.suppress(VaultMissing):
            trio.run(stop_engine, Home.load(self.home))

    def level(self, path: Path) -> str:
        return os.getxattr(path, "user.hivefs.durability").decode()


def until(true: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


@pytest.fixture
def user(tmp_path: Path, hive: EmbeddedHive) -> Iterator[User]:
    made = User(tmp_path, hive)
    yield made
    made.start("umount", made.drive, "--json").communicate(timeout=200)
    made.stop_engine()
    hive.start()  # those that the test stopped


@pytest.fixture
def drive(user: User) -> User:
    user.run("up", user.drive, "--phrase-out", user.phrase, "--no-password")
    return user


def test_the_users_day(drive: User) -> None:
    shutil.copytree(ROOT / "docs", drive.drive / "docs", symlinks=True)
    drive.run("wait", "--timeout", 120, drive.drive)
    # A newer head that few nodes have as yet is as safe as those: what it holds is guaranteed again when more have it.
    until(lambda: drive.level(drive.drive / "docs" / "architecture.md") == "guaranteed")
    status: dict[str, Any] = {}

    def quiet() -> bool:
        status.update(drive.json("status"))
        engine = status["engine"] or {"nodes": [], "moving": {"queue": 1}}
        states, moving = {n["state"] for n in engine["nodes"]}, engine["moving"]
        return states == {"online"} and moving["queue"] == 0 and moving["waiting_for"] == ""

    until(quiet)
    assert status["mount"]["mountpoint"] == str(drive.drive) and status["mount"]["dirty_bytes"] == 0
    assert len(status["engine"]["nodes"]) >= 3 and status["code"] == "2/3"
    accounts = drive.json("ledger")
    assert {row["id"] for row in accounts["nodes"]} == {n["id"] for n in status["engine"]["nodes"]}
    assert accounts["vault_id"] == status["vault_id"] and not accounts["enforced"] and accounts["missing"] == 0
    assert accounts["vault_id"] in drive.run("ledger")
    assert "guaranteed" in drive.run("status") and drive.json("check") == {"problems": 0, "findings": []}
    assert drive.json("up", drive.drive, "--no-password")["started"] == 0, "again: nothing to do"
    assert drive.json("umount", "--wait", "100")["unmounted"] == str(drive.drive) and not drive.mounted()
    drive.run("mount", drive.drive)
    same = subprocess.run(["diff", "-r", ROOT / "docs", drive.drive / "docs"], capture_output=True, check=False)
    assert same.returncode == 0, same.stdout


def test_everything_is_lost_but_the_phrase(drive: User) -> None:
    (drive.drive / "letter").write_text("hello")
    drive.run("wait", "--timeout", 120, drive.drive)
    drive.run("umount")
    address = drive.hive.addresses[0]
    lock = drive.home.parent / "new-password"
    lock.write_text("geheim\n")
    assert "already a vault" in drive.run(
        "recover", "--node", address, "--phrase-file", drive.phrase, "--no-password", code=11
    )
    drive.run("down")
    drive.hive.start()
    shutil.rmtree(drive.home)
    drive.run(
        "recover",
        "--node",
        address,
        "--phrase-file",
        "-",
        "--password-file",
        "-",
        stdin=drive.phrase.read_text() + "geheim\n",
    )
    drive.run("mount", drive.drive, code=15)
    drive.run("mount", drive.drive, "--password-file", lock)
    assert (drive.drive / "letter").read_text() == "hello"
    (drive.drive / "letter").write_text("again")
    drive.run("wait", "--timeout", 120, drive.drive / "letter")


def test_recovering_a_vault_that_the_hive_does_not_know(user: User) -> None:
    phrase = "abandon " * 23 + "art"
    address = user.hive.addresses[1]
    process = user.start("recover", "--node", address, "--phrase-file", "-", "--no-password", "--json")
    out, err = process.communicate(phrase + "\n", timeout=200)
    assert process.returncode in (36, 42) and err.count("\n") == 1 and not out, (process.returncode, err)
    assert not (user.home / "vault.json").exists()


@pytest.mark.slow  # test_before_the_mount.py has most of it, without a hive
def test_what_runs_before_the_first_mount_does_no_harm(user: User) -> None:
    user.run("init", "--no-password", "--phrase-out", user.phrase)
    assert "[policy.default]" in user.run("policy", "show")
    assert user.json("check", "--placement")["problems"] == 0
    assert user.json("check")["problems"] == 0
    assert user.json("placement", "/")["files"] == 0
    user.run("policy", "simulate", "--nodes-gone", 1)
    assert user.json("policy", "set", "/Later", "default", "--force")["nothing_there"] is True
    user.run("mount", user.drive)
    (user.drive / "f").write_text("x")
    user.run("umount")
    user.stop_engine()
    shutil.rmtree(user.home / "metadata")
    assert "it is not there" in user.run("mount", user.drive, code=53), "lost metadata of a vault in use is noticed"
    assert "it is not there" in user.run("check", code=53), "and a check says the same"


def test_mount_points(drive: User, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    assert str(drive.drive) in drive.run("mount", second, code=14), "mounted already, and it says where"
    drive.run("umount")
    second.rmdir()
    assert "mkdir" in drive.run("mount", second, code=20)
    second.write_text("a file")
    assert "not a directory" in drive.run("mount", second, code=20)
    second.unlink()
    second.mkdir()
    (second / "x").touch()
    assert "not empty" in drive.run("mount", second, code=20)
    assert (second / "x").exists() and drive.run("umount", code=22)
    drive.run("mount", drive.drive)


def test_a_killed_mount_is_healed(drive: User) -> None:
    with (drive.drive / "f").open("w") as file:
        file.write("fsynced")
        file.flush()
        os.fsync(file.fileno())
    drive.kill("mount")
    with pytest.raises(OSError) as dead:
        drive.drive.stat()
    assert dead.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    drive.run("mount", drive.drive)
    assert (drive.drive / "f").read_text() == "fsynced"
    drive.kill("mount")
    assert drive.json("umount", drive.drive)["unmounted"] == str(drive.drive) and not drive.mounted()
    drive.run("up", drive.drive)
    assert (drive.drive / "f").read_text() == "fsynced"
    drive.kill("mount")
    drive.run("up", drive.drive)
    assert (drive.drive / "f").read_text() == "fsynced"


def test_a_killed_engine_comes_back(drive: User) -> None:
    drive.kill("engine")
    # Who asks while there is none waits for the one that the mount starts, and does not start a rival to it.
    assert "[policy.default]" in drive.run("policy", "show")
    drive.kill("engine")
    (drive.drive / "f").write_text("written without an engine")
    # The mount starts another: as long as there is none, the file is here only.
    assert drive.level(drive.drive / "f") == "local" or drive.json("status")["engine"] is not None
    drive.run("wait", "--timeout", 120, drive.drive)


def test_a_busy_drive_stays(drive: User) -> None:
    with (drive.drive / "open").open("w"):
        assert "in use" in drive.run("umount", code=25)
        assert drive.mounted()
    drive.run("umount")


def test_waiting_in_vain_says_why(drive: User, tmp_path: Path) -> None:
    drive.run("down")
    (drive.drive / "f").write_text("x")
    said = drive.run("wait", "--timeout", 1, drive.drive / "f", code=56)
    assert "not everything is guaranteed yet (0 of 1 files)" in said.lower()
    drive.run("wait", "--level", "local", "--timeout", 60, drive.drive / "f")
    assert "is not inside" in drive.run("wait", tmp_path, code=61)
    drive.run("wait", drive.drive / "missing", code=61)
    assert "not everything" in drive.run("umount", "--wait", 1, code=56).lower() and not drive.mounted()


def test_foreground(drive: User) -> None:
    drive.run("umount")
    process = drive.start("mount", drive.drive, "--foreground", stderr=None)
    try:
        assert process.stdout is not None and "Ctrl-C" in process.stdout.readline()
        assert drive.mounted()
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0 and not drive.mounted()
    finally:
        process.kill()
        process.communicate(timeout=60)


def test_secrets_are_not_in_arguments_nor_readable(user: User) -> None:
    password = user.home.parent / "pw"
    password.write_text("ein geheimes Wort\n")
    user.run("up", user.drive, "--password-file", password, "--phrase-out", user.phrase)
    assert user.json("up", user.drive)["started"] == 0, "mounted there already: nobody needs the password"
    status = user.status("engine")
    words = user.phrase.read_text().split()
    for process in ("mount", "engine"):
        arguments = Path(f"/proc/{status[process]['pid']}/cmdline").read_bytes()
        assert b"geheim" not in arguments and words[0].encode() not in arguments and len(arguments) < 200
    (user.drive / "Brief an niemanden.txt").write_text("Inhalt eines Briefes " * 100)
    user.run("wait", "--timeout", 120, user.drive)
    user.run("umount")
    for needle in ("geheimes", "Brief an", "Inhalt eines", " ".join(words[:3])):
        for place in (user.home, user.hive.path):
            found = subprocess.run(["grep", "-rlF", needle, place], capture_output=True, text=True, check=False)
            # 2: a file of a process that runs has gone since it was listed.
            assert found.returncode in (1, 2) and not found.stdout, found.stdout + found.stderr
    assert user.json("check", "--data", "--password-file", password)["problems"] == 0

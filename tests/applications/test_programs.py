"""Editors that save, pip that installs, and programs that watch a directory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import stat
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mount_tools import Mounted, run

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(300)]


# ---- editors ------------------------------------------------------------------------------------------------------------


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def _copy_marks(old: Path, new: Path) -> None:
    """Mode and attributes of the file that is replaced."""
    shutil.copymode(old, new)
    for name in os.listxattr(old):
        os.setxattr(new, name, os.getxattr(old, name))


def save_by_replacing(path: Path, text: str) -> None:
    """As gedit, VS Code, write-file-atomically libraries: a new file takes the name."""
    new = path.with_name(f".{path.name}.new")
    with new.open("w") as file:
        file.write(text)
        file.flush()
        _copy_marks(path, new)
        os.fsync(file.fileno())
    new.replace(path)
    _sync(path.parent)


def save_with_backup(path: Path, text: str) -> None:
    """As vim with 'backupcopy=no': the old file is renamed, a new one written, the old one removed."""
    backup = path.with_name(f"{path.name}~")
    path.rename(backup)
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    _copy_marks(backup, path)
    backup.unlink()
    _sync(path)
    _sync(path.parent)


def save_in_place(path: Path, text: str) -> None:
    """As nano: the file is cut and written."""
    with path.open("r+") as file:
        file.truncate()
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def test_what_an_editor_saved_outlives_a_kill(drive: Mounted) -> None:
    ways: list[Callable[[Path, str], None]] = [save_by_replacing, save_with_backup, save_in_place]
    paths = [drive.path / way.__name__ for way in ways]
    for path in paths:
        path.write_text("before\n" * 1000)
        path.chmod(0o640)
        os.setxattr(path, "user.mark", b"kept")
    drive.call("flush")
    for text in ("first\n", "second\n" * 10_000, "third\n"):
        for way, path in zip(ways, paths, strict=True):
            way(path, text)
            assert path.read_text() == text
    assert drive.end(signal.SIGKILL) == -signal.SIGKILL
    drive.mount()
    assert sorted(p.name for p in drive.path.iterdir()) == sorted(way.__name__ for way in ways)
    for path in paths:
        assert path.read_text() == "third\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert os.getxattr(path, "user.mark") == b"kept"


@pytest.mark.parametrize("backupcopy", ["yes", "no", "auto"])
def test_vim_saves(shared: Mounted, backupcopy: str) -> None:
    if shutil.which("vim") is None:
        pytest.skip("the program vim is missing (package vim)")
    path = shared.path / f"text {backupcopy}"
    path.write_text("one\ntwo\n")
    path.chmod(0o640)
    for words in ("s/one/three/", "s/two/four/"):
        run("vim", "-u", "NONE", "-es", "-c", f"set backupcopy={backupcopy} fsync", "-c", f"%{words}", "-c", "wq", path)
    assert path.read_text() == "three\nfour\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert not list(shared.path.glob("*~")) + list(shared.path.glob(".*.sw*"))


# ---- pip ----------------------------------------------------------------------------------------------------------------


def make_wheel(directory: Path) -> Path:
    """A package with a module, data and a command; a wheel is a zip file with a list of what is in it (PEP 427)."""
    info = "tiny_thing-1.0.dist-info"
    files = {
        "tiny_thing/__init__.py": "from tiny_thing.part import ANSWER\n",
        "tiny_thing/part.py": "ANSWER = 42\ndef main():\n    print(ANSWER)\n",
        "tiny_thing/data/text.txt": "data\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\ntiny-thing = tiny_thing.part:main\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    path = directory / "tiny_thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_pip_installs_and_what_it_installed_runs(shared: Mounted) -> None:
    wheel, target = make_wheel(shared.path), shared.path / "site"
    options = ("--no-index", "--no-deps", "--no-cache-dir", "--disable-pip-version-check", "--quiet")
    for again in ((), ("--upgrade",)):
        run(sys.executable, "-m", "pip", "install", *options, *again, "--target", target, wheel, TMPDIR=str(shared.path))
    program = "import tiny_thing, importlib.metadata as m; print(tiny_thing.ANSWER, m.version('tiny-thing'))"
    assert run(sys.executable, "-c", program, PYTHONPATH=str(target)) == "42 1.0\n"
    assert run(target / "bin" / "tiny-thing", PYTHONPATH=str(target)) == "42\n"
    assert list((target / "tiny_thing" / "__pycache__").iterdir())


# ---- inotify ------------------------------------------------------------------------------------------------------------

EVENTS = {
    0x2: "modify", 0x4: "attrib", 0x8: "closed", 0x40: "from", 0x80: "to", 0x100: "create", 0x200: "delete",
}  # fmt: skip
_EVENT = struct.Struct("iIII")


@contextlib.contextmanager
def watched(directory: Path) -> Iterator[Callable[[], list[tuple[str, str]]]]:
    """Yields a function that gives (what, name) of the events since the last call."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert handle >= 0
    try:
        assert libc.inotify_add_watch(handle, os.fsencode(directory), sum(EVENTS)) >= 0

        def events() -> list[tuple[str, str]]:
            found, data = [], b""
            with contextlib.suppress(BlockingIOError):
                while more := os.read(handle, 65536):
                    data += more
            while data:
                _, mask, _, length = _EVENT.unpack_from(data)
                name = os.fsdecode(data[_EVENT.size : _EVENT.size + length].rstrip(b"\0"))
                found.append((EVENTS[mask & sum(EVENTS)], name))
                data = data[_EVENT.size + length :]
            return found

        yield events
    finally:
        os.close(handle)


def test_changes_are_seen_by_who_watches(shared: Mounted) -> None:
    top = shared.path / "watched"
    top.mkdir()
    with watched(top) as events:
        (top / "a").touch()
        assert ("create", "a") in events()
        with (top / "a").open("wb", buffering=0) as file:
            file.write(b"x")
        assert events() == [("modify", "a"), ("closed", "a")]
        (top / "a").chmod(0o600)
        assert events() == [("attrib", "a")]
        (top / "a").rename(top / "b")
        assert events() == [("from", "a"), ("to", "b")]
        (top / "b").rename(shared.path / "b")
        assert events() == [("from", "b")]
        (shared.path / "b").rename(top / "c")
        (top / "d").mkdir()
        assert events() == [("to", "c"), ("create", "d")]
        (top / "c").unlink()
        (top / "d").rmdir()
        assert events() == [("delete", "c"), ("delete", "d")]

"""What every test run has: a header saying what is enabled, no stale mounts, and no traceback in any daemon's log."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import trio

from hivefs.chunkstore.steps import Counting
from hivefs.errors import HivefsError
from hivefs.fuse import mounting
from hivefs.testing.jitter import Jitter, make_sleeps_late
from hivefs.testing.stalls import Stalls

# No example has a time limit and no draw is "too slow": a busy machine stops for a second anywhere. The usual run draws
# the same examples each time, so that what passed here passes there; --slow looks further, with others each time.
_CHECKS = [hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile("same", deadline=None, derandomize=True, suppress_health_check=_CHECKS)
hypothesis.settings.register_profile("other", deadline=None, derandomize=False, suppress_health_check=_CHECKS)

SKIPPED_DIRECTORIES = {"metadata", "stage", "engine", "cache", "shares", "index", ".git", "__pycache__"}
DEEPEST = 8


@functools.wraps(trio.run)
def _counted(*given: Any, instruments: Sequence[trio.abc.Instrument] = (), **more: Any) -> Any:
    """trio.run with steps counted: what must happen in one step of a task is held to it (chunkstore/steps.py)."""
    noise = [Jitter(_longest)] if _longest else []
    return _counted.__wrapped__(*given, instruments=[*instruments, Counting(), *noise], **more)


trio.run = _counted
_longest = 0.0
_stalls: Stalls | None = None


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--jitter``: see jitter.py and stalls.py."""
    parser.addoption(
        "--jitter", type=float, default=0.0, metavar="SECONDS", help="stop processes for up to so long at any step"
    )


def pytest_configure(config: pytest.Config) -> None:
    global _longest, _stalls
    slow = "slow" in config.getoption("markexpr").replace("not slow", "", 1)
    if not config.getoption("--hypothesis-profile"):
        hypothesis.settings.load_profile("other" if slow else "same")
    # A run in the background (``pytest &``, nohup) ignores these, and so would every program that a test starts and ends.
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if _longest := config.getoption("--jitter"):
        make_sleeps_late(_longest)
        _stalls = Stalls(_longest)


def pytest_unconfigure() -> None:
    if _stalls:
        print(f"hivefs: {_stalls.end()} times a process that a test had started was stopped for a moment")


@functools.cache
def no_fuse() -> str:
    """Why no file system can be mounted here; empty when it can (found out by mounting one)."""
    with tempfile.TemporaryDirectory(prefix="hivefs-trial-") as name:
        try:
            handle = mounting.mount(Path(name), mounting.MountOptions())
        except HivefsError as error:
            return str(error)
        os.close(handle)
        subprocess.run(mounting.unmount_command(Path(name), lazy=True), capture_output=True, timeout=60, check=False)
    return ""


@functools.cache
def no_netns() -> str:
    """Why no network namespace can be made here; empty when it can."""
    if shutil.which("unshare") is None:
        return "the program unshare is missing (package util-linux)"
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, timeout=60, check=False)
    said = tried.stderr.strip()
    return "" if tried.returncode == 0 else f"the right to make network namespaces (CAP_SYS_ADMIN) is missing: {said}"


def pytest_report_header(config: pytest.Config) -> str:
    """One line: what this run can do."""
    words = [
        f"fuse: {'no, ' + no_fuse() if no_fuse() else 'yes'}",
        f"root: {'yes' if os.geteuid() == 0 else 'no'}",
        f"netns: {'no, ' + no_netns() if no_netns() else 'yes'}",
        f"cpus: {len(os.sched_getaffinity(0))}",
    ]
    return "hivefs: " + "; ".join(words)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that mount are skipped, with the exact reason, where nothing can be mounted."""
    for item in items:
        if item.get_closest_marker("fuse") and no_fuse():
            item.add_marker(pytest.mark.skip(reason=no_fuse()))


def pytest_sessionstart() -> None:
    """Take away dead mounts that earlier, killed runs left below the directory of pytest's temporary files."""
    root = Path(tempfile.gettempdir()).resolve()
    for path in _mounts(root):
        parts = path.relative_to(root).parts
        if parts[0].startswith(("pytest-of-", "hivefs-trial-")) and not _in_use(root.joinpath(*parts[:2])) and _dead(path):
            subprocess.run(["fusermount3", "-u", "-z", str(path)], capture_output=True, timeout=60, check=False)


@pytest.fixture(scope="session", autouse=True)
def _no_mount_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """At the end nothing is mounted below this run's directory; what is, is taken away and is an error."""
    yield
    left = _mounts(tmp_path_factory.getbasetemp().resolve())
    for path in left:
        subprocess.run(["fusermount3", "-u", "-z", str(path)], capture_output=True, timeout=60, check=False)
    assert not left, f"tests left mounts behind: {left}"


@pytest.fixture(autouse=True)
def _others_stop_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """``--jitter`` leaves the processes alone of tests that stop processes themselves."""
    with _stalls.still() if _stalls and request.node.get_closest_marker("stops") else contextlib.nullcontext():
        yield


@pytest.fixture(autouse=True)
def _no_traceback_in_logs(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[None]:
    """A test fails when a daemon's log below this run's directory got a traceback meanwhile.

    It asks for ``tmp_path`` so that it looks before that is removed. What good tests leave must be removed
    (tmp_path_retention_policy): walking through everything after each of thousands of tests took a quarter of an hour.
    """
    seen: dict[Path, int] = request.config.stash.setdefault(_SEEN, {})
    yield
    base = getattr(tmp_path_factory, "_basetemp", None)
    if base is None:
        return
    for log in _logs(Path(base)):
        start = seen.get(log, 0)
        with contextlib.suppress(OSError), log.open("rb") as file:
            file.seek(start)
            text = file.read().decode(errors="replace")
            seen[log] = file.tell()
            if "Traceback (most recent call last)" in text:
                pytest.fail(f"{log} got a traceback:\n{text[text.index('Traceback') :][:4000]}")


_SEEN = pytest.StashKey[dict[Path, int]]()


def _logs(base: Path) -> Iterator[Path]:
    """The *.log files below, not looking into stores and into what is mounted."""
    device = base.stat().st_dev
    for directory, directories, files in os.walk(base):
        here = Path(directory)
        depth = len(here.relative_to(base).parts)
        directories[:] = [
            name
            for name in directories
            if depth < DEEPEST and name not in SKIPPED_DIRECTORIES and _device(here / name) == device
        ]
        yield from (here / name for name in files if name.endswith(".log"))


def _device(path: Path) -> int | None:
    try:
        return path.lstat().st_dev
    except OSError:
        return None


def _mounts(root: Path) -> list[Path]:
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        path = Path(left.split()[4].encode().decode("unicode_escape"))
        if right.startswith("fuse") and path.is_relative_to(root) and path != root:
            found.append(path)
    return found


def _in_use(base: Path) -> bool:
    """Whether the pytest to which that directory belongs still runs: its tests leave mounts dead for a moment."""
    try:
        os.kill(int((base / ".lock").read_text()), 0)
    except (OSError, ValueError):
        return False
    return True


def _dead(path: Path) -> bool:
    try:
        path.stat()
    except OSError as error:  # another user's may refuse us
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False

"""Real mounts by the real mount process, used with ordinary tools. The engine is not needed: what is staged is local."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount_tools import Mounted, mounted, open_to_others, run, tree

import hivefs
from hivefs.daemon.launch import harden
from hivefs.errors import MountBusy, MountpointProblem, NotMounted, VaultInUse

pytestmark = pytest.mark.fuse

GIT = {
    "HOME": "/nonexistent",
    "GIT_CONFIG_COUNT": "2",
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
    "GIT_CONFIG_KEY_1": "core.fsync",
    "GIT_CONFIG_VALUE_1": "all",
    **{f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Mounted]:
    with mounted(tmp_path) as found:
        yield found


def make_source(top: Path) -> Path:
    """A small tree with one of everything."""
    source = top / "source"
    (source / "a" / "b" / "c").mkdir(parents=True)
    (source / "empty").mkdir(mode=0o700)
    for index, size in enumerate([0, 1, 4095, 4096, 40_000, (1 << 20) - 1, 1 << 20, 3_500_000]):
        path = source / "a" / f"file {index}"
        path.write_bytes(os.urandom(size))
        path.chmod(0o600 + index)
        os.utime(path, ns=(1_600_000_000_000_000_000 + index, 1_500_000_000_123_456_789 + index))
    (source / "ünïcödé \U0001f600").write_text("name")
    (source / ("n" * 255)).write_text("long name")
    (source / "link").symlink_to("a/file 1")
    (source / "dangling").symlink_to("x" * 1000)
    os.link(source / "a" / "file 2", source / "a" / "b" / "same")
    os.mkfifo(source / "fifo")
    return source


def test_copy_move_link_find_remove(drive: Mounted, tmp_path: Path) -> None:
    source, path = make_source(tmp_path), drive.path
    run("cp", "-a", source, path / "copy")
    assert tree(path / "copy") == tree(source)
    assert (path / "copy/a/b/same").stat().st_ino == (path / "copy/a/file 2").stat().st_ino
    assert (path / "copy/a/b/same").stat().st_nlink == 2
    run("mv", path / "copy", path / "moved")
    run("mv", path / "moved/a", path / "a")
    run("ln", path / "a/file 4", path / "hard")
    run("ln", "-s", "a/file 5", path / "soft")
    assert (path / "soft").read_bytes() == (source / "a/file 5").read_bytes()
    assert (path / "hard").stat().st_nlink == 2
    found = {line for line in run("find", ".", "-type", "f", cwd=path).splitlines() if "/a/" in line}
    assert len(found) == 9
    run("rm", "-r", path / "a", path / "moved")
    assert sorted(p.name for p in path.iterdir()) == ["hard", "soft"]
    assert (path / "hard").read_bytes() == (source / "a/file 4").read_bytes()
    assert (path / "hard").stat().st_nlink == 1


def test_everything_is_there_again_after_unmount_and_mount(drive: Mounted, tmp_path: Path) -> None:
    source = make_source(tmp_path)
    run("cp", "-a", source, drive.path / "copy")
    drive.unmount()
    assert list(drive.path.iterdir()) == []
    drive.mount()
    assert tree(drive.path / "copy") == tree(source)
    drive.unmount()
    assert "ERROR" not in drive.log()


def test_tar_and_git(drive: Mounted, tmp_path: Path) -> None:
    source = make_source(tmp_path)
    (source / "fifo").unlink()
    run("tar", "--format=posix", "-cf", tmp_path / "source.tar", "-C", source, ".")
    work = drive.path / "work"
    work.mkdir()
    run("tar", "-xf", tmp_path / "source.tar", "-C", work)
    assert tree(work) == tree(source)
    run("tar", "--format=posix", "-cf", drive.path / "again.tar", "-C", work, ".")
    run("tar", "--compare", "-f", drive.path / "again.tar", "-C", source)
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"], ["fsck", "--full", "--strict"], ["gc", "-q"]):
        run("git", *words, cwd=work, **GIT)
    assert run("git", "status", "--porcelain", cwd=work, **GIT) == ""


def test_sqlite_in_both_journal_modes(drive: Mounted) -> None:
    for mode in ("delete", "wal"):
        path = drive.path / f"{mode}.db"
        base = sqlite3.connect(path, isolation_level=None)
        assert base.execute(f"pragma journal_mode={mode}").fetchone() == (mode,)
        base.execute("create table t(a integer primary key, b blob)")
        for i in range(30):
            base.execute("insert into t values(?, ?)", (i, os.urandom(3000)))
        base.execute("delete from t where a % 3 = 0")
        base.execute("vacuum")
        base.close()
        again = sqlite3.connect(path)
        assert again.execute("pragma integrity_check").fetchone() == ("ok",)
        assert again.execute("select count(*) from t").fetchone() == (20,)
        again.close()


def test_what_was_synced_outlives_a_kill_and_the_dead_mount_is_healed(drive: Mounted) -> None:
    data = os.urandom(3 << 20)
    (drive.path / "d").mkdir()
    file = os.open(drive.path / "d/synced", os.O_CREAT | os.O_WRONLY, 0o640)
    os.write(file, data)
    os.fsync(file)
    assert drive.end(signal.SIGKILL) == -signal.SIGKILL
    with pytest.raises(OSError, match=r"not connected|aborted") as caught:
        os.listdir(drive.path)
    assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    drive.mount()
    assert (drive.path / "d/synced").read_bytes() == data
    assert stat.S_IMODE((drive.path / "d/synced").stat().st_mode) == 0o640
    with contextlib.suppress(OSError):  # what it was opened in is gone
        os.close(file)
    drive.unmount()


def test_sigterm_unmounts_and_keeps_everything(drive: Mounted) -> None:
    (drive.path / "file").write_bytes(b"kept")
    assert drive.end(signal.SIGTERM) == 0
    assert not os.path.ismount(drive.path)
    drive.mount()
    assert (drive.path / "file").read_bytes() == b"kept"


def test_an_unmount_from_outside_ends_the_process(drive: Mounted) -> None:
    (drive.path / "file").write_bytes(b"kept")
    run("fusermount3", "-u", drive.path)
    assert drive.process is not None
    assert drive.process.wait(120) == 0
    drive.mount()
    assert (drive.path / "file").read_bytes() == b"kept"


def test_a_drive_in_use_stays_mounted(drive: Mounted) -> None:
    with (drive.path / "file").open("wb") as file:
        file.write(b"before")
        file.flush()
        with pytest.raises(MountBusy):
            drive.call("unmount")
        file.write(b" and after")
    assert (drive.path / "file").read_bytes() == b"before and after"
    drive.unmount()


@pytest.mark.slow
def test_sigterm_does_not_wait_for_ever_for_a_drive_in_use(drive: Mounted) -> None:
    with contextlib.suppress(OSError), (drive.path / "file").open("wb", buffering=0) as file:
        file.write(b"data")
        os.fsync(file.fileno())
        assert drive.end(signal.SIGTERM) == 0
    drive.mount()
    assert (drive.path / "file").read_bytes() == b"data"


def test_refusals_come_back_as_errors(drive: Mounted, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(VaultInUse) as caught:
        drive.mount(other)
    assert str(drive.path) in str(caught.value)
    drive.unmount()
    (other / "file").touch()
    with pytest.raises(MountpointProblem, match="not empty"):
        drive.mount(other)
    with pytest.raises(MountpointProblem, match="mkdir"):
        drive.mount(tmp_path / "nothing")
    with pytest.raises(NotMounted):
        drive.call("status")
    drive.mount()


def test_status(drive: Mounted) -> None:
    (drive.path / "file").write_bytes(os.urandom(10_000))
    drive.call("flush")
    status = drive.call("status")
    assert status["mountpoint"] == str(drive.path)
    assert status["engine_connected"] is False
    assert status["dirty_slots"] >= 1
    slots = drive.call("dirty", {"limit": 10, "quiet_ns": 0, "skip": []})
    ino = (drive.path / "file").stat().st_ino
    assert [(slot[0], slot[1], slot[3]) for slot in slots] == [(ino, 0, 10_000)]
    assert drive.call("policies_of_chunks", {"after": b"", "limit": 10}) == [b"", []]  # nothing is placed
    assert drive.call("durability", {"ino": ino}) == "local"
    assert os.getxattr(drive.path / "file", "user.hivefs.durability") == b"local"


def test_secrets_are_nowhere_to_be_seen(drive: Mounted) -> None:
    assert drive.process is not None
    seen = b"".join((Path("/proc") / str(drive.process.pid) / name).read_bytes() for name in ("cmdline", "environ"))
    limits = (Path("/proc") / str(drive.process.pid) / "limits").read_text()
    for secret in (drive.secrets.master, drive.secrets.device_seed, drive.secrets.to_bytes()):
        assert secret not in seen
        assert secret.hex().encode() not in seen
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]
    (drive.path / "a very private name").write_text("a very private content")
    drive.call("flush")
    drive.unmount()
    for file in drive.home.path.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert b"very private" not in data
            assert drive.secrets.master not in data


def test_an_idle_drive_uses_no_processor(drive: Mounted) -> None:
    assert drive.process is not None
    (drive.path / "file").write_bytes(b"x")
    drive.call("flush")

    def used() -> float:
        fields = Path(f"/proc/{drive.process.pid}/stat").read_text().rsplit(")", 1)[1].split()  # type: ignore[union-attr]
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = used()
    time.sleep(1.0)
    assert used() - before < 0.3, "it spins although nobody asks"


def test_setuid_goes_when_another_user_writes() -> None:
    if os.geteuid() != 0:
        pytest.skip("root (uid 0) is missing: the test becomes another user")
    with open_to_others() as top, mounted(top, allow_other=True) as drive:
        drive.path.chmod(0o777)
        program = "import os,sys; os.setgid(65534); os.setuid(65534); fd=os.open(sys.argv[1], os.O_WRONLY); "
        for name, action in (("write", "os.write(fd, b'new')"), ("cut", "os.ftruncate(fd, 1)")):
            path = drive.path / name
            path.write_bytes(b"old")
            path.chmod(0o6777)
            assert stat.S_IMODE(path.stat().st_mode) == 0o6777, "root's own chmod after writing must stay"
            run(sys.executable, "-c", program + action, path)
            drive.call("flush")
            assert stat.S_IMODE(path.stat().st_mode) == 0o777, name
        owned = drive.path / "owned"
        owned.touch()
        os.chown(owned, 65534, 65534)
        owned.chmod(0o6755)
        owner = "import os,sys; os.setgid(65534); os.setuid(65534); os.chown(sys.argv[1], 65534, 65534)"
        run(sys.executable, "-c", owner, owned)
        assert stat.S_IMODE(owned.stat().st_mode) == 0o755


def test_other_users_are_kept_out_unless_asked_for() -> None:
    if os.geteuid() != 0:
        pytest.skip("root (uid 0) is missing: the test becomes another user")
    program = "import os,sys; os.setgid(65534); os.setuid(65534); os.listdir(sys.argv[1]); os.listdir(sys.argv[2])"
    with open_to_others() as top, mounted(top) as drive:
        drive.path.chmod(0o777)
        done = subprocess.run(
            [sys.executable, "-c", program, top, drive.path], capture_output=True, text=True, timeout=60, check=False
        )
    assert "PermissionError" in done.stderr and str(drive.path) in done.stderr, done.stderr


def test_an_unlinked_open_file_and_a_removed_directory(drive: Mounted) -> None:
    path = drive.path / "file"
    data = os.urandom(2_000_000)
    with path.open("w+b") as file:
        file.write(data)
        file.flush()
        path.unlink()
        assert not path.exists()
        file.seek(0)
        assert file.read() == data
        file.write(b"more")
        file.flush()
        os.fsync(file.fileno())
        assert os.fstat(file.fileno()).st_nlink == 0
        assert os.fstat(file.fileno()).st_size == len(data) + 4
    (drive.path / "d").mkdir()
    handle = os.open(drive.path / "d", os.O_RDONLY)
    (drive.path / "d").rmdir()
    with pytest.raises(FileNotFoundError):
        (drive.path / "d" / "x").touch()
    os.close(handle)


def test_a_large_directory_is_listed_completely_while_it_shrinks(drive: Mounted) -> None:
    names = {f"name {i:05d} {'x' * (i % 200)}" for i in range(1500)}
    for name in names:
        (drive.path / name).touch()
    assert set(os.listdir(drive.path)) == names
    seen = []
    with os.scandir(drive.path) as entries:
        for entry in entries:
            assert entry.is_file(follow_symlinks=False)
            os.unlink(entry.path)
            seen.append(entry.name)
    assert sorted(seen) == sorted(names)
    assert os.listdir(drive.path) == []


def test_sparse_append_and_truncate(drive: Mounted) -> None:
    path = drive.path / "file"
    with path.open("wb") as file:
        file.seek(5 << 20)
        file.write(b"end")
    assert path.stat().st_size == (5 << 20) + 3
    assert path.stat().st_blocks * 512 <= 2 << 20
    with path.open("ab") as file:
        file.write(b" and more")
    data = path.read_bytes()
    assert data == bytes(5 << 20) + b"end and more"
    os.truncate(path, (5 << 20) + 1)
    os.truncate(path, (5 << 20) + 4)
    drive.call("flush")
    assert path.read_bytes()[5 << 20 :] == b"e\0\0\0"
    path.open("wb").close()
    assert path.stat().st_size == 0


def test_extended_attributes(drive: Mounted) -> None:
    path = drive.path / "file"
    path.touch()
    with pytest.raises(OSError, match="No data"):
        os.getxattr(path, "user.a")
    os.setxattr(path, "user.a", b"\0\xff" * 100, os.XATTR_CREATE)
    with pytest.raises(FileExistsError):
        os.setxattr(path, "user.a", b"", os.XATTR_CREATE)
    with pytest.raises(OSError, match="No data"):
        os.setxattr(path, "user.b", b"", os.XATTR_REPLACE)
    os.setxattr(path, "user.b", b"")
    assert sorted(os.listxattr(path)) == ["user.a", "user.b"]
    assert os.getxattr(path, "user.a") == b"\0\xff" * 100
    os.removexattr(path, "user.a")
    assert os.listxattr(path) == ["user.b"]
    with pytest.raises(OSError, match="not supported"):
        os.setxattr(path, "system.other", b"")


def test_rename_flags_and_name_limits(drive: Mounted) -> None:
    a, b = drive.path / "a", drive.path / "b"
    a.write_text("a")
    b.write_text("b")
    renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    assert renameat2(-100, os.fsencode(a), -100, os.fsencode(b), 1) == -1
    assert ctypes.get_errno() == errno.EEXIST
    assert renameat2(-100, os.fsencode(a), -100, os.fsencode(b), 2) == 0
    assert (a.read_text(), b.read_text()) == ("b", "a")
    a.replace(b)
    assert b.read_text() == "b"
    assert not a.exists()
    with pytest.raises(OSError, match="too long"):
        (drive.path / ("n" * 256)).touch()
    with pytest.raises(OSError, match="Invalid argument"):
        (drive.path / "d").mkdir() or (drive.path / "d").rename(drive.path / "d" / "e")


def test_df_shows_something_sensible(drive: Mounted) -> None:
    status = os.statvfs(drive.path)
    assert status.f_frsize > 0
    assert 0 < status.f_bavail <= status.f_bfree <= status.f_blocks
    assert status.f_namemax == 255
    assert shutil.disk_usage(drive.path).total > 1 << 20


def test_hardening_in_a_process_of_its_own() -> None:
    program = "import ctypes; from hivefs.daemon.launch import harden; harden(); print(ctypes.CDLL(None).prctl(3,0,0,0,0))"
    root = str(Path(hivefs.__file__).parent.parent)
    assert run(sys.executable, "-c", program, PYTHONPATH=root).strip() == "0"
    assert harden.__doc__
    assert resource.getrlimit(resource.RLIMIT_CORE) is not None


def test_the_mount_process_does_not_import_the_network() -> None:
    program = "import sys, hivefs.daemon.mount; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    root = str(Path(hivefs.__file__).parent.parent)
    modules = run(sys.executable, "-c", program, PYTHONPATH=root)
    for name in ("libp2p", "multiaddr", "rich", "click"):
        assert f"'{name}'" not in modules

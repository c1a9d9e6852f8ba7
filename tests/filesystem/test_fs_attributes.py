"""setattr, extended attributes, statfs."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

import pytest
from drive_tools import MIB, ROOT, Drive, pattern, refuses, run

from hivefs.errors import PosixError
from hivefs.filesystem.ports import Caller, Capacity


@pytest.fixture
def drive(tmp_path: Path) -> Drive:
    return Drive(tmp_path / "drive")


def test_times_keep_every_nanosecond_and_may_be_before_1970(drive: Drive) -> None:
    f = drive.file("f")
    drive.fs.setattr(f, atime_ns=-1, mtime_ns=1_234_567_890_123_456_789, ctime_ns=7)
    drive.remount()
    got = drive.fs.getattr(f)
    assert (got.atime_ns, got.mtime_ns, got.ctime_ns) == (-1, 1_234_567_890_123_456_789, 7)


def test_times_beyond_what_a_record_holds_become_the_nearest(drive: Drive) -> None:
    f = drive.file("f")
    drive.fs.setattr(f, atime_ns=-(1 << 70), mtime_ns=1 << 63, ctime_ns=1 << 64)
    drive.remount()
    got = drive.fs.getattr(f)
    assert (got.atime_ns, got.mtime_ns, got.ctime_ns) == (-(1 << 63), (1 << 63) - 1, (1 << 63) - 1)


def test_a_change_sets_ctime_to_now_unless_it_is_given(tmp_path: Path) -> None:
    now = [1_000]
    drive = Drive(tmp_path / "drive", clock=lambda: now[0])
    f = drive.file("f")
    now[0] = 2_000
    assert drive.fs.setattr(f, mode=0o600).ctime_ns == 2_000
    now[0] = 3_000
    got = drive.fs.setattr(f, size=10)
    assert (got.mtime_ns, got.ctime_ns, got.size) == (3_000, 3_000, 10)
    now[0] = 4_000
    assert drive.fs.setattr(f, size=10).mtime_ns == 4_000


def test_chmod_changes_permission_bits_only(drive: Drive) -> None:
    d = drive.dir("d")
    assert drive.fs.setattr(d, mode=stat.S_IFREG | 0o7123).mode == stat.S_IFDIR | 0o7123


def test_a_file_that_changes_hands_is_not_set_uid_any_more(drive: Drive) -> None:
    f = drive.file("f")
    drive.fs.setattr(f, mode=0o6755)
    assert stat.S_IMODE(drive.fs.setattr(f, uid=5).mode) == 0o755
    drive.fs.setattr(f, mode=0o6745)
    assert stat.S_IMODE(drive.fs.setattr(f, gid=5).mode) == 0o2745
    assert stat.S_IMODE(drive.fs.setattr(f, uid=6, mode=0o4755).mode) == 0o4755
    assert stat.S_IMODE(drive.fs.setattr(f, ctime_ns=1).mode) == 0o755, "chown(-1, -1) counts too"
    d = drive.dir("d")
    drive.fs.setattr(d, mode=0o6755)
    assert stat.S_IMODE(drive.fs.setattr(d, uid=5).mode) == 0o6755


def test_a_write_that_is_announced_takes_set_uid_unless_it_is_of_root(drive: Drive) -> None:
    f = drive.file("f")
    drive.fs.setattr(f, gid=7)
    drive.fs.setattr(f, mode=0o6755)
    drive.fs.setxattr(f, b"security.capability", b"cap")
    drive.fs.write(f, 0, b"x")
    assert stat.S_IMODE(drive.fs.getattr(f).mode) == 0o6755
    assert drive.fs.listxattr(f) == []
    assert stat.S_IMODE(drive.fs.setattr(f).mode) == 0o6755
    assert stat.S_IMODE(drive.fs.setattr(f, size=0).mode) == 0o6755
    assert stat.S_IMODE(drive.fs.setattr(f, caller=Caller(5, 5)).mode) == 0o755
    for caller, left in ((Caller(5, 7), 0o2644), (Caller(5, 5, groups=lambda: (7,)), 0o2644), (Caller(5, 5), 0o644)):
        drive.fs.setattr(f, mode=0o6644)
        assert stat.S_IMODE(drive.fs.setattr(f, size=0, caller=caller).mode) == left


def test_chown_of_nothing_is_for_the_owner_when_it_would_take_a_bit(drive: Drive) -> None:
    f = drive.file("f")
    drive.fs.setattr(f, mode=0o4755)
    refuses(errno.EPERM, drive.fs.setattr, f, caller=Caller(5, 5), ctime_ns=1)
    drive.fs.setattr(f, mode=0o755)
    drive.fs.setattr(f, caller=Caller(5, 5), ctime_ns=1)


def test_a_capability_goes_with_chown_but_not_of_a_directory(drive: Drive) -> None:
    for ino, left in ((drive.file("f"), []), (drive.dir("d"), [b"security.capability"])):
        drive.fs.setxattr(ino, b"security.capability", b"cap")
        drive.fs.setattr(ino, mode=0o700, mtime_ns=1)
        assert drive.fs.listxattr(ino) == [b"security.capability"]
        drive.fs.setattr(ino, uid=5)
        assert drive.fs.listxattr(ino) == left


def test_a_capability_comes_back_when_the_chown_that_took_it_is_refused(tmp_path: Path) -> None:
    now = [10]
    drive = Drive(tmp_path / "drive", clock=lambda: now[0])
    f, cap, stranger = drive.file("f"), b"security.capability", Caller(5, 5)

    def prepare() -> None:
        now[0] += 10
        drive.fs.setattr(f, mode=0o4755)
        drive.fs.setxattr(f, cap, b"cap")
        now[0] += 10

    prepare()
    before = drive.fs.getattr(f)
    drive.fs.removexattr(f, cap, stranger)
    drive.fs.setattr(f, caller=stranger, mtime_ns=before.mtime_ns, ctime_ns=now[0] + 1)
    refuses(errno.EPERM, drive.fs.setattr, f, caller=stranger, ctime_ns=1)
    assert (drive.fs.getxattr(f, cap), drive.fs.getattr(f)) == (b"cap", before)
    refuses(errno.EPERM, drive.fs.setattr, f, caller=stranger, ctime_ns=1)
    assert drive.fs.getxattr(f, cap) == b"cap"

    for who in (Caller(0, 0), Caller(6, 6)):
        prepare()
        drive.fs.removexattr(f, cap, who)
        refuses(errno.EPERM, drive.fs.setattr, f, caller=stranger, ctime_ns=1)
        assert drive.fs.listxattr(f) == [], "somebody else took it, and meant it"
    prepare()
    drive.fs.removexattr(f, cap, stranger)
    now[0] += 1
    drive.fs.write(f, 0, b"x")
    refuses(errno.EPERM, drive.fs.setattr, f, caller=stranger, ctime_ns=1)
    assert drive.fs.listxattr(f) == [], "it went with the write"


def test_what_the_kernel_accepted_earlier_moves_no_times_and_takes_no_capability(tmp_path: Path) -> None:
    now = [1_000]
    drive = Drive(tmp_path / "drive", clock=lambda: now[0])
    f = drive.file("f")
    drive.fs.setxattr(f, b"security.capability", b"cap")
    drive.fs.setattr(f, mtime_ns=7, ctime_ns=8)
    now[0] = 2_000
    drive.fs.write(f, 0, b"x", accepted=True)
    got = drive.fs.getattr(f)
    assert (got.mtime_ns, got.ctime_ns, drive.fs.listxattr(f)) == (7, 8, [b"security.capability"])
    drive.fs.write(f, 0, b"x")
    got = drive.fs.getattr(f)
    assert (got.mtime_ns, got.ctime_ns, drive.fs.listxattr(f)) == (2_000, 2_000, [])


def test_only_files_have_a_size_to_change(drive: Drive) -> None:
    refuses(errno.EISDIR, drive.fs.setattr, drive.dir("d"), size=0)
    refuses(errno.EINVAL, drive.fs.setattr, drive.fs.symlink(1, b"s", b"x", ROOT).ino, size=0)
    refuses(errno.EFBIG, drive.fs.setattr, drive.file("f"), size=1 << 61)
    refuses(errno.EINVAL, drive.fs.setattr, drive.file("g"), size=-1)


def test_access_time_follows_as_relatime(tmp_path: Path) -> None:
    day = 86_400 * 10**9
    now = [10]
    drive = Drive(tmp_path / "drive", clock=lambda: now[0])
    f = drive.file("f", b"data")
    now[0] = 20
    drive.read(f)
    assert drive.fs.getattr(f).atime_ns == 20
    now[0] = 30
    drive.read(f)
    assert drive.fs.getattr(f).atime_ns == 20
    now[0] = 40
    drive.fs.write(f, 0, b"x")
    now[0] = 50
    drive.read(f)
    assert drive.fs.getattr(f).atime_ns == 50
    now[0] = day + 100
    drive.read(f)
    assert drive.fs.getattr(f).atime_ns == day + 100
    drive.remount()
    assert drive.fs.getattr(f).atime_ns == day + 100


def test_listing_and_following_are_access_too(tmp_path: Path) -> None:
    now = [10]
    drive = Drive(tmp_path / "drive", clock=lambda: now[0])
    link, d = drive.fs.symlink(1, b"l", b"to", ROOT).ino, drive.dir("d")
    now[0] = 20
    assert drive.fs.readlink(link) == b"to"
    list(drive.fs.readdir(d))
    assert (drive.fs.getattr(link).atime_ns, drive.fs.getattr(d).atime_ns) == (20, 10)
    drive.fs.listed(d)
    assert drive.fs.getattr(d).atime_ns == 20
    now[0] = 30
    drive.fs.listed(d)
    assert drive.fs.readlink(link) == b"to"
    assert (drive.fs.getattr(link).atime_ns, drive.fs.getattr(d).atime_ns) == (20, 20)


def test_reading_does_not_make_a_checkpoint_necessary(drive: Drive) -> None:
    f = drive.file("f", b"data")
    drive.publish()
    committed = drive.store.changed_seq
    changed = drive.fs.getattr(f).changed_seq
    drive.read(f)
    drive.fs.commits.now()
    assert drive.store.changed_seq == committed
    assert drive.fs.getattr(f).changed_seq == changed


# ---- extended attributes ----------------------------------------------------------------------------------------------


def test_extended_attributes(drive: Drive) -> None:
    f = drive.file("f")
    assert drive.fs.listxattr(f) == []
    refuses(errno.ENODATA, drive.fs.getxattr, f, b"user.a")
    drive.fs.setxattr(f, b"user.a", b"")
    drive.fs.setxattr(f, b"user.b", pattern(65_536))
    drive.fs.setxattr(f, b"trusted.overlay", b"1")
    drive.remount()
    assert sorted(drive.fs.listxattr(f)) == [b"trusted.overlay", b"user.a", b"user.b"]
    assert drive.fs.getxattr(f, b"user.a") == b""
    assert drive.fs.getxattr(f, b"user.b") == pattern(65_536)
    refuses(errno.EEXIST, drive.fs.setxattr, f, b"user.a", b"x", 1)
    refuses(errno.ENODATA, drive.fs.setxattr, f, b"user.c", b"x", 2)
    drive.fs.setxattr(f, b"user.a", b"x", 2)
    drive.fs.removexattr(f, b"user.b")
    refuses(errno.ENODATA, drive.fs.removexattr, f, b"user.b")
    assert sorted(drive.fs.listxattr(f)) == [b"trusted.overlay", b"user.a"]
    drive.fs.unlink(1, b"f")
    drive.fs.commits.now()
    assert drive.check() == []
    assert list(drive.store.scan(b"x")) == []


def test_limits_of_extended_attributes(drive: Drive) -> None:
    f = drive.file("f")
    refuses(errno.E2BIG, drive.fs.setxattr, f, b"user.a", bytes(65_537))
    refuses(errno.ERANGE, drive.fs.setxattr, f, b"user." + b"a" * 251, b"")
    refuses(errno.EINVAL, drive.fs.setxattr, f, b"system.posix_acl_access", b"")
    refuses(errno.EOPNOTSUPP, drive.fs.setxattr, f, b"system.other", b"")
    refuses(errno.EINVAL, drive.fs.setxattr, f, b"user.", b"")
    refuses(errno.EINVAL, drive.fs.setxattr, f, b"user.a", b"", 3)
    refuses(errno.EPERM, drive.fs.setxattr, drive.fs.symlink(1, b"s", b"x", ROOT).ino, b"user.a", b"")
    count = 0
    with pytest.raises(PosixError) as caught:
        for count in range(1000):
            drive.fs.setxattr(f, b"user.%03d" % count + b"n" * 200, b"")
    assert caught.value.errno == errno.ENOSPC
    assert sum(len(name) + 1 for name in drive.fs.listxattr(f)) <= 65_536
    assert len(drive.fs.listxattr(f)) == count


def test_virtual_attributes_are_read_only_and_not_listed(tmp_path: Path) -> None:
    drive = Drive(tmp_path / "drive")
    f = drive.file("f", b"data")
    assert drive.fs.getxattr(f, b"user.hivefs.durability") == b"local"
    assert drive.fs.getxattr(f, b"user.hivefs.policy") == b"default"
    assert drive.fs.getxattr(f, b"user.hivefs.placement") == b"[]"
    refuses(errno.ENODATA, drive.fs.getxattr, f, b"user.hivefs.else")
    refuses(errno.EPERM, drive.fs.setxattr, f, b"user.hivefs.policy", b"x")
    refuses(errno.EPERM, drive.fs.removexattr, f, b"user.hivefs.policy")
    assert drive.fs.listxattr(f) == []


# ---- space ------------------------------------------------------------------------------------------------------------


def test_statfs_shows_the_disk_and_then_what_the_hive_reported(drive: Drive) -> None:
    total, free = drive.store.disk()
    before = drive.fs.statfs()
    assert before.blocks == total // 4096
    assert abs(before.free - free // 4096) < 100_000
    run(drive.service.set_capacity, 100 * MIB, 10 * MIB)
    drive.file("f", bytes(MIB))
    shown = drive.fs.statfs()
    assert (shown.blocks * 4096, shown.free * 4096) == (100 * MIB, 9 * MIB)
    drive.remount()
    assert drive.fs.capacity == Capacity(100 * MIB, 10 * MIB)
    assert (shown.files - shown.files_free, drive.fs.statfs().files_free) == (1, shown.files_free - 1)


def test_a_full_hive_is_enospc(drive: Drive) -> None:
    f = drive.file("f", bytes(MIB))
    run(drive.service.set_capacity, 100 * MIB, 2 * MIB)
    refuses(errno.ENOSPC, drive.fs.write, f, 2 * MIB, bytes(MIB + 1))
    assert (drive.fs.getattr(f).size, drive.read(f)) == (MIB, bytes(MIB))
    drive.fs.write(f, MIB, bytes(MIB))
    drive.place()
    drive.fs.write(f, 2 * MIB, bytes(MIB))


def test_a_full_disk_is_enospc_until_there_is_room(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    f = drive.file("f", b"data")
    with monkeypatch.context() as patch:
        patch.setattr(drive.store, "disk", lambda: (1 << 40, 0))
        refuses(errno.ENOSPC, run, drive.fs.fsync, f)
        refuses(errno.ENOSPC, drive.fs.write, f, 0, b"more")
        drive.fs.unlink(1, b"f")
        g = drive.file("g")
    run(drive.fs.syncfs)
    drive.fs.write(g, 0, b"more")
    with monkeypatch.context() as patch:
        patch.setattr(drive.store, "disk", lambda: (1 << 40, 0))
        drive.file("last")
        drive.unmount()  # the reserve is for this
    drive.mount()
    assert drive.names() == [b"g", b"last"]


def test_a_full_disk_under_the_stage_is_enospc(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    f = drive.file("f", b"data")
    monkeypatch.setattr(drive.stage, "_free_bytes", lambda path: 0)
    monkeypatch.setattr(drive.stage, "_room", 0)
    refuses(errno.ENOSPC, drive.fs.write, f, 0, bytes(MIB))
    assert drive.read(f) == b"data"
    assert drive.fs.getattr(f).size == 4

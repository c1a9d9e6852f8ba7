"""Work waits for a pause of whoever uses the drive, but not for ever and not however much it is."""

from __future__ import annotations

from pathlib import Path

from drive_tools import ROOT, Drive, run

from hivefs.filesystem.courtesy import BUSY, GRANT, MOST_PIECES, MOST_WAITING, PATIENCE_NS, TRICKLE, Courtesy
from hivefs.filesystem.service import VaultService

SECOND = 10**9


class Use:
    """A drive that is used as much as the test says, at a time that it says."""

    def __init__(self) -> None:
        self.load = 0.0
        self.now = 10**18
        self.courtesy = Courtesy(lambda: self.load, lambda: self.now)

    def grant(self, waiting: int = 1000, pieces: int = 1, age_ns: int = 0) -> int:
        return self.courtesy.grant(waiting, pieces, self.now - age_ns)


def test_nothing_begins_while_the_drive_is_used() -> None:
    use = Use()
    assert use.courtesy.calm
    assert use.grant() == GRANT
    use.load = BUSY + 0.01
    assert not use.courtesy.calm
    assert use.grant() == 0
    assert use.courtesy.yielding
    assert use.courtesy.grant(0, 0, None) == 0
    assert not use.courtesy.yielding, "nothing waits"
    use.load = BUSY
    assert use.grant() == GRANT
    assert not use.courtesy.yielding


def test_what_has_waited_for_long_trickles() -> None:
    use = Use()
    use.load = 1.0
    use.now += 5 * SECOND
    assert use.grant(age_ns=PATIENCE_NS) == 0
    assert use.grant(age_ns=PATIENCE_NS + 1) == TRICKLE
    assert use.grant(age_ns=PATIENCE_NS + 1) == 0, "once a second"
    use.now += SECOND
    assert use.grant(age_ns=PATIENCE_NS + 1) == TRICKLE


def test_much_does_not_wait() -> None:
    use = Use()
    use.load = 1.0
    assert use.grant(waiting=MOST_WAITING) == GRANT
    assert use.grant(pieces=MOST_PIECES) == GRANT
    assert use.grant(waiting=MOST_WAITING - 1, pieces=MOST_PIECES - 1) == 0


def test_a_clock_that_is_set_back_does_not_stop_it() -> None:
    use = Use()
    use.load = 1.0
    use.now += 10 * SECOND
    assert use.grant(age_ns=PATIENCE_NS * 2) == TRICKLE
    use.now -= 3600 * SECOND
    assert use.courtesy.grant(1000, 1, use.now + 3600 * SECOND) == TRICKLE
    use.now += SECOND
    assert use.courtesy.grant(1000, 1, use.now + 3600 * SECOND) == TRICKLE


def test_the_drive_hands_out_work_accordingly(tmp_path: Path) -> None:
    drive, load = Drive(tmp_path / "drive"), [1.0]
    service = VaultService(drive.fs, bytes(16), Courtesy(lambda: load[0], drive.clock))
    ino = drive.fs.create(1, b"f", 0o644, ROOT).ino
    drive.fs.write(ino, 0, b"x")
    drive.fs.commits.now()
    assert run(service.dirty, 10, 1, []) == []
    assert not run(service.calm)
    assert [work.ino for work in run(service.dirty, 10, 0, [])] == [ino], "somebody waits for it"
    load[0] = 0.0
    assert run(service.calm)
    assert [work.ino for work in run(service.dirty, 10, 1, [])] == [ino]

"""dbench: the load of a file server, as recorded by NetBench."""

from __future__ import annotations

import pytest
from judges import bounded, judge
from mount_tools import Mounted

pytestmark = [pytest.mark.slow, pytest.mark.fuse, pytest.mark.timeout(300)]


@pytest.mark.parametrize(("seconds", "options"), [(20, ()), (10, ("-s",)), (10, ("-F", "-S"))])
def test_four_clients(drive: Mounted, seconds: int, options: tuple[str, ...]) -> None:
    """``-s``: every file is O_SYNC; ``-F``: fsync at each flush; ``-S``: directories are synced too."""
    status, said = bounded([judge("dbench"), "-D", str(drive.path), "-t", str(seconds), *options, "4"], 200)
    assert status == 0, said
    assert "Throughput" in said, said
    # how dbench starts its clients together is its own affair
    complaints = [line for line in said.splitlines() if "failed" in line and "barrier semaphore" not in line]
    assert not complaints and "ERROR" not in said, said

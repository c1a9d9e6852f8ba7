"""Outside judges on a real mount. Slow: run with ./scripts/test --slow, which installs them.

After the tests of a file the metadata is checked as ``hivefs check`` does, and the mount's log must hold no error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "daemon"))

from judges import whole
from mount_tools import Mounted, mounted


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """A drive for all tests of a file."""
    with mounted(tmp_path_factory.mktemp("stress")) as found:
        yield found
        whole(found)

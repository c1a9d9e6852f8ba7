"""The drives of these tests are mounted by the tools of the daemon's tests."""

from __future__ import annotations

import sys
from pathlib import Path

for _room in (Path(__file__).parent, Path(__file__).parents[1] / "daemon"):
    sys.path.append(str(_room))

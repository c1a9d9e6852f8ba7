"""The attacks use the tools of other rooms' tests: real nodes, a real drive."""

from __future__ import annotations

import sys
from pathlib import Path

for _room in ("node", "filesystem"):
    sys.path.append(str(Path(__file__).parents[1] / _room))

"""What the engine counts for status is counted often here, so that tests which wait for it wait for less."""

from __future__ import annotations

import pytest

from hivefs.daemon import engine_policies


@pytest.fixture(autouse=True)
def _counted_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_policies, "MEASURE_EVERY", 0.5)

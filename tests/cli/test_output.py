"""What others call themselves is shown, and steers nothing."""

from __future__ import annotations

import pytest

from hivefs.cli.output import console


def test_a_name_that_looks_like_markup_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("evil[/x]", "Good GmbH (a)[black on black]", "/Photos [old]"):
        console().print(f"operator {name}")
        assert name in capsys.readouterr().out

"""docs/security.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "security.md"


def test_every_test_in_the_table_exists() -> None:
    named = re.findall(r"`(\w+/test_\w+\.py)::(test_\w+)`", PAGE.read_text())
    assert len(named) > 60
    missing = [f"{file}::{name}" for file, name in named if f"def {name}(" not in (TESTS / file).read_text()]
    assert missing == []


def test_every_attack_written_here_is_in_the_table() -> None:
    page = PAGE.read_text()
    here = [
        f"attacks/{path.name}::{name}"
        for path in Path(__file__).parent.glob("test_*.py")
        if path.name != Path(__file__).name
        for name in re.findall(r"^def (test_\w+)\(", path.read_text(), re.M)
    ]
    controls = {
        "attacks/test_machine.py::test_the_drive_reads_back_when_nobody_touched_it",
        "attacks/test_machine.py::test_another_vaults_book_does_not_open",
    }
    assert [name for name in here if f"`{name}`" not in page and name not in controls] == []

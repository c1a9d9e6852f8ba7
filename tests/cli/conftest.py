"""Commands are run in this process, with a vault and a hive of their own that are not there yet."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from commands import Ran, Run

from hivefs.cli import main as cli


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HIVEFS_HOME", str(tmp_path / "vault"))
    monkeypatch.setenv("HIVEFS_HIVE", str(tmp_path / "hive"))
    return tmp_path


@pytest.fixture
def hivefs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def run(*arguments: object, stdin: str = "") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        code = cli.run([str(a) for a in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Ran(code, said.out, said.err)

    return run

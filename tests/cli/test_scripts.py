"""What the scripts do before HiveFS is there: packages, Python, places that cannot be written. Programs that would change
the machine are shell functions here that say what they were called with.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAKE = """
set -euo pipefail
cd {root}
. scripts/setup.sh
hivefs_installed() {{ case $1 in {missing}) return 1 ;; esac; }}
id() {{ echo {uid}; }}
env() {{ shift; echo "CALLED $*"; return {apt}; }}
sudo() {{
    [ {sudo} != refuse ] || return 1
    [ "$1" != -n ] || shift
    [ "$1" != true ] || return 0
    echo "SUDO $*"
}}
[ {sudo} != missing ] || command() {{ [ "$2" != sudo ] && builtin command "$@"; }}
"""


def bash(text: str, **fake: object) -> subprocess.CompletedProcess[str]:
    values = {"root": ROOT, "missing": "fuse3|libgmp-dev", "uid": 0, "apt": 0, "sudo": "yes", **fake}
    return subprocess.run(
        ["bash", "-c", FAKE.format(**values) + text],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        start_new_session=True,
    )


def test_root_installs_only_what_is_missing() -> None:
    done = bash("hivefs_packages run attr no-such-program-of-attr git bash")
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0] == "Installing system packages: fuse3 libgmp-dev attr"
    assert said[1:] == [
        "CALLED apt-get update -q",
        "CALLED apt-get install -y --no-install-recommends fuse3 libgmp-dev attr",
    ]


def test_nothing_is_missing() -> None:
    done = bash("hivefs_packages run", missing="nothing", uid=1000, sudo="refuse")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_ordinary_user_goes_through_sudo() -> None:
    done = bash("hivefs_packages run", uid=1000)
    assert done.returncode == 0 and "SUDO env DEBIAN_FRONTEND=noninteractive apt-get install -y" in done.stdout


@pytest.mark.parametrize(
    ("sudo", "words"), [("refuse", "sudo apt-get update && sudo apt-get"), ("missing", "as root run: apt-get")]
)
def test_without_a_way_to_root_it_says_the_command(sudo: str, words: str) -> None:
    done = bash("hivefs_packages run", uid=1000, sudo=sudo)
    assert done.returncode == 1 and words in done.stderr and "fuse3 libgmp-dev" in done.stderr
    assert done.stderr.count("\n") == 1 and "Installing" not in done.stdout


def test_apt_that_fails() -> None:
    done = bash("hivefs_packages run", apt=100)
    assert done.returncode == 1 and "apt-get update failed" in done.stderr


def test_old_python(tmp_path: Path) -> None:
    (tmp_path / "python").write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit 0\nexit 1\n')
    (tmp_path / "python").chmod(0o755)
    done = bash(f"PYTHON={tmp_path}/python hivefs_environment ''")
    assert done.returncode == 1 and "Python 3.9.2" in done.stderr and "3.11" in done.stderr


def test_a_wrong_option(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "quickstart", "--nonsense"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2 and "--help" in done.stderr and not done.stdout
    done = subprocess.run(
        [ROOT / "scripts" / "quickstart", "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 and "--password-file" in done.stdout and "set -euo" not in done.stdout


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="the program shellcheck is missing (package shellcheck)")
def test_shellcheck() -> None:
    scripts = [str(ROOT / "scripts" / name) for name in ("quickstart", "test", "bench", "setup.sh")]
    done = subprocess.run(["shellcheck", "-x", *scripts], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_everything_is_pinned() -> None:
    """Each requirement of setup.cfg and pyproject.toml stands in constraints.txt with one version."""
    import configparser
    import re
    import tomllib

    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    wanted = f"{config['options']['install_requires']}\n{config['options.extras_require']['test']}".split("\n")
    names = {re.split(r"[\s;=<>!~\[]", line.strip())[0].lower().replace("_", "-") for line in wanted if line.strip()}
    assert len(names) > 15 and names <= pinned
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert set(build) <= set(lines) and os.access(ROOT / ".ci" / "run", os.X_OK)

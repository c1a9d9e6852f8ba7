"""Policies on a real hive: who holds what, what would be left, and a text that is refused; mounted and not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .live import Live, live, until

pytestmark = [pytest.mark.fuse, pytest.mark.slow]


def refused(hive: Live, code: int, *words: str, stdin: str = "") -> str:
    done = hive.run(*words, check=False, stdin=stdin)
    assert done.returncode == code and done.stderr.count("\n") == 1, (done.returncode, done.stdout, done.stderr)
    return done.stderr


def test_what_a_user_is_told(tmp_path: Path) -> None:
    with live(tmp_path) as hive:
        photos = hive.drive / "Photos"
        photos.mkdir()
        for number in range(3):
            (photos / f"{number}.jpg").write_bytes(bytes([number]) * 700_000)
        hive.wait(hive.drive)
        found = hive.json("policy", "explain", str(photos))
        assert (found["path"], found["files"], found["local"], found["failing"]) == ("/Photos", 3, 0, 0)
        assert found["proved"] == found["stripes"] >= 1 and found["metadata"]["failing"] == 0
        countries = {h["attributes"]["country"] for h in found["holders"]}
        assert len(countries) >= 3 and {h["evidence"]["country"] for h in found["holders"]} == {"claimed"}
        (proof,) = [p for p in found["proofs"] if p["family"] == "jurisdiction"]
        assert proof["no_reassembly"]["shares"] <= proof["needed"] - 1 and proof["holds"]
        for country in countries:
            what_if = hive.json("policy", "simulate", "--lose", country, "--seize", country)["files"]
            assert (what_if["readable"], what_if["lost"], what_if["partly"]) == (3, 0, 0)
        all_lost = hive.json("policy", "simulate", "--lose", ",".join(sorted(countries)), "--seize", ",".join(countries))
        assert all_lost["files"]["lost"] == all_lost["files"]["whole"] == 3
        assert all_lost["nodes_left"] == 2 * (4 - len(countries))
        assert "no_hostage" in hive.run("policy", "show").stdout
        assert "line 1, column 1" in refused(hive, 62, "policy", "apply", "-", stdin="polcy = 1\n")
        eu = '[policy.default]\nallow = ["US", "CA", "MX"]\n'
        assert "--force" in refused(hive, 31, "policy", "apply", "-", stdin=eu)
        assert hive.json("policy", "show")["own"] is False
        hive.run("umount", timeout=90)
        unmounted = hive.json("placement", "/Photos")
        assert unmounted["files"] == 3 and unmounted["failing"] == 0
        assert json.loads(hive.run("policy", "check", "--json").stdout)["policies"]["default"] == ""
        refused(hive, 61, "placement", "/none")


TEXT = """# One of those where it lies now.
metadata = "mainland"
[policy.mainland]
code = "4/6"
deny = ["COUNTRY"]
"""


def test_a_policy_set_on_existing_data_moves_it(tmp_path: Path) -> None:
    with live(tmp_path) as hive:
        photos = hive.drive / "Photos"
        photos.mkdir()
        content = {f"{number}.jpg": bytes([number]) * 700_000 for number in range(3)}
        for name, data in content.items():
            (photos / name).write_bytes(data)
        hive.wait(hive.drive)
        denied = hive.json("placement", str(photos))["holders"][0]["attributes"]["country"]
        text = TEXT.replace("COUNTRY", denied)
        hive.run("policy", "apply", "-", stdin=text)
        hive.run("policy", "set", str(photos), "mainland")
        assert hive.run("policy", "show").stdout == text + '\n[paths]\n"/Photos" = "mainland"\n'

        def moved() -> bool:
            found = hive.json("policy", "explain", str(photos))
            assert found["policy"] == "mainland" and found["policies"]["mainland"]["infeasible"] == ""
            held = {h["attributes"]["country"] for h in found["holders"]}
            kept = {h["attributes"]["country"] for h in found["metadata"]["holders"]}
            return not found["failing"] and held == {"DE", "FR", "CH", "IS"} - {denied} and denied not in kept

        until(moved, 150, what=f"all shares outside of {denied}")
        hive.drop_caches()
        assert {name: (photos / name).read_bytes() for name in content} == content
        assert hive.json("policy", "simulate", "--lose", denied, "--path", "/Photos")["files"]["endangered"] == 0

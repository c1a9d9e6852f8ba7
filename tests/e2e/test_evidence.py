"""Evidence with real processes: an embedded hive, an attester, a node that is vouched for, sold, and says so itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from .live import Live, live, until


@pytest.mark.fuse
@pytest.mark.slow
def test_vouched_for_relabelled_and_claimed_all_of_it_seen_within_seconds(tmp_path: Path) -> None:
    with live(tmp_path, nodes=4) as hive:
        notary, line = tmp_path / "notary.key", tmp_path / "line"
        key = hive.json("attest", "--key", str(notary), "--new-key")["key"]
        until(lambda: hive.online() == 4, what="all nodes online")

        def node(number: int) -> dict[str, Any]:
            rows: list[dict[str, Any]] = hive.json("nodes")
            return sorted(rows, key=lambda row: str(row["id"]))[number]

        def known(number: int, name: str) -> tuple[str, str] | None:
            row = node(number)
            return (row["attributes"][name], row["evidence"][name]) if name in row["attributes"] else None

        first = node(0)
        country = first["attributes"]["country"]
        assert first["evidence"]["country"] == "claimed"
        hive.run("attest", first["id"], "--key", str(notary), "--country", country, "--out", str(line))
        refused = hive.run("trust", "--take", str(line), check=False)
        assert refused.returncode == 64 and key in refused.stderr and "not trusted" in refused.stderr
        hive.run("trust", key, "--name", "the notary")
        directory = next(d for d in hive.node_directories() if owns(hive, d, line))
        assert hive.json("node", "vouched", str(directory))["running"] is True
        until(lambda: known(0, "country") == (country, "attested"), what="the attestation heard of")
        (row,) = hive.json("trust")["trusted"]
        assert (row["key"], row["name"], row["nodes"]) == (key, "the notary", 1)
        table = hive.run("nodes").stdout
        assert f"{country} a" in table and "the notary" in hive.run("trust", "--list").stdout

        other = node(1)["id"]
        made = hive.json("hive", "relabel", other[:16], "--parent", "Big Corp", "--parent-country", "us")
        assert made["epoch"] == 1 and 1 <= made["told"] <= 4, "who is busy for ten seconds hears it from the others"
        until(lambda: known(1, "parent_country") == ("US", "claimed"), what="the sale heard of")
        hive.run("trust", "--owner")
        until(lambda: known(1, "parent_country") == ("US", "attested"), what="the owner trusted")
        hive.run("node", "set", str(directory), "--country", "AQ")
        until(lambda: known(0, "country") == ("", "attested"), what="the node's own word against the attester's")
        assert "the node says AQ" in node(0)["unsure"][0] and "the node says AQ" in hive.run("nodes").stdout
        hive.run("node", "set", str(directory), "--withdraw", "country")
        until(lambda: known(0, "country") == (country, "attested"), what="the claim taken back")
        hive.run("trust", key, "--remove")
        until(lambda: known(0, "country") == (country, "claimed"), what="the attester trusted no more")
        gone = hive.run("trust", key, "--remove", check=False)
        assert gone.returncode == 60 and "is not trusted" in gone.stderr

        table = tmp_path / "table.csv"
        table.write_text("192.0.2.0/24,Deutschland\n")
        wrong = hive.run("trust", "--registry", str(table), check=False)
        assert wrong.returncode == 60 and "line 1" in wrong.stderr
        table.write_text("network,country\n192.0.2.0/24,DE,64500,Rack\n")
        assert hive.json("trust", "--registry", str(table))["registry"]["rows"] == 1

        def refuted() -> bool:
            """Cape Town; the nodes answer from this very machine, but when it is busy not always faster than light. They
            are pinged at once when the place is given, and then every minute.
            """
            hive.run("trust", "--place", "-33.9,18.4")
            end = time.monotonic() + 5
            while time.monotonic() < end:
                if known(0, "country") == ("", "measured"):
                    return True
            return False

        until(refuted, 200, what="a country refuted by its round trip")
        assert "refuted" in hive.run("nodes").stdout
        shown = hive.json("trust", "--list")
        assert shown["place"] == "-33.9,18.4" and shown["registry"]["rows"] == 1
        hive.run("trust", "--place", "none", "--registry", "none")
        until(lambda: known(0, "country") == (country, "claimed"), what="the place forgotten")


def owns(hive: Live, directory: Path, line: Path) -> bool:
    """Whether that node takes the attestation: it is about itself."""
    done = hive.run("node", "vouched", str(directory), str(line), check=False)
    assert done.returncode == 0 or "about another node" in done.stderr
    return done.returncode == 0

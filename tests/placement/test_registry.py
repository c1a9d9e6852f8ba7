"""The table of networks against a table looked through line by line."""

from __future__ import annotations

import csv
import ipaddress
import sys
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.errors import BadSetting
from hivefs.placement.evidence import Origin
from hivefs.placement.registry import Builder, Registry, from_lines


def table(text: str) -> Registry:
    return from_lines(csv.reader(text.splitlines()))


def at(made: Registry, address: str) -> Origin | None:
    return made.find(ipaddress.ip_address(address))


def test_a_table_of_networks_and_of_ranges() -> None:
    made = table(
        "network,country,asn,hoster\n# free\n\n192.0.2.0/24,de,AS64500,Rack & Co\n"
        '198.51.100.0,198.51.100.127,FR,64501,"A, B"\n2001:db8::/32,CH,,\n203.0.113.0/24,ZZ,0,\n'
    )
    assert at(made, "192.0.2.255") == Origin("DE", "64500", "Rack & Co")
    assert at(made, "198.51.100.127") == Origin("FR", "64501", "A, B") and at(made, "198.51.100.128") is None
    assert at(made, "2001:db8:ffff::1") == Origin("CH") and at(made, "2001:db9::") is None
    assert at(made, "203.0.113.1") == Origin() and at(made, "0.0.0.0") is None and at(made, "255.255.255.255") is None
    assert made.rows == 4


def test_a_hosters_name_in_a_table_of_others_steers_no_terminal() -> None:
    made = table('192.0.2.0/24,DE,1,"Rack\x1b[2J \u202eCo\x9b"\n')
    assert at(made, "192.0.2.1") == Origin("DE", "1", "Rack [2J  Co")


def test_of_networks_in_each_other_the_smallest_counts_and_longer_than_64_bits_is_left_out() -> None:
    made = table("10.0.0.0/8,DE\n10.1.0.0/16,FR\n10.1.2.0/24,CH\n::/0,US\n2001:db8::/64,IS\n2001:db8::/65,NO\n")
    assert [at(made, a) for a in ("10.0.0.1", "10.1.0.0", "10.1.2.3", "10.1.3.0", "10.255.255.255")] == [
        Origin(c) for c in ("DE", "FR", "CH", "FR", "DE")
    ]
    assert at(made, "2001:db8::5") == Origin("IS") and at(made, "2001:db8:0:1::") == Origin("US")
    assert at(made, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff") == Origin("US") and at(made, "11.0.0.0") is None


networks = st.tuples(st.integers(0, 255), st.integers(24, 32), st.sampled_from(["DE", "FR", "CH"]))
NETWORKS = st.lists(networks, min_size=1, max_size=12), st.booleans()


@settings(max_examples=150, deadline=None)
@given(*NETWORKS)
def test_every_address_is_found_as_by_looking_through_all_lines(rows: list[tuple[int, int, str]], six: bool) -> None:
    lines, known = [], []
    for low, bits, country in rows:
        text = f"2001:db8:0:{low:x}::/{bits + 32}" if six else f"192.0.2.{low}/{bits}"
        network = ipaddress.ip_network(text, strict=False)
        lines.append([str(network), country])
        known.append((network.prefixlen, country, network))
    made = from_lines(lines)
    for number in range(256):
        address = ipaddress.ip_address(f"2001:db8:0:{number:x}::9" if six else f"192.0.2.{number}")
        best: tuple[int, str] | None = None
        for bits, country, network in known:
            if address in network and (best is None or bits >= best[0]):
                best = bits, country
        assert made.find(address) == (None if best is None else Origin(best[1])), address


@pytest.mark.slow
def test_every_address_is_found_in_many_tables() -> None:
    body = test_every_address_is_found_as_by_looking_through_all_lines.hypothesis.inner_test
    settings(max_examples=5_000, deadline=None)(given(*NETWORKS)(body))()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.sampled_from(["DE", "FR"])), min_size=1, max_size=8))
def test_ranges_that_cross_are_disjoint_in_order_and_none_is_lost(rows: list[tuple[int, int, str]]) -> None:
    rows = [(min(a, b), max(a, b), c) for a, b, c in rows]
    made = from_lines([[f"10.0.0.{a}", f"10.0.0.{b}", c] for a, b, c in rows])
    starts, ends = list(made.v4.starts), list(made.v4.ends)
    assert all(s <= e for s, e in zip(starts, ends, strict=True)) and all(
        e < s for e, s in zip(ends, starts[1:], strict=False)
    )
    for number in range(62):
        allowed = {Origin(c) for a, b, c in rows if a <= number <= b}
        found = at(made, f"10.0.0.{number}")
        assert found in allowed if allowed else found is None


def test_networks_in_each_other_without_end_cost_little_each() -> None:
    """Counted in calls of Python functions, which does not hang on speed: ordering the open ones anew for each row would be
    half a million of them.
    """
    count = 1_000
    rows = [
        [str(ipaddress.ip_address(n)), str(ipaddress.ip_address(10_000 - n)), "DE" if n % 2 else "FR"] for n in range(count)
    ]
    builder = Builder()
    for number, row in enumerate(rows, 1):
        builder.add(row, number)
    calls = 0

    def note(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        made = builder.made()
    finally:
        sys.setprofile(before)
    assert calls < 20 * count and made.rows == 2 * count - 1
    assert at(made, "0.0.0.1") == Origin("DE") == at(made, "0.0.39.15") and at(made, "0.0.39.16") == Origin("FR")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no network in it"),
        ("network,country\n", "no network in it"),
        ("192.0.2.0/24,Germany", "line 1: 'GERMANY' is not a country"),
        ("192.0.2.0/24,DE\nnonsense,DE", "line 2 does not begin with a network"),
        ("192.0.2.0/33,DE", "line 1 does not begin"),
        ("192.0.2.9,192.0.2.1,DE", "line 1 does not begin"),
        ("192.0.2.9,::1,DE", "line 1 does not begin"),
        ("192.0.2.0/24,DE,ASX", "line 1: 'X' is not the number"),
        ("192.0.2.1", "line 1 does not begin"),
    ],
)
def test_lines_that_are_wrong_are_named(text: str, reason: str) -> None:
    with pytest.raises(BadSetting, match=reason):
        table(text)


def test_memory_is_that_of_arrays() -> None:
    """50 000 networks in less than 1 MB, and not in objects."""
    rows = [f"{i >> 10}.{i >> 2 & 255}.{(i & 3) * 64}.0/24" for i in range(50_000)]
    made = from_lines([row, "DE" if i % 2 else "FR"] for i, row in enumerate(rows))
    arrays = (made.v4.starts, made.v4.ends, made.v4.origins)
    assert made.rows == 50_000 and sum(map(sys.getsizeof, arrays)) < 1_000_000 and len(made.origins) == 2
    assert at(made, "1.2.64.9") is not None

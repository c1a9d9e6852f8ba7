"""A table of networks: which country, network operator (ASN) and hoster an address belongs to. Pure.

Users bring it as CSV of lines NETWORK,COUNTRY,ASN,HOSTER, or FIRST,LAST,COUNTRY,ASN,HOSTER, as freely licensed tables of
addresses give it (docs/formats/registry.md says which, and how to make one of two). In memory a table is sorted ranges in
arrays: 12 bytes for a range of IPv4, 20 for one of IPv6, and each different origin once.

Where networks lie in each other the smallest counts. Of IPv6 the first 64 bits count: what is longer than /64 is left out.
"""

from __future__ import annotations

import ipaddress
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush

from hivefs.errors import BadSetting
from hivefs.model.words import shown
from hivefs.placement.evidence import Address, Origin

MAX_ROWS = 4_000_000
MAX_TEXT = 100
"""Characters of a hoster's name that are kept."""

V6_SHIFT = 64
_NAME = "--registry"


@dataclass(slots=True)
class Ranges:
    """Disjoint ranges of numbers in order, each with the number of its origin."""

    starts: array[int]
    ends: array[int]
    origins: array[int]

    def find(self, number: int) -> int | None:
        """The origin of the range that holds a number."""
        at = bisect_right(self.starts, number) - 1
        return self.origins[at] if at >= 0 and number <= self.ends[at] else None


def _empty(code: str) -> Ranges:
    return Ranges(array(code), array(code), array("I"))


@dataclass(slots=True)
class Registry:
    """See the head of the file. ``v4`` is of addresses, ``v6`` of their first 64 bits."""

    origins: list[Origin] = field(default_factory=list)
    v4: Ranges = field(default_factory=lambda: _empty("I"))
    v6: Ranges = field(default_factory=lambda: _empty("Q"))

    @property
    def rows(self) -> int:
        """How many ranges."""
        return len(self.v4.starts) + len(self.v6.starts)

    def find(self, address: Address) -> Origin | None:
        """What the table says of an address: two steps of bisection."""
        number = int(address)
        found = self.v4.find(number) if address.version == 4 else self.v6.find(number >> V6_SHIFT)
        return None if found is None else self.origins[found]


class Builder:
    """Takes lines, gives a Registry. ``skipped`` counts networks of IPv6 that are longer than /64."""

    def __init__(self) -> None:
        self.skipped = 0
        self._numbers: dict[Origin, int] = {}
        self._rows: dict[int, tuple[array[int], array[int], array[int]]] = {
            4: (array("I"), array("I"), array("I")),
            6: (array("Q"), array("Q"), array("I")),
        }

    def add(self, cells: list[str], line: int) -> None:
        """One line. A head line (whose first cell begins with a letter that no address has first) is passed over when it
        is the first. Raises BadSetting with the number of the line.
        """
        cells = [cell.strip() for cell in cells]
        if not any(cells) or cells[0].startswith("#") or (line == 1 and _is_head(cells[0])):
            return
        try:
            version, first, last, rest = _range(cells)
        except (ValueError, IndexError):
            raise BadSetting(name=_NAME, reason=f"line {line} does not begin with a network such as 192.0.2.0/24") from None
        if first is None:
            self.skipped += 1
            return
        origin = _origin(rest, line)
        number = self._numbers.setdefault(origin, len(self._numbers))
        firsts, lasts, origins = self._rows[version]
        if len(firsts) >= MAX_ROWS:
            raise BadSetting(name=_NAME, reason=f"a table has at most {MAX_ROWS} networks")
        firsts.append(first)
        lasts.append(last)
        origins.append(number)

    def made(self) -> Registry:
        """The table. Raises BadSetting when it would be empty."""
        if not self._numbers:
            raise BadSetting(name=_NAME, reason="there is no network in it")
        made = Registry(list(self._numbers))
        for version, ranges in ((4, made.v4), (6, made.v6)):
            _flatten(*self._rows[version], ranges)
        return made


def _is_head(cell: str) -> bool:
    return cell[:1].isalpha() and ":" not in cell and "." not in cell


def _range(cells: list[str]) -> tuple[int, int | None, int, list[str]]:
    if "/" in cells[0]:
        network = ipaddress.ip_network(cells[0], strict=False)
        low, high, rest = network.network_address, network.broadcast_address, cells[1:]
    else:
        low, high, rest = ipaddress.ip_address(cells[0]), ipaddress.ip_address(cells[1]), cells[2:]
    if low.version != high.version or int(low) > int(high):
        raise ValueError("not a range")
    if low.version == 4:
        return 4, int(low), int(high), rest
    inside = (1 << V6_SHIFT) - 1
    if int(low) & inside or int(high) & inside != inside:
        return 6, None, 0, rest
    return 6, int(low) >> V6_SHIFT, int(high) >> V6_SHIFT, rest


def _origin(rest: list[str], line: int) -> Origin:
    country, asn, hoster = (*rest, "", "", "")[:3]
    country = country.upper()
    if country in ("-", "ZZ", "NONE"):
        country = ""
    if country and not (len(country) == 2 and country.isascii() and country.isalpha()):
        raise BadSetting(name=_NAME, reason=f"line {line}: '{country[:20]}' is not a country of two letters")
    asn = asn.upper().removeprefix("AS")
    if asn and not (asn.isascii() and asn.isdigit() and len(asn) <= 10):
        raise BadSetting(name=_NAME, reason=f"line {line}: '{asn[:20]}' is not the number of a network")
    hoster = shown(hoster[:MAX_TEXT], " ").strip()  # it goes to logs and terminals
    return Origin(country, "" if not asn or int(asn) == 0 else str(int(asn)), hoster)


def _flatten(firsts: array[int], lasts: array[int], origins: array[int], into: Ranges) -> None:
    """Ranges that may lie in each other become disjoint ones: a sweep in the order of their starts, larger ones first, with
    a heap of those that are open, the first to end on top. Of two equal ones the later line counts. O(n log n).
    """
    order = sorted(range(len(firsts)), key=lambda i: (firsts[i], -lasts[i], i))
    open_ones: list[tuple[int, int, int]] = []  # (end, the later in the order the smaller, origin)
    at = 0

    def put(first: int, last: int, origin: int) -> None:
        if first > last:
            return
        if into.starts and into.origins[-1] == origin and into.ends[-1] + 1 == first:
            into.ends[-1] = last
            return
        into.starts.append(first)
        into.ends.append(last)
        into.origins.append(origin)

    def close(upto: int) -> None:
        """Write what is open below ``upto``."""
        nonlocal at
        while open_ones and at < upto:
            last, _, origin = open_ones[0]
            end = min(last, upto - 1)
            put(at, end, origin)
            at = max(at, end + 1)
            while open_ones and open_ones[0][0] < at:
                heappop(open_ones)

    for number, i in enumerate(order):
        close(firsts[i])
        at = firsts[i]
        heappush(open_ones, (lasts[i], -number, origins[i]))  # also one that crosses the end of what it begins in
    close(1 << 129)


def from_lines(lines: Iterable[list[str]]) -> Registry:
    """A table of lines of cells. Raises BadSetting."""
    builder = Builder()
    for number, cells in enumerate(lines, 1):
        builder.add(cells, number)
    return builder.made()

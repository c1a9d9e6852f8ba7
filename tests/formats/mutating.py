"""Mutants of byte strings: flipped, cut, lengthened, repeated, spliced. The same for the same seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

TELLING = (
    b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff" * 4, b"\xff" * 8, b"\x7f" + b"\xff" * 7,
    # CBOR: null, NaN, indefinite lengths, break, dates, big numbers, decimals, shared values, a set, an array of 4 GiB
    b"\xf6", b"\xf9\x7e\x00", b"\x9f", b"\x5f", b"\xbf", b"\xc0\x60", b"\xc1\xfb" + b"\x7f" * 8, b"\xc2\x41\x05",
    b"\xc4\x82\x1b" + b"\x7f" * 8 + b"\x01", b"\xd8\x1c\x81\xd8\x1d\x00", b"\xd8\x1d\x00", b"\xd9\x01\x02\x80",
    b"\x9a\xff\xff\xff\xff", b"\x5b" + b"\xff" * 8, b"\xd8\x1e\x82\x01\x00", b"\xd8\x23\x61(", b"\xd8\x25\x41\x00",
    # JSON
    b"[", b"{", b'"', b"\\ud800", b"null", b"1e999", b"NaN", b"-", b"9" * 30,
)  # fmt: skip


def mutants(seeds: Sequence[bytes], count: int, seed: int | str) -> Iterator[bytes]:
    """``count`` mutants; each has one to three changes to one of ``seeds``."""
    random = Random(seed)
    for _ in range(count):
        data = random.choice(seeds)
        for _ in range(random.choice((1, 1, 2, 3))):
            data = _changed(data, seeds, random)
        yield data


def _changed(data: bytes, seeds: Sequence[bytes], random: Random) -> bytes:
    at, to = sorted((random.randint(0, len(data)), random.randint(0, len(data))))
    match random.randrange(7):
        case 0 if data:
            at = min(at, len(data) - 1)
            return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
        case 1:
            return data[:at] + data[to:] if random.random() < 0.7 else data[:at]
        case 2:
            return data[:at] + random.choice((random.choice(TELLING), random.randbytes(random.randint(1, 9)))) + data[at:]
        case 3:
            return data[:to] + data[at:to] * random.choice((1, 1, 2, 40)) + data[to:] if len(data) < 1 << 16 else data
        case 4:
            other = random.choice(seeds)
            return data[:at] + other[random.randint(0, len(other)) :]
        case 5:  # in the place of what was there, so that lengths go on being right
            new = random.choice(TELLING)
            return data[:at] + new + data[at + len(new) :]
        case _:
            middle = (at + to) // 2
            return data[:at] + data[middle:to] + data[at:middle] + data[to:]

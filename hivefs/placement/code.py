"""``code = "auto"``: which code needed/total (k/n) suits the nodes that exist. Pure; the arithmetic is in
docs/embedded-hive.md.

With one node under one jurisdiction each, at most u = min(k-1, n-k) shares may lie under a jurisdiction: more could
rebuild (k) or withhold (n-k+1). So a code can be placed when the sum over jurisdictions of min(u, nodes there) is at
least n. It has a spare when that still holds after any ``spare`` nodes were lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

MOST_EXPANSION = (5, 3)
"""n/k at most 5/3: more redundancy costs more than it gives on nodes that are repaired."""


def placeable(needed: int, total: int, counts: Sequence[int]) -> bool:
    """Whether a stripe fits on jurisdictions with so many nodes each, with no authority able to rebuild or withhold."""
    bound = min(needed - 1, total - needed)
    return sum(min(bound, count) for count in counts) >= total


def keeps(needed: int, total: int, counts: Sequence[int], spare: int) -> bool:
    """Whether it still fits after the loss of any ``spare`` nodes."""
    return all(placeable(needed, total, left) for left in _losses(tuple(counts), spare))


def _losses(counts: tuple[int, ...], lost: int) -> Iterator[tuple[int, ...]]:
    if lost == 0:
        yield counts
        return
    for i, count in enumerate(counts):
        if count:
            yield from _losses((*counts[:i], count - 1, *counts[i + 1 :]), lost - 1)


def auto(counts: Sequence[int], spare: int) -> tuple[int, int] | None:
    """(needed, total): survives most lost shares with n/k <= 5/3, then the least expansion, then the fewest shares.

    None when no code keeps the guarantees with that many spare nodes.
    """
    most = sum(counts) - spare
    codes = [
        (needed, total)
        for total in range(3, most + 1)
        for needed in range(2, total)
        if total * MOST_EXPANSION[1] <= needed * MOST_EXPANSION[0] and keeps(needed, total, counts, spare)
    ]
    return max(codes, key=lambda c: (c[1] - c[0], c[0] / c[1], -c[1]), default=None)

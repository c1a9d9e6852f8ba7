"""The draw: in which order a stripe prefers the nodes. Pure: a function of a seed and the nodes.

Each node draws a lot from a hash of the seed and its id, weighted by its free space and its weight (Efraimidis and
Spirakis, "Weighted random sampling with a reservoir", 2006, in logarithms). A node's lot does not depend on which
others there are, so when one comes or goes the order of the rest stays.
"""

from __future__ import annotations

from math import log

import blake3

from hivefs.model.node import Candidate

UNVETTED = 1 / 8
"""What part of its due a node gets that is not vetted yet."""


def room(node: Candidate) -> float:
    """The weight of a node in the draw: its free bytes, times what reputation and bandwidth make of it."""
    return max(node.free_bytes, 1) * max(node.weight, 1e-6) * (1.0 if node.vetted else UNVETTED)


def lot(seed: bytes, node: Candidate) -> float:
    """The lot of a node; the highest is chosen first."""
    return log(uniform(seed, node.node_id)) / room(node)


def uniform(seed: bytes, name: bytes) -> float:
    """A number above 0 and up to 1."""
    return (int.from_bytes(blake3.blake3(name, key=seed).digest(length=8), "big") + 1) / (1 << 64)


def key(seed: int) -> bytes:
    """32 bytes from a seed of any size."""
    return blake3.blake3(
        b"hivefs placement seed" + seed.to_bytes((seed.bit_length() + 8) // 8, "big", signed=True)
    ).digest()

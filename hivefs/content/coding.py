"""Erasure coding: the only door to zfec (a systematic Reed-Solomon code over GF(256), after Rizzo's fec).

zfec calls the total ``m``; outside this file it is ``total``. zfec may hand back references to its inputs, so what
leaves here is bytes of its own. Its encoder is slow for large n-k: cost grows with every parity share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import zfec

from hivefs.errors import NotEnoughShares


@lru_cache(maxsize=64)
def _encoder(needed: int, total: int) -> zfec.Encoder:
    return zfec.Encoder(needed, total)


@lru_cache(maxsize=64)
def _decoder(needed: int, total: int) -> zfec.Decoder:
    return zfec.Decoder(needed, total)


def encode(needed: int, total: int, data: Sequence[bytes]) -> list[bytes]:
    """The parity shares (numbers needed..total-1) of ``needed`` data shares of equal length."""
    if len(data) != needed or len({len(block) for block in data}) != 1:
        raise ValueError("needed blocks of one length")
    if total == needed:
        return []
    return [bytes(block) for block in _encoder(needed, total).encode(list(data), list(range(needed, total)))]


def decode(needed: int, total: int, shares: Mapping[int, bytes]) -> list[bytes]:
    """The ``needed`` data shares out of any ``needed`` shares by number. Raises NotEnoughShares."""
    if all(i in shares for i in range(needed)):
        return [bytes(shares[i]) for i in range(needed)]
    if len(shares) < needed:
        raise NotEnoughShares(have=len(shares), needed=needed, stripe="", reason="too few were given")
    # zfec wants a data share that is present at the position of its own number; the rest fill the gaps.
    chosen = [i for i in range(needed) if i in shares]
    chosen += [i for i in sorted(shares) if i >= needed][: needed - len(chosen)]
    order: list[int] = [-1] * needed
    spare = [i for i in chosen if i >= needed]
    for i in chosen:
        if i < needed:
            order[i] = i
    order = [i if i >= 0 else spare.pop() for i in order]
    blocks = [shares[i] for i in order]
    return [bytes(block) for block in _decoder(needed, total).decode(blocks, order)]


def remake(needed: int, total: int, shares: Mapping[int, bytes], wanted: Sequence[int]) -> dict[int, bytes]:
    """The shares ``wanted`` (data or parity) out of any ``needed`` others. Raises NotEnoughShares."""
    data = decode(needed, total, shares)
    parity = [i for i in wanted if i >= needed]
    made = {i: data[i] for i in wanted if i < needed}
    if parity:
        blocks = _encoder(needed, total).encode(data, parity)
        made.update({i: bytes(block) for i, block in zip(parity, blocks, strict=True)})
    return made

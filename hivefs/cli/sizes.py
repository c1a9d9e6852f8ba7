"""Sizes and rates as people write them."""

from __future__ import annotations

from hivefs.errors import BadSetting
from hivefs.node.caps import NO_CAP, SAME, SLOWEST

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
LEAST_CAPACITY = 64 << 20


def _count(text: str, name: str, examples: str) -> int:
    cleaned = text.strip().upper().removesuffix("IB").removesuffix("B")
    number, unit = (cleaned[:-1], cleaned[-1]) if cleaned[-1:] in UNITS and cleaned[-1:] else (cleaned, "")
    try:
        return int(float(number) * UNITS[unit])
    except (ValueError, OverflowError):
        raise BadSetting(name=name, reason=f"'{text}' is not {examples}") from None


def byte_count(text: str, name: str = "--capacity") -> int:
    """'50G' -> bytes; raises BadSetting."""
    count = _count(text, name, "a size such as 500M, 50G or 2T")
    if count < LEAST_CAPACITY:
        raise BadSetting(name=name, reason="a node has at least 64M")
    if count >= 1 << 62:
        raise BadSetting(name=name, reason="no disk is that large")
    return count


def rate(text: str, name: str) -> int:
    """'10M' -> bytes a second; 'none' -> NO_CAP, 'same' -> SAME (quiet hours). Raises BadSetting."""
    word = text.strip().lower()
    if word == "none":
        return NO_CAP
    if word == "same" and name.startswith("--quiet"):
        return SAME
    count = _count(text, name, "a number of bytes a second such as 500K or 10M, or 'none'")
    if count and not SLOWEST <= count < 1 << 62:
        raise BadSetting(name=name, reason="it is at least 16K a second, or 0 to serve no shares, or 'none'")
    return count

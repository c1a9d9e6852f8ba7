"""Bytes of the stage: the record of a slot's extents, a segment's header, and what a unit's seal is bound to.

See docs/formats/stage.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from hivefs.crypto.seal import RECORD_OVERHEAD
from hivefs.errors import Corrupt, UnknownVersion
from hivefs.model.ids import KEY_BYTES, SEGMENT_BYTES
from hivefs.model.staged import StagedExtent

VERSION = 1
MAGIC = b"HVstage"
HEADER_BYTES = len(MAGIC) + 1 + 8 + KEY_BYTES + RECORD_OVERHEAD
"""80: magic, version, number, sealed segment key. The first unit of a segment begins here."""

UNIT_BYTES = SEGMENT_BYTES
"""Most plaintext in one unit."""
UNIT_OVERHEAD = RECORD_OVERHEAD
"""A unit is longer than its plaintext by this: nonce 16, tag 16."""
UNIT_STRIDE = UNIT_BYTES + UNIT_OVERHEAD
"""From one unit of a run to the next."""

_EXTENT = struct.Struct(">IIQIII")
_UNIT = struct.Struct(">8sQQQQI")
_UNIT_LABEL = b"HVunit" + bytes([0, VERSION])
_RECORD = "the staged extents of a slot"


def extents_to_bytes(extents: Iterable[StagedExtent]) -> bytes:
    """Version byte, then 28 bytes for each extent, in order of their start."""
    pack = _EXTENT.pack
    return bytes([VERSION]) + b"".join(
        pack(e.start, e.length, e.segment, e.position, e.run_start, e.run_length) for e in extents
    )


def extents_from_bytes(value: bytes) -> list[StagedExtent]:
    """Raises Corrupt (also for extents that overlap or are out of order) or UnknownVersion."""
    if not value:
        raise Corrupt(what=_RECORD, reason="it is empty")
    if value[0] != VERSION:
        raise UnknownVersion(what=_RECORD, version=value[0])
    try:
        extents = [StagedExtent(*fields) for fields in _EXTENT.iter_unpack(memoryview(value)[1:])]
        end = 0
        for extent in extents:
            if not extent.possible or extent.start < end or extent.position < HEADER_BYTES:
                raise ValueError("out of order")
            end = extent.end
    except (struct.error, ValueError):
        raise Corrupt(what=_RECORD, reason="it makes no sense") from None
    return extents


def run_bytes(run_length: int) -> int:
    """How many bytes of a segment a run of so many plaintext bytes takes."""
    return run_length + UNIT_OVERHEAD * -(-run_length // UNIT_BYTES)


def key_place(number: int) -> bytes:
    """What the sealed key in the header of segment ``number`` is bound to."""
    return b"hivefs/stage/1" + number.to_bytes(8, "big")


def header_to_bytes(number: int, sealed_key: bytes) -> bytes:
    """The first HEADER_BYTES of a segment file."""
    return MAGIC + bytes([VERSION]) + number.to_bytes(8, "big") + sealed_key


def header_from_bytes(value: bytes, number: int) -> bytes:
    """The sealed key in the header of segment ``number``; raises Corrupt (also for another number), UnknownVersion."""
    what = "a stage segment"
    if len(value) != HEADER_BYTES or not value.startswith(MAGIC):
        raise Corrupt(what=what, reason="it has no header")
    if value[7] != VERSION:
        raise UnknownVersion(what=what, version=value[7])
    if value[8:16] != number.to_bytes(8, "big"):
        raise Corrupt(what=what, reason="it has the number of another")
    return value[16:]


def unit_context(number: int, position: int, ino: int, offset: int, run_length: int) -> bytes:
    """Associated data of the unit at ``position`` of segment ``number``: its first plaintext byte is byte ``offset``
    of file ``ino``, and its run has ``run_length`` plaintext bytes.
    """
    return _UNIT.pack(_UNIT_LABEL, number, position, ino, offset, run_length)

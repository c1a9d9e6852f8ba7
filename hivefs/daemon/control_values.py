"""Nouns as plain CBOR values, for the control sockets: small arrays in a fixed order. Raises ValueError for others."""

from __future__ import annotations

from typing import Any

from hivefs.model.ids import ChunkId
from hivefs.model.inode import ChunkRef
from hivefs.model.staged import DirtySlot, StagedExtent
from hivefs.model.stripe import Level
from hivefs.placement.policy import DEFAULT

Value = Any


def chunk_ref_to_value(ref: ChunkRef) -> Value:
    """[chunk id, key, length, codec]"""
    return [ref.chunk_id, ref.key, ref.length, ref.codec]


def chunk_ref_from_value(value: Value) -> ChunkRef:
    """The inverse."""
    chunk_id, key, length, codec = _array(value, bytes, bytes, int, int)
    return ChunkRef(ChunkId(chunk_id), key, length, codec)


def extent_to_value(extent: StagedExtent) -> Value:
    """[start, length, segment, position, run_start, run_length]"""
    return [extent.start, extent.length, extent.segment, extent.position, extent.run_start, extent.run_length]


def extent_from_value(value: Value) -> StagedExtent:
    """The inverse."""
    extent = StagedExtent(*_array(value, int, int, int, int, int, int))
    if not extent.possible:
        raise ValueError("an impossible extent")
    return extent


def dirty_slot_to_value(slot: DirtySlot) -> Value:
    """[ino, slot, generation, length, [extents], chunk or null], and the policy unless it is the default: an engine that
    does not know policies is given none of theirs.
    """
    value = [
        slot.ino,
        slot.slot,
        slot.generation,
        slot.length,
        [extent_to_value(extent) for extent in slot.extents],
        None if slot.base is None else chunk_ref_to_value(slot.base),
    ]
    return value if slot.policy == DEFAULT else [*value, slot.policy]


def dirty_slot_from_value(value: Value) -> DirtySlot:
    """The inverse."""
    policy = DEFAULT
    if isinstance(value, list) and len(value) == 7:
        *value, policy = value
        if type(policy) is not str:
            raise ValueError("the name of a policy is a text")
    ino, slot, generation, length, extents, base = _array(value, int, int, int, int, list, (list, type(None)))
    return DirtySlot(
        ino,
        slot,
        generation,
        length,
        tuple(extent_from_value(extent) for extent in extents),
        None if base is None else chunk_ref_from_value(base),
        policy,
    )


def level_of(value: Value) -> Level:
    """A durability level by its name ("local", "remote", "guaranteed")."""
    for level in Level:
        if level.name.lower() == value:
            return level
    raise ValueError("not a durability level")


def _array(value: Value, *kinds: type | tuple[type, ...]) -> list[Any]:
    if not isinstance(value, list) or len(value) != len(kinds):
        raise ValueError(f"an array of {len(kinds)} items expected")
    for item, kind in zip(value, kinds, strict=True):
        if not isinstance(item, kind):
            raise ValueError(f"an item of a wrong type: {type(item).__name__}")
    return value

"""Records of the metadata tree: key and value of inode, directory entry, map extent, xattr, chunk place.

A key is a letter and fixed-size big-endian fields, so that byte order is the order of the tree and everything of one
directory or file lies together. Names are in keys only as a keyed hash. See docs/formats/records.md.
"""

from __future__ import annotations

import struct
from typing import Any

import blake3

from hivefs.errors import Corrupt, UnknownVersion
from hivefs.model.ids import MAX_NAME_BYTES, ChunkId, StripeId
from hivefs.model.inode import ChunkRef, Dirent, Inode, MapExtent, SlotKind
from hivefs.model.stripe import ChunkPlace

VERSION = 1
NAME_HASH_BYTES = 16

_U64 = struct.Struct(">Q")
_TWO = struct.Struct(">QQ")
_INODE = struct.Struct(">BQIIIIQQQqqqqQI")
_DIRENT = struct.Struct(">BQB")
_HOLE = struct.Struct(">BBQ")
_CHUNK = struct.Struct(">BB16s32sIB")
_PLACE = struct.Struct(">B16sHII")
_XATTR = struct.Struct(">BB")


def name_hash(names_key: bytes, directory: int, name: bytes) -> bytes:
    """16 bytes that stand for a name in keys: BLAKE3 keyed by the vault, over directory and name."""
    return blake3.blake3(_U64.pack(directory) + name, key=names_key).digest(length=NAME_HASH_BYTES)


def inode_key(ino: int) -> bytes:
    """i || ino"""
    return b"i" + _U64.pack(ino)


def dirent_key(directory: int, hashed: bytes) -> bytes:
    """d || directory || name_hash"""
    return b"d" + _U64.pack(directory) + hashed


def dirent_prefix(directory: int) -> bytes:
    """What the keys of all names in a directory begin with."""
    return b"d" + _U64.pack(directory)


def map_key(ino: int, slot: int) -> bytes:
    """m || ino || first slot"""
    return b"m" + _TWO.pack(ino, slot)


def map_prefix(ino: int) -> bytes:
    """What the keys of all extents of a file's map begin with."""
    return b"m" + _U64.pack(ino)


def xattr_key(ino: int, hashed: bytes) -> bytes:
    """x || ino || name_hash of the attribute's name"""
    return b"x" + _U64.pack(ino) + hashed


def xattr_prefix(ino: int) -> bytes:
    """What the keys of all extended attributes of an inode begin with."""
    return b"x" + _U64.pack(ino)


def chunk_key(chunk_id: bytes) -> bytes:
    """c || chunk id"""
    return b"c" + chunk_id


def stripe_key(stripe_id: bytes) -> bytes:
    """s || stripe id"""
    return b"s" + stripe_id


def node_key(node_id: bytes) -> bytes:
    """n || node id"""
    return b"n" + node_id


def policy_key(digest: bytes) -> bytes:
    """p || digest of a policy's definition, or zeros for the text of all"""
    return b"p" + digest


def standing_key(digest: bytes) -> bytes:
    """a || digest of what was known of a node"""
    return b"a" + digest


def trusted_key(key: bytes) -> bytes:
    """e k || key that the user trusts"""
    return b"ek" + key


def attestation_key(subject: bytes, attester: bytes) -> bytes:
    """e a || node id || attester's key: an attestation that the user imported"""
    return b"ea" + subject + attester


def statement_key(node_id: bytes) -> bytes:
    """e s || node id: what that node says of itself"""
    return b"es" + node_id


def _version(what: str, value: bytes) -> None:
    if not value:
        raise Corrupt(what=what, reason="it is empty")
    if value[0] != VERSION:
        raise UnknownVersion(what=what, version=value[0])


def inode_to_bytes(inode: Inode) -> bytes:
    """104 bytes, then the target of a symbolic link."""
    return (
        _INODE.pack(
            VERSION,
            inode.ino,
            inode.mode,
            inode.nlink,
            inode.uid,
            inode.gid,
            inode.rdev,
            inode.size,
            inode.allocated,
            inode.atime_ns,
            inode.mtime_ns,
            inode.ctime_ns,
            inode.btime_ns,
            inode.parent,
            inode.flags,
        )
        + inode.target
    )


def inode_fields(value: bytes) -> tuple[Any, ...]:
    """The fields of Inode in their order. Raises Corrupt or UnknownVersion."""
    _version("an inode record", value)
    try:
        fields = _INODE.unpack_from(value)
    except struct.error:
        raise Corrupt(what="an inode record", reason="it is too short") from None
    return (*fields[1:], bytes(value[_INODE.size :]))


def inode_from_bytes(value: bytes) -> Inode:
    """Raises Corrupt or UnknownVersion."""
    return Inode(*inode_fields(value))


def dirent_to_bytes(entry: Dirent) -> bytes:
    """version, ino, kind, name"""
    return _DIRENT.pack(VERSION, entry.ino, entry.kind) + entry.name


def dirent_from_bytes(value: bytes) -> Dirent:
    """Raises Corrupt or UnknownVersion."""
    return Dirent(*dirent_fields(value))


def dirent_fields(value: bytes) -> tuple[bytes, int, int]:
    """(name, inode, kind): the same without an object, for listings. Raises Corrupt or UnknownVersion."""
    size = len(value) - _DIRENT.size
    if not (0 < size <= MAX_NAME_BYTES and value[0] == VERSION):
        _version("a directory entry", value)
        raise Corrupt(what="a directory entry", reason=f"a name of {size} bytes")
    _, ino, kind = _DIRENT.unpack_from(value)
    return value[_DIRENT.size :], ino, kind


def extent_to_bytes(extent: MapExtent) -> bytes:
    """A hole or pending run: version, kind, count. A chunk: version, kind, id, key, length, codec."""
    if extent.chunk is None:
        return _HOLE.pack(VERSION, extent.kind, extent.count)
    ref = extent.chunk
    return _CHUNK.pack(VERSION, SlotKind.CHUNK, ref.chunk_id, ref.key, ref.length, ref.codec)


def extent_from_bytes(slot: int, value: bytes) -> MapExtent:
    """Raises Corrupt or UnknownVersion. ``slot`` is the first slot, from the key."""
    _version("a map extent", value)
    try:
        if value[1] == SlotKind.CHUNK:
            _, _, chunk_id, key, length, codec = _CHUNK.unpack(value)
            return MapExtent(slot, 1, SlotKind.CHUNK, ChunkRef(ChunkId(chunk_id), key, length, codec))
        _, kind, count = _HOLE.unpack(value)
        return MapExtent(slot, count, SlotKind(kind))
    except (struct.error, IndexError, ValueError):
        raise Corrupt(what="a map extent", reason="its form is wrong") from None


def xattr_to_bytes(name: bytes, value: bytes) -> bytes:
    """version, length of the name, name, value"""
    return _XATTR.pack(VERSION, len(name)) + name + value


def xattr_from_bytes(data: bytes) -> tuple[bytes, bytes]:
    """(name, value). Raises Corrupt or UnknownVersion."""
    _version("an extended attribute", data)
    if len(data) < 2 or len(data) < 2 + data[1] or not data[1]:
        raise Corrupt(what="an extended attribute", reason="it is too short")
    cut = 2 + data[1]
    return bytes(data[2:cut]), bytes(data[cut:])


def place_to_bytes(place: ChunkPlace) -> bytes:
    """version, stripe id, share index, offset, length"""
    return _PLACE.pack(VERSION, place.stripe_id, place.index, place.offset, place.length)


def place_from_bytes(value: bytes) -> ChunkPlace:
    """Raises Corrupt or UnknownVersion."""
    _version("a chunk place", value)
    try:
        _, stripe_id, index, offset, length = _PLACE.unpack(value)
    except struct.error:
        raise Corrupt(what="a chunk place", reason="its form is wrong") from None
    return ChunkPlace(StripeId(stripe_id), index, offset, length)

"""Authenticated encryption of chunks, records and blobs (AES-256-GCM, NIST SP 800-38D).

Two ways to seal, for two lives of a key:

* A **chunk** has a fresh random key of its own (one key, one message). Its bytes are cut into segments of 32 KiB, each
  under its own tag, so that 4 KiB can be read without opening a megabyte. The nonce of a segment is its number and a
  mark on the last one (the STREAM construction, Hoang, Reyhanitabar, Rogaway and Vizar, CRYPTO 2015): segments cannot
  be swapped, dropped or cut off. Associated data binds vault, purpose, plaintext length and codec, the same for every
  segment; which chunk belongs where in a file is bound by the key, which only the file's map names.
* **Records** (metadata, blobs) share a long-lived key, so the nonce is random: 16 bytes, as gocryptfs uses, because
  12 random bytes would allow only 2^32 messages. Associated data binds table and key, so a record cannot be moved.

Randomness is an argument. zstd is tried on what looks compressible and kept only where it pays.
"""

from __future__ import annotations

from collections.abc import Callable

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hivefs.errors import Corrupt
from hivefs.model.ids import CHUNK_BYTES, SEGMENT_BYTES
from hivefs.model.stripe import Purpose

TAG_BYTES = 16
RECORD_NONCE_BYTES = 16
RECORD_OVERHEAD = RECORD_NONCE_BYTES + TAG_BYTES
CODEC_RAW = 0
CODEC_ZSTD = 1

_PROBE_BYTES = 16 << 10
_WORTH = 0.93


def sealed_length(stored: int) -> int:
    """Bytes of a sealed chunk that holds ``stored`` bytes after compression (an empty chunk has one tag)."""
    return stored + TAG_BYTES * max(1, -(-stored // SEGMENT_BYTES))


def stored_length(sealed: int) -> int:
    """The inverse of sealed_length; raises Corrupt when no chunk has that length."""
    full, rest = divmod(sealed, SEGMENT_BYTES + TAG_BYTES)
    if (rest and rest < TAG_BYTES) or (rest == TAG_BYTES and full) or sealed < TAG_BYTES:
        raise Corrupt(what="a sealed chunk", reason=f"impossible length {sealed}")
    return full * SEGMENT_BYTES + max(0, rest - TAG_BYTES)


def chunk_context(vault_id: bytes, purpose: Purpose, length: int, codec: int) -> bytes:
    """Associated data of a chunk."""
    return b"hivefs/chunk/1" + vault_id + bytes([purpose, codec]) + length.to_bytes(4, "big")


def _nonce(index: int, last: bool) -> bytes:
    return index.to_bytes(11, "big") + (b"\x01" if last else b"\x00")


def compress(plain: bytes) -> tuple[bytes, int]:
    """(bytes to seal, codec): zstd level 1 where a probe says that it pays, else the bytes unchanged."""
    size = len(plain)
    if size < 128:
        return plain, CODEC_RAW
    if size > 2 * _PROBE_BYTES:
        start = (size - _PROBE_BYTES) // 2
        probe = zstandard.compress(plain[start : start + _PROBE_BYTES], 1)
        head = zstandard.compress(plain[:_PROBE_BYTES], 1)
        if len(probe) > _WORTH * _PROBE_BYTES and len(head) > _WORTH * _PROBE_BYTES:
            return plain, CODEC_RAW
    packed = zstandard.compress(plain, 1)
    return (packed, CODEC_ZSTD) if len(packed) < _WORTH * size else (plain, CODEC_RAW)


def seal_chunk(key: bytes, vault_id: bytes, purpose: Purpose, plain: bytes) -> tuple[bytes, int]:
    """Seal at most 1 MiB under a key that is used for nothing else; returns (sealed bytes, codec)."""
    if len(plain) > CHUNK_BYTES:
        raise ValueError("a chunk has at most 1 MiB")
    stored, codec = compress(plain)
    aead = AESGCM(key)
    context = chunk_context(vault_id, purpose, len(plain), codec)
    view = memoryview(stored)
    count = max(1, -(-len(stored) // SEGMENT_BYTES))
    return b"".join(
        aead.encrypt(_nonce(i, i == count - 1), view[i * SEGMENT_BYTES : (i + 1) * SEGMENT_BYTES], context)
        for i in range(count)
    ), codec


def open_chunk(key: bytes, vault_id: bytes, purpose: Purpose, length: int, codec: int, sealed: bytes | memoryview) -> bytes:
    """The whole plaintext. Raises Corrupt when anything does not fit, whatever the reason."""
    stored = stored_length(len(sealed))
    data = open_segments(key, vault_id, purpose, length, codec, sealed, 0, stored)
    return _decompress(data, length, codec)


def segment_span(codec: int, sealed_total: int, start: int, end: int) -> tuple[int, int] | None:
    """Which bytes of the sealed chunk open plaintext [start, end), as (offset, length); None when all of it is needed
    because it is compressed.
    """
    if codec != CODEC_RAW:
        return None
    first, last = start // SEGMENT_BYTES, -(-end // SEGMENT_BYTES)
    unit = SEGMENT_BYTES + TAG_BYTES
    return first * unit, min(last * unit, sealed_total) - first * unit


def open_segments(
    key: bytes,
    vault_id: bytes,
    purpose: Purpose,
    length: int,
    codec: int,
    sealed: bytes | memoryview,
    first: int,
    stored: int,
) -> bytes:
    """Open consecutive segments, the first of which is number ``first`` of a chunk that stores ``stored`` bytes."""
    aead = AESGCM(key)
    context = chunk_context(vault_id, purpose, length, codec)
    unit = SEGMENT_BYTES + TAG_BYTES
    view = memoryview(sealed)
    last = max(1, -(-stored // SEGMENT_BYTES)) - 1
    count = max(1, -(-len(view) // unit))
    try:
        if count == 1:
            return aead.decrypt(_nonce(first, first == last), view, context)
        return b"".join(
            aead.decrypt(_nonce(first + i, first + i == last), view[i * unit : (i + 1) * unit], context)
            for i in range(count)
        )
    except (InvalidTag, ValueError):
        raise Corrupt(what="a chunk", reason="its seal does not open") from None


def _decompress(data: bytes, length: int, codec: int) -> bytes:
    if codec == CODEC_ZSTD:
        try:
            data = zstandard.ZstdDecompressor().decompress(data, max_output_size=CHUNK_BYTES)
        except zstandard.ZstdError:
            raise Corrupt(what="a chunk", reason="it does not decompress") from None
    elif codec != CODEC_RAW:
        raise Corrupt(what="a chunk", reason=f"unknown codec {codec}")
    if len(data) != length:
        raise Corrupt(what="a chunk", reason=f"{len(data)} bytes instead of {length}")
    return data


class RecordSealer:
    """Seals records under one long-lived key. ``random`` gives n random bytes (os.urandom in production)."""

    def __init__(self, key: bytes, random: Callable[[int], bytes]) -> None:
        self._aead = AESGCM(key)
        self._random = random

    def seal(self, place: bytes, plain: bytes) -> bytes:
        """nonce || ciphertext || tag, bound to ``place`` (table and key)."""
        nonce = self._random(RECORD_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, plain, place)

    def open(self, place: bytes, sealed: bytes) -> bytes:
        """The record sealed for ``place``; raises Corrupt when it was made for another place or changed."""
        try:
            return self._aead.decrypt(sealed[:RECORD_NONCE_BYTES], sealed[RECORD_NONCE_BYTES:], place)
        except (InvalidTag, ValueError):
            raise Corrupt(what="a sealed record", reason="its seal does not open") from None

"""Sealing: what was sealed opens, and every change to it, or to what it is said to be, is refused."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.crypto import seal
from hivefs.errors import Corrupt
from hivefs.model.ids import CHUNK_BYTES, SEGMENT_BYTES
from hivefs.model.stripe import Purpose

VAULT, KEY = bytes(range(16)), bytes(range(32))
UNIT = SEGMENT_BYTES + seal.TAG_BYTES
SIZES = [0, 1, 100, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 3 * SEGMENT_BYTES, CHUNK_BYTES]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["random", "text"])
def test_round_trip_and_length(size: int, kind: str) -> None:
    plain = os.urandom(size) if kind == "random" else (b"a line of text\n" * (size // 15 + 1))[:size]
    sealed, codec = seal.seal_chunk(KEY, VAULT, Purpose.DATA, plain)
    assert seal.open_chunk(KEY, VAULT, Purpose.DATA, size, codec, sealed) == plain
    if codec == seal.CODEC_RAW:
        assert len(sealed) == seal.sealed_length(size) and seal.stored_length(len(sealed)) == size
    else:
        assert len(sealed) < size
    assert plain[:64] not in sealed or size < 8


def test_text_is_compressed_and_noise_is_not() -> None:
    assert seal.seal_chunk(KEY, VAULT, Purpose.DATA, b"word " * 40_000)[1] == seal.CODEC_ZSTD
    assert seal.seal_chunk(KEY, VAULT, Purpose.DATA, os.urandom(200_000))[1] == seal.CODEC_RAW


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5 * SEGMENT_BYTES), st.data())
def test_ranges_open_alone(size: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, size - 1))
    end = data.draw(st.integers(start + 1, size))
    plain = os.urandom(size)
    sealed, codec = seal.seal_chunk(KEY, VAULT, Purpose.DATA, plain)
    if codec != seal.CODEC_RAW:
        assert seal.segment_span(codec, len(sealed), start, end) is None
        return
    span = seal.segment_span(codec, len(sealed), start, end)
    assert span is not None
    offset, length = span
    first = offset // UNIT
    opened = seal.open_segments(
        KEY, VAULT, Purpose.DATA, size, codec, sealed[offset : offset + length], first, seal.stored_length(len(sealed))
    )
    skip = start - first * SEGMENT_BYTES
    assert opened[skip : skip + end - start] == plain[start:end]


def refused(
    sealed: bytes, codec: int, length: int, *, key: bytes = KEY, vault: bytes = VAULT, purpose: Purpose = Purpose.DATA
):  # type: ignore[no-untyped-def]
    with pytest.raises(Corrupt):
        seal.open_chunk(key, vault, purpose, length, codec, sealed)


def test_every_kind_of_change_is_refused() -> None:
    size = 3 * SEGMENT_BYTES + 77
    plain = os.urandom(size)
    sealed, codec = seal.seal_chunk(KEY, VAULT, Purpose.DATA, plain)
    a, b, c, d = (sealed[i * UNIT : (i + 1) * UNIT] for i in range(4))
    for position in (0, 15, UNIT - 1, UNIT, len(sealed) // 2, len(sealed) - 1):
        flipped = bytearray(sealed)
        flipped[position] ^= 1
        refused(bytes(flipped), codec, size)
    refused(b + a + c + d, codec, size)  # reordered
    refused(a + a + c + d, codec, size)  # duplicated
    refused(a + b + d, codec, size)  # removed
    refused(a + b + c, codec, 3 * SEGMENT_BYTES)  # truncated at a segment, length adjusted
    refused(sealed[:-1], codec, size)
    refused(sealed + b"\0" * 16, codec, size)
    refused(sealed, codec, size - 1)
    refused(sealed, seal.CODEC_ZSTD, size)  # downgraded or changed codec
    refused(sealed, 7, size)
    refused(sealed, codec, size, key=bytes(32))
    refused(sealed, codec, size, vault=bytes(16))
    refused(sealed, codec, size, purpose=Purpose.METADATA)
    refused(b"", codec, 0)


def test_a_bomb_does_not_unpack() -> None:
    import zstandard

    bomb = zstandard.compress(bytes(64 << 20), 1)
    aead_key = os.urandom(32)
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    context = seal.chunk_context(VAULT, Purpose.DATA, 1 << 20, seal.CODEC_ZSTD)
    sealed = AESGCM(aead_key).encrypt(bytes(11) + b"\x01", bomb, context)
    refused(sealed, seal.CODEC_ZSTD, 1 << 20, key=aead_key)


def test_records_are_bound_to_their_place() -> None:
    sealer = seal.RecordSealer(KEY, os.urandom)
    value = sealer.seal(b"tree/k1", b"secret name")
    assert sealer.open(b"tree/k1", value) == b"secret name"
    assert len(value) == len(b"secret name") + seal.RECORD_OVERHEAD
    assert b"secret" not in value
    for place, changed in [
        (b"tree/k2", value),
        (b"tree/k1", value[:-1]),
        (b"tree/k1", value[:5] + bytes([value[5] ^ 1]) + value[6:]),
        (b"tree/k1", b""),
    ]:
        with pytest.raises(Corrupt):
            sealer.open(place, changed)
    assert sealer.seal(b"tree/k1", b"secret name") != value, "nonces are fresh"

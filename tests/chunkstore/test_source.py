"""Reading placed chunks out of sealed shares in the cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from hivefs.chunkstore.cache import Cache, CacheReader, share_path
from hivefs.chunkstore.source import CachedChunks, Piece
from hivefs.crypto.seal import seal_chunk
from hivefs.errors import EngineUnavailable, HivefsError
from hivefs.model.ids import CHUNK_BYTES, SEGMENT_BYTES, ChunkId, StripeId
from hivefs.model.inode import ChunkRef
from hivefs.model.stripe import ChunkPlace, Purpose

VAULT = b"v" * 16
STRIPE = StripeId(b"s" * 16)
Span = tuple[int, int] | None


class World:
    """A cache, a book, and an engine that puts a prepared share into the cache when asked."""

    def __init__(self, root: Path) -> None:
        self.cache = Cache(root, 1 << 30)
        self.places: dict[ChunkId, ChunkPlace] = {}
        self.looked = 0
        self.remote: dict[ChunkId, bytes] = {}
        self.asked: list[tuple[ChunkId, list[ChunkId]]] = []
        self.problem: HivefsError | None = None
        self.in_pieces = False
        self.chunks = CachedChunks(VAULT, self, CacheReader(root), self.fetch)

    def place(self, chunk_id: ChunkId) -> ChunkPlace | None:
        self.looked += 1
        return self.places.get(chunk_id)

    async def fetch(self, chunk_id: ChunkId, following: Sequence[ChunkId], span: Span = None) -> Piece | None:
        self.asked.append((chunk_id, list(following)))
        await trio.lowlevel.checkpoint()
        if self.problem is not None:
            raise self.problem
        place = self.places[chunk_id]
        share = self.remote[chunk_id]
        if self.in_pieces and span is not None:
            return Piece(span[0], share[place.offset :][span[0] : span[0] + span[1]])
        self.cache.put(place.stripe_id, place.index, share)
        return None

    def add(self, plain: bytes, *, number: int = 0, here: bool = True, before: int = 77) -> ChunkRef:
        """A chunk inside a share of its own, with other bytes before and after it."""
        chunk_id, key = ChunkId(os.urandom(16)), os.urandom(32)
        sealed, codec = seal_chunk(key, VAULT, Purpose.DATA, plain)
        share = os.urandom(before) + sealed + os.urandom(5)
        self.places[chunk_id] = ChunkPlace(STRIPE, number, before, len(sealed))
        self.remote[chunk_id] = share
        if here:
            self.cache.put(STRIPE, number, share)
        return ChunkRef(chunk_id, key, len(plain), codec)


RANGES = [(0, 1), (0, SEGMENT_BYTES), (1, SEGMENT_BYTES + 1), (SEGMENT_BYTES, 3 * SEGMENT_BYTES), (100_000, 100_001)]


@pytest.mark.parametrize("kind", ["random", "text"])
@pytest.mark.parametrize("size", [1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 200_000, CHUNK_BYTES])
def test_any_range_of_a_cached_chunk(tmp_path: Path, kind: str, size: int) -> None:
    plain = os.urandom(size) if kind == "random" else (b"all work and no play " * (size // 21 + 1))[:size]
    world = World(tmp_path)
    ref = world.add(plain)
    for start, end in [*RANGES, (0, size), (size - 1, size), (size // 3, size // 2 + 1)]:
        if start < end <= size:
            assert world.chunks.cached(ref, start, end) == plain[start:end]
    assert world.looked == 1
    assert not world.asked


def test_what_is_not_known_or_not_here_is_none(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert world.chunks.cached(ChunkRef(ChunkId(b"?" * 16), b"k" * 32, 5, 0), 0, 5) is None
    assert world.chunks.cached(world.add(b"x" * 50, here=False), 0, 5) is None


def test_fetching_brings_it_and_tells_what_comes_next(tmp_path: Path) -> None:
    world = World(tmp_path)
    plain = os.urandom(300_000)
    ref, later = world.add(plain, here=False), world.add(b"later", number=1, here=False)
    assert trio.run(world.chunks.fetch, ref, 5, 250_000, [later]) == plain[5:250_000]
    assert world.asked == [(ref.chunk_id, [later.chunk_id])]
    assert trio.run(world.chunks.fetch, ref, 0, 10, []) == plain[:10]
    assert len(world.asked) == 1


def test_many_readers_of_one_chunk_ask_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    plain = os.urandom(200_000)
    ref = world.add(plain, here=False)
    got: dict[int, bytes] = {}

    async def read(n: int) -> None:
        got[n] = await world.chunks.fetch(ref, n, n + 1000, [])

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for n in range(30):
                nursery.start_soon(read, n)

    trio.run(main)
    assert got == {n: plain[n : n + 1000] for n in range(30)}
    assert len(world.asked) == 1


def test_each_reader_gets_the_error_of_its_own_try(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.problem = EngineUnavailable(reason="not running", log="x")
    ref = world.add(b"y" * 100, here=False)
    failed: list[str] = []

    async def read() -> None:
        with pytest.raises(EngineUnavailable) as caught:
            await world.chunks.fetch(ref, 0, 1, [])
        failed.append(str(caught.value))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(read)

    trio.run(main)
    assert len(failed) == 5


@pytest.mark.parametrize("position", [77, 77 + 40_000, -20])
@pytest.mark.parametrize("kind", ["random", "text"])
def test_a_damaged_share_counts_as_missing_and_is_fetched_again(tmp_path: Path, position: int, kind: str) -> None:
    world = World(tmp_path)
    plain = os.urandom(100_000) if kind == "random" else b"0123456789abcdef" * 12_500
    ref = world.add(plain)
    path = share_path(tmp_path, STRIPE, 0)
    data = bytearray(path.read_bytes())
    if kind == "text":
        position = min(position, len(data) - 20)  # it is much shorter
    data[position] ^= 1
    path.write_bytes(data)
    assert world.chunks.cached(ref, 0, len(plain)) is None
    assert trio.run(world.chunks.fetch, ref, 0, len(plain), []) == plain


def test_a_torn_share_counts_as_missing(tmp_path: Path) -> None:
    world = World(tmp_path)
    plain = os.urandom(100_000)
    ref = world.add(plain)
    path = share_path(tmp_path, STRIPE, 0)
    path.write_bytes(path.read_bytes()[:50_000])
    assert world.chunks.cached(ref, 90_000, 90_010) is None
    assert world.chunks.cached(ref, 0, 10) == plain[:10]


def test_a_chunk_in_the_place_of_another_does_not_open(tmp_path: Path) -> None:
    world = World(tmp_path)
    mine, other = world.add(b"a" * 50), world.add(b"b" * 50, number=1)
    world.places[mine.chunk_id] = world.places[other.chunk_id]
    assert world.chunks.cached(mine, 0, 50) is None


def test_a_cache_that_takes_nothing_is_an_error_with_a_reason(tmp_path: Path) -> None:
    world = World(tmp_path)
    ref = world.add(b"z" * 50, here=False)
    world.remote[ref.chunk_id] = b""
    with pytest.raises(HivefsError, match="disk full"):
        trio.run(world.chunks.fetch, ref, 0, 5, [])


def test_a_full_disk_still_reads_what_the_cache_cannot_keep(tmp_path: Path) -> None:
    world = World(tmp_path)
    ref = world.add(b"z" * 50)
    path = share_path(tmp_path, STRIPE, 0)
    place = world.places[ref.chunk_id]
    sealed = path.read_bytes()[place.offset : place.offset + place.length]
    path.unlink()

    async def given_back(chunk_id: ChunkId, following: Sequence[ChunkId], span: Span) -> Piece:
        return Piece(0, sealed)

    world.chunks._fetch = given_back
    assert trio.run(world.chunks.fetch, ref, 0, 5, []) == b"z" * 5


@pytest.mark.parametrize("kind", ["random", "text"])
def test_a_range_that_comes_before_its_share_is_enough(tmp_path: Path, kind: str) -> None:
    world = World(tmp_path)
    world.in_pieces = True
    plain = os.urandom(CHUNK_BYTES) if kind == "random" else (b"all work and no play " * 5000)
    ref = world.add(plain, here=False)
    for start, end in [(0, 1), (0, 16 << 10), (SEGMENT_BYTES - 1, SEGMENT_BYTES + 1), (70_000, 100_000)]:
        assert trio.run(world.chunks.fetch, ref, start, end, []) == plain[start:end]
    if kind == "random":
        assert len(world.asked) == 4 and world.chunks.cached(ref, 0, 1) is None, "a range is not the chunk"
    else:
        assert len(world.asked) == 1, "what is compressed comes and is kept whole"


@pytest.mark.parametrize(
    "change",
    [
        lambda p: Piece(p.offset, p.data[:-1]),
        lambda p: Piece(p.offset + 1, p.data),
        lambda p: Piece(p.offset, p.data[:-1] + bytes([p.data[-1] ^ 1])),
    ],
)
def test_a_range_that_does_not_open_is_asked_for_as_its_share(tmp_path: Path, change: Callable[[Piece], Piece]) -> None:
    world = World(tmp_path)
    world.in_pieces = True
    plain = os.urandom(200_000)
    ref = world.add(plain, here=False)
    fetch = world.fetch

    async def other(chunk_id: ChunkId, following: Sequence[ChunkId], span: Span) -> Piece | None:
        piece = await fetch(chunk_id, following, span)
        return None if piece is None else change(piece)

    world.chunks._fetch = other
    assert trio.run(world.chunks.fetch, ref, 0, 10, []) == plain[:10]
    assert len(world.asked) == 2 and world.chunks.cached(ref, 0, 200_000) == plain


def test_hints_are_passed_on_in_their_order_and_may_fail(tmp_path: Path) -> None:
    world = World(tmp_path)
    refs = [world.add(b"x" * 50, number=n) for n in range(3)]
    told: list[list[ChunkId]] = []

    async def hint(following: Sequence[ChunkId]) -> None:
        told.append(list(following))
        await trio.lowlevel.checkpoint()
        raise EngineUnavailable(reason="not running", log="x")

    chunks = CachedChunks(VAULT, world, CacheReader(tmp_path), world.fetch, hint)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(chunks.give_hints)
            chunks.ahead(refs[:2])
            chunks.ahead([])
            chunks.ahead(refs[2:])
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert told == [[refs[0].chunk_id, refs[1].chunk_id], [refs[2].chunk_id]]

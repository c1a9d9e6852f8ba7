"""Plaintext of placed chunks, as the drive reads them: sealed shares of the cache, opened here (filesystem ports).

``cached`` is for the hot path: the place of a chunk from a small memory, one pread of the segments that are needed, and
opening them. A compressed chunk must be opened whole, so its plaintext is kept for the reads that follow. What does not
open was torn by a crash or changed by somebody: it counts as not being here, and the engine, which checks a share's hash
before it trusts its cache, brings it again.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from hivefs.crypto.seal import CODEC_RAW, open_chunk, open_segments, segment_span, stored_length
from hivefs.errors import Corrupt, HivefsError
from hivefs.model.ids import SEGMENT_BYTES, ChunkId, StripeId
from hivefs.model.inode import ChunkRef
from hivefs.model.stripe import ChunkPlace, Purpose

log = logging.getLogger(__name__)

PLAIN_BYTES: Final = 16 << 20
"""Most plaintext of compressed chunks that is kept."""
PLACES: Final = 1024
TRIES: Final = 3
"""How often a chunk is fetched that the engine moves meanwhile."""

HINTS: Final = 8
"""Hints that wait to be given; older ones are forgotten."""


class Book(Protocol):
    """Where chunks lie (metadata/engine_store.py)."""

    def place(self, chunk_id: ChunkId) -> ChunkPlace | None: ...


class Shares(Protocol):
    """Cached data shares (chunkstore/cache.py)."""

    def begin(self, stripe_id: StripeId, index: int) -> None: ...

    def read(
        self, stripe_id: StripeId, index: int, offset: int, length: int, wait: bool = True
    ) -> bytes | memoryview | None: ...

    def forget(self, stripe_id: StripeId, index: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a sealed chunk from ``offset`` on."""

    offset: int
    data: bytes


class Fetch(Protocol):
    """Brings the shares of chunks into the cache (the engine, by control call). ``span`` is (offset, length) of the sealed
    bytes that are waited for: when those can be had sooner than the whole share, they are given back, and the share comes
    behind them. The whole sealed chunk is given back when the cache cannot keep it. Raises HivefsError.
    """

    async def __call__(
        self, chunk_id: ChunkId, following: Sequence[ChunkId], span: tuple[int, int] | None
    ) -> Piece | None: ...


Hint = Callable[[Sequence[ChunkId]], Awaitable[None]]
"""Says which chunks are likely to be read next; raises HivefsError."""


async def _no_hint(following: Sequence[ChunkId]) -> None:
    await trio.lowlevel.checkpoint()


class CachedChunks:
    """A filesystem.ports.ChunkSource. For one thread."""

    def __init__(self, vault_id: bytes, book: Book, shares: Shares, fetch: Fetch, hint: Hint = _no_hint) -> None:
        self._vault_id = vault_id
        self._book = book
        self._shares = shares
        self._fetch = fetch
        self._hint = hint
        self._hints: deque[list[ChunkId]] = deque(maxlen=HINTS)
        self._hinted = trio.Event()
        self._places: OrderedDict[ChunkId, ChunkPlace] = OrderedDict()
        self._plain: OrderedDict[ChunkId, bytes] = OrderedDict()
        self._plain_bytes = 0
        self._flights: dict[ChunkId, trio.Event] = {}

    def cached(self, ref: ChunkRef, start: int, end: int, wait: bool = True) -> bytes | None:
        """Bytes [start, end) of a chunk, or None when it is not on this machine (whole and sound).

        Raises NotInMemory without ``wait``, when the disk would have to be waited for.
        """
        plain = self._plain.get(ref.chunk_id)
        if plain is not None:
            self._plain.move_to_end(ref.chunk_id)
            return plain[start:end]
        place = self._place(ref.chunk_id)
        if place is None:
            return None
        try:
            return self._read(ref, place, start, end, wait)
        except Corrupt:
            log.warning("a cached share is damaged; it will be fetched again")
            self._shares.forget(place.stripe_id, place.index)
            self._places.pop(ref.chunk_id, None)
            return None

    def _read(self, ref: ChunkRef, place: ChunkPlace, start: int, end: int, wait: bool) -> bytes | None:
        span = segment_span(ref.codec, place.length, start, end)
        if span is None:
            sealed = self._shares.read(place.stripe_id, place.index, place.offset, place.length, wait)
            if sealed is None:
                return None
            plain = self._open(ref, sealed)
            self._keep(ref.chunk_id, plain)
            return plain[start:end]
        offset, length = span
        sealed = self._shares.read(place.stripe_id, place.index, place.offset + offset, length, wait)
        return None if sealed is None else self._open_segments(ref, place, start, end, sealed)

    def _open_segments(self, ref: ChunkRef, place: ChunkPlace, start: int, end: int, sealed: bytes | memoryview) -> bytes:
        """Bytes [start, end) out of the segments that hold them, which ``sealed`` is. Raises Corrupt."""
        first, stored = start // SEGMENT_BYTES, stored_length(place.length)
        if stored != ref.length:
            raise Corrupt(what="a chunk", reason=f"{stored} bytes instead of {ref.length}")
        opened = open_segments(ref.key, self._vault_id, Purpose.DATA, ref.length, CODEC_RAW, sealed, first, stored)
        skip = start - first * SEGMENT_BYTES
        return opened if not skip and len(opened) == end - start else opened[skip : skip + end - start]

    def begin(self, ref: ChunkRef) -> None:
        """It will be read soon: what is on this machine of it is brought into memory, without waiting for that."""
        if ref.chunk_id not in self._plain and (place := self._place(ref.chunk_id)) is not None:
            self._shares.begin(place.stripe_id, place.index)

    def _open(self, ref: ChunkRef, sealed: bytes | memoryview) -> bytes:
        return open_chunk(ref.key, self._vault_id, Purpose.DATA, ref.length, ref.codec, sealed)

    def _place(self, chunk_id: ChunkId) -> ChunkPlace | None:
        place = self._places.get(chunk_id)
        if place is None:
            place = self._book.place(chunk_id)
            if place is not None:
                self._places[chunk_id] = place
                if len(self._places) > PLACES:
                    self._places.popitem(last=False)
        return place

    def _keep(self, chunk_id: ChunkId, plain: bytes) -> None:
        self._plain[chunk_id] = plain
        self._plain_bytes += len(plain)
        while self._plain_bytes > PLAIN_BYTES:
            self._plain_bytes -= len(self._plain.popitem(last=False)[1])

    async def fetch(self, ref: ChunkRef, start: int, end: int, next_refs: Sequence[ChunkRef]) -> bytes:
        """The same, brought by the engine when it is not here. Raises HivefsError.

        Several reads of one chunk ask once; when that one fails, the next of them tries by itself.
        """
        while (data := self._cached_now(ref, start, end)) is None:
            flight = self._flights.get(ref.chunk_id)
            if flight is not None:
                await flight.wait()
                continue
            self._flights[ref.chunk_id] = trio.Event()
            try:
                for _ in range(TRIES):
                    place = self._place(ref.chunk_id)
                    data = await self._fetched(ref, start, end, next_refs)
                    if data is not None:
                        break
                    self._places.pop(ref.chunk_id, None)
                    if place == self._place(ref.chunk_id):
                        break  # else the engine moved the chunk just now, and the share of another stripe is here
            finally:
                self._flights.pop(ref.chunk_id).set()
            if data is None:
                raise HivefsError(detail="a chunk was fetched and is not in the cache (is the local disk full?)")
            return data
        return data

    def _cached_now(self, ref: ChunkRef, start: int, end: int) -> bytes | None:
        """The same as cached; a chunk that is not where it was remembered to be is looked up again."""
        data = self.cached(ref, start, end)
        if data is None and self._places.pop(ref.chunk_id, None) is not None:
            data = self.cached(ref, start, end)
        return data

    async def _fetched(self, ref: ChunkRef, start: int, end: int, next_refs: Sequence[ChunkRef]) -> bytes | None:
        place = self._place(ref.chunk_id)
        span = None if place is None else segment_span(ref.codec, place.length, start, end) or (0, place.length)
        following = [other.chunk_id for other in next_refs]
        piece = await self._fetch(ref.chunk_id, following, span)
        if piece is not None and place is not None and (piece.offset, len(piece.data)) != (0, place.length):
            try:
                if (piece.offset, len(piece.data)) == span:
                    return self._open_segments(ref, place, start, end, piece.data)
            except Corrupt:
                pass  # a range may come before its proof; the whole share comes with one, or from others
            piece = await self._fetch(ref.chunk_id, following, None)
        if piece is not None:
            self._keep(ref.chunk_id, self._open(ref, piece.data))
        return self.cached(ref, start, end)

    def ahead(self, next_refs: Sequence[ChunkRef]) -> None:
        """These will be read next: have them brought, without waiting for it."""
        if next_refs:
            self._hints.append([ref.chunk_id for ref in next_refs])
            self._hinted.set()

    async def give_hints(self) -> None:
        """Pass on what ``ahead`` was told, until cancelled."""
        while True:
            await self._hinted.wait()
            self._hinted = trio.Event()
            while self._hints:
                try:
                    await self._hint(self._hints.popleft())
                except HivefsError as error:  # only a hint: whoever reads on asks himself, and gets the error
                    log.debug("reading ahead: %s", error)

"""What each step of placing and of cold reading costs by itself: processor time in one process, with the real parts.

All of it in milliseconds for 1 MiB of user data, with code k/n: what is done with shares counts n/k times when placing. A
step is timed by the process's processor time (all of its threads, user and system), since time by the clock says more about
who else uses the machine. What a step hands to threads of the kernel (writing back to the disk) is not in it.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import trio

from hivefs.chunkstore.cache import Cache, CacheReader
from hivefs.content import coding, merkle
from hivefs.content.packing import FULL_SHARE, Packer
from hivefs.crypto.seal import open_segments, seal_chunk
from hivefs.model.ids import CHUNK_BYTES, ShareId, StripeId, VaultId
from hivefs.model.stripe import Purpose
from hivefs.node.store import PutJob, ReadJob, ShareStore
from hivefs.protocol import frames
from hivefs.protocol.frames import Frame, FrameDecoder, Kind
from hivefs.stage.log import StageLog
from hivefs.stage.reader import StageReader

PUT, GET = "placing", "cold"
ROWS: Final = (
    ("stage_write", PUT, "mount", "sealing into the stage"),
    ("stage_read", PUT, "engine", "reading the stage and opening its seals"),
    ("seal", PUT, "engine", "sealing chunks (AES-256-GCM, a look whether zstd pays)"),
    ("pack", PUT, "engine", "packing"),
    ("zfec", PUT, "engine", "erasure coding"),
    ("sha_engine", PUT, "engine", "SHA-256, the names of shares"),
    ("merkle_engine", PUT, "engine", "Merkle roots (BLAKE3)"),
    ("cache", PUT, "engine", "keeping the data shares in the cache"),
    ("kernel_put", PUT, "both ends", "loopback TCP of the kernel"),
    ("tls_put", PUT, "both ends", "TLS, with its copies"),
    ("mux_put", PUT, "both ends", "Yamux and the tasks of the transport"),
    ("frames_put", PUT, "both ends", "frames of the conversation"),
    ("sha_node", PUT, "nodes", "SHA-256 again"),
    ("merkle_node", PUT, "nodes", "Merkle leaves again"),
    ("store", PUT, "nodes", "files, fsync, index"),
    ("read", GET, "nodes", "reading the file of a share"),
    ("kernel_get", GET, "both ends", "loopback TCP of the kernel"),
    ("tls_get", GET, "both ends", "TLS, with its copies"),
    ("mux_get", GET, "both ends", "Yamux and the tasks of the transport"),
    ("frames_get", GET, "both ends", "frames of the conversation"),
    ("check", GET, "engine", "the Merkle proof (BLAKE3)"),
    ("cache_get", GET, "engine", "writing the cache"),
    ("cache_read", GET, "mount", "reading the cache and opening the seals"),
)
"""Key, where it belongs, whose processor time it is, what it is."""

_PIECE: Final = 256 << 10
_KEY: Final = bytes(range(32))
_VAULT: Final = VaultId(bytes(32))
_PROTOCOL: Final = "/hivefs/bench/1"
_LEASE_NS: Final = 1 << 60


def measure(directory: Path, code: tuple[int, int], stripes: int) -> dict[str, float]:
    """Every row of ROWS, from ``stripes`` stripes of code (k, n). ``directory`` is made and must be on a disk."""
    needed, total = code
    directory.mkdir()
    found: dict[str, float] = {}
    plains = [os.urandom(CHUNK_BYTES) for _ in range(needed)]
    chunks = stripes * needed

    def put(key: str, work: Callable[[], Any], times: int, mib: float) -> Any:
        """``work``, which does ``mib`` MiB of user data, ``times`` times over."""
        before = time.process_time()
        for _ in range(times):
            result = work()
        found[key] = (time.process_time() - before) * 1000 / (times * mib)
        return result

    _stage(directory / "stage", plains, stripes, put)
    sealed = put("seal", lambda: [seal_chunk(_KEY, _VAULT, Purpose.DATA, plain)[0] for plain in plains], stripes, needed)
    packed = put("pack", lambda: _pack(needed, sealed), stripes, needed)
    parity = put("zfec", lambda: coding.encode(needed, total, packed.data), stripes, needed)
    shares = [*packed.data, *parity]
    put("sha_engine", lambda: [hashlib.sha256(share).digest() for share in shares], stripes, needed)
    put("merkle_engine", lambda: [merkle.merkle_root(share) for share in shares], stripes, needed)
    found["sha_node"] = found["sha_engine"]
    put("merkle_node", lambda: [merkle.leaf_hashes(share) for share in shares], stripes, needed)
    root, leaves = merkle.merkle_root(shares[0]), merkle.leaf_hashes(shares[0])
    proof = merkle.prove(leaves, 0, len(leaves))
    put("check", lambda: merkle.check(root, FULL_SHARE, 0, shares[0], proof), chunks, 1)
    _cache(directory / "cache", packed.data[0], chunks, put)
    found["cache_get"] = found["cache"]
    _store(directory / "node", total, stripes, total / needed, found)
    _wire(shares[0], stripes * total, total / needed, found)
    return found


def _pack(needed: int, sealed: Sequence[bytes]) -> Any:
    packer = Packer(needed)
    for chunk in sealed:
        packer.add(chunk)
    return packer.pack(os.urandom)


Put = Callable[[str, Callable[[], Any], int, float], Any]


def _stage(directory: Path, plains: Sequence[bytes], stripes: int, put: Put) -> None:
    log = StageLog(directory, _KEY, os.urandom)
    extents = []
    for round_number in range(stripes):
        extents.append(log.write(2, round_number * len(plains) * CHUNK_BYTES, plains[0])[0])  # warm: the first are slower
    at = iter(range(stripes * len(plains), 2 * stripes * len(plains)))

    def write() -> None:
        for plain in plains:
            extents.append(log.write(2, next(at) * CHUNK_BYTES, plain)[0])

    put("stage_write", write, stripes, len(plains))
    reader = StageReader(directory, _KEY)
    wanted = iter(extents)

    def read() -> None:
        slot, extent = next(wanted)
        if reader.read(2, slot, extent, 0, CHUNK_BYTES) is None:
            raise RuntimeError("what was staged is not there")

    put("stage_read", read, stripes * len(plains), 1)
    reader.close()
    log.close()


def _cache(directory: Path, share: bytes, count: int, put: Put) -> None:
    cache = Cache(directory, 1 << 40)
    names = iter(range(count))
    put("cache", lambda: cache.put(StripeId(next(names).to_bytes(16, "little")), 0, share), count, 1)
    reader, again = CacheReader(directory), iter(range(count))

    def read() -> None:
        data = reader.read(StripeId(next(again).to_bytes(16, "little")), 0, 0, FULL_SHARE)
        if data is None:
            raise RuntimeError("what was cached is not there")
        open_segments(_KEY, _VAULT, Purpose.DATA, CHUNK_BYTES, 0, data, 0, CHUNK_BYTES)

    put("cache_read", read, count, 1)
    reader.close()


def _store(directory: Path, batch: int, stripes: int, times: float, found: dict[str, float]) -> None:
    """Shares go to a node one or two at a time while placing; here two."""
    directory.mkdir()
    store = ShareStore(directory)
    vault, spent, names = VaultId(bytes(32)), 0.0, []
    for _ in range(max(1, stripes * batch // 2)):
        jobs = []
        for _ in range(2):
            data = os.urandom(FULL_SHARE)
            jobs.append(PutJob(vault, ShareId(hashlib.sha256(data).digest()), time.time_ns() + _LEASE_NS, data))
        before = time.process_time()
        results = store.put_many(jobs, time.time_ns())
        spent += time.process_time() - before
        if not all(isinstance(result, int) for result in results):
            raise RuntimeError(f"the node's store does not take shares: {results}")
        names += [job.share_id for job in jobs]
    found["store"] = max(0.0, spent * 1000 / len(names) * times - found["sha_node"] - found["merkle_node"])
    before = time.process_time()
    for name in names:
        if len(store.read_many([ReadJob(name, 0, FULL_SHARE)])[0]) != FULL_SHARE:  # type: ignore[arg-type]
            raise RuntimeError("a share is not there")
    found["read"] = (time.process_time() - before) * 1000 / len(names)
    store.close()


def _wire(share: bytes, count: int, times: float, found: dict[str, float]) -> None:
    """The layers below each other; a row is what its layer adds. For one share of a MiB, and n/k times that."""
    kernel = _sockets(share, count)
    tls, whole = trio.run(_secured, share, count)
    one = {"kernel": kernel, "tls": max(0.0, tls - kernel), "mux": max(0.0, whole - tls), "frames": _frames(share, count)}
    for name, value in one.items():
        found[f"{name}_put"], found[f"{name}_get"] = value * times, value


def _sockets(share: bytes, count: int) -> float:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as there:
        here, _ = server.accept()
        with here:
            for end in (here, there):
                end.setblocking(False)
            into = memoryview(bytearray(_PIECE))
            before = time.process_time()
            for _ in range(count):
                sent = got = 0
                while got < len(share):
                    try:
                        sent += here.send(memoryview(share)[sent : sent + _PIECE]) if sent < len(share) else 0
                        got += there.recv_into(into)
                    except BlockingIOError:
                        continue
            return (time.process_time() - before) * 1000 / count


async def _secured(share: bytes, count: int) -> tuple[float, float]:
    """Milliseconds of a share through a channel alone, and through a stream: both ends in this process."""
    from hivefs.transport import open_host
    from hivefs.transport.stream import Stream

    done = trio.Event()
    size = len(share)

    async def take(stream: Stream) -> None:
        left = count * size
        while left:
            left -= sum(map(len, await stream.receive_pieces(_PIECE)))
        done.set()

    async with (
        open_host(os.urandom(32), listen=["/ip4/127.0.0.1/tcp/0"], handlers={_PROTOCOL: take}) as server,
        open_host(os.urandom(32)) as client,
    ):
        stream = await (await client.dial(server.addresses[0])).open_stream(_PROTOCOL)
        before = time.process_time()
        for _ in range(count):
            for start in range(0, size, _PIECE):
                await stream.send_all(memoryview(share)[start : start + _PIECE])
        await done.wait()
        whole = (time.process_time() - before) * 1000 / count
    return await _channels(share, count), whole


async def _channels(share: bytes, count: int) -> float:
    """Sealed, sent, received and opened, without Yamux and without tasks."""
    from hivefs.transport import host
    from hivefs.transport.addresses import peer_id_from_key
    from hivefs.transport.raw import RawSocket
    from hivefs.transport.tls import TlsChannel, TlsTransport

    library: Any = host  # that room is the only door to py-libp2p
    keys = [library.create_new_key_pair(os.urandom(32)) for _ in range(2)]
    peer_id = library.ID.from_base58(peer_id_from_key(bytes(keys[1].public_key.to_bytes())))
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    ends: dict[str, TlsChannel] = {}

    async def inbound() -> None:
        raw = RawSocket(await listener.accept(), is_initiator=False)
        ends["in"] = await TlsTransport(keys[1]).secure_inbound(raw)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(inbound)
        raw = RawSocket(await trio.open_tcp_stream("127.0.0.1", port), is_initiator=True)
        ends["out"] = await TlsTransport(keys[0]).secure_outbound(raw, peer_id)
    left = 0

    def opened(view: memoryview) -> None:
        nonlocal left
        left -= len(view)

    out, into = ends["out"], ends["in"]
    into.open_buffered(opened)
    before = time.process_time()
    for _ in range(count):
        left = len(share)
        for start in range(0, len(share), _PIECE):
            out.put(b"", memoryview(share)[start : start + _PIECE])
            while out.backlog or left > len(share) - min(start + _PIECE, len(share)):
                out.flush()
                into.fill(opened)
    spent = time.process_time() - before
    out.abort()
    into.abort()
    await listener.aclose()
    return spent * 1000 / count


def _frames(share: bytes, count: int) -> float:
    decoder = FrameDecoder(frames.FROM_CLIENT)
    pieces = [bytes(share[start : start + _PIECE // 4]) for start in range(0, len(share), _PIECE // 4)]
    before = time.process_time()
    for number in range(1, count + 1):
        decoder.feed(frames.head_of(Frame(Kind.PUT, number, b"", share)))
        decoder.next_frame()
        frame = None
        for piece in pieces:
            decoder.feed(piece)
            frame = decoder.next_frame() or frame
        if frame is None or len(frame.payload) != len(share):
            raise RuntimeError("a frame is not what was sent")
    return (time.process_time() - before) * 1000 / count

"""How fast the transport is, as a ratio to trio.SSLStream measured in the same run.

    python scripts/bench_transport.py [--mib 512] [--requests 20000] [--rounds 5]

Two processes over loopback. Each round measures both sides back to back, and the ratio printed is the median of the
rounds' ratios, so that other work on the machine disturbs both alike. Absolute numbers are printed for orientation.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import trio

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from hivefs.transport import open_host  # noqa: E402

MIB = 1024 * 1024
SMALL = 128
IN_FLIGHT = 32
PROTOCOL = "/hivefs/bench/1"


async def take(stream: Any, count: int) -> None:
    while count:
        data = await stream.receive_some(min(count, 262144))
        if not data:
            raise EOFError
        count -= len(data)


async def serve(stream: Any) -> None:
    """Commands of 16 bytes: a letter, then a number."""
    with trio.CancelScope():
        while True:
            head = b""
            while len(head) < 16:
                more = await stream.receive_some(16 - len(head))
                if not more:
                    return
                head += more
            command, number = head[:1], int(head[1:])
            if command == b"u":  # upload
                await take(stream, number)
                await stream.send_all(b".")
            elif command == b"d":  # download
                block = os.urandom(MIB)
                for _ in range(number // MIB):
                    await stream.send_all(block)
            elif command == b"e":  # echo
                left = number
                while left:
                    data = await stream.receive_some(min(left, 65536))
                    left -= len(data)
                    await stream.send_all(data)


async def upload(stream: Any, size: int) -> float:
    block = os.urandom(MIB)
    started = time.perf_counter()
    await stream.send_all(b"u%015d" % size)
    for _ in range(size // MIB):
        await stream.send_all(block)
    await take(stream, 1)
    return size / MIB / (time.perf_counter() - started)


async def download(stream: Any, size: int) -> float:
    started = time.perf_counter()
    await stream.send_all(b"d%015d" % size)
    await take(stream, size)
    return size / MIB / (time.perf_counter() - started)


async def one_by_one(stream: Any, requests: int) -> float:
    message = os.urandom(SMALL)
    started = time.perf_counter()
    await stream.send_all(b"e%015d" % (requests * SMALL))
    for _ in range(requests):
        await stream.send_all(message)
        await take(stream, SMALL)
    return requests / (time.perf_counter() - started)


async def pipelined(stream: Any, requests: int) -> float:
    message = os.urandom(SMALL)
    window = trio.Semaphore(IN_FLIGHT)

    async def receive() -> None:
        pending = 0
        for _ in range(requests):
            while pending < SMALL:
                pending += len(await stream.receive_some(65536))
            pending -= SMALL
            window.release()

    started = time.perf_counter()
    await stream.send_all(b"e%015d" % (requests * SMALL))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        for _ in range(requests):
            await window.acquire()
            await stream.send_all(message)
    return requests / (time.perf_counter() - started)


MEASURES: dict[str, tuple[Callable[[Any, int], Awaitable[float]], str, str]] = {
    "upload, 1 MiB messages": (upload, "bytes", "MiB/s"),
    "download, 1 MiB messages": (download, "bytes", "MiB/s"),
    f"requests of {SMALL} bytes, {IN_FLIGHT} in flight": (pipelined, "requests", "/s"),
    f"requests of {SMALL} bytes, one at a time": (one_by_one, "few", "/s"),
}


def certificate(folder: Path) -> None:
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (folder / "pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )


async def run_server(folder: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "pem")

    async def plain(stream: trio.SSLStream[trio.SocketStream]) -> None:
        with contextlib.suppress(trio.BrokenResourceError, EOFError):
            await serve(stream)

    async with open_host(os.urandom(32), listen=["/ip4/127.0.0.1/tcp/0"], handlers={PROTOCOL: serve}) as host:
        (listener,) = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1")
        port = listener.transport_listener.socket.getsockname()[1]
        print(json.dumps({"ours": host.addresses[0], "ssl": port}), flush=True)
        await trio.serve_listeners(plain, [listener])


async def run_client(where: dict[str, Any], sizes: dict[str, int], rounds: int) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    async with open_host(os.urandom(32)) as host:
        connection = await host.dial(where["ours"])
        for name, (measure, unit, suffix) in MEASURES.items():
            ours: list[float] = []
            theirs: list[float] = []
            for _ in range(rounds):
                stream = await connection.open_stream(PROTOCOL)
                ours.append(await measure(stream, sizes[unit]))
                await stream.aclose()
                tls = await trio.open_ssl_over_tcp_stream("127.0.0.1", where["ssl"], ssl_context=context)
                theirs.append(await measure(tls, sizes[unit]))
                await trio.aclose_forcefully(tls)
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            print(
                f"{name:40} ratio {ratio:5.2f}   (transport {statistics.median(ours):7.0f}, "
                f"trio.SSLStream {statistics.median(theirs):7.0f} {suffix})",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--requests", type=int, default=10000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        trio.run(run_server, options.serve)
        return
    with tempfile.TemporaryDirectory() as name:
        certificate(Path(name))
        server = subprocess.Popen([sys.executable, __file__, "--serve", name], stdout=subprocess.PIPE)
        try:
            assert server.stdout is not None
            where = json.loads(server.stdout.readline())
            sizes = {"bytes": options.mib * MIB, "requests": options.requests, "few": options.requests // 4}
            trio.run(partial(run_client, where, sizes, options.rounds))
        finally:
            server.kill()
            server.wait()


if __name__ == "__main__":
    main()

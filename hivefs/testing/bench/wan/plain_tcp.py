"""What TCP and trio.SSLStream reach over a link, with nothing of HiveFS in between.

``python -m hivefs.testing.bench.wan.plain_tcp serve ...`` runs in the far namespace, prints its port and sends on every
connection until told to stop; ``... fetch ...`` runs in the near one, opens the connections, receives for some seconds and
prints the bits a second, all connections together, from the first byte on.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Final

import trio

from hivefs.testing.bench.ssl_loopback import certificate
from hivefs.testing.bench.targets import with_package
from hivefs.testing.bench.wan import link
from hivefs.testing.bench.wan.emulator import FAR
from hivefs.testing.bench.wan.lane import Shape

_MODULE: Final = "hivefs.testing.bench.wan.plain_tcp"
_PIECE: Final = 256 << 10
_MORE_SECONDS: Final = 30.0


def reached(shape: Shape, connections: int, seconds: float, *, tls: bool, congestion: str, netem: bool = True) -> float:
    """Bits of payload a second over a new link, far to near. Raises link.NoLink, RuntimeError."""
    with tempfile.TemporaryDirectory() as folder, link.opened(shape, netem=netem) as line:
        pem = Path(folder) / "pem"
        certificate(pem)
        words = [sys.executable, "-P", "-m", _MODULE]
        options = [f"--congestion={congestion}", *([f"--pem={pem}"] if tls else [])]
        server = subprocess.Popen(
            [*line.far, *words, "serve", *options],
            env=with_package(dict(os.environ)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        try:
            assert server.stdout is not None  # noqa: S101 - a pipe was asked for
            port = server.stdout.readline().decode().strip()
            asked = ["fetch", f"--port={port}", f"--connections={connections}", f"--seconds={seconds}", *options]
            done = link.run(line.near, [*words, *asked], seconds + _MORE_SECONDS)
        finally:
            server.kill()
            server.wait()
            if server.stdout is not None:
                server.stdout.close()
    if done.returncode:
        raise RuntimeError(f"TCP could not be measured: {done.stderr.strip()[-300:]}")
    return float(json.loads(done.stdout)["bits_per_s"])


async def _serve(pem: str, congestion: str) -> None:
    context = None
    if pem:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
    piece = os.urandom(_PIECE)

    async def send(plain: trio.SocketStream) -> None:
        if congestion:  # only the sender's counts
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
        stream = plain if context is None else trio.SSLStream(plain, context, server_side=True)
        try:
            while True:
                await stream.send_all(piece)
        except trio.BrokenResourceError:
            return  # the other side has seen enough

    listeners = await trio.open_tcp_listeners(0, host=FAR)
    sys.stdout.write(f"{listeners[0].socket.getsockname()[1]}\n")
    sys.stdout.flush()
    await trio.serve_listeners(send, listeners)


async def _fetch(port: int, connections: int, seconds: float, pem: str) -> float:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    received, began = 0, 0.0

    async def receive() -> None:
        nonlocal received, began
        plain = await trio.open_tcp_stream(FAR, port)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = trio.SSLStream(plain, context) if pem else plain
        while True:
            data = await stream.receive_some(_PIECE)
            if not began:
                began = time.perf_counter()
                deadline.set()
            received += len(data)

    deadline = trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(connections):
            nursery.start_soon(receive)
        with trio.fail_after(_MORE_SECONDS):
            await deadline.wait()
        await trio.sleep(seconds)
        nursery.cancel_scope.cancel()
    return received * 8 / (time.perf_counter() - began)


def main(arguments: list[str]) -> None:
    """See the head of the file."""
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}")
    parser.add_argument("part", choices=["serve", "fetch"])
    parser.add_argument("--pem", default="")
    parser.add_argument("--congestion", default="")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5)
    chosen = parser.parse_args(arguments)
    if chosen.part == "serve":
        trio.run(_serve, chosen.pem, chosen.congestion)
    else:
        fetch = partial(_fetch, chosen.port, chosen.connections, chosen.seconds, chosen.pem)
        sys.stdout.write(json.dumps({"bits_per_s": trio.run(fetch)}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])

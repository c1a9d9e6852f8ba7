"""How long trio.SSLStream takes for some bytes over loopback: what everything that goes to nodes is measured against.

``python -m hivefs.testing.bench.ssl_loopback BYTES`` starts a receiver in a process of its own, sends BYTES in pieces of
1 MiB, waits for its answer that all arrived, and prints the seconds, by the clock and of the processors.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hivefs.testing.bench.targets import with_package
from hivefs.testing.bench.tools import MIB

LIMIT_SECONDS = 120.0
_MODULE = "hivefs.testing.bench.ssl_loopback"


def seconds_for(size: int) -> float:
    """Measure in processes of their own. Raises RuntimeError."""
    return measured(size)["seconds"]


def measured(size: int) -> dict[str, float]:
    """The same, ``seconds`` by the clock and ``processor`` seconds of both ends together."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", _MODULE, str(size)],
        env=with_package(dict(os.environ)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS + 30,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"trio.SSLStream could not be measured: {done.stderr.strip()[-300:]}")
    found = json.loads(done.stdout)
    return {name: float(found[name]) for name in ("seconds", "processor")}


def certificate(path: Path) -> None:
    """A new key and a certificate signed by it, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    signed = builder.sign(key, hashes.SHA256())
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(secret + signed.public_bytes(serialization.Encoding.PEM))


async def _receive(pem: str) -> None:
    """Serve one connection: a number, that many bytes, then say so."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    sys.stdout.write(f"{listener.socket.getsockname()[1]}\n")
    sys.stdout.flush()
    with trio.fail_after(LIMIT_SECONDS):
        stream = trio.SSLStream(await listener.accept(), context, server_side=True)
        left = int(await stream.receive_some(16))
        began = time.process_time()
        while left:
            left -= len(await stream.receive_some(min(left, 4 * MIB))) or left
        await stream.send_all(b"%16.6f" % (time.process_time() - began))
        await stream.receive_some(1)


async def _send(port: int, size: int) -> dict[str, float]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    piece = os.urandom(MIB)
    with trio.fail_after(LIMIT_SECONDS):
        stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=context)
        await stream.do_handshake()
        began, used = time.perf_counter(), time.process_time()
        await stream.send_all(b"%016d" % size)
        for start in range(0, size, MIB):
            await stream.send_all(memoryview(piece)[: min(MIB, size - start)])
        answer = await stream.receive_some(16)
        if len(answer) != 16:
            raise EOFError("the receiver ended")
        took, used = time.perf_counter() - began, time.process_time() - used
        await trio.aclose_forcefully(stream)
        return {"seconds": took, "processor": used + float(answer)}


def main(arguments: list[str]) -> None:
    """See the head of the file."""
    if arguments[0] == "--receive":
        trio.run(_receive, arguments[1])
        return
    with tempfile.TemporaryDirectory() as folder:
        pem = Path(folder) / "pem"
        certificate(pem)
        receiver = subprocess.Popen([sys.executable, "-P", "-m", _MODULE, "--receive", str(pem)], stdout=subprocess.PIPE)
        try:
            assert receiver.stdout is not None  # noqa: S101 - a pipe was asked for
            found = trio.run(_send, int(receiver.stdout.readline()), int(arguments[0]))
        finally:
            receiver.kill()
            receiver.wait()
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])

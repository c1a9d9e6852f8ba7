"""Hostile peers in a process of their own: ``attackers.py KIND ADDRESS [FILE]``.

Prints a line when the attack is under way; goes on until its input ends, then prints what it did as JSON: ``done`` counts
what the attack is made of, so that a test can see that it took place. FILE holds recorded frames, one a line in hex.
Rates are fixed where a flood would only measure two cores.
"""

from __future__ import annotations

import json
import os
import ssl
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID

sys.path += [str(Path(__file__).parents[1] / "node")]
from hive_tools import HIVE_KEY, client_certificate, lease, seed_of, share

from hivefs.chunkstore.node_client import PROTOCOL, credentials
from hivefs.errors import HivefsError
from hivefs.formats.member import member_to_bytes
from hivefs.protocol import frames, greeting, requests
from hivefs.protocol.client_side import ClientHandshake
from hivefs.protocol.frames import Frame, FrameDecoder, Kind
from hivefs.transport import open_host, peer_id_from_key, split_address

YAMUX = struct.Struct("!BBHII")
DATA, UPDATE, SYN, FIN, RST = 0, 1, 1, 4, 8
MULTISTREAM = b"\x13/multistream/1.0.0\n"
LOST = (HivefsError, OSError, BaseLibp2pError, trio.BrokenResourceError, trio.ClosedResourceError, ValueError)
CROWD = 40
"""Attackers at a time: with the honest client below what one address may have."""


class Attack:
    def __init__(self, address: str, recorded: list[bytes]) -> None:
        self.address = address
        self.host, self.port, self.key = split_address(address)
        self.recorded = recorded
        self.done = 0
        self.most = 0
        self.begun = trio.Event()

    def did(self, count: int = 1, before: int = 1) -> None:
        """Something of the attack took place; after ``before`` of them it is under way."""
        self.done += count
        if self.done >= before:
            self.begun.set()

    async def crowd(self, one: Callable[[int], Awaitable[None]], count: int = CROWD, pause: float = 0.05) -> None:
        """So many at a time; who is thrown out comes again a moment later."""

        async def again(number: int) -> None:
            while True:
                with suppress(*LOST):
                    await one(number)
                await trio.sleep(pause)

        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(again, number)

    async def channel(self, host: Any) -> Any:
        """A proved connection with a multiplexer made by hand."""
        return await host._reach(self.host, self.port, ID.from_base58(peer_id_from_key(self.key)))

    # ---- strangers ----------------------------------------------------------------------------------------------------

    async def half_open(self) -> None:
        """500 TCP connections on which nothing is said."""
        now = 0

        async def one(_: int) -> None:
            nonlocal now
            stream = await trio.open_tcp_stream(self.host, self.port)
            async with stream:
                now += 1
                self.most = max(self.most, now)
                self.did(before=500)
                try:
                    while await stream.receive_some():
                        pass
                finally:
                    now -= 1

        await self.crowd(one, 500, 2.0)

    async def drip_tls(self) -> None:
        """The first message of a TLS handshake, a byte at a time."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        with suppress(ssl.SSLWantReadError):
            context.wrap_bio(incoming, outgoing).do_handshake()
        hello = outgoing.read()

        async def one(_: int) -> None:
            async with await trio.open_tcp_stream(self.host, self.port) as stream:
                await stream.send_all(MULTISTREAM + b"\x0b/tls/1.0.0\n")
                for byte in hello:
                    await stream.send_all(bytes([byte]))
                    self.did(before=3 * CROWD)
                    await trio.sleep(0.1)

        await self.crowd(one, 2 * CROWD)

    async def drip_greeting(self) -> None:
        """HELLO a byte at a time, on more streams than a node greets at a time."""
        hello = frames.to_bytes(greeting.hello_to_frame(greeting.Hello((1,), HIVE_KEY)))
        async with open_host(os.urandom(32)) as host:
            connection = await host.dial(self.address)

            async def one(_: int) -> None:
                stream = await connection.open_stream(PROTOCOL)
                try:
                    for byte in hello:
                        await stream.send_all(bytes([byte]))
                        self.did(before=2 * CROWD)
                        await trio.sleep(0.2)
                finally:
                    await stream.reset()

            await self.crowd(one, 100, 1.0)

    async def garbage(self) -> None:
        """A good handshake, then what is no frame."""
        async with open_host(os.urandom(32)) as host:

            async def one(number: int) -> None:
                channel = await self.channel(host)
                try:
                    await channel.write(os.urandom(100 + number))
                    self.did()
                    while True:
                        await channel.read(4096)
                finally:
                    channel.abort()

            await self.crowd(one, 8, 0.2)

    async def four_gib(self) -> None:
        """Lengths of 4 GiB: in a frame of the multiplexer, and in one of the conversation."""
        hello = MULTISTREAM + bytes([len(PROTOCOL) + 1]) + PROTOCOL.encode() + b"\n"
        long = struct.pack(">IBIH", 2**32 - 1, Kind.HELLO, 0, 0) + bytes(1000)
        body = hello + long
        sent = (
            YAMUX.pack(0, DATA, SYN, 1, 0xFFFFFFFF) + bytes(1000),
            YAMUX.pack(0, UPDATE, SYN, 1, 0) + YAMUX.pack(0, DATA, 0, 1, len(body)) + body,
        )
        async with open_host(os.urandom(32)) as host:

            async def one(number: int) -> None:
                channel = await self.channel(host)
                try:
                    await channel.write(sent[number % 2])
                    self.did()
                    with trio.move_on_after(0.5):  # the second only costs the stream
                        while True:
                            await channel.read(4096)
                finally:
                    channel.abort()

            await self.crowd(one, 8, 0.2)

    async def open_and_reset(self) -> None:
        """Streams opened and reset at once, 2000 a second."""
        async with open_host(os.urandom(32)) as host:

            async def one(_: int) -> None:
                channel = await self.channel(host)
                number = 1
                try:
                    while True:
                        pairs = []
                        for _ in range(25):
                            pairs.append(YAMUX.pack(0, UPDATE, SYN, number, 0) + YAMUX.pack(0, UPDATE, RST, number, 0))
                            number += 2
                        await channel.write(b"".join(pairs))
                        self.did(25, 200)
                        await trio.sleep(0.1)
                        with trio.move_on_after(0):
                            while True:
                                await channel.read(65536)
                finally:
                    channel.abort()

            await self.crowd(one, 8)

    async def hold_streams(self) -> None:
        """More streams than a node has room for, held open without a word."""
        async with open_host(os.urandom(32)) as host:

            async def one(_: int) -> None:
                channel = await self.channel(host)
                number = 1
                try:
                    for _ in range(120):
                        await channel.write(YAMUX.pack(0, UPDATE, SYN, number, 0))
                        number += 2
                    self.did(120, 4400)
                    while True:  # who was reset comes again
                        await trio.sleep(0.5)
                        with trio.move_on_after(0.01):
                            while True:
                                await channel.read(65536)
                        for _ in range(5):
                            await channel.write(YAMUX.pack(0, UPDATE, SYN, number, 0))
                            number += 2
                        self.did(5, 4400)
                finally:
                    channel.abort()

            await self.crowd(one)

    # ---- logins --------------------------------------------------------------------------------------------------------

    async def greet(self, stream: Any, login: Callable[[bytes], bytes]) -> Frame | None:
        """What the node says to ``login(nonce)``."""
        decoder = FrameDecoder(frozenset(Kind))
        await stream.send_all(frames.to_bytes(greeting.hello_to_frame(greeting.Hello((1,), HIVE_KEY))))
        challenge = await self.next(stream, decoder)
        if challenge is None or challenge.kind != Kind.CHALLENGE:
            return challenge
        await stream.send_all(login(greeting.challenge_from_frame(challenge).nonce))
        return await self.next(stream, decoder)

    @staticmethod
    async def next(stream: Any, decoder: FrameDecoder) -> Frame | None:
        while (frame := decoder.next_frame()) is None:
            data = await stream.receive_some()
            if not data:
                return None
            decoder.feed(data)
        return frame

    async def logins(self, login: Callable[[bytes], bytes]) -> None:
        async with open_host(os.urandom(32)) as host:

            async def one(_: int) -> None:
                connection = await host.dial(self.address)
                for _ in range(10):
                    stream = await connection.open_stream(PROTOCOL)
                    answer = await self.greet(stream, login)
                    if answer is not None and answer.kind == Kind.WELCOME:
                        raise AssertionError("a thief was let in")
                    if answer is not None and answer.kind == Kind.FAILURE:
                        self.did()
                    await stream.reset()
                    await trio.sleep(0.1)
                await connection.aclose()

            await self.crowd(one, 8)

    async def stolen_certificate(self) -> None:
        """The owner's certificate, signed for with another key."""
        seed = seed_of("owner")
        stolen = member_to_bytes(client_certificate(seed))
        subject = client_certificate(seed).subject
        await self.logins(
            lambda nonce: frames.to_bytes(greeting.login_to_frame(greeting.Login(subject, os.urandom(64), stolen)))
        )

    async def replayed_login(self) -> None:
        (recorded,) = (data for data in self.recorded if data[4] == Kind.LOGIN)
        await self.logins(lambda nonce: recorded)

    # ---- members -------------------------------------------------------------------------------------------------------

    async def conversation(self, host: Any, name: str) -> Any:
        """A stream after its greeting, as another vault's owner."""
        connection = await host.dial(self.address)
        stream = await connection.open_stream(PROTOCOL)
        seed = seed_of(name)
        handshake = ClientHandshake(credentials(seed, host.peer_key, HIVE_KEY, client_certificate(seed)), stream.peer_key)
        decoder = FrameDecoder(frozenset(Kind))
        outgoing: Frame | None = handshake.hello()
        while outgoing is not None:
            await stream.send_all(frames.to_bytes(outgoing))
            frame = await self.next(stream, decoder)
            if frame is None:
                raise OSError("not greeted")
            outgoing = handshake.receive(frame, time.time_ns())
        return stream

    async def replayed_delete(self) -> None:
        """The owner's recorded deletions, in the conversation of another member, each under a new number."""
        deletions = [data for data in self.recorded if data[4] == Kind.DELETE]
        async with open_host(os.urandom(32)) as host:

            async def one(_: int) -> None:
                stream = await self.conversation(host, "thief")
                decoder = FrameDecoder(frozenset(Kind))
                number = 0
                while True:
                    for recorded in deletions:
                        number += 1
                        await stream.send_all(recorded[:5] + struct.pack(">I", number) + recorded[9:])
                        answer = await self.next(stream, decoder)
                        if answer is None:
                            raise OSError("ended")
                        if answer.kind != Kind.FAILURE:
                            raise AssertionError("a recorded deletion was taken")
                        self.did()
                        await trio.sleep(0.05)

            await self.crowd(one, 8)

    async def unread_answers(self) -> None:
        """PING and HAVE without end, and nothing is read."""
        ids = tuple(os.urandom(32) for _ in range(1024))
        async with open_host(os.urandom(32)) as host:

            async def one(member: int) -> None:
                stream = await self.conversation(host, f"thief {member}")
                number = 0
                for number in range(1, 101):  # more answers than the node may send ahead
                    await stream.send_all(frames.to_bytes(requests.to_frame(requests.Have(ids), number)))
                while True:
                    batch = []
                    for _ in range(20):
                        number += 1
                        batch.append(frames.to_bytes(requests.to_frame(requests.Ping(), number)))
                    number += 1
                    batch.append(frames.to_bytes(requests.to_frame(requests.Have(ids), number)))
                    await stream.send_all(b"".join(batch))
                    self.did(21)
                    await trio.sleep(0.5)

            await self.crowd(one, 8)

    async def unread_shares(self) -> None:
        """Shares of 2 MiB asked for again and again, and nothing is read: each answer holds memory of the node."""
        share_id, data = share(2 << 20)
        async with open_host(os.urandom(32)) as host:

            async def one(member: int) -> None:
                stream = await self.conversation(host, f"thief {member}")
                try:
                    await stream.send_all(frames.to_bytes(requests.to_frame(requests.Put(share_id, lease(), data), 1)))
                    answer = await self.next(stream, FrameDecoder(frozenset(Kind)))
                    if answer is None or answer.kind != Kind.ANSWER:
                        raise OSError("ended")
                    for number in range(2, 12):
                        await stream.send_all(frames.to_bytes(requests.to_frame(requests.Get(share_id), number)))
                        self.did(1, 60)
                    await stream._connection.wait_closed()
                finally:
                    await stream._connection.aclose()

            await self.crowd(one, 8, 1.0)


KINDS = (
    "half_open", "drip_tls", "drip_greeting", "garbage", "four_gib", "open_and_reset", "stolen_certificate",
    "replayed_login", "replayed_delete", "unread_answers", "hold_streams", "unread_shares",
)  # fmt: skip


async def main(kind: str, address: str, file: str = "") -> None:
    recorded = [bytes.fromhex(line) for line in Path(file).read_text().split()] if file else []
    attack = Attack(address, recorded)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(getattr(attack, kind))
        await attack.begun.wait()
        print("under way", flush=True)
        await trio.to_thread.run_sync(sys.stdin.buffer.read)
        print(json.dumps({"done": attack.done, "most": attack.most}), flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])

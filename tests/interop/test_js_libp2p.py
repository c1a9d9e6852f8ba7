"""js-libp2p speaks with HiveFS, both ways, over TLS and over Noise.

The js side (client.js, node.js and what they import) was written against docs/formats/ alone: when one of these tests
fails after a change of the wire, either the change or the pages are wrong.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest
import trio

from hivefs.chunkstore.node_client import PROTOCOL, converse, credentials
from hivefs.content.merkle import merkle_root
from hivefs.crypto.keys import public_key
from hivefs.daemon.hive import load
from hivefs.errors import ConnectionLost, PeerIdentityMismatch, Refused, ShareMissing
from hivefs.formats.cid import cid_to_text
from hivefs.formats.member import sign_member
from hivefs.model.ids import ShareId
from hivefs.model.node import Membership, Role
from hivefs.transport import Limits, open_host, peer_id_from_key

pytestmark = pytest.mark.timeout(900)
BOTH = pytest.mark.parametrize("security", ["tls", "noise"])
WIRE = {"tls": "/tls/1.0.0", "noise": "/noise"}
SPOKEN = {"/hivefs/node/1", "/ipfs/id/1.0.0", "/ipfs/ping/1.0.0"}
ROSTER_GET, ROSTER_PUT, HIVE_STATE, NEWS = 23, 24, 27, 40


def run(body, *, seconds=120.0):
    async def bounded():
        with trio.fail_after(seconds):
            await body()

    trio.run(bounded)


@BOTH
def test_a_node_and_js_dial_each_other(peer, node, security):
    """The exchange itself (greeting, PUT, GET with Merkle paths, HAVE, RENEW, STAT, roster, signed DELETE, refusals) is
    checked in client.js, and what a node must send in node.js; both end with an error at the first difference."""
    js = peer(security)
    served = node(js.address)

    # The node logs in at the js node as one of the hive, gives its roster entry and takes what is there.
    seed = (served.directory / "node.seed").read_bytes()
    guest = js.ask("guest", subject=public_key(seed).hex())
    assert (guest["node"], guest["encryption"], guest["roster"]) == (True, WIRE[security], 2)
    assert set(guest["asked"]) == {HIVE_STATE, NEWS, ROSTER_GET, ROSTER_PUT}, "news is asked for, and not again"

    got = js.ask("exchange", to=served.address)
    assert (got["direction"], got["encryption"], got["multiplexer"]) == ("outbound", WIRE[security], "/yamux/1.0.0")
    assert set(got["protocols"]) == SPOKEN
    assert got["agent"] == "hivefs"
    assert got["listens"] == [served.address.partition("/p2p/")[0]]
    assert got["observed"].startswith("/ip4/127.0.0.1/tcp/")
    assert got["roster"] == 2  # the node tells of the js node now

    # One share, three names that agree: what js calls it, what HiveFS keeps it under, and its CID.
    share_id = ShareId(bytes.fromhex(got["share"]))
    assert cid_to_text(share_id) == got["cid"]
    kept = served.directory / "shares" / got["share"][:2] / got["share"]
    data = kept.read_bytes()
    assert (len(data), hashlib.sha256(data).digest()) == (got["size"], share_id)
    js.ask("finish")
    assert not kept.exists()


@BOTH
def test_a_client_keeps_its_shares_at_a_js_node(peer, hive: Path, security):
    key = load(hive)
    owner = os.urandom(32)
    bare = Membership(key.public, public_key(owner), Role.CLIENT, (), issued_ns=time.time_ns())
    data = os.urandom(1_300_000)
    share_id = ShareId(hashlib.sha256(data).digest())
    lease = time.time_ns() + 30 * 86_400 * 10**9

    async def body():
        async with open_host(os.urandom(32)) as host:
            js = await trio.to_thread.run_sync(peer, security)
            connection = await host.dial(js.address, timeout=60)
            assert connection.security == WIRE[security]
            who = credentials(owner, host.peer_key, key.public, sign_member(key.seed, bare))
            stream = await connection.open_stream(PROTOCOL)
            async with converse(stream, who, time.time_ns()) as client:
                assert client.node_id.hex() == js.key
                await client.put(share_id, data, lease)
                assert await client.get(share_id) == data
                part = await client.get(share_id, 500_000, 200_000, merkle_root=merkle_root(data))
                assert part == data[500_000:700_000]
                assert await client.have([share_id, ShareId(bytes(32))]) == [len(data), 0]
                assert await client.renew([share_id], lease) == [True]
                assert (await client.stat()).shares == 1
                assert js.key in [entry.membership.subject.hex() for entry in await client.get_roster()]
                with pytest.raises(Refused, match="hash"):
                    await client.put(ShareId(bytes(32)), data, lease)
                assert await client.delete([share_id]) == [True]
                with pytest.raises(ShareMissing):
                    await client.get(share_id)
            # the same connection the other way round: js asks us, who only dialled, who we are
            met = await trio.to_thread.run_sync(lambda: js.ask("meet", to=peer_id_from_key(host.peer_key), inbound=True))
            assert (met["direction"], met["encryption"]) == ("inbound", WIRE[security])
            assert set(met["protocols"]) == {"/ipfs/id/1.0.0", "/ipfs/ping/1.0.0"}
            assert met["listens"] == []

    run(body)


@pytest.mark.parametrize("offered", ["tls,noise", "noise,tls"])
def test_tls_is_what_we_propose_first_and_noise_what_we_accept(peer, offered):
    async def body():
        # two hosts, since js uses the connection again that it has with a peer
        async with (
            open_host(os.urandom(32)) as dialler,
            open_host(os.urandom(32), listen=["/ip4/127.0.0.1/tcp/0"]) as listener,
        ):
            js = await trio.to_thread.run_sync(peer, offered)
            connection = await dialler.dial(js.address, timeout=60)
            assert connection.security == "/tls/1.0.0"
            met = await trio.to_thread.run_sync(lambda: js.ask("meet", to=listener.addresses[0]))
            assert met["encryption"] == WIRE[offered.split(",")[0]]

    run(body)


@BOTH
def test_much_in_both_directions_at_once(peer, security):
    """Windows that grow on both sides, frames of the largest size, and two ends of a stream, one at a time."""
    size = 24 << 20

    async def echo(stream):
        while data := await stream.receive_some():
            await stream.send_all(data)

    async def body():
        async with open_host(os.urandom(32), listen=["/ip4/127.0.0.1/tcp/0"], handlers={"/echo/1": echo}) as host:
            js = await trio.to_thread.run_sync(peer, security)
            ask = lambda: js.ask("echo", to=host.addresses[0], protocol="/echo/1", size=size)  # noqa: E731
            assert await trio.to_thread.run_sync(ask) == {"position": size}
            (connection,) = host._connections
            assert not connection.closed and connection._session.buffered == 0

    run(body)


@BOTH
def test_a_js_reader_that_pauses_loses_nothing(peer, security):
    data = os.urandom(1 << 20) * 24

    async def flood(stream):
        await stream.send_all(data)

    async def body():
        async with open_host(os.urandom(32), listen=["/ip4/127.0.0.1/tcp/0"], handlers={"/flood/1": flood}) as host:
            js = await trio.to_thread.run_sync(peer, security)
            pauses = [100_000, 12 << 20]
            ask = lambda: js.ask("drain", to=host.addresses[0], protocol="/flood/1", pauses=pauses)  # noqa: E731
            got = await trio.to_thread.run_sync(ask)
            assert got == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    run(body)


@BOTH
def test_js_refuses_who_is_not_whom_it_dialled_and_so_do_we(peer, security):
    async def body():
        async with open_host(os.urandom(32), listen=["/ip4/127.0.0.1/tcp/0"]) as host:
            js = await trio.to_thread.run_sync(peer, security)
            other = peer_id_from_key(public_key(os.urandom(32)))
            with pytest.raises(PeerIdentityMismatch) as caught:
                await host.dial(js.address.rpartition("/")[0] + "/" + other, timeout=60)
            assert caught.value.found == peer_id_from_key(bytes.fromhex(js.key))
            wrong = host.addresses[0].rpartition("/")[0] + "/" + other
            with pytest.raises(AssertionError, match=r"(?i)peer ?id|identity|unexpected"):
                await trio.to_thread.run_sync(lambda: js.ask("meet", to=wrong))

    run(body)


@BOTH
def test_silence_is_not_death_and_goodbyes_are_understood(peer, security):
    """js-libp2p answers our keepalive; its connection monitor, which ends a connection whose pings fail, is content with
    our answers; it takes a GO_AWAY of ours for the end, and so do we its."""
    limits = Limits(keepalive_interval=0.2, keepalive_timeout=60)

    async def body():
        async with open_host(os.urandom(32), listen=["/ip4/127.0.0.1/tcp/0"], limits=limits) as host:
            js = await trio.to_thread.run_sync(peer, security)
            connection = await host.dial(js.address, timeout=60)

            async def seen():
                """What js knows of its connections to us."""
                ask = lambda: js.ask("connections", to=peer_id_from_key(host.peer_key))  # noqa: E731
                return (await trio.to_thread.run_sync(ask))["connections"]

            while connection._ping_number < 3 or (await seen())[0].get("rtt") is None:
                await trio.sleep(0.05)
            assert not connection.closed
            await connection.aclose()
            while await seen():
                await trio.sleep(0.05)
            connection = await host.dial(js.address, timeout=60)
            await trio.to_thread.run_sync(js.stop)
            await connection.wait_closed()
            with pytest.raises(ConnectionLost):
                await connection.open_stream("/echo/1")

    run(body)

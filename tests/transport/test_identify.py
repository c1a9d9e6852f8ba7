"""What strangers are told (identify), and their pings."""

from __future__ import annotations

import os

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from multiaddr import Multiaddr

import hivefs.transport.identify as module
from hivefs.errors import ConnectionLost
from hivefs.transport import Limits, open_host, peer_id_from_key
from hivefs.transport.identify import identify_message

KEY = bytes(create_new_key_pair(bytes(range(32))).public_key.to_bytes())
PEER = "/p2p/" + peer_id_from_key(KEY)
FAR = ("192.0.2.9", 4002)


def read(message):
    """The message as py-libp2p's protobuf reads it."""
    from libp2p.identity.identify.pb.identify_pb2 import Identify
    from libp2p.utils.varint import decode_varint_with_size

    size, start = decode_varint_with_size(message)
    assert len(message) == start + size
    return Identify.FromString(message[start:])


def test_what_is_told():
    addresses = ["/ip4/192.0.2.7/tcp/4001" + PEER, "/ip6/2001:db8::1/tcp/4001", "/dns4/node.example/tcp/4001" + PEER]
    told = read(identify_message(KEY, addresses, ["/a/1", "/b/2"], FAR))
    assert told.public_key == bytes.fromhex("08011220") + KEY
    assert [str(Multiaddr(address)) for address in told.listen_addrs] == [a.removesuffix(PEER) for a in addresses]
    assert list(told.protocols) == ["/a/1", "/b/2"]
    assert str(Multiaddr(told.observed_addr)) == "/ip4/192.0.2.9/tcp/4002"
    assert (told.protocol_version, told.agent_version) == ("hivefs/1", "hivefs")


@pytest.mark.parametrize(
    "address",
    ["/ip4/0.0.0.0/tcp/0", "/ip4/255.1.2.3/tcp/65535", "/ip6/::/tcp/1", "/ip6/2001:db8::f/tcp/256"]
    + [f"/dns4/{'a' * 63}.{'b' * size}.example/tcp/4001" for size in (1, 55, 56, 57, 63)],
)
def test_addresses_have_the_form_that_multiaddr_gives(address):
    assert module._multiaddr(address) == Multiaddr(address).to_bytes()


def test_bytes_of_a_message():
    expected = (
        "52" "0a24" "08011220" + KEY.hex() + "1208" "04c0000207" "060fa1" "1a04" "2f612f31"
        "2208" "04c0000209" "060fa2" "2a08" "6869766566732f31" "3206" "686976656673"
    )  # fmt: skip
    assert identify_message(KEY, ["/ip4/192.0.2.7/tcp/4001"], ["/a/1"], FAR).hex() == expected


def test_what_is_no_address_is_not_told():
    addresses = ["", "/memory/1", "/ip4/1.2.3.4/udp/1/quic-v1", "/ip4/300.0.0.1/tcp/1", "/unix/x", "/ip4/192.0.2.7/tcp/1"]
    told = read(identify_message(KEY, addresses, [], ("2001:db8::5", 9)))
    assert [str(Multiaddr(address)) for address in told.listen_addrs] == ["/ip4/192.0.2.7/tcp/1"]
    assert str(Multiaddr(told.observed_addr)) == "/ip6/2001:db8::5/tcp/9"


def test_it_stays_below_what_js_libp2p_reads():
    long = "/dns4/" + ".".join(["a" * 60] * 4) + "/tcp/65535"
    assert len(identify_message(KEY, [long] * 1000, ["/hivefs/node/1"] * 3, FAR)) < 8192


def test_both_ends_of_a_connection_answer(kit, run):
    async def test():
        handlers = {"/hivefs/node/1": kit.echo}
        async with kit.server(handlers) as host, open_host(os.urandom(32)) as client:
            connection = await client.dial(host.addresses[0])
            stream = await connection.open_stream("/ipfs/id/1.0.0")
            told = read(await kit.receive_all(stream))
            assert list(told.listen_addrs) == []  # nothing was announced
            assert set(told.protocols) == {"/ipfs/id/1.0.0", "/ipfs/ping/1.0.0", "/echo/1", "/hivefs/node/1"}
            assert told.observed_addr == Multiaddr(str(own(connection))).to_bytes()

            (other,) = host._connections
            told = read(await kit.receive_all(await other.open_stream("/ipfs/id/1.0.0")))
            assert list(told.listen_addrs) == []
            assert set(told.protocols) == {"/ipfs/id/1.0.0", "/ipfs/ping/1.0.0"}

            host.announce(["/dns4/node.example/tcp/4001", host.addresses[0]])
            told = read(await kit.receive_all(await connection.open_stream("/ipfs/id/1.0.0")))
            expected = ["/dns4/node.example/tcp/4001", host.addresses[0].partition("/p2p/")[0]]
            assert [str(Multiaddr(a)) for a in told.listen_addrs] == expected

    def own(connection):
        ip, port = connection._channel.raw.socket.getsockname()
        return f"/ip4/{ip}/tcp/{port}"

    run(test)


def test_pings_come_back_until_the_asker_ends_them(kit, run):
    async def test():
        async with kit.pair() as (_, connection):
            stream = await connection.open_stream("/ipfs/ping/1.0.0")
            for _ in range(3):
                ping = os.urandom(32)
                await stream.send_all(ping[:5])
                await stream.send_all(ping[5:])
                assert await kit.receive_exactly(stream, 32) == ping
            many = os.urandom(32 * 100)
            await stream.send_all(many + b"half of one")
            assert await kit.receive_exactly(stream, len(many)) == many
            await stream.send_eof()
            assert await kit.receive_all(stream) == b""

    run(test)


def test_a_ping_that_does_not_come_is_not_waited_for_without_end(kit, run, monkeypatch):
    monkeypatch.setattr(module, "PING_PATIENCE", 0.2)

    async def test():
        async with kit.pair() as (host, connection):
            stream = await connection.open_stream("/ipfs/ping/1.0.0")
            with pytest.raises(ConnectionLost):
                await stream.send_all(bytes(31))
                await stream.receive_some()
            (server,) = host._connections
            while server._session._inbound:
                await trio.sleep(0.01)

    run(test)


def test_streams_of_pings_are_counted_like_others(kit, run):
    async def test():
        async with kit.pair(limits=Limits(max_streams=4)) as (_, connection):
            streams = [await connection.open_stream("/ipfs/ping/1.0.0") for _ in range(4)]
            with pytest.raises(ConnectionLost):
                await connection.open_stream("/ipfs/ping/1.0.0")
            await streams[0].send_all(bytes(32))
            assert await kit.receive_exactly(streams[0], 32) == bytes(32)

    run(test)

"""A real node and the real client over the network in memory: everything that may be asked."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest
import trio
from hive_tools import DAY, HIVE_KEY, client_certificate, lease, make, running, seed_of, share, talking, within

from hivefs import __version__
from hivefs.content.merkle import merkle_root
from hivefs.crypto import keys
from hivefs.errors import Corrupt, HeadForked, HeadStale, NodeFull, Refused, ShareMissing
from hivefs.formats import head as head_format
from hivefs.model.head import Head
from hivefs.model.ids import DeviceId, ShareId
from hivefs.node.index import NodeIndex
from hivefs.protocol.failures import Code
from hivefs.testing.memory_net import MemoryNetwork

MIB = 1 << 20


def test_shares_come_back_whole_in_ranges_and_after_a_restart(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        sizes = [1, 100, 64 << 10, (64 << 10) + 1, MIB, 2 * MIB]
        shares = [share(size) for size in sizes]
        async with running(network, tmp_path / "n"), talking(network, node_id) as client:
            async with trio.open_nursery() as nursery:
                for share_id, data in shares:
                    nursery.start_soon(client.put, share_id, data, lease())
            for share_id, data in shares:
                assert await client.get(share_id) == data
        async with running(network, tmp_path / "n"), talking(network, node_id) as client:
            for share_id, data in shares:
                root = merkle_root(data)
                size = len(data)
                assert await client.get(share_id, merkle_root=root) == data
                for offset in {0, size // 2, size - 1}:
                    for length in {1, (size - offset + 1) // 2, size - offset}:
                        wanted = data[offset : offset + length]
                        assert await client.get(share_id, offset, length, merkle_root=root) == wanted
                        assert await client.get(share_id, offset, length) == wanted
                    assert await client.get(share_id, offset, merkle_root=root) == data[offset:]
            stat = await client.stat()
            assert (stat.shares, stat.used, stat.dropped) == (len(shares), sum(sizes), 0)
            assert stat.version == __version__ and stat.capacity == 1 << 30

    within(body)


def test_a_range_travels_alone(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        share_id, data = share(2 * MIB)
        async with running(network, tmp_path / "n"), talking(network, node_id) as client:
            await client.put(share_id, data, lease())
            stream = client._conversation._stream
            before = stream.received_bytes  # type: ignore[attr-defined]
            await client.get(share_id, MIB + 5, 10, merkle_root=merkle_root(data))
            assert stream.received_bytes - before < 66 << 10  # type: ignore[attr-defined]

    within(body)


def test_what_is_not_there_is_missing(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        async with running(network, tmp_path / "n"), talking(network, node_id) as client:
            here, data = share(500)
            gone, _ = share()
            await client.put(here, data, lease())
            with pytest.raises(ShareMissing) as caught:
                await client.get(gone)
            assert not caught.value.transient
            assert await client.have([gone, here, gone]) == [0, 500, 0]
            assert await client.renew([gone, here], lease()) == [False, True]
            assert await client.delete([gone, here]) == [False, True]
            assert await client.have([here]) == [0]
            assert (await client.stat()).used == 0
            assert list((tmp_path / "n" / "shares").rglob(here.hex())) == []

    within(body)


def test_long_lists_go_in_several_requests(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        async with running(network, tmp_path / "n"), talking(network, node_id) as client:
            shares = [share(10) for _ in range(4)]
            for share_id, data in shares:
                await client.put(share_id, data, lease())
            fillers = [ShareId(hashlib.sha256(bytes([i % 256, i // 256])).digest()) for i in range(2500)]
            ids = fillers[:1100] + [shares[0][0]] + fillers[1100:] + [s[0] for s in shares[1:]]
            sizes = await client.have(ids)
            assert len(sizes) == len(ids) and sum(sizes) == 40 and sizes[1100] == 10
            assert sum(await client.renew(ids, lease())) == 4
            held = await client.delete(ids)
            assert [i for i, flag in enumerate(held) if flag] == [1100, *range(len(ids) - 3, len(ids))]

    within(body)


def test_wrong_bytes_are_not_kept(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        async with running(network, tmp_path / "n"), talking(network, node_id) as client:
            share_id, data = share()
            with pytest.raises(Refused) as caught:
                await client.put(share_id, data + b"!", lease())
            assert caught.value.code == Code.WRONG_HASH
            assert await client.have([share_id]) == [0]
            stat = await client.stat()
            assert stat.used == 0 and stat.free_bytes == stat.capacity
            assert list((tmp_path / "n" / "tmp").iterdir()) == []

    within(body)


def test_a_share_of_two_vaults_stays_until_both_let_go(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        share_id, data = share(700)
        async with (
            running(network, tmp_path / "n"),
            talking(network, node_id, "ann") as ann,
            talking(network, node_id, "bob") as bob,
        ):
            await ann.put(share_id, data, lease())
            assert await bob.delete([share_id]) == [False]
            assert await bob.renew([share_id], lease()) == [False]
            assert await bob.get(share_id) == data
            await bob.put(share_id, data, lease())
            assert (await ann.stat()).used == 700
            assert await ann.delete([share_id]) == [True]
            assert await ann.delete([share_id]) == [False]
            assert await ann.get(share_id) == data
            assert await bob.delete([share_id]) == [True]
            with pytest.raises(ShareMissing):
                await ann.get(share_id)

    within(body)


def test_capacity_and_quota_are_refused_and_given_back(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n", capacity=10_000, vault_quota=6_000)
        async with (
            running(network, tmp_path / "n"),
            talking(network, node_id, "ann") as ann,
            talking(network, node_id, "bob") as bob,
        ):
            ours = [share(3_000) for _ in range(3)]
            for share_id, data in ours[:2]:
                await ann.put(share_id, data, lease())
            with pytest.raises(NodeFull) as quota:
                await ann.put(*ours[2], lease())
            assert quota.value.code == Code.QUOTA and quota.value.transient
            with pytest.raises(NodeFull) as full:
                await bob.put(*share(4_001), lease())
            assert full.value.code == Code.FULL
            await bob.put(*share(4_000), lease())
            assert (await bob.stat()).free_bytes == 0
            await ann.delete([ours[0][0]])
            await ann.put(*ours[2], lease())
            assert (await bob.stat()).used == 10_000

    within(body)


def test_room_is_reserved_while_many_shares_are_on_their_way(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n", capacity=10 * 1000)
        kept: list[ShareId] = []
        refused = 0

        async with running(network, tmp_path / "n"), talking(network, node_id) as client:

            async def put() -> None:
                nonlocal refused
                share_id, data = share(1000)
                try:
                    await client.put(share_id, data, lease())
                    kept.append(share_id)
                except NodeFull:
                    refused += 1

            async with trio.open_nursery() as nursery:
                for _ in range(40):
                    nursery.start_soon(put)
            stat = await client.stat()
            assert stat.used <= 10_000 and stat.used == 1000 * len(kept)
            assert refused == 40 - len(kept) and len(kept) >= 1

    within(body)


def test_the_phrase_alone_brings_certificate_hive_and_heads_back(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        async with running(network, tmp_path / "n"):
            with pytest.raises(Refused):
                async with talking(network, node_id, recover=True):
                    pass
            async with talking(network, node_id) as client:
                await client.put_head(head(1))
        async with running(network, tmp_path / "n"), talking(network, node_id, recover=True) as client:
            assert client.greeted.hive_key == HIVE_KEY
            assert client.greeted.membership == client_certificate(seed_of("owner"))
            assert [h.sequence for h in await client.get_heads()] == [1]
            roster = await client.get_roster()
            assert [e.membership.subject for e in roster] == [node_id]

    within(body)


# ---- heads ----------------------------------------------------------------------------------------------------------

HEADS: dict[tuple[int, str, str, bytes], Head] = {}


def make_head(sequence: int, device: str = "device", owner: str = "owner", root: bytes = b"root") -> Head:
    known = HEADS.get((sequence, device, owner, root))
    if known is None:
        seed = seed_of(device)
        certificate = head_format.sign_certificate(seed_of(owner), DeviceId(keys.public_key(seed)), 1, 5)
        known = head_format.sign_head(seed, certificate, sequence, None, 7, root)
        HEADS[sequence, device, owner, root] = known
    return known


def head(sequence: int, device: str = "device", owner: str = "owner", root: bytes = b"root") -> bytes:
    return head_format.to_bytes(make_head(sequence, device, owner, root))


def test_heads_only_advance_and_the_two_newest_are_kept(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        async with running(network, tmp_path / "n"), talking(network, node_id) as client:
            assert await client.get_heads() == []
            for sequence in (1, 2, 5, 5):
                await client.put_head(head(sequence))
            for stale in (1, 2, 4):
                with pytest.raises(HeadStale):
                    await client.put_head(head(stale))
            with pytest.raises(HeadForked):
                await client.put_head(head(5, root=b"another"))
            assert await client.get_heads() == [make_head(5), make_head(2)]
            await client.put_head(head(1, device="phone"))
            assert len(await client.get_heads()) == 3

    within(body)


def test_heads_of_others_are_neither_taken_nor_given(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        async with (
            running(network, tmp_path / "n"),
            talking(network, node_id, "owner") as client,
            talking(network, node_id, "thief") as thief,
        ):
            await client.put_head(head(1))
            with pytest.raises(Refused) as caught:
                await thief.put_head(head(2))
            assert caught.value.code == Code.FORBIDDEN
            assert await thief.get_heads() == []
            assert await client.get_heads() == [make_head(1)]

    within(body)


def test_many_large_heads_come_in_several_pages(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        async with running(network, tmp_path / "n"), talking(network, node_id) as client:
            for device in range(9):
                for sequence in (1, 2):
                    await client.put_head(head(sequence, f"d{device}", root=bytes(200_000)))
            heads = await client.get_heads()
            assert len({h.certificate.device for h in heads}) == 9
            assert [h.sequence for h in heads] == [2, 1] * 9

    within(body)


def test_a_vault_cannot_fill_a_node_with_heads(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        async with running(network, tmp_path / "n"), talking(network, node_id) as client:
            for device in range(64):
                await client.put_head(head(1, f"d{device}"))
            with pytest.raises(NodeFull):
                await client.put_head(head(1, "one more"))
            await client.put_head(head(2, "d7"))

    within(body)


# ---- what the client believes ---------------------------------------------------------------------------------------


def test_a_node_that_serves_wrong_bytes_is_found_out(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        share_id, data = share(200_000)
        async with running(network, tmp_path / "n"), talking(network, node_id) as client:
            await client.put(share_id, data, lease())
            path = next((tmp_path / "n" / "shares").rglob(share_id.hex()))
            path.write_bytes(data[:150_000] + bytes([data[150_000] ^ 1]) + data[150_001:])
            root = merkle_root(data)
            with pytest.raises(Corrupt):
                await client.get(share_id)
            with pytest.raises(Corrupt):
                await client.get(share_id, 150_000, 1, merkle_root=root)
            assert await client.get(share_id, 0, 1000, merkle_root=root) == data[:1000]

    within(body)


def test_a_share_whose_file_is_lost_is_dropped_when_asked_for(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        share_id, data = share(5000)
        async with running(network, tmp_path / "n"), talking(network, node_id) as client:
            await client.put(share_id, data, lease())
            next((tmp_path / "n" / "shares").rglob(share_id.hex())).unlink()
            with pytest.raises(ShareMissing):
                await client.get(share_id)
            stat = await client.stat()
            assert (stat.shares, stat.used, stat.dropped) == (0, 0, 1)
            await client.put(share_id, data, lease())
            assert await client.get(share_id) == data

    within(body)


def test_leases_are_granted_within_bounds_and_never_shortened(tmp_path: Path) -> None:
    def ends(share_id: ShareId) -> list[int]:
        index = NodeIndex(tmp_path / "n" / "index")
        try:
            far = 1 << 62
            return [at for at in (DAY // 2, 50 * DAY, 150 * DAY, 1000 * DAY, far) if index.ended(now + at, 10)][:1]
        finally:
            index.close()

    now = time.time_ns()

    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        async with running(network, tmp_path / "n"), talking(network, node_id) as client:
            await client.put(*one, now + 100 * DAY)
            await client.renew([one[0]], now + 10 * DAY)

    async def forever() -> None:
        network = MemoryNetwork()
        node_id = keys.public_key(seed_of("node"))
        async with running(network, tmp_path / "n"), talking(network, node_id) as client:
            await client.renew([one[0]], (1 << 63) - 1)

    one = share(10)
    within(body)
    assert ends(one[0]) == [150 * DAY]
    within(forever)
    assert ends(one[0]) == [1000 * DAY]

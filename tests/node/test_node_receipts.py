"""Receipts and listings of a real node: what it signs, what it takes back, and what it refuses."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
from hive_tools import DAY, lease, make, running, seed_of, share, talking, within

from hivefs.crypto import keys
from hivefs.errors import Corrupt, HivefsError, Refused
from hivefs.formats import receipt as receipt_format
from hivefs.model.ids import NodeId, ShareId
from hivefs.model.receipt import Receipt
from hivefs.node import receipts as receipts_module
from hivefs.node import session as session_module
from hivefs.node.answering import PAGE_BYTES, Answerer
from hivefs.node.index import NodeIndex
from hivefs.node.leases import LONGEST_NS, SHORTEST_NS, SKEW_NS, LeaseClock, grant
from hivefs.node.receipts import Receipts
from hivefs.node.store import ShareStore
from hivefs.protocol import answers, requests
from hivefs.protocol.failures import Code, Refusal
from hivefs.protocol.node_side import Session
from hivefs.testing.memory_net import MemoryNetwork

NONCE = bytes(range(32))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receipt whenever one is asked for, not one in a second."""
    monkeypatch.setattr(receipts_module, "LEAST_NS", 0)


def test_a_receipt_counts_what_is_held_and_both_sides_keep_it(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "node")
        async with running(network, tmp_path / "node"):  # noqa: SIM117 - one line would be too long
            async with talking(network, node_id) as client, talking(network, node_id, "another") as other:
                shares = [share(1000 + i) for i in range(5)]
                for name, data in shares:
                    await client.put(name, data, lease())
                await other.put(*shares[0], lease())
                first, agreed = await client.get_receipt(NONCE)
                assert (first.leases, first.size, agreed) == (5, sum(len(d) for _, d in shares), None)
                assert first.owner == keys.public_key(seed_of("owner")) and first.node_id == node_id
                both = await client.agree(first)
                assert receipt_format.counter_valid(both)
                await client.agree(first)  # again is no news, and no harm
                await client.delete([shares[0][0]])
                second, agreed = await client.get_receipt(bytes(32))
                assert agreed == both and second.leases == 4 and second.sequence > first.sequence
                theirs, _ = await other.get_receipt(NONCE)
                assert (theirs.leases, theirs.size) == (1, 1000)
        # After a restart, and with nothing but the phrase, the vault gets its proof back.
        async with running(network, tmp_path / "node"), talking(network, node_id, recover=True) as client:
            third, agreed = await client.get_receipt(NONCE)
            assert agreed == both and third.sequence > second.sequence

    within(body)


def test_forged_foreign_and_old_receipts_are_refused_by_the_node_and_named(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "node")
        async with running(network, tmp_path / "node"), talking(network, node_id) as client:
            name, data = share(5000)
            await client.put(name, data, lease())
            old, _ = await client.get_receipt(NONCE)
            new, _ = await client.get_receipt(NONCE)
            both = await client.agree(new)
            with pytest.raises(Refused, match="is older"):
                await client.agree(old)
            with pytest.raises(Refused, match="not signed by this node"):
                await client.agree(replace(new, leases=7, sequence=new.sequence + 1))
            forged = receipt_format.sign_receipt(replace(new, leases=7), partial(keys.sign, seed_of("thief")))
            with pytest.raises(Refused, match="not signed by this node"):
                await client.agree(forged)
            elsewhere = receipt_format.sign_receipt(
                replace(new, node_id=NodeId(keys.public_key(seed_of("x")))), partial(keys.sign, seed_of("x"))
            )
            with pytest.raises(Refused, match="another node"):
                await client.agree(elsewhere)
            with pytest.raises(Refused, match="another node or vault"):
                async with talking(network, node_id, "another") as other:
                    await other.agree(new)
            for bad in (b"\x80", receipt_format.receipt_to_bytes(new), receipt_format.receipt_to_bytes(both)[:-1]):
                with pytest.raises(HivefsError):
                    await client._ask(requests.ReceiptPut(bad), answers.Taken, 10.0, "a receipt")
            assert (await client.get_receipt(NONCE))[1] == both

    within(body)


def test_a_client_takes_no_receipt_that_is_not_new_its_own_and_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "node")
        async with running(network, tmp_path / "node"), talking(network, node_id) as client:
            honest, _ = await client.get_receipt(NONCE)
            agreed = await client.agree(honest)
            node = partial(keys.sign, seed_of("node"))
            thief = partial(keys.sign, seed_of("thief"))
            other = keys.public_key(seed_of("another"))
            wrong: list[list[Receipt]] = [
                [],
                [replace(honest, leases=3)],
                [receipt_format.sign_receipt(replace(honest, leases=3), thief)],
                [receipt_format.sign_receipt(replace(honest, owner=other), node)],
                [receipt_format.sign_receipt(replace(honest, nonce=bytes(32)), node)],  # replayed
                [honest, replace(agreed, counter=honest.signature)],
                [honest, receipt_format.sign_receipt(replace(honest, owner=other), node)],
            ]
            for receipts in wrong:
                blobs = [receipt_format.receipt_to_bytes(r) for r in receipts]
                monkeypatch.setattr(Receipts, "issue", lambda *_, blobs=blobs: blobs)
                with pytest.raises(Corrupt, match="receipt of node"):
                    await client.get_receipt(NONCE)

    within(body)


def test_the_number_of_a_receipt_grows_also_when_the_clock_goes_back(tmp_path: Path) -> None:
    store = ShareStore(tmp_path)
    try:
        times = iter((5_000, 5_000, 4_000, 4_000, 4_000, 4_000, 10, 10))
        owner = keys.public_key(seed_of("owner"))
        receipts = Receipts(
            store, NodeId(keys.public_key(seed_of("n"))), partial(keys.sign, seed_of("n")), lambda: next(times)
        )
        numbers = []
        for _ in range(4):
            made = receipt_format.receipt_from_bytes(receipts.issue(keys.vault_id_of(owner), owner, NONCE)[0])
            numbers.append(made.sequence)
        assert numbers == [5_000, 5_001, 5_002, 5_003]
    finally:
        store.close()


def test_a_vault_gets_one_receipt_in_a_second_and_the_same_again_for_the_same_nonce(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    store = ShareStore(tmp_path)
    try:
        now = 1_000 * 10**9
        node = NodeId(keys.public_key(seed_of("n")))
        receipts = Receipts(store, node, partial(keys.sign, seed_of("n")), lambda: now)
        writes: list[int] = []
        writing = store.index.writing
        monkeypatch.setattr(store.index, "writing", lambda: (writes.append(1), writing())[1])
        mine, other = (keys.public_key(seed_of(name)) for name in ("owner", "other"))
        first = receipts.issue(keys.vault_id_of(mine), mine, NONCE)
        for _ in range(20):
            assert receipts.issue(keys.vault_id_of(mine), mine, NONCE) == first
            with pytest.raises(Refusal) as refused:
                receipts.issue(keys.vault_id_of(mine), mine, bytes(32))
            assert refused.value.code == Code.BUSY
        assert len(writes) == 1
        receipts.issue(keys.vault_id_of(other), other, NONCE)
        now += 10**9
        assert receipts.issue(keys.vault_id_of(mine), mine, NONCE) != first
        now -= 10**12  # a clock that was set back is no reason to give none for long
        receipts.issue(keys.vault_id_of(mine), mine, bytes(32))
        assert len(writes) == 4
    finally:
        store.close()


def test_a_request_weighs_what_it_holds(tmp_path: Path) -> None:
    weight = Answerer.weight
    blobs = (b"x" * 90_000,) * 4
    for request in (requests.StatementsPut(blobs), requests.RosterPut(blobs), requests.MembersPut(blobs)):
        assert weight(None, request) == 360_000  # type: ignore[arg-type]
    for request in (requests.HeadPut(blobs[0]), requests.RevokedPut(blobs[0])):
        assert weight(None, request) == 90_000  # type: ignore[arg-type]
    assert weight(None, requests.RangesGet(False)) == 256 * 32, "the answer"  # type: ignore[arg-type]
    assert weight(None, requests.RangeGet(True, 7)) == PAGE_BYTES  # type: ignore[arg-type]


def test_a_listing_has_every_share_of_the_vault_once_and_none_of_others(tmp_path: Path) -> None:
    index = NodeIndex(tmp_path)
    vaults = [keys.vault_id_of(keys.public_key(seed_of(name))) for name in ("a", "b", "c")]
    want: dict[bytes, dict[ShareId, int]] = {vault: {} for vault in vaults}
    with index.writing() as change:
        for number in range(600):
            name = ShareId(bytes([number % 251]) + number.to_bytes(31, "big"))
            for i, vault in enumerate(vaults):
                if number % (i + 2) == 0:
                    change.keep(name, 100 + number, b"", vault, 1000 + number, 1)
                    want[vault][name] = 1000 + number
    for vault in vaults:
        for most, rows in ((7, 1 << 16), (1, 1 << 16), (1000, 10), (1000, 1), (8192, 1 << 16)):
            found: list[ShareId] = []
            after, pages = b"", 0
            while True:
                reached, page = index.listing(vault, after, most, rows)
                assert len(page) <= most
                assert all(want[vault][s.share_id] == s.lease_ns and s.size == s.lease_ns - 900 for s in page)
                found += [s.share_id for s in page]
                pages += 1
                if not reached:
                    break
                assert reached > after
                after = reached
            assert found == sorted(want[vault])
        assert index.totals_of(vault) == (sum(n - 900 for n in want[vault].values()), len(want[vault]))
    assert index.listing(keys.vault_id_of(bytes(32)), b"", 10, 10_000) == (b"", [])
    index.close()


def test_only_the_vault_itself_lists_its_shares_over_the_line(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "node")
        async with running(network, tmp_path / "node"):  # noqa: SIM117 - one line would be too long
            async with talking(network, node_id) as client, talking(network, node_id, "another") as other:
                mine = sorted((share(2000) for _ in range(4)), key=lambda s: s[0])
                until = lease()
                for name, data in mine:
                    await client.put(name, data, until)
                listing = await client.list_shares()
                assert [s.share_id for s in listing.shares] == [name for name, _ in mine] and listing.reached == b""
                assert {s.lease_ns for s in listing.shares} == {until} and {s.size for s in listing.shares} == {2000}
                rest = await client.list_shares(mine[1][0])
                assert [s.share_id for s in rest.shares] == [name for name, _ in mine[2:]]
                assert (await other.list_shares()).shares == ()

    within(body)


def test_a_day_of_wrong_clocks_on_both_sides_ends_no_lease_early() -> None:
    """The vault's clock a day behind, the node's a day ahead, or both the other way: a lease for as long as one is renewed
    with is never collected before it is renewed again.
    """
    now, renewed_for, renewed_every = 1_800_000_000 * 10**9, 120 * DAY, 30 * DAY
    for vault_off in (-DAY, 0, DAY):
        for node_off in (-DAY, 0, DAY):
            clock = LeaseClock(now + node_off, now + node_off, 0)
            until = grant(now + vault_off + renewed_for, now + node_off)
            later = now + renewed_every
            running_ns = renewed_every
            clock.observe(later + node_off + SKEW_NS, running_ns)  # and it jumps by a day more
            assert until >= clock.now_ns - SKEW_NS
            # Even the shortest lease that a node grants is not over for a vault whose clock is a day behind.
            shortest = grant(0, now + node_off)
            assert shortest - (now + node_off) == SHORTEST_NS
            collected_at = shortest + SKEW_NS
            assert collected_at - (now + node_off) >= DAY + SKEW_NS
    assert grant(1 << 62, now) == now + LONGEST_NS


def test_a_node_alone_may_not_ask_for_accounts(tmp_path: Path) -> None:
    session = Session(b"n" * 32, b"p" * 32, b"s" * 32, None, bytes(32), None)  # type: ignore[arg-type]
    for request in (requests.ReceiptGet(NONCE), requests.ReceiptPut(b"x"), requests.ListShares()):
        with pytest.raises(Refusal):
            session.check(request)


def test_a_peer_of_an_older_release_ends_the_conversation_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a node does that does not know the kinds: see frames.FrameDecoder. The client gets an error, not silence."""
    old = session_module.frames.FROM_CLIENT - {k for k in session_module.frames.Kind if k >= 32}

    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "node")
        monkeypatch.setattr(session_module.frames, "FROM_CLIENT", old)
        async with running(network, tmp_path / "node"):
            with trio.fail_after(30), contextlib.suppress(ExceptionGroup):
                async with talking(network, node_id) as client:
                    with pytest.raises(HivefsError):
                        await client.get_receipt(NONCE)
                    with pytest.raises(HivefsError):
                        await client.ping()

    within(body)

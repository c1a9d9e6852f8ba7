"""Which stripes are emptied: what it costs, what it frees, and that it comes to an end."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.content.packing import FULL_SHARE, Packer, bucket
from hivefs.maintenance.repack_plan import FRESH, PRICE, PRICE_WHEN_FULL, Job, Load, Target, evacuate, plan
from hivefs.model.ids import ChunkId, NodeId, ShareId, StripeId
from hivefs.model.stripe import ChunkPlace, Purpose, Share, Stripe

TARGET = Target("default", 4, 6)


def load(number: int, lengths: list[int], share_bytes: int = FULL_SHARE, reason: str = "", out: int = 0) -> Load:
    stripe_id = StripeId(number.to_bytes(16, "big"))
    chunks = [
        (ChunkId(number.to_bytes(8, "big") + i.to_bytes(8, "big")), ChunkPlace(stripe_id, 0, 0, length))
        for i, length in enumerate(lengths)
    ]
    return Load(stripe_id, TARGET, tuple(chunks), 6 * share_bytes, reason, out)


loads_of = st.lists(
    st.tuples(st.lists(st.integers(100, FULL_SHARE), min_size=1, max_size=4), st.sampled_from([4096, 65536, FULL_SHARE])),
    max_size=25,
).map(
    lambda rows: [
        load(i, [min(length, size - FRESH) for length in lengths], size) for i, (lengths, size) in enumerate(rows)
    ]
)


def packed(job: Job) -> int:
    """Bytes of shares that the real packer makes of a job."""
    packer = Packer(job.target.needed)
    for item in job.loads:
        for _, place in item.chunks:
            assert packer.add(bytes(place.length)) is not None
    return job.target.total * packer.pack(bytes, fresh=FRESH).share_bytes


def test_a_stripe_more_than_half_alive_stays_and_one_less_than_half_goes() -> None:
    full = FULL_SHARE
    assert plan([load(1, [full, full, full])]) == []
    # Two shares of four alive, twice: they fill one stripe.
    (both,) = plan([load(1, [full, full]), load(2, [full, full])])
    assert len(both.loads) == 2
    assert plan([load(1, [full, full])]) == []
    # Alone it would only become a smaller one; that is worth it when it is small enough.
    (alone,) = plan([load(1, [5000])])
    assert alone.sent == 6 * bucket(5000 + FRESH)


def test_when_the_hive_is_full_less_is_enough() -> None:
    loads = [load(n, [FULL_SHARE * 7 // 10] * 4) for n in range(8)]
    assert not plan(loads, PRICE)
    assert plan(loads, PRICE_WHEN_FULL)


@given(loads_of, st.sampled_from([PRICE, PRICE_WHEN_FULL]))
@settings(max_examples=150, deadline=None)
def test_each_job_frees_what_it_says_and_pays(loads: list[Load], price: float) -> None:
    jobs = plan(loads, price)
    seen: set[StripeId] = set()
    for job in jobs:
        assert job.gain >= price * job.sent > 0
        assert packed(job) <= job.sent  # largest first may do with less
        assert job.freed == sum(item.stored for item in job.loads)
        ids = {item.stripe_id for item in job.loads}
        assert not ids & seen
        seen |= ids
    assert [job.sent for job in jobs] == sorted(job.sent for job in jobs)


@given(loads_of)
@settings(max_examples=50, deadline=None)
def test_planning_again_and_again_comes_to_an_end(loads: list[Load]) -> None:
    """What a round makes is what the next one plans with; each makes the bytes stored fewer."""
    number = 1000
    for _ in range(50):
        stored = sum(item.stored for item in loads)
        jobs = plan(loads)
        if not jobs:
            return
        gone = {item.stripe_id for job in jobs for item in job.loads}
        loads = [item for item in loads if item.stripe_id not in gone]
        for job in jobs:
            number += 1
            lengths = [place.length for item in job.loads for _, place in item.chunks]
            loads.append(load(number, lengths, job.sent // 6))
        assert sum(item.stored for item in loads) < stored
    raise AssertionError("it never ends")


def test_what_must_move_comes_first_most_out_of_policy_first_then_least_data() -> None:
    big, small = [FULL_SHARE] * 4, [FULL_SHARE // 2] * 3
    jobs = plan(
        [
            load(1, [3000]),
            load(2, big, reason="the policy"),
            load(3, small, reason="the policy"),
            load(4, big, reason="the policy", out=2),
        ]
    )
    assert [job.loads[0].stripe_id[-1] for job in jobs] == [4, 3, 2, 1]
    assert jobs[0].gain < 0 and jobs[2].gain < 0  # each share has random bytes behind its chunk: see FRESH


def test_what_must_move_and_does_not_fit_is_cut_and_all_of_it_goes() -> None:
    target = Target("default", 2, 3)
    stripe = load(7, [FULL_SHARE] * 5, reason="the code")
    jobs = plan([Load(stripe.stripe_id, target, stripe.chunks, stripe.stored, stripe.reason)])
    assert len(jobs) == 3
    assert sorted(c for job in jobs for item in job.loads for c, _ in item.chunks) == [c for c, _ in stripe.chunks]
    assert sum(job.freed for job in jobs) == stripe.stored


def test_a_share_with_one_full_chunk_does_not_become_the_same_share_again() -> None:
    packer = Packer(1)
    packer.add(b"x" * FULL_SHARE)
    assert packer.pack(bytes).data == (b"x" * FULL_SHARE,)
    one, two = (packer.pack(lambda n, fill=fill: fill * n, fresh=FRESH) for fill in (b"1", b"2"))
    assert one.data != two.data and len(one.data[0]) == bucket(FULL_SHARE + FRESH) > FULL_SHARE


def metadata(number: int, share_bytes: int) -> Stripe:
    share = Share(ShareId(bytes(32)), bytes(32), NodeId(bytes(32)))
    return Stripe(StripeId(number.to_bytes(16, "big")), Purpose.METADATA, 4, share_bytes, (share,) * 6)


def test_the_emptiest_metadata_stripes_are_evacuated_if_that_pays() -> None:
    many = [(metadata(n, 65536), [2000 + n], []) for n in range(20)]
    full = (metadata(99, 65536), [25_000] * 10, [10_000])
    assert evacuate([*many, full], 1 << 20) == {stripe.stripe_id for stripe, _, _ in many}
    assert evacuate([full], 1 << 20) == frozenset() == evacuate([], 1 << 20)
    # The pages above would have to be written again, and they are more than what is freed.
    assert evacuate([*many[:1], (metadata(99, 65536), [], [30_000] * 8)], 1 << 20) == frozenset()
    assert len(evacuate(many, 10_000)) == 4  # no more at once than asked
    assert evacuate([(metadata(1, 4096), [300], [450]), (metadata(2, 4096), [300], [450])], 1 << 20) == {
        metadata(1, 4096).stripe_id,
        metadata(2, 4096).stripe_id,
    }


def test_a_stripe_that_a_large_page_makes_large_is_not_written_again_for_ever() -> None:
    """Seen of a real tree: 27 KB of pages, one of them 17 KB, make a stripe of four shares of 19 KB. By its filling it
    looked as if half of it could be saved, and each look had it written again, as large as before.
    """
    large = (metadata(1, 19456), [3400, 2400], [17_500, 900])
    small = (metadata(2, 4096), [2600], [700])
    assert evacuate([large, small], 1 << 20) == frozenset()
    empty = [(metadata(3 + n, 19456), [1000], []) for n in range(6)]  # but these do pay beside it
    assert evacuate([large, small, *empty], 1 << 20) >= {stripe.stripe_id for stripe, _, _ in empty}

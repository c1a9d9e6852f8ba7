"""What to move: which stripes are emptied into which new ones. Pure.

A stripe costs its nodes ``total * share_bytes`` as long as one chunk in it lives. Emptying some stripes into a new
one sends the new one's bytes and frees the old ones'. It is worth it when what it frees, the difference, is at least
``price`` times what it sends. With a price of about 1, a byte sent frees a byte: then only stripes that are at most
half alive are emptied, what is lost to dead chunks is at most as much as what lives, and each chunk is moved at most
once for each halving of what lives beside it (cleaning costs 2/(1-u) at utilization u in Rosenblum and Ousterhout
1992: 4 at one half, 10 at four fifths). It is a little less than 1, because a stripe of full chunks grows by 3 % when
it moves (see FRESH), and two of which half lives are to become one. When the hive is nearly full, room is worth more
than traffic, and the price is lower.

Since each such job makes the bytes stored fewer, repeating it comes to an end, and what it made is not taken apart again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from hivefs.content.packing import FULL_SHARE, bucket
from hivefs.model.ids import ChunkId, StripeId
from hivefs.model.stripe import ChunkPlace, Stripe

PRICE: Final = 0.9
PRICE_WHEN_FULL: Final = 1 / 3
"""Bytes that a byte sent has to free."""

FRESH: Final = 16
"""Random bytes at the end of each new data share. A share that held one full chunk and nothing else would otherwise be the
same share again, under the same name, and deleting the old one at a node would delete the new one.
"""

COMPACTION: Final = "half-dead stripes"


@dataclass(frozen=True, slots=True)
class Target:
    """Where chunks go: the policy by name, and its code."""

    policy: str
    needed: int
    total: int


@dataclass(frozen=True, slots=True)
class Load:
    """Chunks of one stripe that go to ``target``. ``stored`` are the bytes that this frees at the nodes: all of the
    stripe's, or none when other chunks stay in it. ``reason`` says why it must be, whatever it costs; empty when it
    must pay. ``out`` is how far the stripe is from what it should be (shares that are out of policy); more comes
    first.
    """

    stripe_id: StripeId
    target: Target
    chunks: tuple[tuple[ChunkId, ChunkPlace], ...]
    stored: int
    reason: str = ""
    out: int = 0

    @property
    def alive(self) -> int:
        """Sealed bytes to move."""
        return sum(place.length for _, place in self.chunks)


@dataclass(frozen=True, slots=True)
class Job:
    """Stripes that are emptied into one new stripe. ``sent`` and ``freed`` are bytes of shares."""

    target: Target
    loads: tuple[Load, ...]
    sent: int
    freed: int
    reason: str
    out: int

    @property
    def gain(self) -> int:
        """Bytes by which the hive holds less afterwards; negative when it is more."""
        return self.freed - self.sent


class _Bins:
    """The fill of the data shares of one stripe, as content.packing.Packer.add fills them."""

    def __init__(self, needed: int) -> None:
        self.fill = [0] * needed

    def take(self, lengths: Iterable[int]) -> bool:
        """All of them or none."""
        fill = list(self.fill)
        for length in lengths:
            emptiest = min(range(len(fill)), key=fill.__getitem__)
            if fill[emptiest] + length > FULL_SHARE:
                return False
            fill[emptiest] += length
        self.fill = fill
        return True


def may_pay(alive: int, needed: int, share_bytes: int, price: float = PRICE) -> bool:
    """Whether a stripe with so many living bytes can be part of a job that pays: a first look."""
    return alive * (1 + price) <= needed * share_bytes


def plan(loads: Iterable[Load], price: float = PRICE) -> list[Job]:
    """Jobs for these stripes: what must be first, most out of policy first, and of the rest least data first. A load that
    fits into no new stripe as a whole is cut; what does not pay is left out.
    """
    groups: dict[tuple[Target, str], list[Load]] = {}
    for load in loads:
        if load.chunks:
            groups.setdefault((load.target, load.reason), []).append(load)
    jobs: list[Job] = []
    for (target, reason), group in groups.items():
        pieces = [piece for load in group for piece in (_cut(load) if reason else [load])]
        pieces.sort(key=lambda load: (-load.out, load.alive, load.stripe_id))
        jobs += [job for job in _pack(target, reason, pieces) if reason or job.gain >= job.sent * price]
    return sorted(jobs, key=lambda job: (job.reason == COMPACTION, -job.out, job.sent, job.loads[0].stripe_id))


def _pack(target: Target, reason: str, loads: Sequence[Load]) -> list[Job]:
    jobs: list[Job] = []
    bins, held = _Bins(target.needed), list[Load]()
    for load in loads:
        lengths = [place.length for _, place in load.chunks]
        if not bins.take(lengths):
            if held:
                jobs.append(_job(target, reason, held, bins))
            bins, held = _Bins(target.needed), []
            if not bins.take(lengths):
                continue  # only what need not be moved comes here uncut: it cannot pay
        held.append(load)
    if held:
        jobs.append(_job(target, reason, held, bins))
    return jobs


def _job(target: Target, reason: str, held: Sequence[Load], bins: _Bins) -> Job:
    sent = target.total * bucket(max(bins.fill) + FRESH)
    freed = sum(load.stored for load in held)
    return Job(target, tuple(held), sent, freed, reason or COMPACTION, max(load.out for load in held))


def _cut(load: Load) -> list[Load]:
    """Pieces that fit into one stripe each; the last one frees the old stripe."""
    pieces: list[list[tuple[ChunkId, ChunkPlace]]] = [[]]
    bins = _Bins(load.target.needed)
    for chunk in load.chunks:
        if not bins.take([chunk[1].length]):
            pieces.append([])
            bins = _Bins(load.target.needed)
            bins.take([chunk[1].length])
        pieces[-1].append(chunk)
    made = []
    for number, piece in enumerate(pieces, 1):
        stored = load.stored if number == len(pieces) else 0
        made.append(Load(load.stripe_id, load.target, tuple(piece), stored, load.reason, load.out))
    return made


def evacuate(
    stripes: Collection[tuple[Stripe, Sequence[int], Sequence[int]]], most: int, price: float = PRICE
) -> frozenset[StripeId]:
    """Metadata stripes whose pages are to be written again, given the lengths of the living leaves and inner pages of each:
    the emptiest ones, of at most ``most`` living bytes together, if that pays. All inner pages of the tree are taken to be
    written again with them, because each may name one that moved.
    """
    ordered = sorted(
        ((sum(leaves) + sum(inner), stripe, leaves) for stripe, leaves, inner in stripes),
        key=lambda item: (item[0] / (item[1].needed * item[1].share_bytes), item[1].stripe_id),
    )
    if not ordered:
        return frozenset()
    writing = _Writing(ordered[0][1].needed)
    for _, _, inner in stripes:
        writing.add(inner)
    best: frozenset[StripeId] = frozenset()
    chosen: list[StripeId] = []
    alive = freed = 0
    for living, stripe, leaves in ordered:
        if alive + living > most or not may_pay(living, stripe.needed, stripe.share_bytes, price):
            break
        chosen.append(stripe.stripe_id)
        alive += living
        freed += stripe.total * stripe.share_bytes
        writing.add(leaves)
        sent = stripe.total * writing.share_bytes
        if freed - sent >= price * sent:
            best = frozenset(chosen)
    return best


class _Writing:
    """How large the shares become that pages make, one stripe after the other. A page is in one share, so a large one makes
    all shares of its stripe as large.
    """

    def __init__(self, needed: int) -> None:
        self._needed = needed
        self._bins = _Bins(needed)
        self._full = 0

    def add(self, lengths: Iterable[int]) -> None:
        """Pages that are written next."""
        for length in lengths:
            if not self._bins.take([length]):
                self._full += bucket(max(self._bins.fill))
                self._bins = _Bins(self._needed)
                self._bins.take([length])

    @property
    def share_bytes(self) -> int:
        """Bytes of one share of each of the stripes, together."""
        return self._full + bucket(max(self._bins.fill))


__all__ = ["FRESH", "PRICE", "PRICE_WHEN_FULL", "Job", "Load", "Target", "evacuate", "may_pay", "plan"]

"""What no certificate and no text names any more is removed; what anything names, or may name in a moment, never is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from hivefs.formats import policy as policy_format
from hivefs.formats import records
from hivefs.maintenance import definitions, turns
from hivefs.maintenance.definitions import KEEP_S, Definitions
from hivefs.metadata.engine_store import EngineStore
from hivefs.model.ids import ShareId, StripeId
from hivefs.model.node import Attribute
from hivefs.model.stripe import Purpose, Share, Stripe
from hivefs.placement.policy import Policy

DEFAULT = Policy(2, 3)
OLD, NAMED, NEW = (replace(DEFAULT, name=name) for name in ("old", "named", "new"))
HERE, BEFORE = (Attribute("country", "DE"),), (Attribute("country", "FR"),)


def stripe(number: int, policy: Policy | None = None, standing: bytes = b"", purpose: Purpose = Purpose.DATA) -> Stripe:
    shares = tuple(Share(ShareId(bytes([number, i]) * 16), bytes(32), None, standing) for i in range(3))
    digest = b"" if policy is None else policy_format.digest(policy)
    return Stripe(StripeId(bytes([number]) * 16), purpose, 2, 100, shares, digest)


class Book(EngineStore):
    """Records stripes as they are given: what proves them is not asked here."""

    def keep(self, made: Stripe) -> None:
        with self.writing():
            self._put_stripe(made)


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    store = Book(tmp_path / "engine", bytes(32), DEFAULT)
    yield store
    store.close()


def hours(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(100 * KEEP_S):
            await body()

    trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))


def known(book: EngineStore) -> set[str]:
    digests = (policy_format.digest(policy) for policy in (DEFAULT, OLD, NAMED, NEW))
    return {made.name for digest in digests if (made := book.policy_of(digest)) is not None}


def test_what_nothing_names_goes_and_the_next_checkpoint_hears_of_it(book: Book) -> None:
    with book.writing():
        book.save_policy_text('[policy.new]\ndeny = ["US"]\n')
        written = book.policies.set.policies["new"]
        for policy in (DEFAULT, OLD, NAMED, written):
            book.save_policy(policy)
        here, before, of_pages = (book.save_standing(said) for said in (HERE, BEFORE, (*HERE, *BEFORE)))
        book.save_info("codes", {policy_format.digest(p).hex(): [2, 3, 9] for p in (OLD, NAMED)})
    book.keep(stripe(1, NAMED, here))
    book.keep(stripe(2, DEFAULT, of_pages, Purpose.METADATA))
    with book.writing():
        book.published(book.next_sequence())

    async def body() -> None:
        duty = Definitions(book)
        await duty.once()
        assert duty.waiting == 2 and not duty.removed and known(book) == {"default", "old", "named"}
        await trio.sleep(KEEP_S)
        await duty.once()
        assert (duty.waiting, duty.removed) == (0, 2)

    hours(body)
    assert known(book) == {"default", "named"} and book.policy_of(policy_format.digest(written)) == written
    assert book.standing(here) == HERE and book.standing(of_pages) is not None and book.standing(before) is None
    assert list(book.info("codes")) == [policy_format.digest(NAMED).hex()]
    with book.changes() as changes:
        gone = dict(changes)
    assert gone == dict.fromkeys((records.policy_key(policy_format.digest(OLD)), records.standing_key(before)))
    assert book.policy_text(), "the text is no definition"


@pytest.mark.parametrize("moment", ["between", "in the first look", "in the second look", "kept again"])
def test_what_is_named_again_at_any_moment_stays(book: Book, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """A stripe that was on its way is recorded, with a name that comes before what was looked at already."""
    with book.writing():
        book.save_policy(OLD)
        before = book.save_standing(BEFORE)
    monkeypatch.setattr(turns, "MOST", 1)
    for number in range(10, 15):
        book.keep(stripe(number))

    def name() -> None:
        if moment == "kept again":
            with book.writing():
                book.save_policy(OLD)
                book.save_standing(BEFORE)
        else:
            book.keep(stripe(1, OLD, before))

    async def look(duty: Definitions, named: bool) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(duty.once)
            if named:
                for _ in range(3):  # of five stripes, after each of which others have their turn
                    await trio.lowlevel.checkpoint()
                name()

    async def body() -> None:
        duty = Definitions(book)
        await look(duty, moment == "in the first look")
        await trio.sleep(KEEP_S - 1)
        if moment in ("between", "kept again"):
            name()
        await trio.sleep(1)
        await look(duty, moment == "in the second look")
        assert not duty.removed and known(book) == {"old"} and book.standing(before) == BEFORE
        await trio.sleep(KEEP_S)
        await duty.once()
        gone = moment == "kept again"  # which names it for another hour only
        assert (known(book) == set()) == gone and duty.removed == 2 * gone

    hours(body)


def test_many_go_some_at_a_time_and_a_kill_in_between_leaves_the_rest_for_later(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    with book.writing():
        for number in range(300):
            book.save_standing((Attribute("operator", str(number)),))
    done = 0
    forget = book.forget_definitions

    def dies(keys: list[bytes]) -> None:
        nonlocal done
        done += 1
        forget(keys)
        if done == 3:
            raise ZeroDivisionError

    monkeypatch.setattr(book, "forget_definitions", dies)

    async def body() -> None:
        duty = Definitions(book)
        await duty.once()
        await trio.sleep(KEEP_S)
        with pytest.raises(ZeroDivisionError):
            await duty.once()
        assert len(book.keys("tree", b"a")) == 300 - 2 * definitions.REMOVED
        duty = Definitions(book)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(duty.run)
            await trio.sleep(3 * KEEP_S)
            nursery.cancel_scope.cancel()
        assert not book.keys("tree", b"a")

    hours(body)

"""Certificates for stripes that keep their policy, without a hive."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any, cast

import trio
import trio.testing

from hivefs.maintenance.certify import BATCH, Certify
from hivefs.model.ids import StripeId


def test_what_is_noted_again_while_it_is_proved_is_proved_again() -> None:
    """Another text came in the middle of a batch, and its scan met stripes that had been proved by the old one."""
    stripes = [StripeId(n.to_bytes(16, "big")) for n in range(2 * BATCH)]
    proved: dict[StripeId, str] = {}
    text = "old"

    def certificate(stripe_id: StripeId) -> Any:
        nonlocal text
        found = stripe_id, text
        if stripe_id == stripes[BATCH // 2] and text == "old":
            text = "new"
            for one in stripes:
                certify.note(one)
        return found

    def record(made: list[Any]) -> list[StripeId]:
        proved.update(made)
        return []

    state = SimpleNamespace(
        certificate=certificate, certify=record, writing=contextlib.nullcontext, keep_standings=lambda made: False
    )
    certify = Certify(cast(Any, state))

    async def test() -> None:
        for one in stripes:
            certify.note(one)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(certify.run)
            await trio.sleep(10)
            nursery.cancel_scope.cancel()
        assert certify.queue == 0
        assert proved == dict.fromkeys(stripes, "new")

    trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))

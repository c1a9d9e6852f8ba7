"""All that can be saved of policies and of what is known of nodes can be read again: what is too much is not written."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.formats import policy as policy_format
from hivefs.formats import standing
from hivefs.model.node import Attribute, Evidence
from hivefs.placement.policy import Policy
from hivefs.placement.verifier import Rules

NUMBERS = st.sampled_from([-1, 0, 1, 7, 255, 256])
TEXTS = st.text(max_size=4) | st.sampled_from(["x" * size for size in (64, 65, 256, 257)])
EVIDENCE = st.sampled_from(list(Evidence))


def sizes(most: int) -> st.SearchStrategy[int]:
    return st.integers(0, 3) | st.sampled_from([most, most + 1])


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    def some(most: int, kind: st.SearchStrategy[object]) -> tuple[object, ...]:
        return (draw(kind),) * draw(sizes(most))

    rules = some(16, st.builds(Rules, TEXTS, NUMBERS, NUMBERS, NUMBERS))
    caps, allow, deny = some(16, st.tuples(TEXTS, NUMBERS)), some(4096, TEXTS), some(4096, TEXTS)
    needed, total = draw(st.sampled_from([(0, 0), (1, 1), (2, 3), (255, 255)]))
    evidence, name, at = draw(EVIDENCE), draw(TEXTS), draw(NUMBERS)
    return Policy(needed, total, rules, caps, evidence, allow, deny, name, not needed, at)  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None)
@given(policies())
def test_every_definition_that_is_written_is_read_the_same(policy: Policy) -> None:
    with contextlib.suppress(ValueError):
        assert policy_format.from_bytes(policy_format.to_bytes(policy)) == policy


@settings(max_examples=300, deadline=None)
@given(st.lists(st.builds(Attribute, TEXTS, TEXTS, EVIDENCE), max_size=5), sizes(64))
def test_every_standing_that_is_written_is_read_the_same(said: list[Attribute], more: int) -> None:
    said += [Attribute("subnet", str(number), Evidence.CLAIMED) for number in range(more)]
    with contextlib.suppress(ValueError):
        assert set(standing.from_bytes(standing.to_bytes(said))) == set(said)


def test_the_limits_themselves_can_be_written_and_one_more_cannot() -> None:
    """So that the properties above do not hold because nothing is written at all."""
    full = Policy(2, 3, (Rules("x" * 256, 255, 255, 255),) * 16, (("x" * 256, 255),) * 16, allow=("y" * 256,) * 4096)
    full = replace(full, deny=full.allow, name="n" * 64, repair_at=255)
    assert policy_format.from_bytes(policy_format.to_bytes(full)) == full
    changes = (
        {"name": "n" * 65}, {"allow": (*full.allow, "z")}, {"deny": ("z" * 257,)}, {"rules": full.rules * 2},
        {"max_per": full.max_per * 2}, {"repair_at": 256}, {"max_per": (("z", -1),)}, {"rules": (Rules("z", 1, 1, 256),)},
    )  # fmt: skip
    for change in changes:
        with pytest.raises(ValueError, match="longer than its format allows"):
            policy_format.to_bytes(replace(full, **change))  # type: ignore[arg-type]
    said = [Attribute("x" * 256, str(number), Evidence.CLAIMED) for number in range(64)]
    assert len(standing.from_bytes(standing.to_bytes(said))) == 64
    for more in (Attribute("one", "more", Evidence.CLAIMED), Attribute("subnet", "x" * 257, Evidence.CLAIMED)):
        with pytest.raises(ValueError, match="at most 64 attributes"):
            standing.to_bytes([*said[: 64 if more.name == "one" else 1], more])
    text = "#" * policy_format.MAX_TEXT_BYTES
    assert policy_format.text_from_bytes(policy_format.text_to_bytes(text)) == text
    with pytest.raises(ValueError, match="longer"):
        policy_format.text_to_bytes(text + "#")

"""Policies in the vault's records: the text that the user wrote, and each definition that a certificate names. See
docs/formats/policy.md.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import lru_cache
from typing import Any

from hivefs.errors import BadSetting
from hivefs.formats import strict
from hivefs.model.node import Evidence
from hivefs.placement.policy import Policy
from hivefs.placement.verifier import Rules

VERSION = 1
DIGEST_BYTES = 16
TEXT_KEY = bytes(DIGEST_BYTES)
"""Stands for the text where a definition has its digest."""

MAX_TEXT_BYTES = 256 << 10
MAX_NAME = 64
MAX_WORD = 256

_POLICY, _TEXT = "HVpolicy", "HVpolicies"
_WHAT, _WHAT_TEXT = "a policy's definition", "the text of the policies"
_RULES, _WORDS = 16, 4096


def to_bytes(policy: Policy) -> bytes:
    """The canonical definition. An automatic code is left out: each stripe says its own. ValueError for what ``from_bytes``
    would not take: what is kept can be read.
    """
    words = (
        *policy.allow,
        *policy.deny,
        *(rule.family for rule in policy.rules),
        *(family for family, _ in policy.max_per),
    )
    numbers = [policy.repair_at, *(most for _, most in policy.max_per)]
    numbers += [number for rule in policy.rules for number in (rule.coalition, rule.lose, rule.slack)]
    if (
        len(policy.name) > MAX_NAME
        or max(len(policy.rules), len(policy.max_per)) > _RULES
        or max(len(policy.allow), len(policy.deny)) > _WORDS
        or any(len(word) > MAX_WORD for word in words)
        or any(not 0 <= number <= 255 for number in numbers)
    ):
        raise ValueError("the definition of a policy is longer than its format allows")
    return strict.encode(
        _POLICY,
        VERSION,
        policy.name,
        [] if policy.auto else [policy.needed, policy.total],
        [[rule.family, rule.coalition, rule.lose, rule.slack] for rule in policy.rules],
        [list(cap) for cap in policy.max_per],
        int(policy.evidence),
        list(policy.allow),
        list(policy.deny),
        policy.repair_at,
    )


def from_bytes(data: bytes) -> Policy:
    """Raises Corrupt or UnknownVersion. An automatic code comes back as needed = total = 0."""
    parts = strict.items_of(_WHAT, _POLICY, VERSION, data)

    def build() -> Policy:
        name, code, rules, caps, evidence, allow, deny, repair_at = parts
        pair = strict.items(code, 2)
        if len(pair) not in (0, 2):
            raise ValueError("a code has two numbers")
        needed, total = (strict.number(n, 1, 255) for n in pair) if pair else (0, 0)
        try:
            return Policy(
                needed,
                total,
                tuple(map(_rule, strict.items(rules, _RULES))),
                tuple(map(_cap, strict.items(caps, _RULES))),
                Evidence(strict.number(evidence)),
                tuple(strict.text(word, MAX_WORD) for word in strict.items(allow, _WORDS)),
                tuple(strict.text(word, MAX_WORD) for word in strict.items(deny, _WORDS)),
                strict.text(name, MAX_NAME),
                not pair,
                strict.number(repair_at, 0, 255),
            )
        except BadSetting as error:
            raise ValueError(str(error)) from None

    return strict.exactly(_WHAT, data, build, to_bytes)


def _rule(value: Any) -> Rules:
    family, coalition, lose, slack = strict.items(value, 4)
    return Rules(
        strict.text(family, MAX_WORD),
        strict.number(coalition, 0, 255),
        strict.number(lose, 0, 255),
        strict.number(slack, 0, 255),
    )


def _cap(value: Any) -> tuple[str, int]:
    family, most = strict.items(value, 2)
    return strict.text(family, MAX_WORD), strict.number(most, 0, 255)


@lru_cache(maxsize=256)
def digest(policy: Policy) -> bytes:
    """16 bytes that name a policy in certificates: the first of the SHA-256 of its definition. With an automatic code it is
    the same for each code that was chosen.
    """
    bare = replace(policy, needed=0, total=0) if policy.auto else policy
    return hashlib.sha256(to_bytes(bare)).digest()[:DIGEST_BYTES]


def text_to_bytes(text: str) -> bytes:
    """The record of the text. ValueError when it is longer than ``text_from_bytes`` takes."""
    if len(text) > MAX_TEXT_BYTES:
        raise ValueError("the text of the policies is longer than its format allows")
    return strict.encode(_TEXT, VERSION, text)


def text_from_bytes(data: bytes) -> str:
    """Raises Corrupt or UnknownVersion."""
    parts = strict.items_of(_WHAT_TEXT, _TEXT, VERSION, data)

    def build() -> str:
        (text,) = parts
        return strict.text(text, MAX_TEXT_BYTES)

    return strict.exactly(_WHAT_TEXT, data, build, text_to_bytes)

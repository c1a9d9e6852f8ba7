"""Keys, the recovery phrase, and wrapping by a password."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from hivefs.crypto import keys
from hivefs.crypto.phrase import phrase_from_secret, secret_from_phrase
from hivefs.crypto.wrap import BadWrap, WrapParams, unwrap, wrap
from hivefs.errors import BadPhrase


def test_the_phrase_brings_every_key_back() -> None:
    secret = os.urandom(32)
    phrase = phrase_from_secret(secret)
    assert len(phrase.split()) == 24
    again = keys.VaultKeys(secret_from_phrase("  " + phrase.upper().replace(" ", "\n") + "\n"))
    assert vars(again) == vars(keys.VaultKeys(secret))


def test_known_phrase() -> None:
    # BIP39 test vector (trezor/python-mnemonic vectors.json): 32 zero bytes.
    assert secret_from_phrase("abandon " * 23 + "art") == bytes(32)


@pytest.mark.parametrize(
    ("phrase", "reason"),
    [
        ("abandon " * 24, "checksum"),
        ("abandon art", "2 words"),
        ("abandon " * 22 + "hunter2 art", "word 23"),
        ("", "0 words"),
    ],
)
def test_bad_phrases_are_refused_without_repeating_them(phrase: str, reason: str) -> None:
    with pytest.raises(BadPhrase) as caught:
        secret_from_phrase(phrase)
    assert reason in str(caught.value) and "hunter2" not in str(caught.value)


def test_keys_are_all_different_and_not_shown() -> None:
    made = keys.VaultKeys(os.urandom(32))
    secrets = [v for k, v in vars(made).items() if isinstance(v, bytes)]
    assert len(set(secrets)) == len(secrets)
    assert all(s.hex() not in repr(made) for s in secrets if s != made.vault_id)


def test_signatures() -> None:
    seed = os.urandom(32)
    public = keys.public_key(seed)
    signature = keys.sign(seed, b"message")
    assert keys.verify(public, signature, b"message")
    assert not keys.verify(public, signature, b"other")
    assert not keys.verify(keys.public_key(os.urandom(32)), signature, b"message")
    assert not keys.verify(b"short", signature, b"message")
    assert not keys.verify(public, b"", b"message")


FAST = WrapParams("password", "00" * 16, memory_kib=19 << 10, iterations=1)


def test_wrap_opens_only_with_the_password() -> None:
    wrapped = wrap(FAST, b"password", b"the secret", os.urandom(12))
    assert unwrap(FAST, b"password", wrapped) == b"the secret"
    for params, secret, data in [
        (FAST, b"Password", wrapped),
        (FAST, b"", wrapped),
        (FAST, b"password", wrapped[:-1] + bytes([wrapped[-1] ^ 1])),
        (FAST, b"password", b""),
        (replace(FAST, salt="11" * 16), b"password", wrapped),
    ]:
        with pytest.raises(BadWrap):
            unwrap(params, secret, data)


@pytest.mark.parametrize(
    "change", [{"memory_kib": 1024}, {"memory_kib": 1 << 40}, {"iterations": 0}, {"method": "md5"}, {"salt": "00"}]
)
def test_downgraded_parameters_are_refused(change: dict[str, object]) -> None:
    wrapped = wrap(FAST, b"password", b"the secret", os.urandom(12))
    with pytest.raises(BadWrap):
        unwrap(replace(FAST, **change), b"password", wrapped)  # type: ignore[arg-type]


def test_a_password_wrap_is_not_opened_as_unprotected() -> None:
    wrapped = wrap(FAST, b"password", b"the secret", os.urandom(12))
    with pytest.raises(BadWrap):
        unwrap(replace(FAST, method="none"), b"", wrapped)

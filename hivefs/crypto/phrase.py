"""The recovery phrase: 24 words of the BIP39 English list that encode the 32-byte master secret (with a checksum)."""

from __future__ import annotations

from mnemonic import Mnemonic

from hivefs.errors import BadPhrase

WORDS = 24


def phrase_from_secret(secret: bytes) -> str:
    """24 words, separated by single spaces."""
    if len(secret) != 32:
        raise ValueError("the master secret has 32 bytes")
    return Mnemonic("english").to_mnemonic(secret)


def secret_from_phrase(phrase: str) -> bytes:
    """The 32-byte secret; raises BadPhrase for a wrong count, an unknown word (it is not repeated) or a bad checksum."""
    words = phrase.lower().split()
    if len(words) != WORDS:
        raise BadPhrase(reason=f"{len(words)} words")
    book = Mnemonic("english")
    known = set(book.wordlist)
    for position, word in enumerate(words, 1):
        if word not in known:
            raise BadPhrase(reason=f"word {position} is not in the list")
    try:
        return bytes(book.to_entropy(words))
    except ValueError:
        raise BadPhrase(reason="the checksum does not fit: a word is wrong or out of order") from None

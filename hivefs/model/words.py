"""What a word of a user or of a stranger may hold, so that it can be shown on a terminal and in one line of a log.

Refused are, by code point, so that every version of Unicode gives the same answer:

- control characters (category Cc: U+0000-001F, U+007F-009F), which move the cursor and begin escapes,
- the separators of lines and paragraphs (Zl, Zp: U+2028, U+2029), which some programs take for the end of a line,
- embeddings, overrides and isolates of writing direction (U+202A-202E, U+2066-2069), which turn round what stands beside,
- surrogates (Cs: U+D800-DFFF), which UTF-8 cannot carry.

All else may be part of a name: the ideographic space (U+3000) is in Japanese ones, the zero-width joiner and non-joiner
(U+200D, U+200C) in Persian and Indic ones, the marks of direction (U+061C, U+200E, U+200F) in Arabic and Hebrew ones, and
letters of a Unicode newer than this Python's are letters too. ``str.isprintable`` refuses those.
"""

from __future__ import annotations

import re
from typing import Final

_STEERING: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def showable(text: str) -> bool:
    """Whether it may be shown as it is."""
    return _STEERING.search(text) is None


def shown(text: str, instead: str = "?") -> str:
    """The text with ``instead`` for each character that may not be shown."""
    return _STEERING.sub(instead, text)

"""Where things stand in a TOML text: tomllib says where a mistake of syntax is, but not where a value came from.

Only for texts that tomllib took: the scanner relies on it. Grammar: TOML 1.0.0, https://toml.io/en/v1.0.0.
"""

from __future__ import annotations

import re
import tomllib
from typing import NamedTuple, TypeAlias

Path: TypeAlias = tuple[str | int, ...]


class Place(NamedTuple):
    """Offsets into the text in characters: of the key (or the header of a table), of the value, and behind the value."""

    key: int
    value: int
    end: int


_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"""(?:"{0,2})' + "|'''.*?'''(?:'{0,2})" + r'|"(?:[^"\\]|\\.)*"|' + "'[^']*'", re.DOTALL
)
_PART = re.compile(r"[A-Za-z0-9_-]+")
_BARE = re.compile(r"[^,\]}#\r\n]+")


def position(text: str, offset: int) -> tuple[int, int]:
    """Line and column of an offset, both from 1."""
    line = text.count("\n", 0, offset) + 1
    return line, offset - (text.rfind("\n", 0, offset) + 1) + 1


def places(text: str) -> dict[Path, Place]:
    """The place of each key, table and item of an array by its path, ("policy", "default", "allow", 0) for instance."""
    return _Scanner(text).run()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._found: dict[Path, Place] = {}
        self._arrays: dict[Path, int] = {}

    def run(self) -> dict[Path, Place]:
        table: Path = ()
        at = self._blank(0)
        while at < len(self._text):
            if self._text[at] == "[":
                table, at = self._header(at)
            else:
                at = self._pair(at, table)
            at = self._blank(at)
        return self._found

    def _blank(self, at: int) -> int:
        match = _BLANK.match(self._text, at)
        return match.end() if match else at

    def _space(self, at: int) -> int:
        match = _SPACE.match(self._text, at)
        return match.end() if match else at

    def _header(self, start: int) -> tuple[Path, int]:
        double = self._text.startswith("[[", start)
        parts, at = self._key(self._space(start + (2 if double else 1)))
        path: Path = ()
        for part in parts[:-1]:
            path = self._inside((*path, part))
        path = (*path, parts[-1])
        end = at + (2 if double else 1)
        if double:
            self._arrays[path] = self._arrays.get(path, -1) + 1
        self._found.setdefault(path, Place(start, start, end))
        path = self._inside(path)
        self._found.setdefault(path, Place(start, start, end))
        return path, end

    def _inside(self, path: Path) -> Path:
        return (*path, self._arrays[path]) if path in self._arrays else path

    def _key(self, at: int) -> tuple[list[str], int]:
        parts = []
        while True:
            match = _STRING.match(self._text, at) if self._text[at] in "\"'" else _PART.match(self._text, at)
            if match is None:
                raise ValueError(f"no key at {at}")
            token = match.group()
            parts.append(str(tomllib.loads(f"k={token}")["k"]) if token[0] in "\"'" else token)
            at = self._space(match.end())
            if self._text[at : at + 1] != ".":
                return parts, at
            at = self._space(at + 1)

    def _pair(self, start: int, table: Path) -> int:
        parts, at = self._key(start)
        value = self._space(at + 1)  # behind the "="
        path: Path = (*table, *parts)
        end = self._value(value, path)
        for length in range(len(table) + 1, len(path)):
            self._found.setdefault(path[:length], Place(start, value, end))
        self._found.setdefault(path, Place(start, value, end))
        return end

    def _value(self, at: int, path: Path) -> int:
        first = self._text[at]
        if first == "[":
            return self._items(at + 1, path, "]")
        if first == "{":
            return self._items(at + 1, path, "}")
        match = _STRING.match(self._text, at) if first in "\"'" else _BARE.match(self._text, at)
        if match is None:
            raise ValueError(f"no value at {at}")
        return at + len(match.group().rstrip(" \t"))

    def _items(self, at: int, path: Path, close: str) -> int:
        number = 0
        while True:
            at = self._blank(at)
            if self._text[at] == close:
                return at + 1
            if self._text[at] == ",":
                at += 1
            elif close == "}":
                at = self._pair(at, path)
            else:
                item: Path = (*path, number)
                end = self._value(at, item)
                self._found.setdefault(item, Place(at, at, end))
                at, number = end, number + 1

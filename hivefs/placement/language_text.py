"""Writing policy.toml: the text that says what holds without one, and setting a path while all else stays. Pure."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from typing import Any

from hivefs.errors import BadPolicy
from hivefs.placement.policy import AT_ONCE, DEFAULT, Policy
from hivefs.placement.toml_places import Path, Place, places, position
from hivefs.placement.verifier import Rules


def default_text(policy: Policy) -> str:
    """A text for a vault that has none: it says exactly what holds now. ``parse`` of it gives this policy again."""
    lines = [
        "# What holds in this vault until another text is applied.",
        f"[policy.{DEFAULT}]",
        f'code = "{"auto" if policy.auto else f"{policy.needed}/{policy.total}"}"',
        _guarantee("no_reassembly", [(r, f", coalition = {r.coalition}") for r in policy.rules if r.coalition]),
        _guarantee("no_hostage", [(r, f", lose = {r.lose}, slack = {r.slack}") for r in policy.rules if r.lose]),
        f'evidence = "{policy.evidence.name.lower()}"',
    ]
    if policy.max_per:
        lines.append("max_per = { " + ", ".join(f"{family} = {most}" for family, most in policy.max_per) + " }")
    lines += [
        f"{key} = [{', '.join(map(_quoted, words))}]"
        for key, words in (("allow", policy.allow), ("deny", policy.deny))
        if words
    ]
    if policy.repair_at:
        lines.append(f"repair_at = {0 if policy.repair_at == AT_ONCE else policy.repair_at}")
    return "\n".join(lines) + "\n"


def _guarantee(key: str, rules: Sequence[tuple[Rules, str]]) -> str:
    tables = [f'{{ family = "{rule.family}"{numbers} }}' for rule, numbers in rules]
    if not tables:
        return f"{key} = false"
    return f"{key} = {tables[0] if len(tables) == 1 else '[' + ', '.join(tables) + ']'}"


def says_nothing(text: str) -> bool:
    """Whether there is nothing in a text but comments: then the vault's own default holds alone."""
    try:
        return not tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False


def with_path(text: str, path: str, name: str | None) -> str:
    """The text with the policy of one path set to ``name``, or without that path (None); comments and order stay.

    ``text`` is one that ``parse`` takes, ``path`` absolute and without a slash at its end. Raises BadPolicy when the text
    is written in a way that this cannot edit.
    """
    before = tomllib.loads(text)
    found = places(text)
    written: dict[str, str] = before.get("paths", {})
    key = next((p for p in (path, path.rstrip("/") + "/") if p in written), None)
    if name is None:
        after = text if key is None else _without(text, found["paths", key])
    elif key is not None:
        place = found["paths", key]
        after = text[: place.value] + _quoted(name) + text[place.end :]
    else:
        after = _added(text, found, list(written), f"{_quoted(path)} = {_quoted(name)}")
    wanted = {p: n for p, n in written.items() if p != key or name is not None}
    if name is not None:
        wanted[key or path] = name
    if not _says(after, {**before, "paths": wanted}):
        line, column = position(text, found.get(("paths",), Place(0, 0, 0)).key)
        raise BadPolicy(line=line, column=column, reason="the paths are written in a way that must be edited by hand")
    return after


def _says(text: str, wanted: dict[str, Any]) -> bool:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    return {"paths": {}, **data} == wanted


def _without(text: str, place: Place) -> str:
    """Without the whole line."""
    start = text.rfind("\n", 0, place.key) + 1
    end = text.find("\n", place.end)
    return text[:start] + ("" if end < 0 else text[end + 1 :])


def _added(text: str, found: dict[Path, Place], written: list[str], pair: str) -> str:
    newline = "\r\n" if "\r\n" in text else "\n"
    table = found.get(("paths",))
    if table is None:
        gap = "" if not text else newline if text.endswith("\n") else 2 * newline
        return f"{text}{gap}[paths]{newline}{pair}{newline}"
    if text[table.key] != "[" and text[table.value] == "{":
        return f"{text[: table.value]}{{ {pair}{', ' if written else ' '}{text[table.value + 1 :].lstrip(' ')}"
    prefix = "" if text[table.key] == "[" else "paths."
    last = max([table.end, *(found["paths", p].end for p in written)])
    end = text.find("\n", last)
    if end < 0:
        return f"{text}{newline}{prefix}{pair}{newline}"
    return f"{text[: end + 1]}{prefix}{pair}{newline}{text[end + 1 :]}"


def _quoted(word: str) -> str:
    """A basic string of TOML: JSON's escapes are a part of TOML's, except for DEL, which must be escaped."""
    return json.dumps(word, ensure_ascii=False).replace("\x7f", "\\u007f")

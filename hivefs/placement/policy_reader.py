"""Reading the tables of a policy.toml key by key, each mistake with its place. Used by placement/language.py. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from hivefs.errors import BadPolicy
from hivefs.model.node import Evidence
from hivefs.model.words import showable, shown
from hivefs.placement.arithmetic import MOST_SHARES, PLURALS, impossible
from hivefs.placement.blocs import BLOCS
from hivefs.placement.conjunction import join, limits_of, split
from hivefs.placement.countries import COUNTRIES, MEANT
from hivefs.placement.networks import WRONG, written
from hivefs.placement.policy import AT_ONCE, Policy
from hivefs.placement.toml_places import Path, Place, position
from hivefs.placement.verifier import Rules

KEYS = ("inherits", "code", "no_reassembly", "no_hostage", "max_per", "evidence", "allow", "deny", "repair_at")
FAMILIES = tuple(PLURALS)
NAMED = tuple(family for family in FAMILIES if family not in ("jurisdiction", "bloc"))
"""Families whose authorities are written "family:authority" in allow and deny."""
MOST_WORDS = 4096
MAX_WORD = 200

_CODE = re.compile(r"([0-9]{1,3})/([0-9]{1,3})")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KINDS = {bool: "a truth value", int: "a number", str: "a text", list: "a list", dict: "a table", float: "a fraction"}


class Reader:
    """The text with the places of what is in it. ``kept``: it is in force, maybe since a release that looked at less."""

    def __init__(self, text: str, places: Mapping[Path, Place], kept: bool = False) -> None:
        self._text = text
        self._kept = kept
        self._places = places

    # ---- saying what is wrong ---------------------------------------------------------------------------------------

    def wrong(self, path: Path, reason: str, *, value: bool = False) -> BadPolicy:
        """The error at a key (or its value); at what it is in when that has no place of its own."""
        while path and path not in self._places:
            path = path[:-1]
        place = self._places.get(path, Place(0, 0, 0))
        line, column = position(self._text, place.value if value else place.key)
        return BadPolicy(line=line, column=column, reason=reason)

    def written(self, table: Path, path: str) -> Path:
        """The key of a path as it stands in the text, with or without a slash at its end."""
        return next((p for p in ((*table, path), (*table, path + "/")) if p in self._places), table)

    @staticmethod
    def short(word: str) -> str:
        """A word of the user's for a sentence: on one line and not too long."""
        plain = shown(word)
        return plain if len(plain) <= 60 else plain[:57] + "..."

    def meant(self, word: str, known: Iterable[str]) -> str:
        """What may have been meant, or what there is."""
        names = list(known)
        close = get_close_matches(word[:64], names, 1)
        if close:
            return f" (did you mean {close[0]})"
        return f"; there is {', '.join(names[:12])}" if names else ""

    # ---- kinds ------------------------------------------------------------------------------------------------------

    def only(self, keys: Sequence[str], table: Mapping[str, object], path: Path) -> None:
        """No other keys than these."""
        for key in table:
            if key not in keys:
                raise self.wrong((*path, key), f'"{self.short(key)}" is not known here{self.meant(key, keys)}')

    def _kind(self, table: Mapping[str, Any], key: str, path: Path, kind: type, words: str) -> Any:
        value = table[key]
        if type(value) is not kind:
            said = _KINDS.get(type(value), "a date or time")
            raise self.wrong((*path, key), f'"{self.short(key)}" must be {words}, not {said}', value=True)
        return value

    def table(self, table: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
        """A table; empty when it is not there."""
        made: dict[str, Any] = {} if key not in table else self._kind(table, key, path, dict, "a table")
        return made

    def text(self, table: Mapping[str, Any], key: str, path: Path) -> str:
        """A text."""
        made: str = self._kind(table, key, path, str, "a text in quotes")
        return made

    def number(self, table: Mapping[str, Any], key: str, path: Path, least: int, most: int, default: int) -> int:
        """A whole number between bounds; ``default`` when it is not there."""
        if key not in table:
            return default
        value: int = self._kind(table, key, path, int, "a whole number")
        if not least <= value <= most:
            raise self.wrong((*path, key), f'"{key}" is a number from {least} to {most}', value=True)
        return value

    def texts(self, table: Mapping[str, Any], key: str, path: Path) -> list[str]:
        """A list of texts."""
        values = self._kind(table, key, path, list, "a list of texts")
        if len(values) > MOST_WORDS:
            raise self.wrong((*path, key), f'"{key}" has more than {MOST_WORDS} items', value=True)
        for number, value in enumerate(values):
            if type(value) is not str:
                raise self.wrong((*path, key, number), f'"{key}" is a list of texts in quotes', value=True)
        return list(values)

    def name(self, path: Path, name: str, what: str) -> None:
        """A name that fits into records and on a line."""
        if not _NAME.fullmatch(name):
            raise self.wrong(path, f"the name of {what} has 1 to 64 letters (without accents), digits, - and _")

    # ---- blocs ------------------------------------------------------------------------------------------------------

    def blocs(self, data: Mapping[str, Any]) -> dict[str, frozenset[str]]:
        """The user's own blocs: names for countries in allow and deny."""
        table = self.table(data, "blocs", ())
        made: dict[str, frozenset[str]] = {}
        for name in table:
            at: Path = ("blocs", name)
            self.name(at, name, "a bloc")
            if name in BLOCS or name.upper() in COUNTRIES:
                raise self.wrong(at, f'"{name}" is the name of a {"bloc that there is" if name in BLOCS else "country"}')
            countries: set[str] = set()
            for number, word in enumerate(self.texts(table, name, ("blocs",))):
                if word in BLOCS:
                    countries |= BLOCS[word]
                elif word in COUNTRIES:
                    countries.add(word)
                else:
                    raise self.wrong((*at, number), self._no_place(word, BLOCS), value=True)
            if not countries:
                raise self.wrong(at, "a bloc needs at least one country", value=True)
            made[name] = frozenset(countries)
        return made

    def _no_place(self, word: str, blocs: Iterable[str]) -> str:
        if word.upper() in COUNTRIES:
            return f'"{word}" must be in capitals: {word.upper()}'
        if word.upper() in MEANT:
            return f'"{word}" is no country of ISO 3166; say {MEANT[word.upper()]}'
        names = list(blocs)
        close = get_close_matches(word[:64].upper(), names, 1)
        hint = f" (did you mean {close[0]})" if close else f"; blocs are {', '.join(names[:12])}"
        return f'"{self.short(word)}" is neither a country (ISO 3166, two letters) nor a bloc{hint}'

    # ---- one policy -------------------------------------------------------------------------------------------------

    def parent(self, name: str, table: object) -> str:
        """What a policy inherits from; "" for the vault's own default."""
        if not isinstance(table, dict):
            raise self.wrong(("policy", name), f'policies are tables: [policy.{name}] and not "{name} = ..."')
        self.only(KEYS, table, ("policy", name))
        return self.text(table, "inherits", ("policy", name)) if "inherits" in table else ""

    def policy(self, name: str, table: Any, base: Policy, blocs: Mapping[str, frozenset[str]]) -> Policy:
        """The policy: what the table says, and the rest as in ``base``."""
        at: Path = ("policy", name)
        made = replace(base, name=name)
        if "code" in table:
            made = self._code(made, table, at)
        made = replace(made, rules=self._rules(made.rules, table, at))
        if "max_per" in table:
            made = replace(made, max_per=self._caps(table, at))
        if "evidence" in table:
            made = replace(made, evidence=self._evidence(table, at))
        if "allow" in table:
            made = replace(made, allow=self._places_in(table, "allow", at, blocs))
        if "deny" in table:
            made = replace(made, deny=self._places_in(table, "deny", at, blocs))
        made = self._repair_at(made, table, at)
        self._contradictions(made, table, at)
        return made

    def _code(self, policy: Policy, table: Mapping[str, Any], at: Path) -> Policy:
        value = self.text(table, "code", at)
        if value == "auto":
            return replace(policy, needed=0, total=0, auto=True)
        match = _CODE.fullmatch(value)
        needed, total = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= needed <= total <= MOST_SHARES:
            words = f'a code is "auto" or "k/n" with 1 <= k <= n <= {MOST_SHARES}, "4/8" for instance'
            raise self.wrong((*at, "code"), f'"{self.short(value)}" is not a code: {words}', value=True)
        return replace(policy, needed=needed, total=total, auto=False)

    def _rules(self, inherited: tuple[Rules, ...], table: Mapping[str, Any], at: Path) -> tuple[Rules, ...]:
        rules = {rule.family: rule for rule in inherited}
        if "no_reassembly" in table:
            rules = {family: replace(rule, coalition=0) for family, rule in rules.items()}
            for family, said, path in self._stated(table, "no_reassembly", ("coalition",), at):
                rule = rules.get(family, Rules(family, 0, 0))
                coalition = self.number(said, "coalition", path, 1, MOST_SHARES, 1)
                rules[family] = replace(rule, coalition=coalition)
        if "no_hostage" in table:
            rules = {family: replace(rule, lose=0, slack=0) for family, rule in rules.items()}
            for family, said, path in self._stated(table, "no_hostage", ("lose", "slack"), at):
                rule = rules.get(family, Rules(family, 0, 0))
                lose = self.number(said, "lose", path, 1, MOST_SHARES, 1)
                slack = self.number(said, "slack", path, 0, MOST_SHARES, 0)
                rules[family] = replace(rule, lose=lose, slack=slack)
        stated = [
            rules[family] for family in FAMILIES if family in rules and (rules[family].coalition or rules[family].lose)
        ]
        return tuple(stated) or (Rules(coalition=0, lose=0),)

    def _stated(
        self, table: Mapping[str, Any], key: str, numbers: Sequence[str], at: Path
    ) -> list[tuple[str, dict[str, Any], Path]]:
        """The families with a guarantee: one table, or a list of them, or false for none."""
        value = table[key]
        if value is False:
            return []
        path: Path = (*at, key)
        if isinstance(value, dict):
            stated: list[tuple[Any, Path]] = [(value, path)]
        elif isinstance(value, list) and value:
            stated = [(item, (*path, number)) for number, item in enumerate(value)]
        else:
            raise self.wrong(path, f'"{key}" is a table, a list of tables, or false for no such guarantee', value=True)
        made: list[tuple[str, dict[str, Any], Path]] = []
        for said, place in stated:
            if not isinstance(said, dict):
                raise self.wrong(place, f'"{key}" is a table, a list of tables, or false', value=True)
            self.only(("family", *numbers), said, place)
            family = self.text(said, "family", place) if "family" in said else FAMILIES[0]
            if family not in FAMILIES:
                raise self._no_family((*place, "family"), family)
            if family in (other for other, _, _ in made):
                raise self.wrong(place, f'"{key}" speaks of the family "{family}" twice', value=True)
            made.append((family, said, place))
        return made

    def _no_family(self, at: Path, family: str) -> BadPolicy:
        words = f'there is no family of authorities "{self.short(family)}"{self.meant(family, FAMILIES)}'
        return self.wrong(at, words, value=True)

    def _caps(self, table: Mapping[str, Any], at: Path) -> tuple[tuple[str, int], ...]:
        caps = self.table(table, "max_per", at)
        path: Path = (*at, "max_per")
        for family in caps:
            if family not in FAMILIES:
                raise self.wrong((*path, family), f'"{self.short(family)}" is no family{self.meant(family, FAMILIES)}')
        return tuple(sorted((family, self.number(caps, family, path, 1, MOST_SHARES, 0)) for family in caps))

    def _evidence(self, table: Mapping[str, Any], at: Path) -> Evidence:
        value = self.text(table, "evidence", at)
        names = {evidence.name.lower(): evidence for evidence in Evidence}
        if value not in names:
            words = f'"{self.short(value)}" is no class of evidence{self.meant(value, names)}'
            raise self.wrong((*at, "evidence"), words, value=True)
        return names[value]

    def _places_in(
        self, table: Mapping[str, Any], key: str, at: Path, blocs: Mapping[str, frozenset[str]]
    ) -> tuple[str, ...]:
        """Allow or deny with the blocs taken apart, sorted."""
        known = {**BLOCS, **blocs}
        found: set[str] = set()
        words = self.texts(table, key, at)
        if key == "allow" and not words:
            raise self.wrong((*at, key), '"allow" with nothing in it would allow no node; leave it out', value=True)
        for number, word in enumerate(words):
            family, colon, name = word.partition(":")
            path: Path = (*at, key, number)
            if colon and family in NAMED:
                if not name or len(name) > MAX_WORD or not showable(name) or name != name.strip():
                    raise self.wrong(path, f'"{self.short(word)}" names no {family}', value=True)
                meant = written(family, name) or (name if self._kept else "")
                if not meant:
                    raise self.wrong(path, f'"{self.short(word)}" is {WRONG[family]}', value=True)
                found.add(join(family, meant))
                continue
            place = name if colon and family in ("jurisdiction", "bloc") else word
            if place in known and family != "jurisdiction":
                found |= known[place]
            elif place in COUNTRIES and (not colon or family == "jurisdiction"):
                found.add(place)
            elif colon and family not in ("jurisdiction", "bloc"):
                raise self._no_family(path, family)
            else:
                raise self.wrong(path, self._no_place(place, known), value=True)
        return tuple(sorted(found))

    def _repair_at(self, policy: Policy, table: Mapping[str, Any], at: Path) -> Policy:
        if "repair_at" not in table:
            fits = policy.repair_at == AT_ONCE or policy.needed < policy.repair_at < policy.total
            return policy if fits else replace(policy, repair_at=0)
        if table["repair_at"] == "auto":
            return replace(policy, repair_at=0)
        if isinstance(table["repair_at"], str):
            raise self.wrong((*at, "repair_at"), '"repair_at" is "auto" or a whole number', value=True)
        value = self.number(table, "repair_at", at, 0, MOST_SHARES, 0)
        if value and policy.auto:
            words = 'repair_at is a number of shares: it needs a code that is written out, not "auto"'
            raise self.wrong((*at, "repair_at"), words, value=True)
        if value and not policy.needed < value < policy.total:
            words = f"repair_at is more than {policy.needed} and less than {policy.total} with this code, or 0 for at once"
            raise self.wrong((*at, "repair_at"), words, value=True)
        return replace(policy, repair_at=value or AT_ONCE)

    # ---- contradictions ---------------------------------------------------------------------------------------------

    def _contradictions(self, policy: Policy, table: Mapping[str, Any], at: Path) -> None:
        for number, word in enumerate(table.get("deny", ())):
            if word in table.get("allow", ()):
                raise self.wrong((*at, "deny", number), f'"{self.short(word)}" is both allowed and denied', value=True)
        allowed, denied = split(policy.allow), split(policy.deny)
        for family, names in allowed.items():
            if names <= denied.get(family, frozenset()):
                key = next((key for key in ("deny", "allow") if key in table), "inherits")
                raise self.wrong((*at, key), f"every {family} that is allowed is denied too")
        if not policy.auto and policy.needed == 1 and any(rule.coalition for rule in policy.rules):
            key = next((key for key in ("code", "no_reassembly") if key in table), "inherits")
            words = "every share is a whole copy that its holder can read: no_reassembly needs k >= 2, or false"
            raise self.wrong((*at, key), f"with the code {policy.needed}/{policy.total} {words}", value=key == "code")
        reason = impossible(policy, limits_of(policy)) or _within_a_bloc(policy)
        if reason:
            keys = ("code", "no_hostage", "no_reassembly", "allow", "max_per", "deny")
            key = next((key for key in keys if key in table), "inherits")
            raise self.wrong((*at, key), f"{reason}, so nothing could ever be placed", value=key == "code")


def _within_a_bloc(policy: Policy) -> str:
    """A guarantee against blocs when all allowed countries lie in one."""
    allowed = split(policy.allow).get("jurisdiction", frozenset()) - split(policy.deny).get("jurisdiction", frozenset())
    if allowed and any(rule.family == "bloc" for rule in policy.rules):
        around = next((name for name, countries in BLOCS.items() if allowed <= countries), "")
        if around:
            return f"every allowed country is in the bloc {around}, which no guarantee against blocs could then keep out"
    return ""


__all__ = ["KEYS", "Reader", "join", "limits_of"]

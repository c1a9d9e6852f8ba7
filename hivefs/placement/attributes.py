"""From what is known of a node to the authorities that have power over it, and whether a policy accepts it at all. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from hivefs.model.node import JURISDICTION_NAMES, UNKNOWN, Attribute, Evidence
from hivefs.placement.blocs import blocs_of
from hivefs.placement.countries import COUNTRIES

if TYPE_CHECKING:
    from hivefs.placement.policy import Policy

FAMILIES = ("jurisdiction", "operator", "hoster", "asn", "subnet", "bloc")

NOBODY_SAID = ("operator", "hoster", "asn", "subnet")
"""Families whose cap says nothing about a stripe none of whose nodes states an authority (limits.py)."""


def authorities(attributes: Iterable[Attribute], weakest: Evidence = Evidence.CLAIMED) -> dict[str, frozenset[str]]:
    """The authorities of a node by family. An attribute that is missing, empty or known only by evidence weaker than
    ``weakest`` gives UNKNOWN, which counts against every authority; so does a country that is no country (certificates and
    entries of others may say anything). An owner's parent that does not exist is stated by
    leaving out parent and parent_country both. A node with several addresses is in several subnets, each an attribute.
    """
    stated = tuple(attributes)
    known = {a.name: a.value for a in stated if a.value and a.evidence >= weakest}
    said = {a.name for a in stated}
    countries = set()
    for name in JURISDICTION_NAMES:
        if name in known:
            country = known[name].upper()
            countries.add(country if country in COUNTRIES and known[name].isascii() else UNKNOWN)
        elif name != "parent_country" or "parent" in said or "parent_country" in said:
            countries.add(UNKNOWN)
    operators = {known["operator"]} if "operator" in known else {UNKNOWN}
    if "parent" in said:
        operators.add(known.get("parent", UNKNOWN))
    subnets = frozenset(a.value for a in stated if a.name == "subnet" and a.value and a.evidence >= weakest)
    blocs = blocs_of(frozenset(countries - {UNKNOWN}))
    return {
        "jurisdiction": _shared(frozenset(countries)),
        "operator": frozenset(operators),
        "hoster": _shared(frozenset({known.get("hoster", UNKNOWN)})),
        "asn": _shared(frozenset({known.get("asn", UNKNOWN)})),
        "subnet": subnets or frozenset({UNKNOWN}),
        "bloc": _shared(blocs | {UNKNOWN} if UNKNOWN in countries else blocs),
    }


@lru_cache(maxsize=4096)
def _shared(names: frozenset[str]) -> frozenset[str]:
    """One object for equal sets: of hundreds of thousands of nodes most are under the same few authorities. (Not of
    families in which most nodes have one of their own: what a look through all nodes puts into a cache and throws out of it
    again is work for the collector of garbage, 4 ms at once.)
    """
    return names


def eligible(policy: Policy, over: Mapping[str, frozenset[str]]) -> str:
    """Empty when a node under these authorities may hold shares at all, else the reason in words ("US is denied")."""
    for family, named in _by_family(policy.deny).items():
        mine = over.get(family, frozenset({UNKNOWN}))
        if UNKNOWN in mine:
            return f"its {family} is not known and some are denied"
        if mine & named:
            return f"{' and '.join(sorted(mine & named))} is denied"
    for family, named in _by_family(policy.allow).items():
        mine = over.get(family, frozenset({UNKNOWN}))
        if UNKNOWN in mine:
            return f"its {family} is not known and only some are allowed"
        if not mine <= named:
            return f"{' and '.join(sorted(mine - named))} is not allowed"
    return ""


def _by_family(entries: Iterable[str]) -> dict[str, set[str]]:
    """The entries of allow or deny: "DE" is a jurisdiction, "operator:Cloud" an authority of another family."""
    found: dict[str, set[str]] = {}
    for entry in entries:
        family, colon, name = entry.partition(":")
        if colon:
            found.setdefault(family, set()).add(name)
        else:
            found.setdefault("jurisdiction", set()).add(entry.upper())
    return found

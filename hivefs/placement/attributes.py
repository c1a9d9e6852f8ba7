"""From what is known of a node to the authorities that have power over it."""

from __future__ import annotations

from collections.abc import Iterable

from hivefs.model.node import JURISDICTION_NAMES, UNKNOWN, Attribute, Evidence

FAMILIES = ("jurisdiction", "operator", "hoster", "asn")


def authorities(attributes: Iterable[Attribute], weakest: Evidence = Evidence.CLAIMED) -> dict[str, frozenset[str]]:
    """The authorities of a node by family. An attribute that is missing, empty or known only by evidence weaker than
    ``weakest`` gives UNKNOWN, which counts against every authority. An owner's parent that does not exist is stated by
    leaving out parent and parent_country both.
    """
    known = {a.name: a.value for a in attributes if a.value and a.evidence >= weakest}
    said = {a.name for a in attributes}
    countries = set()
    for name in JURISDICTION_NAMES:
        if name in known:
            countries.add(known[name].upper())
        elif name != "parent_country" or "parent" in said or "parent_country" in said:
            countries.add(UNKNOWN)
    operators = {known["operator"]} if "operator" in known else {UNKNOWN}
    if "parent" in said:
        operators.add(known.get("parent", UNKNOWN))
    return {
        "jurisdiction": frozenset(countries),
        "operator": frozenset(operators),
        "hoster": frozenset({known.get("hoster", UNKNOWN)}),
        "asn": frozenset({known.get("asn", UNKNOWN)}),
    }

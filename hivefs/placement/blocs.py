"""Groups of countries under a common law or pact, by the ISO 3166-1 alpha-2 codes of their members. Pure data.

Users write their names in ``allow`` and ``deny``; as authority family ``bloc`` a node is under each bloc of which one
of its jurisdictions is a member. Sources: the EU's list of countries (2020 on, without GB), the EEA agreement, the EFTA
convention, the UKUSA agreement and what was published of its wider circles (Nine and Fourteen Eyes), NATO's list of
members (2024), the treaties of the Eurasian Economic Union, the CIS charter, the Gulf Cooperation Council and the
Shanghai Cooperation Organisation (members of 2024).
"""

from __future__ import annotations

_EU = "AT BE BG CY CZ DE DK EE ES FI FR GR HR HU IE IT LT LU LV MT NL PL PT RO SE SI SK"
_FIVE = "AU CA GB NZ US"

BLOCS: dict[str, frozenset[str]] = {
    name: frozenset(members.split())
    for name, members in {
        "EU": _EU,
        "EEA": f"{_EU} IS LI NO",
        "EFTA": "CH IS LI NO",
        "FIVE-EYES": _FIVE,
        "NINE-EYES": f"{_FIVE} DK FR NL NO",
        "FOURTEEN-EYES": f"{_FIVE} DK FR NL NO BE DE ES IT SE",
        "NATO": "AL BE BG CA CZ DE DK EE ES FI FR GB GR HR HU IS IT LT LU LV ME MK NL NO PL PT RO SE SI SK TR US",
        "EAEU": "AM BY KG KZ RU",
        "CIS": "AM AZ BY KG KZ MD RU TJ UZ",
        "GCC": "AE BH KW OM QA SA",
        "SCO": "BY CN IN IR KG KZ PK RU TJ UZ",
    }.items()
}


def blocs_of(countries: frozenset[str]) -> frozenset[str]:
    """Every bloc that one of these is a member of; a country in none is a bloc of its own."""
    found = {name for name, members in BLOCS.items() if members & countries}
    alone = {country for country in countries if not any(country in members for members in BLOCS.values())}
    return frozenset(found | alone)

"""Legal blocs: countries whose authorities act together, or oblige each other to hand over data. Members as of 2025."""

from __future__ import annotations

_EU = "AT BE BG CY CZ DE DK EE ES FI FR GR HR HU IE IT LT LU LV MT NL PL PT RO SE SI SK"
_FIVE_EYES = "AU CA GB NZ US"
_NINE_EYES = f"{_FIVE_EYES} DK FR NL NO"

BLOCS: dict[str, frozenset[str]] = {
    name: frozenset(members.split())
    for name, members in {
        "EU": _EU,
        "EEA": f"{_EU} IS LI NO",
        "EFTA": "CH IS LI NO",
        "FIVE-EYES": _FIVE_EYES,
        "NINE-EYES": _NINE_EYES,
        "FOURTEEN-EYES": f"{_NINE_EYES} BE DE ES IT SE",
        "NATO": "AL BE BG CA CZ DE DK EE ES FI FR GB GR HR HU IS IT LT LU LV ME MK NL NO PL PT RO SE SI SK TR US",
        "EAEU": "AM BY KG KZ RU",
        "GCC": "AE BH KW OM QA SA",
    }.items()
}
"""By name, never the code of a country. EU and EEA law binds members together; the "eyes" share intelligence."""

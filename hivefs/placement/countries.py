"""The countries there are: officially assigned codes of ISO 3166-1 alpha-2 (as of 2024), and XK, which the European Union
uses for Kosovo. A rule for a country that does not exist would hold for ever and mean nothing; and a node under one would
be under no country that a rule can name, so that nothing is denied to it. Pure data.
"""

from __future__ import annotations

_CODES = (
    "AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ CA CC "
    "CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR GA GB GD "
    "GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH "
    "KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV MW "
    "MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW SA SB SC "
    "SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG UM US UY "
    "UZ VA VC VE VG VI VN VU WF WS XK YE YT ZA ZM ZW"
)
COUNTRIES = frozenset(_CODES.split())

MEANT = {"UK": "GB", "EL": "GR"}
"""Codes that other lists have (the European Union's among them), and those of ISO 3166-1 for the same country."""


def no_country(code: str) -> str:
    """What is wrong with a code, in words that follow "'UK' is"; empty when it is one, in capitals or not."""
    if code.upper() in COUNTRIES and code.isascii():
        return ""
    meant = MEANT.get(code.upper(), "")
    return "not a country code of two letters (ISO 3166-1), such as DE" + (f"; say {meant}" if meant else "")

"""What is known of a node from its own conduct: answers that were right or wrong, how long it was there, how long it was
away each time. Pure; times are arguments.

**Right and wrong answers** are counted as in the beta reputation system (Josang and Ismail, The Beta Reputation System,
Bled 2002), which Storj uses for its nodes too (white paper v3, section 4.13, and its blueprint "audit scoring"): with each
answer what is known already is multiplied by FORGET, so the newest thousand answers count. The score is
(good + PRIOR) / (good + bad + PRIOR): everybody begins with the trust of PRIOR right answers, so five wrong ones in a row,
or one in ten of some eighty, bring a node below SUSPEND, and one lost share in a hundred never does by itself. Evidence
also halves in HALF_LIFE_S, so who was bad once is tried again after months. At most a day is taken off at once: a clock
that was a year ahead for a minute makes nobody forget.

**A node is given up** when it was away for longer than it ever mostly was: MARGIN times the outage that 19 of 20 of its
last ones did not exceed, but no less than a quarter and no more than four times the vault's setting, and never less than
LEAST_S unless the setting itself is shorter. Until it has HISTORY outages the setting counts. What is "away" is decided by
maintenance/trust.py, which does not count the time when this machine itself was cut off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

FORGET: Final = 0.999
PRIOR: Final = 80_000
"""In thousandths of an answer, as ``good`` and ``bad`` are."""
WHOLE: Final = 1000
SUSPEND: Final = 0.95
RESTORE: Final = 0.97
HALF_LIFE_S: Final = 30 * 86_400
MOST_AGED_S: Final = 86_400

VET_S: Final = 7 * 86_400
VET_AUDITS: Final = 100
"""So old, and so many audits passed, is a node that is given as much as others. Storj asks for 100 audits too."""

KEPT: Final = 32
HISTORY: Final = 4
MARGIN: Final = 1.5
OF_TWENTY: Final = 19
LEAST_S: Final = 600.0
BLIP: Final = 0.01
"""Outages shorter than this part of the time-out say nothing about it and are not kept."""

MOST_OWED: Final = 8
_PRIOR_MS: Final = 86_400_000
EXPECTED_MS: Final = 30 * 86_400_000
"""How much time of observation what is assumed of every node weighs where codes are chosen."""

_MOST_KNOWN_MS: Final = 90 * 86_400_000
_NS: Final = 10**9


@dataclass(frozen=True, slots=True)
class Owed:
    """A share for which a node was silent: it is asked again, and after three times that is an answer. ``since_s`` is
    when it was first (seconds since 1970).
    """

    stripe_id: bytes
    index: int
    strikes: int
    since_s: int


@dataclass(frozen=True, slots=True)
class Reputation:
    """One node. ``good`` and ``bad`` are thousandths of an answer. ``audits`` counts those passed, ever. ``away_ms`` is
    how long it is away now. ``outages`` are the last ones, (begin in seconds since 1970, length in seconds), oldest
    first. ``sweep`` is the id of the stripe up to which all its shares were looked at, empty when they are not.
    ``doubted``: this machine itself was cut off during the present absence, so nothing is learnt from it.
    """

    first_seen_ns: int
    updated_ns: int = 0
    good: int = 0
    bad: int = 0
    audits: int = 0
    suspended: bool = False
    online_ms: int = 0
    known_ms: int = 0
    away_ms: int = 0
    doubted: bool = False
    outages: tuple[tuple[int, int], ...] = ()
    owed: tuple[Owed, ...] = ()
    sweep: bytes = b""


def score(row: Reputation) -> float:
    """1 is a node that never gave a wrong answer; see the head of the file."""
    return (row.good + PRIOR) / (row.good + row.bad + PRIOR)


def aged(row: Reputation, now_ns: int) -> Reputation:
    """The same with its evidence as old as it is now. A clock that stepped back changes nothing."""
    passed = min((now_ns - row.updated_ns) / _NS, MOST_AGED_S) if row.updated_ns else 0.0
    if passed <= 0:
        return replace(row, updated_ns=now_ns)
    if passed < 3600 and row.updated_ns:
        return row  # rounding many small steps would forget too much
    keep = 0.5 ** (passed / HALF_LIFE_S)
    return replace(row, updated_ns=now_ns, good=round(row.good * keep), bad=round(row.bad * keep))


def answered(row: Reputation, right: bool, now_ns: int, weight: int = WHOLE) -> Reputation:
    """One more answer, right or wrong."""
    row = aged(row, now_ns)
    good, bad = row.good * FORGET, row.bad * FORGET
    row = replace(row, good=round(good + weight * right), bad=round(bad + weight * (not right)))
    now = score(row)
    return replace(row, suspended=now < (RESTORE if row.suspended else SUSPEND))


def answers_left(row: Reputation) -> int:
    """About how many right answers, one after the other from now on, end the suspension of a node (answered() rounds);
    0 for one that is trusted, some thousands for the worst.
    """
    if not row.suspended:
        return 0
    most = WHOLE / (1 - FORGET)  # what right answers alone come to
    # After n of them, with x = FORGET ** n: good * x + most * (1 - x) of good, bad * x of bad.
    x = (most + PRIOR) * (1 - RESTORE) / (RESTORE * row.bad + (1 - RESTORE) * (most - row.good))
    return max(1, math.ceil(math.log(x) / math.log(FORGET))) if 0 < x < 1 else 1


def audited(row: Reputation, now_ns: int) -> Reputation:
    """An audit was passed."""
    return replace(answered(row, True, now_ns), audits=row.audits + 1)


def owes(row: Reputation, stripe_id: bytes, index: int, now_ns: int, strike: bool) -> tuple[Reputation, Owed]:
    """It was silent (``strike``) or busy when it was asked for that share; the entry as it is now."""
    known = [o for o in row.owed if (o.stripe_id, o.index) == (stripe_id, index)]
    entry = known[0] if known else Owed(stripe_id, index, 0, now_ns // _NS)
    entry = replace(entry, strikes=entry.strikes + strike)
    others = [o for o in row.owed if (o.stripe_id, o.index) != (stripe_id, index)]
    return replace(row, owed=(*others[-(MOST_OWED - 1) :], entry)), entry


def settled(row: Reputation, stripe_id: bytes, index: int) -> Reputation:
    """It answered for that share, or its answer does not matter any more."""
    return replace(row, owed=tuple(o for o in row.owed if (o.stripe_id, o.index) != (stripe_id, index)))


def vetted(row: Reputation, now_ns: int) -> bool:
    """Old enough and audited often enough."""
    return row.audits >= VET_AUDITS and now_ns - row.first_seen_ns >= VET_S * _NS


def availability(row: Reputation) -> float:
    """The part of the time that it was online while we looked; a node of which nothing is known yet has 1, and a day of
    that is mixed into all that is measured.
    """
    return (row.online_ms + _PRIOR_MS) / (row.known_ms + _PRIOR_MS)


def expected(row: Reputation, likely: float) -> float:
    """The part of the time in which it will be there, as far as can be said: ``likely`` of a node of which nothing is known
    yet, and a month of that is mixed into what was measured.
    """
    return (row.online_ms + EXPECTED_MS * likely) / (row.known_ms + EXPECTED_MS)


def weight(row: Reputation) -> float:
    """How much of what it could get a node is given (Candidate.weight): from 0.01 to 1."""
    return max(0.01, score(row) ** 4 * availability(row) ** 2)


def watched(row: Reputation, seconds: float, online: bool, counted: float) -> Reputation:
    """So much time passed, of which the part ``counted`` (0 to 1) counts; ``seconds`` are of a steady clock."""
    ms = round(max(0.0, seconds) * 1000)
    if not online:
        return absent(row, ms, round(ms * counted), ms if counted == 1 else 0)
    return _forgetting(replace(row, online_ms=row.online_ms + ms, known_ms=row.known_ms + ms))


def absent(row: Reputation, passed_ms: int, counted_ms: int, whole_ms: int) -> Reputation:
    """It was away for so long, of which so much counts, and so much was counted whole: nothing is learnt from the rest."""
    doubted = row.doubted or whole_ms < passed_ms
    return _forgetting(replace(row, away_ms=row.away_ms + counted_ms, known_ms=row.known_ms + whole_ms, doubted=doubted))


def _forgetting(row: Reputation) -> Reputation:
    while row.known_ms > _MOST_KNOWN_MS:  # what is older than three months is forgotten little by little
        row = replace(row, online_ms=row.online_ms * 2 // 3, known_ms=row.known_ms * 2 // 3)
    return row


def returned(row: Reputation, now_ns: int, gone_after_s: float) -> Reputation:
    """It is back: its absence becomes a part of its history, unless it is doubted whose absence it was."""
    away_s = row.away_ms // 1000
    outages = row.outages
    if not row.doubted and away_s >= max(1.0, BLIP * gone_after_s):
        outages = (*outages[-(KEPT - 1) :], (max(0, now_ns // _NS - away_s), away_s))
    return replace(row, away_ms=0, doubted=False, outages=outages)


def gone_after(row: Reputation, setting_s: float) -> float:
    """Seconds of absence after which the node is given up."""
    if len(row.outages) < HISTORY:
        return setting_s
    lengths = sorted(length for _, length in row.outages)
    usual = lengths[(len(lengths) * OF_TWENTY + 19) // 20 - 1]
    least = max(setting_s / 4, min(setting_s, LEAST_S))
    return float(min(max(MARGIN * usual, least), 4 * setting_s))

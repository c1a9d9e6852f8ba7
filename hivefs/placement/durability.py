"""How likely a stripe is lost, out of reach, or reassembled by somebody: closed formulas. Pure.

Everything is for one stripe of code k/n whose shares lie on nodes that fail independently, each at a constant rate; times
in days. What they leave out is told in docs/durability.md, where they stand beside the simulator (testing/sim) that runs
the engine.
"""

from __future__ import annotations

from math import ceil, comb, exp, inf, lgamma, log, log1p

YEAR = 365.0
MONTH = 30.0


def binomial(count: int, chance: float, hits: int) -> float:
    """P[Bin(count, chance) = hits], in logarithms so that neither small nor large numbers overflow."""
    if not 0 <= hits <= count:
        return 0.0
    if chance <= 0.0 or chance >= 1.0:
        return float(hits == (0 if chance <= 0.0 else count))
    ways = lgamma(count + 1) - lgamma(hits + 1) - lgamma(count - hits + 1)
    return exp(ways + hits * log(chance) + (count - hits) * log1p(-chance))


def at_least(count: int, chance: float, hits: int) -> float:
    """P[Bin(count, chance) >= hits]."""
    return sum(binomial(count, chance, h) for h in range(max(0, hits), count + 1))


def daily_rate(monthly: float) -> float:
    """The rate a day at which a node is lost that is lost within 30 days with probability ``monthly``."""
    if not 0.0 <= monthly < 1.0:
        raise ValueError("a part of all nodes, below 1")
    return -log1p(-monthly) / MONTH


def windows(needed: int, start: int, lag: float, rate: float) -> float:
    """Losses a year by the short formula (365/T) P[Bin(r, p_T) >= r-k+1]: a year cut into windows of one lag T, each
    beginning with r = ``start`` shares. It misses losses that straddle two windows, so it is no bound; see ``losses``.
    """
    return YEAR / lag * at_least(start, 1.0 - exp(-rate * lag), start - needed + 1)


def losses(needed: int, total: int, repair_at: int, lag: float, rate: float) -> float:
    """Losses a year of one stripe when a share is known to be lost a fixed ``lag`` after it was, and all known losses are
    made good at once as soon as fewer than ``repair_at`` are left (``total``: with each loss).

    The known shares walk from n down to r and back, with time 1/m at m. Of m shares each is lost and not known for the part
    u = x/(1+x), x = rate*lag, of the time (an alternating renewal process; Ross, Stochastic Processes, 3.4). The stripe
    dies when one of the last k goes: k*rate*P[Bin(m, u) = m-k], the exact rate of that crossing.
    """
    if not needed <= repair_at <= total:
        raise ValueError("a threshold between k and n")
    x = rate * lag
    unknown = x / (1.0 + x)
    weights = {m: 1.0 / m for m in range(repair_at, total + 1)}
    crossing = sum(w * binomial(m, unknown, m - needed) for m, w in weights.items()) / sum(weights.values())
    return YEAR * needed * rate * crossing


def unreachable(needed: int, total: int, lag: float, rate: float, away: float) -> float:
    """The part of the time in which fewer than k shares answer: each is away for the part ``away``, or lost and not
    made again.
    """
    x = rate * lag
    there = (1.0 - away) / (1.0 + x)
    return at_least(total, 1.0 - there, total - needed + 1)


def repair_traffic(needed: int, total: int, repair_at: int, lag: float, rate: float) -> tuple[float, float]:
    """(read, written): shares a year for one stripe. A repair of j lost shares reads k and writes j; with a threshold r
    it is done for n-r+1 at a time.
    """
    lost = YEAR * total * rate / (1.0 + rate * lag)
    if repair_at < total:
        spread = sum(1.0 / m for m in range(repair_at, total + 1))
        lost = YEAR * rate * (total - repair_at + 1) / spread
    each = total - repair_at + 1
    return lost / each * needed, lost


def reassembled(needed: int, total: int, part: float) -> float:
    """The chance that who runs a ``part`` of the eligible nodes, chosen at random, holds k of n shares of a given
    stripe.
    """
    return at_least(total, part, needed)


def capped(needed: int, total: int, nodes: int, hostile: int) -> float:
    """The same when n of ``nodes`` distinct nodes are drawn, of which ``hostile`` are the attacker's (hypergeometric)."""
    ways = comb(nodes, total)
    return sum(comb(hostile, h) * comb(nodes - hostile, total - h) for h in range(needed, min(total, hostile) + 1)) / ways


def least_authorities(needed: int, total: int, slack: int = 0) -> float:
    """How many disjoint authorities of equal size it takes that none can rebuild and none can withhold a stripe (c = a =
    1); infinity when no number does.
    """
    most = min(needed - 1, total - needed - slack)
    return inf if most < 1 else ceil(total / most)

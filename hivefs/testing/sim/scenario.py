"""What is simulated: the hive, how its nodes come and go, what befalls it, and how long. All of it plain data with a
seed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from math import gamma, log, pi, sin

from hivefs.placement.policy import AT_ONCE
from hivefs.testing.sim.nodes import DAY


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """After how many days a node is destroyed for ever. ``shape`` 1 is exponential; below 1 most die young (Weibull), as
    was measured of peers (Stutzbach and Rejaie 2006). ``mean_days`` 0: never.
    """

    mean_days: float = 0.0
    shape: float = 1.0

    def draw(self, chance: random.Random) -> float:
        """Seconds."""
        if not self.mean_days:
            return float("inf")
        scale = self.mean_days / gamma(1 + 1 / self.shape)
        return float(DAY * scale * (-log(1.0 - chance.random())) ** (1 / self.shape))


@dataclass(frozen=True, slots=True)
class Outages:
    """A node is away for ``hours`` on average, ``per_month`` times; with ``diurnal`` mostly at night (by its country's
    hour).
    """

    per_month: float = 0.0
    hours: float = 6.0
    diurnal: bool = False

    def next(self, chance: random.Random, now: float, zone: int) -> float:
        """When the next one begins, in seconds; infinity for never. Thinning (Lewis and Shedler 1979) of twice the rate."""
        if not self.per_month:
            return float("inf")
        rate = self.per_month / (30 * DAY)
        when = now
        while True:
            when += chance.expovariate(rate * (2 if self.diurnal else 1))
            hour = (when / 3600 + zone) % 24
            if not self.diurnal or chance.random() < (1 + sin(2 * pi * (hour - 18) / 24)) / 2:
                return when


@dataclass(frozen=True, slots=True)
class Fault:
    """On day ``day``, of ``kind``: ``cut`` (a jurisdiction cannot be reached for ``days``), ``wipe`` (a bad release: a
    ``part`` of all nodes comes back empty), ``destroy`` (a part of all nodes dies at once), ``raze``
    (all nodes of a jurisdiction die, and others join after ``days``; 0: none), ``rot`` (a part of all shares
    is altered on disk), ``drop`` and ``flip`` (a part of the nodes lies from now on), ``slow`` (a part answers late),
    ``full`` (a part of the disks takes nothing more), ``step`` (the engine's clock is off by ``days``), ``kill`` (the
    engine). Of a hive with files also what the user does: ``policy`` (the text ``where`` is put into force), ``delete`` (a
    ``part`` of the files), ``move`` (a part of them, to the folder ``where``), ``stray`` (a part of the nodes is left with
    a share that nothing names), ``write`` (``part`` stripes more). Of disks: ``grow`` (so many new nodes join as are a
    ``part`` of all) and ``resize`` (a part of the disks offers ``days`` times what it did).
    """

    day: float
    kind: str
    part: float = 0.0
    days: float = 0.0
    where: str = ""


@dataclass(frozen=True, slots=True)
class Scenario:
    """See the fields; times are in the units that their names say. After ``days`` of faults and churn nothing happens any
    more, and the hive has ``settle_days`` to become whole again.
    """

    seed: int = 1
    days: float = 365.0
    settle_days: float = 75.0
    nodes: int = 40
    stripes: int = 40
    needed: int = 4
    total: int = 8
    countries: tuple[str, ...] = ("CH", "DE", "FI", "FR", "IS", "NO")
    foreign: float = 0.1
    """The part of the nodes whose operator sits in another country."""
    max_per_operator: int = 2
    nodes_per_operator: int = 2
    share_bytes: int = 24
    patience_days: float = 0.0
    """So long a share may wait because old copies at nodes that were given up forbid all other places (decisions/0022)."""
    disk_bytes: int = 0
    """What a node offers; 0: without end. With an end rebalancing is looked at (balance.py); with paths only."""
    gone_after_days: float = 7.0
    detection_days: float = 35.0
    """Within so many days the engine must notice that a node that answers lost a share: leases are renewed after 30."""
    blind_days: float = 70.0
    """Within so many days the engine must notice that a node gives altered shares, or claims to have what it has not."""
    audit_part: float = 0.05
    """So many of the audits are made that the engine would make: with few shares at each node all of them are many times
    what a share of a large hive sees.
    """
    repair_at: int = AT_ONCE
    """What the policy says of it (Policy.repair_at): 0 leaves it to the code."""
    waits_above: int = 0
    """Repair of a stripe of the scenario's code has to begin when so many shares are left; 0: with the first one missing. A
    number of its own, so that the engine's is checked by it.
    """
    join_after_days: float = 1.0
    lifetimes: Lifetimes = field(default_factory=Lifetimes)
    outages: Outages = field(default_factory=Outages)
    groups: int = 0
    """So many groups of nodes fail together; no attribute says who is in which (groups.py)."""
    grouped: float = 0.5
    """The part of the nodes that are in one."""
    group_outages: Outages = field(default_factory=Outages)
    reads_per_day: float = 2.0
    check_hours: float = 24.0
    kills_per_year: float = 0.0
    faults: tuple[Fault, ...] = ()
    heads: bool = False
    """Whether the engine makes real checkpoints of its book (testing/sim/heads.py); with paths only."""
    paths: tuple[str, ...] = ()
    """Folders; with any, stripes hold files, and the duties that move data run (testing/sim/wired.py)."""
    command: str = ""
    """What plays this very run again."""

    def repaired_at(self, needed: int, total: int) -> int:
        """The number of shares left at which a stripe of data of that code has to be repaired."""
        waits = self.waits_above and (needed, total) == (self.needed, self.total)
        return self.waits_above if waits else total - 1

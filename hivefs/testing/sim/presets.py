"""Scenarios with a name, for tests and for playing a failing seed again."""

from __future__ import annotations

from dataclasses import replace

from hivefs.testing.sim.scenario import Fault, Lifetimes, Outages, Scenario

STORM = (
    Fault(8, "cut", days=12, where="DE"),
    Fault(34, "wipe", 0.1),
    Fault(44, "rot", 0.02),
    Fault(50, "drop", 0.04),
    Fault(56, "flip", 0.04),
    Fault(62, "slow", 0.1),
    Fault(68, "step", days=20),
    Fault(72, "step", days=-20),
    Fault(76, "full", 0.1),
    Fault(82, "destroy", 0.08),
)
"""Everything that can befall a hive, within three months."""

FIRST_TEXT = """
[policy.default]
code = "4/8"
max_per = { operator = 2 }
[policy.papers]
inherits = "default"
code = "3/7"
deny = ["FR"]
[paths]
"/Papers" = "papers"
"""
SECOND_TEXT = """
[policy.default]
code = "4/8"
max_per = { operator = 2 }
deny = ["NO"]
[policy.papers]
inherits = "default"
code = "2/5"
deny = ["FR"]
[policy.photos]
inherits = "default"
code = "3/6"
deny = []
[paths]
"/Papers" = "papers"
"/Photos" = "photos"
"""

OTHER_TEXT = """
[policy.default]
code = "4/8"
max_per = { operator = 2 }
deny = ["NO"]
"""

BOOK_TEXT = """
[policy.default]
code = "4/8"
max_per = { operator = 2 }
[policy.papers]
inherits = "default"
code = "2/5"
deny = ["FR"]
[policy.photos]
inherits = "default"
deny = ["NO"]
no_hostage = { family = "jurisdiction", lose = 1, slack = 1 }
[paths]
"/Papers" = "papers"
"/Photos" = "photos"
"""
"""Metadata must keep three policies at once."""
NAMED_TEXT = 'metadata = "papers"\n' + BOOK_TEXT

PRESETS = {
    "books": Scenario(
        days=24,
        nodes=32,
        stripes=6,
        paths=("/Papers", "/Photos", "/Rest"),
        heads=True,
        lifetimes=Lifetimes(200),
        kills_per_year=120,
        settle_days=12,
        faults=(
            Fault(2, "policy", where=BOOK_TEXT),
            Fault(10, "policy", where=NAMED_TEXT),
            Fault(13, "delete", 0.3),
            Fault(17, "policy", where=BOOK_TEXT),
        ),
    ),
    "heads": Scenario(
        days=30,
        nodes=26,
        stripes=4,
        paths=("/Rest",),
        heads=True,
        lifetimes=Lifetimes(150),
        outages=Outages(1),
        kills_per_year=150,
        settle_days=14,
        faults=(
            Fault(2, "policy", where=OTHER_TEXT),
            Fault(6, "cut", days=5, where="CH"),
            Fault(15, "delete", 0.5),
            Fault(20, "destroy", 0.1),
        ),
    ),
    "accounts": Scenario(
        days=55,
        nodes=24,
        stripes=5,
        paths=("/Rest",),
        lifetimes=Lifetimes(200),
        outages=Outages(1),
        kills_per_year=100,
        settle_days=14,
        detection_days=6,
        faults=(
            Fault(1, "stray", 0.3),
            Fault(12, "wipe", 0.1),
            Fault(25, "delete", 0.5),
            Fault(30, "cut", days=4, where="CH"),
        ),
    ),
    "policies": Scenario(
        days=70,
        nodes=40,
        stripes=10,
        paths=("/Papers", "/Photos", "/Rest"),
        lifetimes=Lifetimes(300),
        outages=Outages(1),
        kills_per_year=150,
        settle_days=14,
        faults=(
            Fault(5, "policy", where=FIRST_TEXT),
            Fault(20, "delete", 0.55),
            Fault(30, "cut", days=4, where="CH"),
            Fault(40, "policy", where=SECOND_TEXT),
            Fault(43, "move", 0.3, where="/Papers"),
            Fault(55, "delete", 0.4),
        ),
    ),
    "storm": Scenario(
        days=90,
        nodes=36,
        stripes=10,
        lifetimes=Lifetimes(400, 0.7),
        outages=Outages(2, diurnal=True),
        kills_per_year=100,
        faults=STORM,
    ),
    "churn": Scenario(days=365, nodes=30, stripes=10, lifetimes=Lifetimes(200), kills_per_year=12, settle_days=40),
    "year": Scenario(
        days=365,
        nodes=40,
        stripes=24,
        needed=2,
        total=3,
        lifetimes=Lifetimes(150),
        max_per_operator=1,
        kills_per_year=12,
        reads_per_day=0.1,
        settle_days=14,
    ),
    "lazy": Scenario(
        days=100,
        nodes=44,
        stripes=6,
        needed=10,
        total=20,
        repair_at=0,
        waits_above=17,
        lifetimes=Lifetimes(110),
        outages=Outages(1),
        reads_per_day=0.5,
        kills_per_year=60,
        settle_days=14,
        faults=(Fault(25, "cut", days=5, where="FR"), Fault(45, "wipe", 0.1), Fault(70, "destroy", 0.08)),
    ),
    "growing": Scenario(
        days=46,
        nodes=24,
        stripes=16,
        needed=3,
        total=6,
        paths=("/Rest",),
        disk_bytes=1800,
        kills_per_year=90,
        settle_days=6,
        audit_part=1.0,
        reads_per_day=0.2,
        faults=(
            Fault(4, "grow", 0.3),
            Fault(14, "write", 6, where="/Rest"),
            Fault(20, "resize", 0.25, days=0.5),
            Fault(36, "grow", 0.2),
        ),
    ),
    "groups": Scenario(
        days=75,
        nodes=36,
        stripes=24,
        groups=2,
        grouped=0.45,
        group_outages=Outages(9, hours=6),
        outages=Outages(1),
        kills_per_year=30,
        reads_per_day=0.2,
        settle_days=12,
        faults=(Fault(50, "write", 24),),
    ),
    "ghosts": Scenario(
        days=185,
        nodes=20,
        stripes=8,
        needed=2,
        total=4,
        countries=("CH", "DE", "FI", "FR", "NO"),
        foreign=0.0,
        max_per_operator=1,
        patience_days=131,
        kills_per_year=20,
        audit_part=0.01,
        reads_per_day=0.1,
        settle_days=6,
        faults=(Fault(5, "raze", days=15, where="DE"), Fault(25, "raze", where="CH")),
    ),
    "small": Scenario(days=25, nodes=24, stripes=6, lifetimes=Lifetimes(80), settle_days=12),
    "returns": Scenario(
        days=30,
        nodes=22,
        stripes=6,
        lifetimes=Lifetimes(40),
        foreign=0.5,
        kills_per_year=700,
        settle_days=14,
        faults=(Fault(3, "cut", days=9, where="DE"), Fault(16, "cut", days=9, where="FR")),
    ),
    "leases": Scenario(days=190, nodes=20, stripes=4, settle_days=2, outages=Outages(1)),
    "losses": Scenario(
        days=730,
        nodes=40,
        stripes=40,
        needed=2,
        total=3,
        lifetimes=Lifetimes(60),
        max_per_operator=1,
        reads_per_day=0.05,
        settle_days=40,
    ),
    "thousand": Scenario(
        days=60,
        nodes=1000,
        stripes=20,
        needed=16,
        total=30,
        lifetimes=Lifetimes(200, 0.7),
        kills_per_year=30,
        faults=(Fault(10, "cut", days=5, where="FR"), Fault(30, "wipe", 0.1), Fault(40, "destroy", 0.05)),
    ),
}


def preset(name: str, seed: int) -> Scenario:
    """A scenario by name. Raises KeyError."""
    return replace(PRESETS[name], seed=seed, command=f"python -m hivefs.testing.sim --preset {name} --seed {seed}")

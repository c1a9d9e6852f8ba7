"""Placement with many nodes known: time and memory from 100 to 320 000 nodes, and planning repair for a million stripes.

Run alone with ``python -m hivefs.testing.bench.placement_figures``; scripts/bench calls it with ``--only placement``. The
nodes are drawn with a fixed seed: twenty countries of very different size, two nodes to an operator, 3000 networks of very
different size, three nodes to a subnet. The policy is 16/30 with one share at most for an operator and a subnet and three
for a network. Nothing else runs in the process, and no process is started.
"""

from __future__ import annotations

import gc
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, cast

import trio

from hivefs.chunkstore.claims import Claims
from hivefs.chunkstore.member import Member
from hivefs.chunkstore.pool import Pool
from hivefs.chunkstore.writer import Writer
from hivefs.errors import PolicyInfeasible, TooFewNodes
from hivefs.maintenance.trust import Trust
from hivefs.model.ids import NodeId, ShareId, StripeId
from hivefs.model.node import AddressRecord, Attribute, Candidate, Membership, Role, RosterEntry
from hivefs.model.stripe import Purpose, Share, Stripe
from hivefs.placement.attributes import authorities
from hivefs.placement.evidence import Weighed
from hivefs.placement.field import Field
from hivefs.placement.health import NodeRow, NodeState
from hivefs.placement.policy import Policy
from hivefs.placement.selector import choose, settle

COUNTS: Final = (100, 1000, 10_000, 100_000, 320_000)
STRIPES: Final = 1_000_000
POLICY: Final = Policy(16, 30, max_per=(("asn", 3), ("operator", 1), ("subnet", 1)))
SMALL_POLICY: Final = Policy(16, 30)
"""A hundred nodes do not have thirty subnets in enough countries for the other one."""

_SIZES: Final = {
    "US": 300,
    "DE": 120,
    "FR": 80,
    "GB": 80,
    "IN": 60,
    "CA": 50,
    "NL": 50,
    "JP": 40,
    "BR": 40,
    "AU": 30,
    "SE": 30,
    "ES": 30,
    "IT": 30,
    "KR": 30,
    "FI": 20,
    "PL": 20,
    "CH": 15,
    "AT": 15,
    "CZ": 10,
    "NO": 10,
}
_TIMED: Final = 200


def nodes(count: int) -> Iterator[Candidate]:
    """``count`` nodes, always the same; equal sets of authorities are one object, as in the engine."""
    dice = random.Random(1)
    known: dict[frozenset[str], frozenset[str]] = {}
    for number in range(count):
        country = dice.choices(list(_SIZES), list(_SIZES.values()))[0]
        network = str(int(dice.paretovariate(0.8)) % 3000)
        said = (
            Attribute("country", country),
            Attribute("operator_country", country),
            Attribute("operator", f"operator {number // 2}"),
            Attribute("hoster", f"hoster {network}"),
            Attribute("asn", network),
            Attribute("subnet", f"subnet {number // 3}"),
        )
        over = {family: known.setdefault(names, names) for family, names in authorities(said).items()}
        yield Candidate(NodeId(dice.randbytes(32)), over, dice.randrange(1 << 34, 1 << 40))


def resident() -> int:
    """Bytes of memory that the process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def milliseconds(work: Callable[[int], object], times: int) -> list[float]:
    """How long each call took, sorted."""
    took = []
    for number in range(times):
        begun = time.perf_counter()
        work(number)
        took.append(1000 * (time.perf_counter() - begun))
    return sorted(took)


def steps(counts: Sequence[int], times: int = _TIMED) -> Iterator[dict[str, Any]]:
    """For each number of nodes: seconds and bytes of the index, milliseconds to place a stripe and to settle one."""
    for count in counts:
        policy = POLICY if count >= 1000 else SMALL_POLICY
        gc.collect()
        before = resident()
        made = list(nodes(count))
        between, begun = resident(), time.perf_counter()
        field = Field(made)
        took, after = time.perf_counter() - begun, resident()
        del made
        for seed in range(20):
            choose(policy, field, seed)
        place = milliseconds(lambda seed: choose(policy, field, 100 + seed), times)  # noqa: B023
        holders = [[field.get(node) for node in choose(policy, field, 100 + seed)] for seed in range(times)]
        for number, mine in enumerate(holders):
            mine[number % policy.total] = None
        mend = milliseconds(lambda seed: settle(policy, holders[seed], field, 7_000 + seed), times)  # noqa: B023
        yield {
            "nodes": count,
            "index_seconds": took,
            "node_bytes": between - before,
            "index_bytes": after - between,
            "place": (statistics.median(place), place[len(place) * 99 // 100], place[-1]),
            "settle": (statistics.median(mend), mend[len(mend) * 99 // 100], mend[-1]),
        }


class _Nobody:
    """A book of nodes and of their conduct that has nothing to say."""

    def nodes(self) -> list[Any]:
        return []

    def reputations(self) -> list[tuple[NodeId, Any]]:
        return []

    def save_distrusted(self, nodes: Any) -> None:
        return


def engine_steps(counts: Sequence[int], times: int = _TIMED) -> Iterator[dict[str, Any]]:
    """For each number of nodes: processor milliseconds to choose the nodes of a stripe as the engine does, with its pool
    and its writer, when the nodes of the stripe before have each taken a share; and how many candidates were made.
    """
    for count in counts:
        policy = POLICY if count >= 1000 else SMALL_POLICY
        trust = Trust(cast("Any", _Nobody()), lambda: 1, 86_400.0)
        pool = Pool(cast("Any", _Nobody()), cast("Any", None), lambda: 1, trust, cast("Any", None))
        entry = RosterEntry(Membership(b"", b"", Role.NODE, (), 1, 0, 1), AddressRecord(NodeId(b""), (), 1))
        for node in nodes(count):
            row = NodeRow(NodeState.ONLINE, 1, node.free_bytes, 1 << 40)
            member = pool.members[node.node_id] = Member(node.node_id, pool.shelf, row)
            member.client = cast("Any", pool)
            member.hear(entry)
            member._weighed = Weighed(()), dict(node.authorities)
            pool.by_state[NodeState.ONLINE][node.node_id] = None
        writer = Writer(pool, policy, lambda: 1, random.Random(3).randbytes, Claims(lambda pairs: None), bytes(32))
        dice = random.Random(4)

        async def place(
            times: int, writer: Writer = writer, pool: Pool = pool, policy: Policy = policy, dice: random.Random = dice
        ) -> list[float]:
            took = []
            for _ in range(times):
                shares = tuple(Share(ShareId(dice.randbytes(32)), bytes(32), None) for _ in range(policy.total))
                stripe = Stripe(StripeId(dice.randbytes(16)), Purpose.DATA, policy.needed, 1 << 20, shares)
                begun = time.process_time()
                chosen = await writer.choose(stripe, policy, {}, range(policy.total))
                for node_id in chosen.values():
                    pool.reserve(node_id, 1 << 20)
                took.append(1000 * (time.process_time() - begun))
            return sorted(took)

        trio.run(place, 5)
        before = pool.listing.made
        took = trio.run(place, times)
        yield {
            "nodes": count,
            "place": (statistics.median(took), took[len(took) * 99 // 100], took[-1]),
            "made": (pool.listing.made - before) / times,
        }


def repair(count: int, stripes: int) -> dict[str, Any]:
    """A thousandth of the nodes is gone at once: find and plan all stripes that lose shares.

    Holding a million stripes of thirty is what the engine's store is for, with its list of stripes for each node. Here only
    those that the loss touches are made: their number is drawn from its distribution, and each is placed with at least
    one share on a node that will be gone (placed as ever, then one holder exchanged). Planning them all is timed, in
    seconds of the processor.
    """
    dice = random.Random(2)
    field = Field(nodes(count))
    lost = dice.sample([node.node_id for node in field], max(1, count // 1000))
    touched = round(stripes * (1 - (1 - len(lost) / count) ** POLICY.total))
    placed = []
    for seed in range(touched):
        chosen = choose(POLICY, field, seed)
        chosen[dice.randrange(len(chosen))] = lost[seed % len(lost)]
        placed.append(chosen)
    for node_id in lost:
        field.remove(node_id)
    planned = waiting = moves = 0
    begun = time.process_time()
    for number, chosen in enumerate(placed):
        try:
            plan = settle(POLICY, [field.get(node_id) for node_id in chosen], field, touched + number)
        except (PolicyInfeasible, TooFewNodes):
            waiting += 1
            continue
        planned += 1
        moves += len(plan.nodes)
    seconds = time.process_time() - begun
    return {
        "lost": len(lost),
        "touched": touched,
        "planned": planned,
        "waiting": waiting,
        "moves": moves,
        "seconds": seconds,
    }


def figures(*, quick: bool) -> dict[str, dict[str, Any]]:
    """The rows for the table of scripts/bench."""
    found: dict[str, dict[str, Any]] = {}

    def add(name: str, title: str, unit: str, value: float) -> None:
        found[name] = {"title": title, "unit": unit, "value": value, "values": [value], "against": ""}

    for step in steps(COUNTS[:2] if quick else COUNTS, 10 if quick else _TIMED):
        n = step["nodes"]
        add(f"placement_choose_{n}", f"placing a stripe, {n} nodes known: median", "ms", step["place"][0])
        add(f"placement_choose_worst_{n}", f"placing a stripe, {n} nodes known: 99 of 100", "ms", step["place"][1])
        add(f"placement_settle_{n}", f"planning repair of a stripe, {n} nodes known: median", "ms", step["settle"][0])
        add(f"placement_memory_{n}", f"index of {n} nodes", "MiB", step["index_bytes"] / (1 << 20))
        add(f"placement_build_{n}", f"making the index of {n} nodes", "s", step["index_seconds"])
    for step in engine_steps(COUNTS[:2] if quick else COUNTS[1:], 10 if quick else _TIMED):
        n = step["nodes"]
        add(f"placement_engine_{n}", f"placing a stripe in the engine, {n} nodes known: median", "ms", step["place"][0])
        add(f"placement_engine_worst_{n}", f"placing a stripe in the engine, {n} nodes: 99 of 100", "ms", step["place"][1])
    plan = repair(2000 if quick else COUNTS[-1], 2000 if quick else STRIPES)
    title = f"planning repair: {plan['touched']} stripes touched by {plan['lost']} nodes gone"
    add("placement_repair", title, "s", plan["seconds"])
    return found


def main() -> int:
    """Print the table."""
    say = sys.stdout.write
    say("   nodes  index s  nodes MiB  index MiB    place, ms: median, 99 %, worst   settle, ms: the same\n")
    for step in steps([int(word) for word in sys.argv[1:]] or COUNTS):
        place, mend = (" ".join(f"{value:9.2f}" for value in step[name]) for name in ("place", "settle"))
        made, index = step["node_bytes"] / (1 << 20), step["index_bytes"] / (1 << 20)
        say(f"{step['nodes']:8} {step['index_seconds']:8.2f} {made:10.1f} {index:10.1f}  {place}  {mend}\n")
        sys.stdout.flush()
    say("in the engine (pool and writer)             place, ms: median, 99 %, worst   candidates made for a stripe\n")
    for step in engine_steps([int(word) for word in sys.argv[1:]] or COUNTS[1:]):
        place = " ".join(f"{value:9.2f}" for value in step["place"])
        say(f"{step['nodes']:8} {'':31}  {place}   {step['made']:9.1f}\n")
        sys.stdout.flush()
    if len(sys.argv) == 1:
        plan = repair(COUNTS[-1], STRIPES)
        say("repair: " + ", ".join(f"{name} {value:.6g}" for name, value in plan.items()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

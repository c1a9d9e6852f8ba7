"""Nodes that fail together in a simulated hive, by something that no attribute says (one building, one line, one release).

Which group a node is in, only this file knows. What the engine learnt (placement/outages.py) is held against it: no two
groups are taken for one, a group that failed OFTEN is known, and no stripe that was written since is put where a group
could take more of it than placing wishes.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import trio

from hivefs.placement import reputation
from hivefs.testing.sim.nodes import DAY, SimNode
from hivefs.testing.sim.truth import Kept, Violation

if TYPE_CHECKING:
    from hivefs.testing.sim.world import World

OFTEN = 5
"""After so many failures that a node lived through with its group, and a day, it is to be known. Those that are too short
for the engine to keep (placement/reputation.py) do not count, nor those while half of all nodes were away.
"""
JITTER = 60.0
"""Seconds within which the nodes of a group go and come back."""


class Groups:
    """Of one world. ``of`` gives the group of a node by its number, -1 for none."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._joint: dict[int, list[float]] = {}
        """When a node went with its group, by number."""
        self._doubted_at = -1.0
        """When about half of all nodes were away: it may have been the engine's machine that was, and nothing is learnt."""
        self.blows: list[tuple[float, bool, int, int]] = []
        """(day, whether written since the groups were to be known, stripes, those with k shares at most in reach)."""

    def of(self, number: int) -> int:
        scenario = self._world.scenario
        chance = random.Random(f"group {scenario.seed} {number}")
        return chance.randrange(scenario.groups) if chance.random() < scenario.grouped else -1

    def begin(self) -> None:
        """Each group fails now and then from now on."""
        for group in range(self._world.scenario.groups):
            self._plan(group)

    def _plan(self, group: int) -> None:
        world = self._world
        when = world.scenario.group_outages.next(world.chance, trio.current_time(), 0)
        world.at(when, lambda: self._fail(group))

    def members(self, group: int) -> list[SimNode]:
        """Those that are alive."""
        return [n for n in self._world.nodes.values() if not n.dead and self.of(n.number) == group]

    def _fail(self, group: int) -> None:
        world = self._world
        if world.quiet:
            return
        now, chance = trio.current_time(), world.chance
        lasts = max(600.0, chance.expovariate(1 / (world.scenario.group_outages.hours * 3600)))
        nodes = [n for n in self.members(group) if n.up]
        world.say("group fails", group, len(nodes))
        for node in nodes:
            world.at(now + chance.uniform(0, JITTER), lambda node=node: self._switch(node, False))  # type: ignore[misc]
            back = now + lasts + chance.uniform(0, JITTER)
            world.at(back, lambda node=node: self._switch(node, True))  # type: ignore[misc]
        world.at(now + 2 * JITTER, self._count)

        def over() -> None:
            long_enough = lasts > 1.2 * reputation.BLIP * world.scenario.gone_after_days * DAY
            if long_enough and self._doubted_at < now:
                for node in nodes:
                    self._joint.setdefault(node.number, []).append(now)
            self._plan(group)

        world.at(now + lasts + 2 * JITTER, over)

    def _switch(self, node: SimNode, up: bool) -> None:
        if not node.dead and node.up != up and not (self._world.quiet and not up):
            node.up = up
            self._world.say("up" if up else "down", node.number)
            self._world.saw(node)
        alive = [n for n in self._world.nodes.values() if not n.dead]
        if 2 * sum(n.reachable for n in alive) <= len(alive) + 4:
            self._doubted_at = trio.current_time()

    def _count(self) -> None:
        """A group is away now: stripes that are endangered by that."""
        world = self._world
        for since in (False, True):
            kept = [k for k in world.truth.stripes.values() if k.stripe_id is not None and not k.lost and k.spread == since]
            struck = sum(1 for k in kept if world.truth.reachable(k) <= k.needed)
            self.blows.append((trio.current_time() / DAY, since, len(kept), struck))

    # ---- what the engine made of it ---------------------------------------------------------------------------------

    def learnt(self) -> dict[int, str]:
        """The domain that the engine has each node in, by number."""
        domains = self._world.life.trust.domains
        return {node.number: domains[n] for n, node in self._world.by_id.items() if n in domains and not node.dead}

    def due(self) -> list[int]:
        """Nodes whose groups are to be known by now."""
        before = trio.current_time() - DAY
        often = [n for n, times in self._joint.items() if sum(t < before for t in times) >= OFTEN]
        return [n for n in often if not self._world.nodes[n].dead]

    @property
    def known(self) -> bool:
        """Whether the groups are to be known by now: what is written from then on is spread."""
        due = self.due()
        return len({self.of(n) for n in due}) == self._world.scenario.groups

    def check(self) -> None:
        """Raises Violation."""
        world, learnt = self._world, self.learnt()
        inside: dict[str, set[int]] = {}
        for number, name in learnt.items():
            inside.setdefault(name, set()).add(self.of(number))
        for groups in inside.values():
            if groups != {min(groups)} or -1 in groups:
                raise Violation(f"nodes of the groups {sorted(groups)} are taken for one that fails together")
        names: dict[int, set[str]] = {}
        for number in self.due():
            names.setdefault(self.of(number), set()).add(learnt.get(number, ""))
        for group, found in names.items():
            if len(found) > 1 or "" in found:
                raise Violation(f"group {group} failed together {OFTEN} times and more, and that is not known")
        for kept in world.truth.stripes.values():
            if kept.spread and not kept.lost and kept.stripe_id is not None:
                self._is_spread(kept)

    def _is_spread(self, kept: Kept) -> None:
        stripe = None if kept.stripe_id is None else self._world.life.store.stripe(kept.stripe_id)
        if stripe is None:
            return
        numbers = [self._world.by_id[s.node].number for s in stripe.shares if s.node is not None]
        there = Counter(group for n in numbers if (group := self.of(n)) >= 0)
        most = max(1, (len(kept.share_ids) - kept.needed) // 2)
        for group, count in there.items():
            if count > most:
                raise Violation(
                    f"{count} shares of stripe {kept.name} lie in group {group}, which is known to fail together"
                )

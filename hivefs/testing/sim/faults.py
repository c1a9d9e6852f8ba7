"""What befalls a simulated hive besides churn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from hivefs.testing.sim.nodes import DAY, DAY_NS, SimNode
from hivefs.testing.sim.scenario import Fault

if TYPE_CHECKING:
    from hivefs.testing.sim.world import World


def befall(world: World, fault: Fault) -> None:
    """Let a fault happen now. Raises ValueError for a kind that there is not."""
    world.say("fault", fault.kind, fault.part, fault.days, " ".join(fault.where.split()))
    _KINDS[fault.kind](world, fault)


def _some(world: World, part: float) -> list[SimNode]:
    """A part of the nodes that are alive."""
    alive = [n for n in world.nodes.values() if not n.dead]
    return world.chance.sample(alive, max(1, round(part * len(alive))))


def _cut(world: World, fault: Fault) -> None:
    """A jurisdiction cannot be reached; after ``days`` it can again."""
    nodes = [n for n in world.nodes.values() if not n.dead and n.country == fault.where]
    for node in nodes:
        node.cut = True
        world.saw(node)
    until = trio.current_time() + fault.days * DAY
    world.impaired(until)

    def back() -> None:
        world.say("joined again", fault.where)
        for node in nodes:
            node.cut = False
            world.saw(node)

    world.at(until, back)


def _wipe(world: World, fault: Fault) -> None:
    """A bad release: nodes start again with empty stores, all at once."""
    due = trio.current_time() + world.truth.detection
    for node in _some(world, fault.part):
        world.say("wiped", node.number, len(node.shares))
        node.up = False
        world.saw(node)
        world.wipe(node, due)
        node.up = True
        world.saw(node)


def _destroy(world: World, fault: Fault) -> None:
    for node in _some(world, fault.part):
        world.destroy(node)


def _raze(world: World, fault: Fault) -> None:
    if fault.days > world.scenario.gone_after_days:  # there may be no place until others are there
        world.impaired(trio.current_time() + fault.days * DAY)
    for node in [n for n in world.nodes.values() if n.country == fault.where]:
        world.destroy(node, fault.days)


def _rot(world: World, fault: Fault) -> None:
    """Bits flip on disks: a part of all shares."""
    due = trio.current_time() + world.truth.blind
    for node in world.nodes.values():
        for share_id in list(node.shares):
            if not node.dead and world.chance.random() < fault.part:
                held = node.shares[share_id]
                held.data = held.data[:-1] + bytes([held.data[-1] ^ 0x80])
                world.say("rot", node.number, *world.truth.find(share_id)[1:])
                world.truth.damaged(node, share_id, due, exposed=True)


def _drop(world: World, fault: Fault) -> None:
    """Nodes throw away all that they have and say that they have it."""
    due = trio.current_time() + world.truth.blind
    for node in _some(world, fault.part):
        world.say("drops", node.number)
        node.drops = True
        shares, node.shares, node.used = node.shares, {}, 0
        node.pretended |= shares.keys()
        for share_id in shares:
            world.truth.damaged(node, share_id, due, exposed=True)


def _flip(world: World, fault: Fault) -> None:
    due = trio.current_time() + world.truth.blind
    for node in _some(world, fault.part):
        world.say("flips", node.number)
        node.flips = True
        for share_id in node.shares:
            world.truth.damaged(node, share_id, due, exposed=True)


def _slow(world: World, fault: Fault) -> None:
    for node in _some(world, fault.part):
        world.say("slow", node.number)
        node.slow = world.chance.uniform(1.0, 6.0)


def _full(world: World, fault: Fault) -> None:
    """Disks that take nothing more."""
    for node in _some(world, fault.part):
        world.say("full", node.number)
        node.capacity = node.used


def _step(world: World, fault: Fault) -> None:
    """What went away before the step may be counted anew from it; what went while the clock was wrong did so at no known
    time, and is counted from when it is right (docs/decisions/0035).
    """
    now = trio.current_time()
    if world.step_ns:
        world.truth.postpone(now - world.stepped)
    world.step_ns += round(fault.days * DAY_NS)
    world.stepped = now
    world.truth.grant_time(now + world.truth.lag)


def _grow(world: World, fault: Fault) -> None:
    """New nodes of new operators, all at once."""
    countries = world.scenario.countries
    for number in range(max(1, round(fault.part * sum(not n.dead for n in world.nodes.values())))):
        country = countries[number % len(countries)]
        world.join(country, f"newcomer-{len(world.nodes)}", country)
    world.balance.happened()


def _resize(world: World, fault: Fault) -> None:
    """Owners give more or less of their disks."""
    for node in _some(world, fault.part):
        node.capacity = round(node.capacity * fault.days)
        world.say("resized", node.number, node.capacity)
    world.balance.happened()


def _write(world: World, fault: Fault) -> None:
    async def more() -> None:
        for _ in range(round(fault.part)):
            await (world.files.write(fault.where) if world.scenario.paths else world.write())
            if world.scenario.disk_bytes:
                world.balance.happened()

    world.soon(more)


def _stray(world: World, fault: Fault) -> None:
    """Shares that nothing names lie at some nodes: a client was lost between two heads."""
    for node in _some(world, fault.part):
        if node.reachable and not node.drops:
            world.files.leave_stray(node)


def _policy(world: World, fault: Fault) -> None:
    """The user puts another text of policies into force."""
    world.soon(lambda: world.files.set_policies(fault.where))


def _delete(world: World, fault: Fault) -> None:
    world.files.delete(fault.part)
    if world.scenario.disk_bytes:
        world.balance.happened(False)


def _move(world: World, fault: Fault) -> None:
    world.files.move(fault.part, fault.where)


def _kill(world: World, fault: Fault) -> None:
    world.life.kill()


_KINDS = {
    "cut": _cut,
    "wipe": _wipe,
    "destroy": _destroy,
    "raze": _raze,
    "rot": _rot,
    "drop": _drop,
    "flip": _flip,
    "slow": _slow,
    "full": _full,
    "step": _step,
    "kill": _kill,
    "policy": _policy,
    "stray": _stray,
    "delete": _delete,
    "move": _move,
    "grow": _grow,
    "resize": _resize,
    "write": _write,
}

"""The user's files in a simulated hive, what they must be worth at any time, and which stripes are still needed.

A file is one sealed chunk under a path whose policy it has. This is the drive as the engine sees it (maintenance/ports.py
Vault): which policy each chunk has, and which chunks no file names any more. Beside that the bytes of each file are known
here, and in which stripes they truly lie, so that a file that is lost, or is not where its policy says, is seen without the
engine's judge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

import trio

from hivefs.chunkstore import writer as writing
from hivefs.chunkstore.writer import LEASE_NS
from hivefs.content.packing import Packed, Packer
from hivefs.errors import HivefsError
from hivefs.model.ids import ChunkId, StripeId
from hivefs.model.stripe import ChunkPlace, Purpose
from hivefs.placement.language import parse
from hivefs.placement.policies import Unwritten
from hivefs.placement.policy import DEFAULT, Policy
from hivefs.testing.sim.nodes import BEGIN_NS, Held, SimNode
from hivefs.testing.sim.truth import PURPOSE, Kept, Violation, most_seen

if TYPE_CHECKING:
    from hivefs.maintenance.repack_plan import Target
    from hivefs.testing.sim.world import World

SHARE = 256
"""Most bytes of chunks in a share here; 1 MiB and tags in truth."""
PER_STRIPE = 6
"""Files that are written together."""


@dataclass(eq=False)
class SimFile:
    """``path`` is the folder that decides about its policy. ``stripes`` are all in which its bytes were ever put."""

    chunk_id: ChunkId
    data: bytes
    path: str
    living: bool = True
    lost: bool = False
    stripes: list[Kept] = field(default_factory=list)


class Files:
    """All files of a world. It is the engine's Vault."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.files: dict[ChunkId, SimFile] = {}
        self.text = ""
        self.policies: Mapping[str, Policy] = Unwritten(world.policy).policies
        self._paths: Mapping[str, str] = {}
        self._released: list[ChunkId] = []
        self._pending: dict[StripeId, tuple[Kept, list[SimFile]]] = {}
        self.moved = 0
        self.moves = 0
        """Files that the user moved."""

    # ---- what the engine asks of the drive ---------------------------------------------------------------------------

    async def calm(self) -> bool:
        """Nobody is in a hurry."""
        return True

    async def policies_of_chunks(self, after: bytes, limit: int) -> tuple[bytes, list[tuple[ChunkId, str]]]:
        """All at once."""
        return b"", [(file.chunk_id, self.policy_name(file)) for file in self.files.values() if file.living]

    async def policy_moves(self) -> int:
        """How many files were moved so far."""
        return self.moves

    async def released(self, after: int, limit: int) -> list[tuple[int, ChunkId]]:
        """Chunks that no file names any more, until they are acknowledged."""
        return list(enumerate(self._released, 1))[:limit]

    async def flush(self) -> None:
        """Nothing waits here."""

    async def published(self, sequence: int) -> None:
        """A head is out."""

    async def released_done(self, upto: int) -> None:
        """The engine wrote them down."""
        del self._released[:upto]

    def policy_name(self, file: SimFile) -> str:
        """The name of the policy that a file has to lie under."""
        return self._paths.get(file.path, DEFAULT)

    # ---- the user ---------------------------------------------------------------------------------------------------

    async def write(self, path: str) -> None:
        """Some files, packed into one stripe, however often the engine dies meanwhile."""
        world = self._world
        PURPOSE.set("user")
        chunks = [world.chance.randbytes(world.chance.randrange(40, 200)) for _ in range(PER_STRIPE)]
        made = [SimFile(ChunkId(hashlib.sha256(data).digest()), data, path) for data in chunks]
        while True:
            policy = self.policies.get(self._paths.get(path, DEFAULT), self.policies[DEFAULT])
            packer = Packer(policy.needed, SHARE)
            fitting = [file for file in made if packer.add(file.data) is not None]
            packed = packer.pack(world.chance.randbytes, True)
            kept = self.know(packed, policy)
            kept.lost = False
            life, stripe_id = world.life, None
            try:
                with life.outside():
                    stripe_id = life.writer.new_id()
                    with life.store.writing():
                        life.store.save_policy(policy)
                    stripe = await life.writer.place(packed, Purpose.DATA, stripe_id, policy)
                    with life.store.writing():
                        life.store.save_stripe(stripe)
                        for file, (index, offset) in zip(fitting, packed.places, strict=True):
                            place = ChunkPlace(stripe_id, index, offset, len(file.data))
                            life.store.save_place(file.chunk_id, place, 1, 0)
                            life.store.settle(file.chunk_id, True)
                    life.repair.add(stripe_id)
            except HivefsError as error:
                world.say("write waits", error)
            await world.alive()
            if stripe_id is not None and world.life.store.stripe(stripe_id) is not None:
                for file in fitting:
                    self.files[file.chunk_id] = file
                    file.stripes.append(kept)
                kept.holds = fitting
                world.truth.placed(kept, stripe_id)
                return
            kept.lost = True
            await trio.sleep(600.0)

    def delete(self, part: float) -> None:
        """The user deletes a part of all files."""
        living = [file for file in self.files.values() if file.living]
        for file in self._world.chance.sample(living, round(part * len(living))):
            file.living = False
            self._released.append(file.chunk_id)
            self._world.say("delete file", file.chunk_id.hex()[:12])

    def move(self, part: float, path: str) -> None:
        """The user moves a part of all files to another folder."""
        living = [file for file in self.files.values() if file.living]
        for file in self._world.chance.sample(living, round(part * len(living))):
            file.path = path
            self.moves += 1
            self._world.say("move file", file.chunk_id.hex()[:12], path)

    async def set_policies(self, text: str) -> None:
        """Put another text of policies into force, however often the engine dies meanwhile."""
        world = self._world
        while world.life.store.dead or world.life.store.policy_text() != text:
            life = world.life
            try:
                with life.outside():
                    await life.wired.policies.set(text)
            except HivefsError as error:
                raise Violation(f"the text of the policies was refused: {error}") from None
            await world.alive()
        self.text = text
        written = parse(text, world.policy)
        self.policies, self._paths = written.policies, written.paths
        for kept in world.truth.stripes.values():
            # Until the engine has settled it, what held before holds on, or at least the weaker of both.
            kept.rules = weaker(kept.rules or (), rules_of(self._policy_of(kept)))
            kept.settled = False
        world.say("policies", hashlib.sha256(text.encode()).hexdigest()[:12])

    # ---- stripes that the engine makes ------------------------------------------------------------------------------

    def know(self, packed: Packed, policy: Policy) -> Kept:
        truth = self._world.truth
        ids = tuple(c.share_id for c in writing.code(policy.needed, policy.total, packed.data))
        kept = Kept(len(truth.stripes) + 1, policy.needed, ids, packed.data, lost=True)
        kept.rules, kept.policy = rules_of(policy), policy.name
        kept.repair_at = self._world.scenario.repaired_at(policy.needed, policy.total)
        truth.know(kept)
        return kept

    def made(self, packed: Packed, stripe_id: StripeId, target: Target) -> None:
        """The engine is about to put this. It is a stripe of files once it is recorded."""
        policy = self.policies.get(target.policy, self.policies[DEFAULT])
        kept = self.know(packed, policy)
        inside = [f for f in self.files.values() if f.living and any(f.data in share for share in packed.data)]
        self._pending[stripe_id] = kept, inside
        self._world.say("repack", kept.name, len(inside), target.policy, f"{target.needed}/{target.total}")

    def recorded(self, stripe_id: StripeId) -> None:
        """The engine's book names it now."""
        kept, inside = self._pending.pop(stripe_id)
        kept.lost = False
        kept.holds = inside
        for file in inside:
            file.stripes.append(kept)
        self._world.truth.placed(kept, stripe_id)
        self._world.truth.late(kept)
        self.moved += 1
        self._world.say("repacked", kept.name)

    def begin(self) -> None:
        """A new life of the engine: what the last one recorded in its last moment counts."""
        for stripe_id in [s for s in self._pending if self._world.life.store.stripe(s) is not None]:
            self.recorded(stripe_id)
        self._pending.clear()

    @property
    def in_force(self) -> bool:
        """Whether the engine goes by the text that is known here; not while it is being set."""
        return self._world.life.store.policies.set.text == self.text

    def leave_stray(self, node: SimNode) -> None:
        """A share that no book ever named lies at a node from now on, with a lease as any other."""
        world = self._world
        policy = self.policies[DEFAULT]
        kept = self.know(Packed(64, tuple(world.chance.randbytes(64) for _ in range(policy.needed)), ()), policy)
        kept.stray = True
        share_id = kept.share_ids[0]
        now = world.true_ns()
        node.shares[share_id] = Held(kept.data[0], node.time(now, now - BEGIN_NS) + LEASE_NS)
        node.used += len(kept.data[0])
        world.truth.stored(node, share_id)

    # ---- looking ----------------------------------------------------------------------------------------------------

    def _policy_of(self, kept: Kept) -> Policy:
        return self.policies.get(kept.policy, self.policies[DEFAULT])

    def rules_for(self, kept: Kept) -> Policy:
        """What the stripe has to obey now, by the name of the policy that it was placed by."""
        return self._policy_of(kept)

    def given_up(self, kept: Kept) -> bool:
        """Whether nobody needs this stripe any more: each of its files is deleted, or was whole in a later one."""
        return all(not file.living or self._lies_later(file, kept) for file in kept.holds)

    @staticmethod
    def _lies_later(file: SimFile, kept: Kept) -> bool:
        later = file.stripes[file.stripes.index(kept) + 1 :]
        return any(other.was_whole and not other.lost for other in later)

    def check(self) -> None:
        """Each file is where the engine's book says, byte for byte, and can be read."""
        store, truth = self._world.life.store, self._world.truth
        for kept in truth.stripes.values():
            if not kept.settled and not kept.lost:
                rules = rules_of(self._policy_of(kept))
                if all(most_seen(kept, truth.nodes, *rule)[1] < kept.needed for rule in rules):
                    kept.rules, kept.settled = rules, True
        for file in self.files.values():
            if not file.living or file.lost:
                continue
            name = file.chunk_id.hex()[:12]
            place = store.place(file.chunk_id)
            if place is None or place.stripe_id not in truth.by_id:
                raise Violation(f"the engine's book does not say any more where file {name} lies")
            kept = truth.by_id[place.stripe_id]
            if kept.lost:
                file.lost = True  # truth.py saw to it that it had to be
                continue
            if kept.data[place.index][place.offset : place.offset + place.length] != file.data:
                raise Violation(f"file {name} is not where the engine's book says")
            if kept.left < kept.needed:
                raise Violation(f"file {name} can be read no more: {kept.left} shares of stripe {kept.name} are left")

    def check_settled(self) -> None:
        """In the end each file lies as the policy of its path says now, by a plain count. Raises Violation."""
        world = self._world
        for file in self.files.values():
            place = world.life.store.place(file.chunk_id) if file.living and not file.lost else None
            if place is None:
                continue
            kept, policy = world.truth.by_id[place.stripe_id], self.policies[self.policy_name(file)]
            stripe = world.life.store.stripe(place.stripe_id)
            if stripe is None or (kept.needed, len(kept.share_ids)) != (policy.needed, policy.total):
                raise Violation(f"file {file.chunk_id.hex()[:12]} still has the code of another policy than {policy.name}")
            nodes = [world.by_id[s.node] for s in stripe.shares if s.node is not None]
            if words := breach(policy, nodes):
                raise Violation(f"file {file.chunk_id.hex()[:12]} is not as policy {policy.name} says: {words}")
        for kept in world.truth.stripes.values():
            if kept.holds and self.given_up(kept) and any(kept.exposed) and not kept.lost:
                raise Violation(f"nobody needs stripe {kept.name} any more, and nodes still keep {kept.left} shares of it")


def rules_of(policy: Policy) -> tuple[tuple[str, int], ...]:
    """(family, coalition) of the policy's G1."""
    return tuple((rule.family, rule.coalition) for rule in policy.rules if rule.coalition)


def weaker(one: tuple[tuple[str, int], ...], other: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    """What both say."""
    said = dict(other)
    return tuple((family, min(count, said[family])) for family, count in one if family in said)


def over(node: SimNode, family: str) -> frozenset[str]:
    """Who has power over a node, as it truly is."""
    return node.countries if family == "jurisdiction" else frozenset({node.operator})


def breach(policy: Policy, nodes: list[SimNode]) -> str:
    """Why shares at these nodes are not as a policy says, by a plain count; empty when they are."""
    for node in nodes:
        if policy.allow and not node.countries <= set(policy.allow):
            return f"node {node.number} is under {' and '.join(sorted(node.countries))}"
        if not node.countries.isdisjoint(policy.deny):
            return f"node {node.number} is under {' and '.join(sorted(node.countries))}"
    for rule in policy.rules:
        sets = [over(node, rule.family) for node in nodes]
        names = sorted(frozenset[str]().union(*sets))
        for size, most in ((rule.coalition, policy.needed - 1), (rule.lose, policy.total - policy.needed - rule.slack)):
            for members in combinations(names, size):
                if size and sum(1 for s in sets if not s.isdisjoint(members)) > most:
                    return f"{' and '.join(members)} hold more than {most}"
    return ""

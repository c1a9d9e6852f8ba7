"""The code of a policy that leaves it to the engine (``code = "auto"``): chosen once, and kept.

Another code means that all data of the policy moves, so a code does not follow every node that comes and goes: the one that
was chosen stays while a stripe of it can be placed on the nodes that are not given up, and their number has neither halved
nor doubled since. It is stored, so that a restart changes nothing.

Looking takes up to a second, and whoever asks may not wait: ``run`` looks, and until it has, the last answer stands, or the
code that is stored; where there is neither, whoever asks hears that it is being chosen (``choosing`` in the error's data).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import trio

from hivefs.chunkstore.ports import Think
from hivefs.errors import HivefsError, PolicyInfeasible, TooFewNodes
from hivefs.formats import policy as policy_format
from hivefs.maintenance.ports import State
from hivefs.maintenance.turns import Turns
from hivefs.model.ids import NodeId
from hivefs.model.node import Candidate
from hivefs.placement import code
from hivefs.placement.gathering import Gathering
from hivefs.placement.policy import Policy
from hivefs.placement.selector import choose

LOOK_SECONDS = 30.0
"""For so long an answer stands before it is looked whether it still does."""

REST = 20.0
"""An answer stands for at least so many times as long as looking took."""


class Nodes(Protocol):
    """All nodes that are not given up, as a policy sees them, whether they answer now or not."""

    def __call__(self, policy: Policy) -> Iterable[Candidate]: ...


class Codes:
    """``now`` gives seconds that only grow; ``availability`` the measured part of the time in which nodes answer."""

    def __init__(
        self,
        state: State,
        nodes: Nodes,
        availability: Callable[[NodeId], float],
        now: Callable[[], float],
        think: Think,
    ) -> None:
        self._state = state
        self._nodes = nodes
        self._availability = availability
        self._now = now
        self._think = think
        self._answers: dict[bytes, tuple[float, tuple[int, int] | HivefsError]] = {}
        self._asked: dict[bytes, Policy] = {}
        self._wake = trio.Event()
        self.on_chosen: Callable[[bool], None] = lambda other: None
        """It was looked, and there is another answer than before (True), or no code can be placed still."""

    def resolve(self, policy: Policy) -> Policy:
        """The policy with its code. Raises PolicyInfeasible, TooFewNodes when none can be placed, or none is chosen yet."""
        if not policy.auto:
            return policy
        digest = policy_format.digest(policy)
        if self._answers.get(digest, (0.0, None))[0] <= self._now():
            self._asked[digest] = policy
            self._wake.set()
        answer = self._answer(digest)
        if answer is None:
            raise PolicyInfeasible(reason="its code is being chosen", choosing=True)
        if isinstance(answer, HivefsError):
            raise answer
        return policy.resolved(*answer)

    def _answer(self, digest: bytes) -> tuple[int, int] | HivefsError | None:
        """The last one, or the code that is stored."""
        answer = self._answers.get(digest, (0.0, None))[1]
        if answer is None:
            match self._stored().get(digest.hex()):
                case [int(needed), int(total), int()]:
                    return needed, total
        return answer

    def forget(self) -> None:
        """Policies or nodes are others now: look again at once."""
        self._answers = {digest: (0.0, answer) for digest, (_, answer) in self._answers.items()}

    def inherit(self, before: Iterable[Policy], now: Iterable[Policy]) -> None:
        """In a transaction, as the text changes: an automatic policy that only has another name now keeps its code. Another
        one would move all its data.
        """
        codes = dict(self._stored())
        chosen = {p.words: codes[digest] for p in before if p.auto and (digest := policy_format.digest(p).hex()) in codes}
        for policy in now:
            digest = policy_format.digest(policy).hex()
            if policy.auto and digest not in codes and policy.words in chosen:
                codes[digest] = chosen[policy.words]
        if codes != self._stored():
            self._state.save_info("codes", codes)

    async def run(self) -> None:
        """Look at what is asked for, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            for digest, policy in list(self._asked.items()):
                begun, before = self._now(), self._answer(digest)
                answer: tuple[int, int] | HivefsError
                try:
                    answer = await self._code(policy, digest)
                except HivefsError as error:  # also a disk that is full: it is looked again
                    answer = error
                until = self._now() + max(LOOK_SECONDS, REST * (self._now() - begun))
                self._answers[digest] = until, answer
                self._asked.pop(digest, None)
                if isinstance(answer, HivefsError):
                    self.on_chosen(before is None)  # whoever waited for it waits no more
                elif answer != before:
                    self.on_chosen(True)

    def _stored(self) -> dict[str, Any]:
        return self._state.info("codes") or {}

    async def _code(self, policy: Policy, digest: bytes) -> tuple[int, int]:
        nodes, turns = Gathering(policy), Turns()
        for node in self._nodes(policy):
            nodes.add(node)
            await turns.item()
        count, some = nodes.count, nodes.found()
        match self._stored().get(digest.hex()):
            case [int(needed), int(total), int(then)] if then <= 2 * count <= 4 * then:
                try:
                    await self._think(choose, policy.resolved(needed, total), some, 0)
                    return needed, total
                except (PolicyInfeasible, TooFewNodes):
                    pass  # no stripe of this code can be placed any more: another one is chosen below
        likely = {node.node_id: self._availability(node.node_id) for node in some}
        needed, total = await self._think(code.auto, policy, some, likely or code.LIKELY)
        with self._state.writing():
            self._state.save_info("codes", {**self._stored(), digest.hex(): [needed, total, count]})
        return needed, total

"""The code of a policy that leaves it to the engine (``code = "auto"``): chosen once, and kept.

Another code means that all data of the policy moves, so a code does not follow every node that comes and goes: the one that
was chosen stays while a stripe of it can be placed on the nodes that are not given up, and their number has neither halved
nor doubled since. It is stored, so that a restart changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from hivefs.errors import HivefsError, PolicyInfeasible, TooFewNodes
from hivefs.formats import policy as policy_format
from hivefs.maintenance.ports import State
from hivefs.model.ids import NodeId
from hivefs.model.node import Candidate
from hivefs.placement import code
from hivefs.placement.policy import Policy
from hivefs.placement.selector import choose

LOOK_SECONDS = 30.0
"""For so long an answer stands before it is looked whether it still does."""


class Nodes(Protocol):
    """All nodes that are not given up, as a policy sees them, whether they answer now or not."""

    def __call__(self, policy: Policy) -> Sequence[Candidate]: ...


class Codes:
    """``now`` gives seconds that only grow; ``availability`` the measured part of the time in which nodes answer."""

    def __init__(
        self, state: State, nodes: Nodes, availability: Callable[[], Mapping[NodeId, float]], now: Callable[[], float]
    ) -> None:
        self._state = state
        self._nodes = nodes
        self._availability = availability
        self._now = now
        self._answers: dict[bytes, tuple[float, tuple[int, int] | HivefsError]] = {}

    def resolve(self, policy: Policy) -> Policy:
        """The policy with its code. Raises PolicyInfeasible, TooFewNodes when none can be placed."""
        if not policy.auto:
            return policy
        digest = policy_format.digest(policy)
        until, answer = self._answers.get(digest, (0.0, (0, 0)))
        if until <= self._now():
            try:
                answer = self._code(policy, digest)
            except (PolicyInfeasible, TooFewNodes) as error:
                answer = error
            self._answers[digest] = self._now() + LOOK_SECONDS, answer
        if isinstance(answer, HivefsError):
            raise answer
        return policy.resolved(*answer)

    def forget(self) -> None:
        """Policies or nodes are others now: look again at once."""
        self._answers.clear()

    def _code(self, policy: Policy, digest: bytes) -> tuple[int, int]:
        nodes = self._nodes(policy)
        kept: dict[str, Any] = self._state.info("codes") or {}
        match kept.get(digest.hex()):
            case [int(needed), int(total), int(count)] if count <= 2 * len(nodes) <= 4 * count:
                try:
                    choose(policy.resolved(needed, total), nodes, 0)
                    return needed, total
                except (PolicyInfeasible, TooFewNodes):
                    pass  # no stripe of this code can be placed any more: another one is chosen below
        needed, total = code.auto(policy, nodes, self._availability() or code.LIKELY)
        with self._state.writing():
            self._state.save_info("codes", {**kept, digest.hex(): [needed, total, len(nodes)]})
        return needed, total

"""Policies over the control socket of the engine process: get, check, set, explain, simulate.

    policy_get       null                                       -> {text, own, problem, paths, metadata, policies}
    policy_check     {text}                                     -> {policies: {name: reason or ""}, metadata: reason or ""}
    policy_set       {text, force}                              -> the same; raises PolicyInfeasible without force
                     (both: progress [WAITS, nodes, 0] while the engine, which has just started, hears of its nodes)
    policy_explain   {path}            progress [what, n, total]  -> see policy_look.explain
    policy_simulate  {path, lose, seize, nodes_gone}  progress    -> see policy_look.simulate
    policy_there     {path}                                     -> {there: bool}, of what is on this machine

A text that is wrong raises BadPolicy before anything is looked at. The last three look through files and stripes: a process
of its own does that (looker.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import trio

from hivefs.daemon.control import Methods, Report
from hivefs.daemon.control_frames import Encoded
from hivefs.daemon.policy_nodes import Node, infeasible, shown
from hivefs.errors import BadPolicy, PolicyInfeasible
from hivefs.maintenance.turns import Turns
from hivefs.placement.language import PolicySet, parse
from hivefs.placement.policy import Policy


class Book(Protocol):
    """The engine's side."""

    @property
    def default(self) -> Policy: ...
    def text(self) -> str: ...
    async def set_text(self, text: str) -> None: ...
    def nodes(self) -> Iterable[Node]: ...


MEET_EVERY = 0.2
WAITS = "nodes heard of so far"
"""The step of an engine that has just started and waits for what nodes say."""

Look = Callable[[str, dict[str, Any], Iterable[Node], Report], Awaitable[Encoded]]
"""Asks a question of looking.KINDS about all that is committed up to now."""


class PolicyControl:
    """``busy`` says that somebody asks; ``ready`` waits until the whole book is on this machine (after a recovery).
    ``meeting`` says whether the engine has just started and may hear of its nodes yet, which ends by itself.
    """

    def __init__(
        self,
        book: Book,
        look: Look,
        ready: Callable[[], Awaitable[None]],
        busy: Callable[[], AbstractContextManager[Any]] = nullcontext,
        meeting: Callable[[], bool] = lambda: False,
    ) -> None:
        self._book = book
        self._look = look
        self._ready = ready
        self._busy = busy
        self._meeting = meeting

    def add_to(self, methods: Methods) -> None:
        """Answer to the names above."""
        methods.add("policy_get", self._get)
        methods.add_stream("policy_check", self._check)
        methods.add_stream("policy_set", self._set)
        methods.add_stream("policy_explain", self._explain)
        methods.add_stream("policy_simulate", self._simulate)
        methods.add_stream("policy_there", self._there)

    async def _parse(self, text: str) -> PolicySet:
        return await trio.to_thread.run_sync(parse, text, self._book.default)

    async def _nodes(self) -> list[Node]:
        nodes, turns = [], Turns()
        for node in self._book.nodes():
            nodes.append(node)
            await turns.item()
        return nodes

    async def _now(self) -> PolicySet:
        return await self._parse(self._book.text())

    async def _get(self, _: Any) -> dict[str, Any]:
        await self._ready()
        text = self._book.text()
        try:
            made = await self._parse(text)
        except BadPolicy as error:  # of another version of HiveFS: it can be seen and mended
            return {"text": text, "own": True, "problem": str(error), "paths": {}, "metadata": "", "policies": {}}
        return {
            "text": text,
            "own": bool(text),
            "problem": "",
            "paths": dict(made.paths),
            "metadata": made.metadata().name,
            "policies": {name: shown(policy) for name, policy in made.policies.items()},
        }

    async def _check(self, value: Any, report: Report) -> dict[str, Any]:
        with self._busy():
            return await self._feasible(await self._parse(str(value["text"])), report)

    async def _feasible(self, made: PolicySet, report: Report) -> dict[str, Any]:
        """What the nodes there can keep. That they cannot is said when an engine that has just started heard of them."""
        while True:
            meeting = self._meeting()  # before the nodes are looked at: with the last of them it ends
            nodes = await self._nodes()
            reasons = {}
            for name, policy in made.policies.items():
                reasons[name] = await trio.to_thread.run_sync(infeasible, policy, nodes)
            metadata = await trio.to_thread.run_sync(infeasible, made.metadata(), nodes)
            here = sum(node.here for node in nodes)
            if not meeting or not (metadata or any(reasons.values())):
                return {"policies": reasons, "in_use": list(made.in_use()), "metadata": metadata, "nodes": here}
            await report([WAITS, here, 0])
            await trio.sleep(MEET_EVERY)

    async def _set(self, value: Any, report: Report) -> dict[str, Any]:
        with self._busy():
            await self._ready()
            text = str(value["text"])
            made = await self._parse(text)
            found = await self._feasible(made, report)
            waits = [(name, found["policies"][name]) for name in made.in_use() if found["policies"][name]]
            if found["metadata"] and not waits:
                waits.append(("of the metadata", found["metadata"]))
            if waits and not value.get("force"):
                raise PolicyInfeasible(reason=f"policy {waits[0][0]}: {waits[0][1]} (nothing was changed; see --force)")
            await self._book.set_text(text)
            return found

    # ---- looks --------------------------------------------------------------------------------------------------------

    async def _explain(self, value: Any, report: Report) -> Encoded:
        with self._busy():
            await self._ready()
            return await self._look("explain", {"path": _plain(str(value["path"]))}, self._book.nodes(), report)

    async def _there(self, value: Any, report: Report) -> Encoded:
        with self._busy():
            await self._ready()
            return await self._look("there", {"path": _plain(str(value["path"]))}, (), report)

    async def _simulate(self, value: Any, report: Report) -> Encoded:
        with self._busy():
            await self._ready()
            asked = {
                "path": _plain(str(value.get("path") or "/")),
                "lose": [str(word) for word in value["lose"]],
                "seize": [str(word) for word in value["seize"]],
                "gone": int(value["nodes_gone"]),
            }
            return await self._look("simulate", asked, self._book.nodes(), report)


def _plain(path: str) -> str:
    return "/" + path.strip("/")

"""Policies over the control socket of the engine process: get, check, set, explain, simulate.

    policy_get       null                                       -> {text, own, problem, paths, metadata, policies}
    policy_check     {text}                                     -> {policies: {name: reason or ""}, metadata: reason or ""}
    policy_set       {text, force}                              -> the same; raises PolicyInfeasible without force
    policy_explain   {path}            progress [what, n, 0]    -> see _explain
    policy_simulate  {path, lose, seize, nodes_gone}  progress  -> see _simulate

A text that is wrong raises BadPolicy before anything is looked at. Long work is done in steps (policy_walk.py).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, TypeAlias

import trio

from hivefs.daemon.control import Methods, Report
from hivefs.daemon.policy_book import Book, Node, infeasible, known_attributes
from hivefs.daemon.policy_walk import Snapshot, files_with_chunks, inode_at, stepped
from hivefs.errors import BadPolicy, PolicyInfeasible
from hivefs.maintenance.turns import Turns
from hivefs.model.ids import ChunkId, NodeId, StripeId
from hivefs.model.stripe import Stripe
from hivefs.placement import heads, lazy
from hivefs.placement.attributes import authorities
from hivefs.placement.health import NodeState
from hivefs.placement.holdings import Holdings
from hivefs.placement.language import PolicySet, parse
from hivefs.placement.policy import AT_ONCE, DEFAULT, Policy
from hivefs.placement.whatif import Fate, Outcome, WhatIf, independent, limits_in_words, named

NEAR = 256
"""Stripes that a question remembers."""

Who: TypeAlias = Mapping[str, frozenset[str]]


class Committed(Snapshot, Protocol):
    """A snapshot that is begun here and closed."""

    def begin(self) -> int: ...
    def close(self) -> None: ...


@dataclass
class _File:
    """A file at its path, with its chunks; ``local``: some of it is only on this machine."""

    at: str
    chunks: list[ChunkId]
    local: bool


class PolicyControl:
    """``snapshot`` gives all that is committed up to now; ``busy`` says that somebody asks; ``ready`` waits until the whole
    book is on this machine (after a recovery).
    """

    def __init__(
        self,
        book: Book,
        names_key: bytes,
        snapshot: Callable[[], Awaitable[Committed]],
        ready: Callable[[], Awaitable[None]],
        busy: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._book = book
        self._names_key = names_key
        self._snapshot = snapshot
        self._ready = ready
        self._busy = busy

    def add_to(self, methods: Methods) -> None:
        """Answer to the names above."""
        methods.add("policy_get", self._get)
        methods.add("policy_check", self._check)
        methods.add("policy_set", self._set)
        methods.add_stream("policy_explain", self._explain)
        methods.add_stream("policy_simulate", self._simulate)

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

    async def _check(self, value: Any) -> dict[str, Any]:
        return await self._feasible(await self._parse(str(value["text"])))

    async def _feasible(self, made: PolicySet) -> dict[str, Any]:
        nodes = await self._nodes()
        reasons = {}
        for name, policy in made.policies.items():
            reasons[name] = await trio.to_thread.run_sync(infeasible, policy, nodes)
        return {
            "policies": reasons,
            "in_use": list(made.in_use()),
            "metadata": await trio.to_thread.run_sync(infeasible, made.metadata(), nodes),
            "nodes": sum(node.here for node in nodes),
        }

    async def _set(self, value: Any) -> dict[str, Any]:
        with self._busy():
            await self._ready()
            text = str(value["text"])
            made = await self._parse(text)
            found = await self._feasible(made)
            waits = [(name, found["policies"][name]) for name in made.in_use() if found["policies"][name]]
            if found["metadata"] and not waits:
                waits.append(("of the metadata", found["metadata"]))
            if waits and not value.get("force"):
                raise PolicyInfeasible(reason=f"policy {waits[0][0]}: {waits[0][1]} (nothing was changed; see --force)")
            await self._book.set_text(text)
            return found

    # ---- explain ------------------------------------------------------------------------------------------------------

    async def _explain(self, value: Any, report: Report) -> dict[str, Any]:
        with self._busy():
            await self._ready()
            path = _plain(str(value["path"]))
            made = await self._now()
            nodes = await self._nodes()
            holdings = Holdings(known_attributes(nodes))
            counts = {"files": 0, "local": 0}
            seen: set[tuple[bytes, str]] = set()
            names: dict[str, None] = {made.for_path(path): None}
            near: dict[StripeId, Stripe] = {}
            turns = Turns()
            async with aclosing(self._files(path, report)) as files:
                async for file in files:
                    counts["files"] += 1
                    name = made.for_path(file.at)
                    names[name] = None
                    async with aclosing(self._stripes(file, near, turns)) as stripes:
                        async for stripe in stripes:
                            if (stripe.stripe_id, name) not in seen:
                                seen.add((stripe.stripe_id, name))
                                holdings.add(stripe, _coded(made.policies[name], stripe))
                    counts["local"] += file.local
            metadata = Holdings(known_attributes(nodes))
            rules = made.metadata()
            for stripe in self._book.metadata_stripes():
                metadata.add(stripe, _coded(rules, stripe))
                await turns.item()
            policies = {}
            for name in names:
                reason = await trio.to_thread.run_sync(infeasible, made.policies[name], nodes)
                policies[name] = {
                    **shown(made.policies[name]),
                    "repair": _repair(made.policies[name], holdings.codes),
                    "infeasible": reason,
                    "limits": await trio.to_thread.run_sync(limits, made.policies[name], nodes),
                }
            return {
                "path": path,
                "policy": made.for_path(path),
                "policies": policies,
                **counts,
                **holdings.summary(),
                "holders": await self._holders(holdings, nodes),
                "metadata": {"policy": rules.name, **metadata.summary(), "holders": await self._holders(metadata, nodes)},
                "freshness": await trio.to_thread.run_sync(self._freshness, rules, nodes),
            }

    @staticmethod
    async def _holders(holdings: Holdings, nodes: Sequence[Node]) -> list[dict[str, Any]]:
        """The nodes with shares, most first."""
        found, turns = [], Turns()
        known: dict[NodeId, Node] = {}
        for node in nodes:
            known[node.node_id] = node
            await turns.item()
        for node_id, count in holdings.shares.most_common():
            found.append(holder(known[node_id], count))
            await turns.item()
        return found

    @staticmethod
    def _freshness(rules: Policy, nodes: Sequence[Node]) -> dict[str, Any]:
        over = [authorities(n.attributes, rules.evidence) for n in nodes if n.here]
        return {"jurisdictions": _independent(rules, nodes), **heads.freshness(rules, over)}

    async def _files(self, path: str, report: Report) -> AsyncGenerator[_File, None]:
        """Each file at and below a path, once."""
        snapshot = await self._snapshot()
        try:
            snapshot.begin()
            ino = await trio.to_thread.run_sync(inode_at, snapshot, self._names_key, path)
            done = 0
            async with aclosing(stepped(files_with_chunks(snapshot, ino, path))) as batches:
                async for batch in batches:
                    for at, chunks, local in batch:
                        yield _File(at, chunks, local)
                    done += len(batch)
                    await report(["files", done, 0])
        finally:
            snapshot.close()

    async def _stripes(self, file: _File, near: dict[StripeId, Stripe], turns: Turns) -> AsyncGenerator[Stripe, None]:
        """The stripes of a file, each once; a chunk without one makes the file local. ``near`` remembers some: small files
        share them with those that were written before and after.
        """
        seen: set[StripeId] = set()
        for chunk_id in file.chunks:
            stripe = self._book.stripe_of(chunk_id, near)
            if stripe is None:
                file.local = True
            elif stripe.stripe_id not in seen:
                if len(near) >= NEAR:
                    near.clear()
                near[stripe.stripe_id] = stripe
                seen.add(stripe.stripe_id)
                yield stripe
            await turns.item()

    # ---- simulate ------------------------------------------------------------------------------------------------------

    async def _simulate(self, value: Any, report: Report) -> dict[str, Any]:
        with self._busy():
            await self._ready()
            made = await self._now()
            lose = named([str(word) for word in value["lose"]], "--lose", made.blocs)
            seize = named([str(word) for word in value["seize"]], "--seize", made.blocs)
            gone = int(value["nodes_gone"])
            nodes = await self._nodes()
            ask = await trio.to_thread.run_sync(_question, nodes, made, lose, seize, gone)
            outcome, local, turns = Outcome(), 0, Turns()
            near: dict[StripeId, Stripe] = {}
            async with aclosing(self._files(_plain(str(value.get("path") or "/")), report)) as files:
                async for file in files:
                    async with aclosing(self._stripes(file, near, turns)) as stripes:
                        outcome.add([_fate(ask, stripe) async for stripe in stripes])
                    local += file.local
            metadata = Outcome()
            for stripe in self._book.metadata_stripes():
                metadata.add([_fate(ask, stripe)])
                await turns.item()
            return {
                "nodes": sum(node.state != NodeState.GONE for node in nodes),
                "nodes_left": ask.left,
                "nodes_gone": gone,
                "files": asdict(outcome),
                "metadata_stripes": asdict(metadata),
                "local": local,
            }


# ---- plain values ------------------------------------------------------------------------------------------------------


def _plain(path: str) -> str:
    return "/" + path.strip("/")


def _question(nodes: Sequence[Node], made: PolicySet, lose: Who, seize: Who, gone: int) -> WhatIf:
    weakest = made.policies[DEFAULT].evidence
    there = {n.node_id: authorities(n.attributes, weakest) for n in nodes if n.state != NodeState.GONE}
    return WhatIf(there, lose, seize, gone)


def _fate(ask: WhatIf, stripe: Stripe) -> Fate:
    return ask.fate(stripe.needed, [share.node for share in stripe.shares])


def _coded(policy: Policy, stripe: Stripe) -> Policy:
    return replace(policy, needed=stripe.needed, total=stripe.total)


def shown(policy: Policy) -> dict[str, Any]:
    """A policy for people and programs."""
    return {
        "code": "auto" if policy.auto else f"{policy.needed}/{policy.total}",
        "rules": [asdict(rule) for rule in policy.rules if rule.coalition or rule.lose],
        "max_per": dict(policy.max_per),
        "evidence": policy.evidence.name.lower(),
        "allow": list(policy.allow),
        "deny": list(policy.deny),
        "repair_at": "auto" if not policy.repair_at else 0 if policy.repair_at == AT_ONCE else policy.repair_at,
    }


def _repair(policy: Policy, codes: Iterable[str]) -> dict[str, str]:
    """When repair begins, by code: that of the policy, or those that stripes have where it is automatic."""
    pairs = [tuple(map(int, code.split("/"))) for code in codes] if policy.auto else [(policy.needed, policy.total)]
    return {f"{k}/{n}": lazy.words(replace(policy, needed=k, total=n)) for k, n in sorted(pairs)}


def _independent(policy: Policy, nodes: Sequence[Node]) -> int:
    return independent(authorities(n.attributes, policy.evidence)["jurisdiction"] for n in nodes if n.here)


def limits(policy: Policy, nodes: Sequence[Node]) -> str:
    """What the jurisdictions there are cannot give, in words."""
    rule = next((r for r in policy.rules if r.family == "jurisdiction"), None)
    return "" if rule is None else limits_in_words(_independent(policy, nodes), rule.coalition, rule.lose)


def holder(node: Node, shares: int) -> dict[str, Any]:
    """A node with so many shares."""
    return {
        "node": node.node_id.hex(),
        "shares": shares,
        "state": node.state.name.lower(),
        "attributes": {a.name: a.value for a in node.attributes},
        "evidence": {a.name: a.evidence.name.lower() for a in node.attributes},
    }

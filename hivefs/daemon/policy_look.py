"""What 'hivefs policy explain' and 'simulate' find out, file by file and stripe by stripe: as long as it takes, in memory
that grows neither with files nor with stripes. Runs in a process of its own (looking.py), never in the engine's loop.

Which stripes files name is written down sorted (sorted_keys.py), so that each is looked at once and in the order in which
the book has them. Stripes with the same holders are judged once: there are few such sets (placement/holdings.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from hivefs.daemon.policy_nodes import Node, coded, holder, independent_nodes, infeasible, known_attributes, limits, shown
from hivefs.daemon.policy_walk import Snapshot, files_with_chunks, inode_at
from hivefs.daemon.sorted_keys import SortedKeys
from hivefs.errors import PathNotInDrive
from hivefs.model.ids import ID_BYTES, ChunkId, NodeId, StripeId
from hivefs.placement import heads, lazy
from hivefs.placement.attributes import authorities
from hivefs.placement.health import NodeState
from hivefs.placement.holdings import Holdings
from hivefs.placement.language import PolicySet, parse
from hivefs.placement.policy import DEFAULT, Policy
from hivefs.placement.whatif import Fate, Outcome, WhatIf, named

MOST_HOLDERS: Final = 10_000
"""Nodes that are told, those with most shares; of the others only how many they are."""

NEAR: Final = 4096
"""Stripes and outcomes that are remembered: files share stripes with those written before and after, stripes share sets."""

NUMBER: Final = 2
"""Bytes of the number of a policy."""

Tell = Callable[[str, int, int], None]
"""Hears what is looked at, how far, and of how many (0: not known)."""

Held = tuple[int, tuple[NodeId | None, ...]]


class Book(Protocol):
    """The engine's book, as these questions read it (metadata/engine_look.py)."""

    @property
    def default(self) -> Policy: ...
    def policy_text(self) -> str: ...
    def stripe_id_of(self, chunk_id: ChunkId) -> StripeId | None: ...
    def knows(self, stripe_id: StripeId) -> bool: ...
    def holders(self, stripe_id: StripeId) -> Held | None: ...
    def metadata_holders(self) -> Iterator[tuple[StripeId, Held]]: ...


@dataclass
class Look:
    """What there is to look at: the book, a snapshot of the files, all nodes; a directory for a file without a name."""

    book: Book
    snapshot: Snapshot
    names_key: bytes
    nodes: Sequence[Node]
    room: Path
    tell: Tell

    def files(self, path: str) -> Iterator[tuple[str, Iterator[ChunkId | None]]]:
        """Each file at and below a path, once. Raises PathNotInDrive."""
        ino = inode_at(self.snapshot, self.names_key, path)
        done = 0
        for done, file in enumerate(files_with_chunks(self.snapshot, ino, path), 1):
            yield file
            self.tell("files", done, 0)
        self.tell("files", done, done)


class _Near:
    """Answers of a function, the last NEAR of them or so."""

    def __init__(self, ask: Callable[[Any], Any]) -> None:
        self._ask = ask
        self._known: dict[Any, Any] = {}

    def __call__(self, what: Any) -> Any:
        if what not in self._known:
            if len(self._known) >= NEAR:
                self._known.clear()
            self._known[what] = self._ask(what)
        return self._known[what]


def there(look: Look, path: str) -> dict[str, Any]:
    """Whether there is something at a path."""
    try:
        inode_at(look.snapshot, look.names_key, path)
    except PathNotInDrive:
        return {"there": False}
    return {"there": True}


# ---- explain -----------------------------------------------------------------------------------------------------------


def explain(look: Look, path: str) -> dict[str, Any]:
    """Who holds what of the files at and below a path, and what proves that it is as their policies say."""
    book, nodes = look.book, look.nodes
    made = parse(book.policy_text(), book.default, kept=True)
    keys = SortedKeys(look.room, NUMBER + ID_BYTES)
    try:
        names, files, local = _named_stripes(look, path, made, keys)
        holdings = Holdings(known_attributes(nodes))
        policies = [made.policies[name] for name in names]
        done = 0
        for done, key in enumerate(keys, 1):
            stripe_id = StripeId(key[NUMBER:])
            held = book.holders(stripe_id)
            if held is not None:  # else it was given up meanwhile
                holdings.add(stripe_id, *held, policies[int.from_bytes(key[:NUMBER], "big")])
            look.tell("stripes", done, 0)
        look.tell("stripes", done, done)
    finally:
        keys.close()
    holdings.settle()
    metadata, rules = Holdings(known_attributes(nodes)), made.metadata()
    for stripe_id, held in book.metadata_holders():
        metadata.add(stripe_id, *held, rules)
        look.tell("stripes", done, done)
    metadata.settle()
    known = {node.node_id: node for node in nodes}
    told = {}
    for number, policy in enumerate(policies):
        look.tell("policies", number, len(policies))
        told[policy.name] = {
            **shown(policy),
            "repair": _repair(policy, holdings.codes),
            "infeasible": infeasible(policy, nodes),
            "limits": limits(policy, nodes),
        }
    look.tell("policies", len(policies), len(policies))
    return {
        "path": path,
        "policy": made.for_path(path),
        "policies": told,
        "files": files,
        "local": local,
        **holdings.summary(),
        **_holders(holdings, known),
        "metadata": {"policy": rules.name, **metadata.summary(), **_holders(metadata, known)},
        "freshness": _freshness(rules, nodes),
    }


def _named_stripes(look: Look, path: str, made: PolicySet, keys: SortedKeys) -> tuple[list[str], int, int]:
    """Write down the stripes that the files have, each with the number of their policy. The names of policies by number;
    how many files there are; how many of them are not whole in stripes.
    """
    numbers = {made.for_path(path): 0}
    files = local = 0
    knows = _Near(look.book.knows)
    before = b""
    for at, chunks in look.files(path):
        files += 1
        head = numbers.setdefault(made.for_path(at), len(numbers)).to_bytes(NUMBER, "big")
        whole = True
        for chunk_id in chunks:
            stripe_id = None if chunk_id is None else look.book.stripe_id_of(chunk_id)
            if stripe_id is None or not knows(stripe_id):
                whole = False
            elif (key := head + stripe_id) != before:
                keys.add(key)
                before = key
        local += not whole
    return list(numbers), files, local


def _holders(holdings: Holdings, known: dict[NodeId, Node]) -> dict[str, Any]:
    """The nodes with shares, most first."""
    most = [holder(known[node_id], count) for node_id, count in holdings.shares.most_common(MOST_HOLDERS)]
    return {"holders": most, "more_holders": len(holdings.shares) - len(most)}


def _freshness(rules: Policy, nodes: Sequence[Node]) -> dict[str, Any]:
    over = [authorities(n.attributes, rules.evidence) for n in nodes if n.here]
    return {"jurisdictions": independent_nodes(rules, nodes), **heads.freshness(rules, over)}


def _repair(policy: Policy, codes: Iterable[str]) -> dict[str, str]:
    """When repair begins, by code: that of the policy, or those that stripes have where it is automatic."""
    pairs = [tuple(map(int, code.split("/"))) for code in codes] if policy.auto else [(policy.needed, policy.total)]
    return {f"{k}/{n}": lazy.words(coded(policy, k, n)) for k, n in sorted(pairs)}


# ---- simulate ----------------------------------------------------------------------------------------------------------


def simulate(look: Look, path: str, lose: list[str], seize: list[str], gone: int) -> dict[str, Any]:
    """What would be left, and what could be put together. Raises BadSetting for words that name no authority."""
    book, nodes = look.book, look.nodes
    made = parse(book.policy_text(), book.default, kept=True)
    ask = WhatIf(
        {n.node_id: authorities(n.attributes, made.policies[DEFAULT].evidence) for n in nodes if n.state != NodeState.GONE},
        named(lose, "--lose", made.blocs),
        named(seize, "--seize", made.blocs),
        gone,
    )
    fate = _Near(lambda held: ask.fate(*held))

    def of_stripe(stripe_id: StripeId) -> Fate | None:
        held = book.holders(stripe_id)
        return None if held is None else fate(held)

    near = _Near(of_stripe)
    outcome, local = Outcome(), 0
    for _, chunks in look.files(path):
        fates: dict[StripeId, Fate] = {}
        whole = True
        for chunk_id in chunks:
            stripe_id = None if chunk_id is None else book.stripe_id_of(chunk_id)
            found = None if stripe_id is None else near(stripe_id)
            if stripe_id is None or found is None:
                whole = False
            else:
                fates[stripe_id] = found
        outcome.add(fates.values())
        local += not whole
    metadata = Outcome()
    for _, held in book.metadata_holders():
        metadata.add([fate(held)])
    return {
        "nodes": sum(node.state != NodeState.GONE for node in nodes),
        "nodes_left": ask.left,
        "nodes_gone": gone,
        "files": asdict(outcome),
        "metadata_stripes": asdict(metadata),
        "local": local,
    }

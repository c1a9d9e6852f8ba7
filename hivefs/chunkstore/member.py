"""One node of the hive as the pool sees it: small when it is merely known, since there may be hundreds of thousands.

Certificate, addresses and attributes are in the engine's book. They are read when they are asked for, and kept only for a
node with which there is a conversation (or that is dialled), which are few; what must be asked of all nodes now and then
(whether one leaves, by which invitation it came, whom it credits) is kept once it was read, in values that many share.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Final

import trio

from hivefs.chunkstore.dialling import FIRST_PAUSE
from hivefs.chunkstore.node_client import NodeClient
from hivefs.chunkstore.ports import NodeBook
from hivefs.formats.member import entry_to_bytes, outline_from_bytes
from hivefs.model.ids import NodeId
from hivefs.model.node import AddressRecord, Evidence, RosterEntry, key_of_invitation
from hivefs.placement.attributes import authorities
from hivefs.placement.evidence import Weighed
from hivefs.placement.health import NodeRow, NodeState

_UNREAD: Final = -1


class Shelf:
    """What the members of a pool share: the book, and what is counted of them as they are read. ``invited`` are those that
    were read by the key of their invitation, ``crediting`` those that credit each vault, ``unread`` how many were not read.
    """

    def __init__(self, book: NodeBook) -> None:
        self.book = book
        self.invited: Counter[bytes] = Counter()
        self.crediting: dict[str, dict[NodeId, None]] = {}
        self.unread = 0


class Member:
    """``problems`` counts answers that were wrong (damaged shares), ``dropped`` is how many shares it said that its own
    disk had lost. ``turn`` is the number of its entry among those that wait to be dialled;
    ``dated``: this process itself saw since when it is as it is.
    """

    __slots__ = (
        "_credits",
        "_entry",
        "_invited",
        "_leaving_s",
        "_shelf",
        "_told",
        "_weighed",
        "busy_for",
        "busy_until",
        "capacity",
        "client",
        "dated",
        "dropped",
        "free_bytes",
        "last_problem",
        "node_id",
        "pause",
        "problems",
        "refused",
        "reserved",
        "scope",
        "since_ns",
        "state",
        "turn",
    )

    def __init__(self, node_id: NodeId, shelf: Shelf, row: NodeRow) -> None:
        self.node_id = node_id
        self._shelf = shelf
        shelf.unread += 1
        self.row = row
        self.client: NodeClient | None = None
        self.reserved = 0
        self.problems = 0
        self.dropped = 0
        self.last_problem = ""
        self.refused = ""
        self.busy_until = 0.0
        self.busy_for = 0.0
        self.scope: trio.CancelScope | None = None
        self.pause = FIRST_PAUSE
        self.turn = 0
        self.dated = False
        self._entry: RosterEntry | None = None
        self._weighed: tuple[Weighed, dict[str, frozenset[str]]] | None = None
        self._leaving_s = _UNREAD
        self._invited = b""
        self._credits = ""
        self._told = 0

    # ---- what was seen of it ----------------------------------------------------------------------------------------

    @property
    def row(self) -> NodeRow:
        """What was last seen of it, as it is written."""
        return NodeRow(self.state, self.since_ns, self.free_bytes, self.capacity)

    @row.setter
    def row(self, row: NodeRow) -> None:
        self.state: NodeState = row.state
        self.since_ns = row.since_ns
        self.free_bytes = row.free_bytes
        self.capacity = row.capacity

    @property
    def held(self) -> bool:
        """There is a conversation with it, or one is looked for: what is read of it is kept."""
        return self.client is not None or self.scope is not None

    def let_go(self) -> None:
        """The conversation is over: what the book has is read there when it is asked for again."""
        self._entry = None
        self._weighed = None

    # ---- what it says -----------------------------------------------------------------------------------------------

    @property
    def entry(self) -> RosterEntry | None:
        """Certificate and addresses; None while the book has none that can be read."""
        if self._entry is not None:
            return self._entry
        entry = self._shelf.book.roster_entry(self.node_id)
        if entry is None:
            self._told = 0  # it is news when it is told again
            return None
        self.hear(entry)
        return entry

    def hear(self, entry: RosterEntry) -> None:
        """That is its entry now."""
        self._note(entry.address, key_of_invitation(entry.membership), hash(entry_to_bytes(entry)))
        self._entry = entry if self.held else None

    def read(self) -> None:
        """Look at its entry, if that was not done since the start. One that cannot be read says nothing: that it leaves,
        or who let it in, is known when it is told again.
        """
        if self._leaving_s == _UNREAD:
            data = self._shelf.book.entry_bytes(self.node_id)
            if data is None:
                self._note(None, b"", 0)
            else:
                self._note(*outline_from_bytes(data), hash(data))

    def _note(self, address: AddressRecord | None, invited: bytes, told: int) -> None:
        self._count(-1)
        self._leaving_s = 0 if address is None else address.leaving_s
        self._invited = _one_of(invited)
        self._credits = "" if address is None else _one_of_words(address.credits)
        self._told = told
        self._count(1)

    def _count(self, sign: int) -> None:
        if self._leaving_s == _UNREAD:
            self._shelf.unread += sign
            return
        self._shelf.invited[self._invited] += sign
        if not self._credits:
            return
        if sign > 0:
            self._shelf.crediting.setdefault(self._credits, {})[self.node_id] = None
            return
        left = self._shelf.crediting[self._credits]
        del left[self.node_id]
        if not left:
            del self._shelf.crediting[self._credits]

    def forgotten(self) -> None:
        """It is not known any more: it does not count."""
        self._count(-1)

    def says(self, entry: RosterEntry) -> bool | None:
        """Whether that is what it is known to say; None when that was not looked at since the start."""
        return None if self._leaving_s == _UNREAD else self._told == hash(entry_to_bytes(entry))

    @property
    def leaving(self) -> bool:
        """It says that it leaves: its shares are read, and moved elsewhere; it takes none."""
        self.read()
        return bool(self._leaving_s)

    @property
    def invited(self) -> bytes:
        """The key of the invitation by which it came; empty for who the owner let in itself."""
        self.read()
        return self._invited

    @property
    def credits(self) -> str:
        """The id of the vault that its operator credits, in hex; empty when none."""
        self.read()
        return self._credits

    # ---- what is known of it ----------------------------------------------------------------------------------------

    @property
    def weighed(self) -> Weighed:
        """Its attributes, with the evidence for them."""
        return self._known()[0]

    @property
    def authorities(self) -> dict[str, frozenset[str]]:
        """The authorities over it, counting what is known by any evidence."""
        return self._known()[1]

    def _known(self) -> tuple[Weighed, dict[str, frozenset[str]]]:
        if self._weighed is not None:
            return self._weighed
        weighed = self._shelf.book.weighed(self.node_id)
        found = weighed, authorities(weighed.attributes)
        self._weighed = found if self.held else None
        return found

    def weighed_anew(self) -> None:
        """The book knows something else of it now."""
        self._weighed = None

    def under(self, weakest: Evidence) -> dict[str, frozenset[str]]:
        """The authorities over it, counting what is known by such evidence or better."""
        return self.authorities if weakest == Evidence.CLAIMED else authorities(self.weighed.attributes, weakest)


@lru_cache(maxsize=4096)
def _one_of(key: bytes) -> bytes:
    """One object for equal keys: of very many nodes most came by few invitations."""
    return key


@lru_cache(maxsize=4096)
def _one_of_words(words: str) -> str:
    return words

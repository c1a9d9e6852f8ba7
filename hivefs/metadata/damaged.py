"""Records about one node that do not open: whoever reads goes on without that record, and it is noted here.

A disk can lose any byte. What the store keeps of a node comes again (from the node, from others, or by watching it), so a
damaged record of that kind sets this one node aside and stops nothing. Pieces, stripes and keys are another matter: there
Corrupt is raised.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from itertools import islice
from typing import Final

from hivefs.model.ids import NodeId


class Record(Enum):
    """What of a node: in words, and what follows when it is damaged."""

    ENTRY = ("its entry", "it is not dialled until it or another node tells that anew")
    SEEN = ("what was last seen of it", "it counts as away from now on until it answers")
    KNOWN = ("what is known of it", "it is weighed anew and counts as under everybody until then")
    CONDUCT = ("the record of its conduct", "that begins anew")
    STATEMENT = ("what it says of itself", "that does not count until it is told anew")
    ATTESTATION = ("an attestation about it", "that does not count until it is brought again ('hivefs attest')")
    RENEWED = ("when its leases were renewed", "they are renewed now")
    ACCOUNT = ("its last account", "it is accounted with anew")
    RECEIPT = ("its last receipt", "the node is asked for it")
    ANSWERED = ("where it answered last", "that does not count until it answers")

    @property
    def words(self) -> str:
        """For people."""
        what, then = self.value
        return f"{what} is damaged in this machine's store: {then}"


EVIDENCE: Final = frozenset({Record.KNOWN, Record.STATEMENT, Record.ATTESTATION, Record.ANSWERED})
"""What a node is weighed by: when that is damaged it comes to something else (maintenance/evidence.py)."""


class Damaged:
    """What was met and not written again since. ``on_found`` hears of each once."""

    def __init__(self) -> None:
        self._met: dict[tuple[str, bytes], tuple[NodeId, Record]] = {}
        self.on_found: Callable[[NodeId, Record], None] = lambda node_id, record: None

    def met(self, table: str, key: bytes, node_id: NodeId, record: Record) -> None:
        """This entry of the store does not open."""
        if (table, key) not in self._met:
            self._met[table, key] = node_id, record
            self.on_found(node_id, record)

    def written(self, table: str, key: bytes) -> None:
        """It was written anew, or removed."""
        if self._met:
            self._met.pop((table, key), None)

    def has(self, table: str, key: bytes) -> bool:
        """Whether that entry is known not to open."""
        return (table, key) in self._met

    def __len__(self) -> int:
        return len(self._met)

    def of(self, node_id: NodeId) -> list[Record]:
        """What of this node."""
        return [record for other, record in self._met.values() if other == node_id]

    def told(self, most: int) -> list[dict[str, str]]:
        """For ``hivefs status``: of which nodes what, and that in words."""
        first = islice(self._met.values(), most)
        return [{"id": node_id.hex(), "record": record.name.lower(), "words": record.words} for node_id, record in first]

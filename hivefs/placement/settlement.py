"""What becomes of the shares of a stripe: which stay, which must move, which are missing. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hivefs.model.ids import NodeId


@dataclass(frozen=True, slots=True)
class Settlement:
    """Share numbers that ``keep`` their holder, those that must ``move`` off it and those that are ``missing``, and the
    new ``nodes`` for both. ``fewest`` is whether it is proved that fewer moves cannot do.
    """

    keep: tuple[int, ...]
    move: tuple[int, ...]
    missing: tuple[int, ...]
    nodes: Mapping[int, NodeId] = field(default_factory=dict)
    fewest: bool = True

    @property
    def settled(self) -> bool:
        """Whether nothing is to be done."""
        return not self.move and not self.missing

"""How long leases last, and which clock they go by.

A lease ends by the node's clock, and clocks are wrong now and then. Three things keep a wrong one from costing a share:
a day of tolerance; an ended lease only marks, and is collected when room is needed or after a month; and the clock that
leases go by follows a jump forward only after it has held for a week of running, so a machine that starts with the year
2038 forgets nothing before somebody had time to notice. It never goes back.
"""

from __future__ import annotations

DAY_NS = 86_400 * 10**9
SKEW_NS = DAY_NS
GRACE_NS = 30 * DAY_NS
SHORTEST_NS = DAY_NS
LONGEST_NS = 2 * 365 * DAY_NS
JUMP_NS = DAY_NS
BELIEVED_AFTER_NS = 7 * DAY_NS


def grant(wanted_ns: int, now_ns: int) -> int:
    """When a lease ends that a client wants until ``wanted_ns``: a day to two years from now."""
    return min(max(wanted_ns, now_ns + SHORTEST_NS), now_ns + LONGEST_NS)


class LeaseClock:
    """``saved_ns`` is what the clock said when it was last saved (0: never); ``observe`` is called every minute or so."""

    def __init__(self, saved_ns: int, wall_ns: int, running_ns: int) -> None:
        self.now_ns = saved_ns or wall_ns
        self._seen_ns = running_ns
        self._jumped_ns: int | None = None

    def observe(self, wall_ns: int, running_ns: int) -> int:
        """The time for leases, from the system's clock and a clock that only runs (both ns)."""
        elapsed = max(0, running_ns - self._seen_ns)
        self._seen_ns = running_ns
        ahead = wall_ns - (self.now_ns + elapsed)
        if ahead <= JUMP_NS:
            self._jumped_ns = None
            self.now_ns = max(self.now_ns, wall_ns)
            return self.now_ns
        if self._jumped_ns is None:
            self._jumped_ns = running_ns
        if running_ns - self._jumped_ns >= BELIEVED_AFTER_NS:
            self._jumped_ns = None
            self.now_ns = wall_ns
        else:
            self.now_ns += elapsed
        return self.now_ns

    @property
    def doubtful(self) -> bool:
        """Whether the system's clock is ahead and not believed yet."""
        return self._jumped_ns is not None

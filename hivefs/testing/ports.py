"""A TCP port of this machine for what a test starts later."""

from __future__ import annotations

from hivefs.daemon.embedded import _free_ports

_given: set[int] = set()


def free_port() -> int:
    """A port on which nobody listens now, and not one of those that the kernel gives to outgoing connections: one of them
    might take it before what is started here listens on it. None is given twice: what was given first may not listen yet.
    """
    while (port := _free_ports(1)[0]) in _given:
        pass
    _given.add(port)
    return port


def free_ports(count: int) -> list[int]:
    """So many."""
    return [free_port() for _ in range(count)]

"""A TCP port of this machine for what a test starts later."""

from __future__ import annotations

from hivefs.daemon.embedded import _free_ports


def free_port() -> int:
    """A port on which nobody listens now, and not one of those that the kernel gives to outgoing connections: one of them
    might take it before what is started here listens on it.
    """
    (port,) = _free_ports(1)
    return port

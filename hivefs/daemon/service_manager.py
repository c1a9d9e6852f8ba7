"""Telling systemd how a service is (sd_notify(3)): one datagram to the socket in NOTIFY_SOCKET, if there is one."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(*lines: str) -> bool:
    """``READY=1``, ``STOPPING=1``, ``STATUS=...``; False when nobody wants to know. A manager that cannot be told is no
    reason to stop serving.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
        to.connect("\0" + address[1:] if address[0] == "@" else address)
        to.send("\n".join(lines).encode())
        return True
    return False

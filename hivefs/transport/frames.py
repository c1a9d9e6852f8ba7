"""The shape of a Yamux frame, and the sizes and times this end chooses."""

from __future__ import annotations

from struct import Struct

HEADER = Struct("!BBHII")  # version, type, flags, stream, length
DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8

MAX_FRAME = 256 * 1024
"""Largest body we send; Rust's yamux refuses more than 1 MiB, Go and JavaScript take what the window allows."""
MERGE_BELOW = 4096
MERGED_SIZE = 64 * 1024
MAX_WINDOW = 1 << 30
DRAIN_SECONDS = 30.0
GROW_SECONDS = 0.02


class ProtocolViolation(Exception):
    """The other end broke the protocol; the connection ends."""

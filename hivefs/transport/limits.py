"""What one peer, and all peers together, may cost us.

A peer is hostile until its membership is proved, and a member may be hostile too, so every resource that somebody
else can make us spend has a bound here. What happens at each bound is said beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

INITIAL_WINDOW = 256 * 1024
"""What the Yamux specification lets a peer send on a stream before it hears anything from us."""


@dataclass(frozen=True)
class Limits:
    """Bounds for one host; the defaults suit a node with a few hundred clients."""

    max_connections: int = 512
    """Connections that others opened to us. One more ends one of the network that has most of them (sites.py): one on which
    nothing is asked, else the oldest; when its own network is that one, one of the fullest place there, or it is closed
    itself when its own place has as many."""

    max_connections_per_ip: int = 64
    """The same for one IPv4 address or IPv6 /64 (a university behind one address still fits); one more is closed."""

    max_connections_per_network: int = 128
    """The same for one IPv4 /24 or IPv6 /48; one more ends one of the fullest place in it, or is closed when its own place
    has as many."""

    max_half_open: int = 64
    """Inbound connections inside their handshake. One more evicts the oldest of the place that has most of them,
    so a flood of idle connections costs its sender a socket each and never keeps an honest peer out."""

    handshake_timeout: float = 10.0
    """Seconds for everything between accept and the first stream."""

    max_streams: int = 128
    """Streams that the other end may have open on one connection, unfinished handlers included; one more is reset."""

    max_streams_in_total: int = 4096
    """The same over all connections: each costs a task. One more resets the oldest of the connection that has most."""

    max_buffered_bytes: int = 16 * 1024 * 1024
    """Received and unread bytes on one connection, over all streams; the stream that passes it is reset. Half of it
    is lent out as windows beyond the initial one: an honest peer with up to 32 paused streams never meets the bound."""

    max_buffered_in_total: int = 128 * 1024 * 1024
    """The same over all connections; past it the connection that holds most has its full streams reset."""

    max_stream_window: int = 4 * 1024 * 1024
    """How far the receive window of a stream that keeps up may grow."""

    keepalive_interval: float = 5.0
    """Seconds of silence after which the other end is asked for a sign of life."""

    keepalive_timeout: float = 10.0
    """Seconds that the sign of life may take; a frozen peer is given up after interval + timeout."""

    def __post_init__(self) -> None:
        if self.max_stream_window < INITIAL_WINDOW:
            raise ValueError("max_stream_window is smaller than the initial window of the protocol")
        if self.max_buffered_bytes < 2 * INITIAL_WINDOW:
            raise ValueError("max_buffered_bytes holds less than two initial windows")
        if min(self.keepalive_interval, self.keepalive_timeout, self.handshake_timeout) <= 0:
            raise ValueError("intervals and timeouts are positive")

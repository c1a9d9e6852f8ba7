"""What the conversation needs of a stream of bytes; transport/ and testing/streams.py have one."""

from __future__ import annotations

from typing import Protocol


class ByteStream(Protocol):
    """Ordered bytes in both directions between two peers that proved their keys.

    One task may send and one may receive at a time. A cancelled ``send_all`` leaves an unknown part sent. All raise
    HivefsError (ConnectionLost, PeerTimeout) when the connection is lost.
    """

    @property
    def peer_key(self) -> bytes:
        """The 32-byte Ed25519 key that the other end proved."""
        ...

    @property
    def site(self) -> tuple[str, str]:
        """Where the other end is, as text that is only compared: its network, and its place in it (transport/sites.py)."""
        ...

    async def send_all(self, data: bytes | bytearray | memoryview) -> None: ...

    async def receive_some(self, max_bytes: int = ...) -> bytes:
        """At least one byte, or b"" at the end."""
        ...

    async def receive_pieces(self, max_bytes: int = ...) -> list[bytes | bytearray]:
        """The same without joining what lies there in pieces, of which none is empty; [] at the end. The last one may go
        beyond ``max_bytes``. The pieces are the caller's.
        """
        ...

    def accepted(self) -> int:
        """A count that grows with every byte sent on this connection, also by other streams."""
        ...

    def departed(self) -> int:
        """As far as the same count has left this machine: what ``accepted`` said before a pause has left when this is as
        much. Costs a system call.
        """
        ...

    async def aclose(self) -> None: ...

    async def reset(self) -> None: ...

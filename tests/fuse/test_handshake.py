"""The FUSE_INIT exchange, against a kernel and a libfuse played by sockets."""

from __future__ import annotations

import os
import socket
import struct

import pytest

from hivefs.errors import NoFuse
from hivefs.fuse import handshake
from hivefs.fuse.handshake import (
    ATOMIC_O_TRUNC,
    CACHE_SYMLINKS,
    DONT_MASK,
    HANDLE_KILLPRIV_V2,
    POSIX_ACL,
    Handshake,
    improved,
    offer_of,
)

OTHER = 1 << 16 | 1 << 22


def request(flags: int, *, opcode: int = 26, minor: int = 45) -> bytes:
    """fuse_in_header and fuse_init_in as Linux sends them (with flags2 and padding)."""
    body = struct.pack("=IIII", 7, minor, 131072, flags) + bytes(48)
    return struct.pack("=IIQQIIII", 40 + len(body), opcode, 2, 0, 0, 0, 0, 0) + body


def reply(flags: int, *, error: int = 0) -> bytes:
    """fuse_out_header and fuse_init_out as libfuse answers."""
    body = struct.pack("=IIII HHII HHI", 7, 38, 131072, flags, 12, 9, 1 << 20, 1, 256, 0, 0) + bytes(28)
    return struct.pack("=IiQ", 16 + len(body), error, 2) + body


def flags_of(data: bytes) -> int:
    return int(struct.unpack_from("=I", data, 16 + 12)[0])


def test_our_choices_are_put_into_the_answer_and_nothing_else_changes() -> None:
    offer = offer_of(request(ATOMIC_O_TRUNC | CACHE_SYMLINKS | HANDLE_KILLPRIV_V2 | OTHER))
    before = reply(ATOMIC_O_TRUNC | OTHER)
    after = improved(offer, before)
    assert flags_of(after) == OTHER | CACHE_SYMLINKS | HANDLE_KILLPRIV_V2
    background, congestion = struct.unpack_from("=HH", after, 32)
    assert (background, congestion) == (handshake.MAX_BACKGROUND, handshake.MAX_BACKGROUND * 3 // 4)
    assert len(after) == len(before)
    assert after[:28] == before[:28]
    assert after[36:] == before[36:]


def test_only_what_the_kernel_offered_is_asked_for() -> None:
    assert flags_of(improved(offer_of(request(OTHER)), reply(OTHER))) == OTHER


def test_the_umask_is_ours_where_acls_are() -> None:
    """POSIX_ACL is asked for by pyfuse3; DONT_MASK comes with it, and never alone."""
    both = POSIX_ACL | DONT_MASK
    assert flags_of(improved(offer_of(request(OTHER | both)), reply(OTHER | POSIX_ACL))) == OTHER | both
    assert flags_of(improved(offer_of(request(OTHER | both)), reply(OTHER))) == OTHER


def test_an_error_passes_unchanged() -> None:
    data = reply(OTHER, error=-71)
    assert improved(offer_of(request(CACHE_SYMLINKS)), data) == data
    assert improved(offer_of(request(CACHE_SYMLINKS)), data[:16]) == data[:16]


@pytest.mark.parametrize("data", [b"", request(0)[:50], request(0, opcode=1), request(0, minor=22)])
def test_what_is_no_usable_init_is_refused(data: bytes) -> None:
    with pytest.raises(NoFuse):
        offer_of(data)


def test_the_kernel_and_libfuse_end_up_connected_directly() -> None:
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel:
        kernel.settimeout(60)
        asked = request(HANDLE_KILLPRIV_V2 | OTHER)
        kernel.send(asked)
        shake = Handshake(device.detach())
        session = int(shake.session_path.rsplit("/", 1)[1])
        try:
            shake.begin()
            assert os.read(session, 65536) == asked
            os.write(session, reply(OTHER))
            shake.finish()
            assert flags_of(kernel.recv(4096)) == OTHER | HANDLE_KILLPRIV_V2
            kernel.send(b"next request")
            assert os.read(session, 65536) == b"next request"
            assert not os.get_inheritable(session)
        finally:
            os.close(session)
        assert kernel.recv(1) == b"", "a descriptor of the device is still open"


def test_a_libfuse_that_does_not_answer_ends_the_mount() -> None:
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel:
        kernel.settimeout(60)
        kernel.send(request(0))
        shake = Handshake(device.detach())
        shake.begin()
        with pytest.raises(NoFuse):
            shake.finish()
        shake.close()
        assert kernel.recv(1) == b""

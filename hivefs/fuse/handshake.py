"""The FUSE_INIT exchange, made by us instead of by libfuse, so that a drive needs fewer requests.

pyfuse3 lets a file system choose three of the some thirty things that FUSE_INIT negotiates. Some of the others cost a
request for nearly every write(2), so we answer them ourselves (kernel: include/uapi/linux/fuse.h):

* HANDLE_KILLPRIV_V2 lets the kernel remember that a file has no security.capability attribute. Without it the kernel
  asks for that attribute before every single write(2), even those that stay in its page cache. What we promise with
  it is that writing, truncating and changing owner drop set-uid and set-gid bits and capabilities. pyfuse3 does not hand
  the "kill" flags of a request on; fuse/files.py says how the same is known without them.
* ATOMIC_O_TRUNC is switched off: cutting a file at open then comes as a SETATTR, whose answer holds the new attributes,
  instead of in OPEN, after which the kernel asks for them. It costs the same and leaves one way in which files are cut.
* DONT_MASK goes with POSIX_ACL, which pyfuse3 asks for itself: where a directory has a default ACL the umask has no say,
  so the kernel must not have applied it before we are asked. We always apply it where it does.
* CACHE_SYMLINKS keeps link targets in the page cache; max_background lets the kernel keep more write-back and
  read-ahead requests waiting for us.

How it is done without touching libfuse: it accepts a descriptor ("/dev/fd/N") instead of a mount point. It is given one
end of a socket pair. The kernel's FUSE_INIT is read from the real /dev/fuse and put into the other end, libfuse answers
it, the answer is changed here and written to the kernel; then dup2() puts /dev/fuse in the place of the socket and
nobody is in between any more.
"""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass

from hivefs.errors import NoFuse

FUSE_INIT = 26
ATOMIC_O_TRUNC = 1 << 3
DONT_MASK = 1 << 6
POSIX_ACL = 1 << 20
CACHE_SYMLINKS = 1 << 23
HANDLE_KILLPRIV_V2 = 1 << 28

_IN = struct.Struct("=IIQQIIII IIII")
"""length, opcode, unique, nodeid, uid, gid, pid, padding; then major, minor, max_readahead, flags of the kernel."""
_OUT = struct.Struct("=IiQ IIII HHI")
"""length, error, unique; then major, minor, max_readahead, flags, max_background, congestion_threshold, max_write."""

MAX_BACKGROUND = 64
_READ_BYTES = (1 << 20) + 4096


@dataclass(frozen=True, slots=True)
class Offer:
    """What the kernel said: protocol version, read-ahead in bytes, capability flags (first 32)."""

    major: int
    minor: int
    max_readahead: int
    flags: int


def offer_of(request: bytes) -> Offer:
    """The kernel's FUSE_INIT; raises NoFuse when it is something else or too old (before 7.23, Linux 3.15)."""
    if len(request) < _IN.size:
        raise NoFuse(reason="the kernel began with a message that is too short")
    fields = _IN.unpack_from(request)
    offer = Offer(*fields[8:12])
    if fields[1] != FUSE_INIT or offer.major != 7 or offer.minor < 23:
        raise NoFuse(reason=f"the kernel speaks FUSE {offer.major}.{offer.minor}; 7.23 or newer is needed")
    return offer


def improved(offer: Offer, reply: bytes) -> bytes:
    """libfuse's answer with our choices in it; unchanged when it is an error. Only flags that were offered are set."""
    if len(reply) < _OUT.size:
        return reply
    length, error, unique, major, minor, readahead, flags, background, congestion, max_write = _OUT.unpack_from(reply)
    if error:
        return reply
    flags |= offer.flags & (CACHE_SYMLINKS | HANDLE_KILLPRIV_V2)
    if flags & POSIX_ACL:
        flags |= offer.flags & DONT_MASK
    flags &= ~ATOMIC_O_TRUNC
    background = max(background, MAX_BACKGROUND)
    congestion = max(congestion, background * 3 // 4)
    head = _OUT.pack(length, error, unique, major, minor, readahead, flags, background, congestion, max_write)
    return head + reply[_OUT.size :]


class Handshake:
    """The socket pair of one mount. Owns ``fuse_fd`` (/dev/fuse, mounted) until ``finish`` or ``close``."""

    def __init__(self, fuse_fd: int) -> None:
        self._fuse_fd = fuse_fd
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)
        self.offer: Offer | None = None

    @property
    def session_path(self) -> str:
        """What libfuse takes as its mount point."""
        return f"/dev/fd/{self._theirs.fileno()}"

    def begin(self) -> Offer:
        """Pass the kernel's FUSE_INIT on (it is there as soon as mount(2) has returned). Raises NoFuse."""
        request = os.read(self._fuse_fd, _READ_BYTES)
        self.offer = offer_of(request)
        self._ours.send(request)
        return self.offer

    def finish(self) -> None:
        """libfuse has answered: tell the kernel, and put /dev/fuse in the place of the socket. Raises NoFuse."""
        if self.offer is None:
            raise RuntimeError("begin() first")
        try:
            reply = self._ours.recv(4096)
        except BlockingIOError:
            raise NoFuse(reason="libfuse did not answer the kernel's FUSE_INIT") from None
        os.write(self._fuse_fd, improved(self.offer, reply))
        session_fd = self._theirs.detach()  # libfuse closes it at the end
        os.dup2(self._fuse_fd, session_fd, inheritable=False)
        self.close()

    def close(self) -> None:
        """Let go of what was not handed over; a mount that was not finished is aborted by that."""
        self._ours.close()
        self._theirs.close()
        if self._fuse_fd >= 0:
            os.close(self._fuse_fd)
            self._fuse_fd = -1

"""``python -m hivefs.testing.bench.wan.emulator JSON``: two network namespaces and a link between them, in one process.

The process makes both namespaces itself and lives in the second one, so nothing has a name that could be left over:
the devices go with the process, the namespaces with the last process inside them. It says one line of JSON when it is
ready (its descriptors of the namespaces, for nsenter, and the kind of link), another one when its standard input is
closed, and it ends when whoever started it ends (PR_SET_PDEATHSIG). WATCH on its standard input makes it remember the heads
of packets, TELL makes it say them in one line (packets.py; with netem there are none, the kernel carries the packets).

Where the kernel has netem, a pair of veth devices with it carries the packets. Else a TUN device in each namespace does,
and this process moves what comes out of one into the other, through a Lane for each direction. Both are given IPv4
only and 1500 bytes of MTU, without segmentation offload, so that what is lost is one packet as on a real line.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from hivefs.testing.bench.wan.lane import Lane, Shape
from hivefs.testing.bench.wan.packets import Seen

NEAR: Final = "10.117.0.1"
FAR: Final = "10.117.0.2"
MTU: Final = 1500

_CLONE_NEWNET: Final = 0x40000000
_PR_SET_PDEATHSIG: Final = 1
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_DEVICE: Final = "hivewan"
_BATCH: Final = 64
"""Packets moved before the other direction gets its turn."""

WATCH, TELL = b"w", b"t"
_HEAD: Final = 60
"""Bytes of a packet that are remembered: the headers of IP and TCP, with some options."""

_MOST_SEEN: Final = 100_000

_libc = ctypes.CDLL(None, use_errno=True)


class NoLink(Exception):
    """This machine cannot make the link; the message says what is missing."""


def _new_namespace() -> int:
    """Enter a new network namespace; a descriptor that keeps it."""
    if _libc.unshare(_CLONE_NEWNET):
        raise NoLink(f"the right to make network namespaces (CAP_SYS_ADMIN) is missing: {os.strerror(ctypes.get_errno())}")
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET):
        raise NoLink(
            f"the right to enter a network namespace (CAP_SYS_ADMIN) is missing: {os.strerror(ctypes.get_errno())}"
        )


def _run(package: str, *words: str, missing: str = "") -> None:
    """A program of a package, in the namespace where this process is now. When it is refused, ``missing`` is what the
    kernel lacks; where nothing can be missing it is our mistake (RuntimeError).
    """
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        raise NoLink(f"the program {words[0]} is missing (package {package})") from None
    if done.returncode and missing:
        raise NoLink(f"{missing} is missing in the kernel: {done.stderr.strip()}")
    if done.returncode:
        raise RuntimeError(f"'{' '.join(words)}' failed: {done.stderr.strip()}")


def _tun(address: str, peer: str) -> int:
    """A TUN device in the namespace where this process is now, up, with its address."""
    try:
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", _DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError as error:
        raise NoLink(f"a TUN device (/dev/net/tun) is missing: {error.strerror}") from None
    _address(_DEVICE, address, peer)
    return device


def _address(device: str, address: str, peer: str) -> None:
    _run("iproute2", "ip", "link", "set", "lo", "up")
    _run("iproute2", "ip", "address", "add", address, "peer", peer, "dev", device)
    # A long queue here: the lane's own is the one that is full first.
    _run("iproute2", "ip", "link", "set", device, "mtu", str(MTU), "txqueuelen", "10000", "up")


def _congestion(name: str) -> None:
    """The congestion control of new sockets in the namespace where this process is now."""
    if name:
        try:
            Path("/proc/sys/net/ipv4/tcp_congestion_control").write_text(name)
        except OSError as error:
            raise NoLink(f"the congestion control '{name}' is missing in the kernel: {error.strerror}") from None


def _netem(shape: Shape) -> list[str]:
    """tc's words for a shape. Its limit counts packets on the way, those that are only delayed too."""
    packets = shape.bytes_per_s * (shape.queue_s + shape.round_trip_s / 2) / MTU
    words = ["netem", "delay", f"{shape.round_trip_s * 500:g}ms", "rate", f"{shape.bits_per_s:.0f}bit"]
    return [*words, "limit", str(max(1, round(packets))), *(["loss", f"{shape.loss * 100:g}%"] if shape.loss else [])]


def _veth(shape: Shape, near: int, far: int) -> bool:
    """A pair of devices with netem on both, or nothing and False where the kernel has none of it."""
    _enter(near)
    try:
        other = ("peer", "name", _DEVICE, "netns", f"/proc/{os.getpid()}/fd/{far}")
        _run("iproute2", "ip", "link", "add", _DEVICE, "type", "veth", *other, missing="veth (CONFIG_VETH)")
    except NoLink:
        return False
    for namespace, address, peer in ((near, NEAR, FAR), (far, FAR, NEAR)):
        _enter(namespace)
        try:
            words = ("qdisc", "add", "dev", _DEVICE, "root", *_netem(shape))
            _run("iproute2", "tc", *words, missing="netem (CONFIG_NET_SCH_NETEM)")
        except NoLink:
            _run("iproute2", "ip", "link", "del", _DEVICE)
            return False
        _run("ethtool", "ethtool", "-K", _DEVICE, "tso", "off", "gso", "off", "gro", "off")
        _address(_DEVICE, address, peer)
    return True


def _forward(ends: Sequence[int], lanes: Sequence[Lane], until: int) -> None:
    """Move packets until descriptor ``until`` is at its end; lane 0 leads from end 0 to end 1."""
    clock = time.monotonic
    seen: deque[Seen] | None = None
    while True:
        now = clock()
        for number, (lane, device) in enumerate(zip(lanes, reversed(ends), strict=True)):
            for _ in range(_BATCH):
                packet = lane.take(now)
                if packet is None:
                    break
                if seen is not None:
                    seen.append(Seen(now, number, True, packet[:_HEAD]))
                try:
                    os.write(device, packet)
                except OSError:  # the device's own queue is full: lost, like on any line
                    lane.dropped += 1
        due = [at for lane in lanes if (at := lane.next_at) is not None]
        # select() waits to the microsecond, poll() to the millisecond: too coarse for packets 0.24 ms apart.
        ready, _, _ = select.select([*ends, until], [], [], max(0.0, min(due) - clock()) if due else 1.0)
        now = clock()
        for number, (lane, device) in enumerate(zip(lanes, ends, strict=True)):
            if device in ready:
                for _ in range(_BATCH):
                    try:
                        packet = os.read(device, MTU + 64)
                    except BlockingIOError:
                        break
                    lane.offer(packet, now)
                    if seen is not None:
                        seen.append(Seen(now, number, False, packet[:_HEAD]))
        if until in ready:
            words = os.read(until, 64)
            if not words:
                return
            if TELL in words:
                _tell(seen or ())
            seen = deque(maxlen=_MOST_SEEN) if WATCH in words else None


def _tell(seen: Iterable[Seen]) -> None:
    _say({"seen": [[one.at, one.lane, one.out, one.head.hex()] for one in seen]})


def _idle(until: int) -> None:
    """The kernel moves the packets."""
    while words := os.read(until, 64):
        if TELL in words:
            _tell(())


def main(argument: str) -> None:
    """See the head of the file. Prints {"problem": ...} and ends when there can be no link."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started us
    asked = json.loads(argument)
    shape = Shape(**asked["shape"])
    try:
        near = _new_namespace()
        _congestion(asked["congestion"])
        far = _new_namespace()
        _congestion(asked["congestion"])
        ends: list[int] = []
        by_netem = bool(asked["netem"]) and _veth(shape, near, far)
        if not by_netem:
            for namespace, address, peer in ((near, NEAR, FAR), (far, FAR, NEAR)):
                _enter(namespace)
                ends.append(_tun(address, peer))
    except NoLink as problem:
        _say({"problem": str(problem)})
        return
    _say({"near": near, "far": far, "kind": "netem" if by_netem else "TUN"})
    lanes = [Lane(shape, asked["seed"]), Lane(shape, asked["seed"] + 1)]
    if by_netem:
        _idle(0)
    else:
        _forward(ends, lanes, 0)
    _say({"passed": [lane.passed_bytes for lane in lanes], "lost": [lane.lost for lane in lanes],
          "dropped": [lane.dropped for lane in lanes]})  # fmt: skip


def _say(value: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])

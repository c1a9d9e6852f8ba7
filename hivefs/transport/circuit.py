"""The two ends of a circuit through a relay (circuit relay v2): who asks for one, and who waits for them.

What passes is the inner connection's, with the handshake of host.py from end to end: a relay can count bytes, hold them
up and end the circuit, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from hivefs.errors import PeerUnreachable, Refused

from . import circuit_messages
from .addresses import binary_peer_id
from .circuit_messages import HOP, MEANING, BadMessage, Hop, Message, Status, Stop
from .connection import Connection
from .lines import Lines
from .splice import splice
from .stream import Stream

ANSWER_SECONDS: Final = 15.0
"""For one answer of a relay, which may have to ask the other end first."""
LEAST_SECONDS: Final = 60.0
MOST_SECONDS: Final = 3600.0
"""A reservation is renewed when half of its time is over; whatever a relay with a wrong clock says, not more often than
twice in the first, nor later than after half of the second."""


async def ask_for_circuit(stream: Stream, key: bytes, address: str, timeout: float) -> None:
    """Make a stream to a relay (HOP) into one to the peer with this key. Raises PeerUnreachable, ConnectionLost,
    PeerTimeout.
    """
    asked = Message(Hop.CONNECT, binary_peer_id(key))
    answer = await _asked(stream, asked, address, timeout)
    if answer.status != Status.OK:
        raise PeerUnreachable(address=address, reason=_words(answer.status))


async def reserve(connection: Connection) -> float:
    """Reserve, or renew, at the relay at the other end; seconds after which it is to be renewed. Raises Refused when the
    relay does not want it, PeerUnreachable, ConnectionLost, PeerTimeout.
    """
    stream = await connection.open_stream(HOP)
    try:
        # The specification has no peer in it; py-libp2p's relay takes the connection's when there is none.
        answer = await _asked(stream, Message(Hop.RESERVE), connection.address, ANSWER_SECONDS)
    finally:
        with trio.CancelScope(shield=True):
            await stream.aclose()
    if answer.status != Status.OK:
        raise Refused(peer=connection.peer_id, reason=_words(answer.status))
    return min(max(answer.expire - time.time(), LEAST_SECONDS), MOST_SECONDS) / 2


async def _asked(stream: Stream, message: Message, address: str, timeout: float) -> Message:
    try:
        with trio.fail_after(timeout):
            await circuit_messages.send(stream, message, hop=True)
            answer = await circuit_messages.receive(stream, hop=True)
    except BadMessage as error:
        raise PeerUnreachable(address=address, reason=f"the relay's answer is wrong: {error}") from None
    except trio.TooSlowError:
        raise PeerUnreachable(address=address, reason=f"the relay gave no answer within {timeout:g} s") from None
    if answer.kind != Hop.STATUS:
        raise PeerUnreachable(address=address, reason="the relay's answer is wrong: it is no status")
    return answer


def _words(status: int) -> str:
    return MEANING.get(status) or f"the relay says {status}"


def waiting(connect: Callable[[], Awaitable[trio.SocketStream]]) -> Callable[[Stream], Awaitable[None]]:
    """The handler of STOP for who has reserved: each circuit is joined to a connection that ``connect`` opens (it raises
    OSError when it cannot). Only peers that we dialled can open such streams on a host that listens nowhere.
    """

    lines = Lines(trio.current_time)

    async def handle(stream: Stream) -> None:
        try:
            with trio.fail_after(ANSWER_SECONDS):
                asked = await circuit_messages.receive(stream, hop=False)
                if asked.kind != Stop.CONNECT:
                    await _say(stream, Status.UNEXPECTED_MESSAGE)
                    return
                try:
                    near = await connect()
                except OSError as error:
                    lines.say("no circuit", f"the node behind this end: {error.strerror or error}")
                    await _say(stream, Status.CONNECTION_FAILED)
                    return
        except (BadMessage, trio.TooSlowError):
            await stream.reset()
            return
        async with near:
            await _say(stream, Status.OK)
            clean = await splice(stream, near)
        if not clean:
            await stream.reset()

    return handle


async def _say(stream: Stream, status: Status) -> None:
    await circuit_messages.send(stream, Message(Stop.STATUS, status=status), hop=False)

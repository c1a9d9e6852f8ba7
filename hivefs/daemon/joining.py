"""Asking the nodes of a hive whether they let a newcomer in, before it builds anything on that."""

from __future__ import annotations

import time
from collections.abc import Sequence

from hivefs.chunkstore.node_client import PROTOCOL, converse, credentials
from hivefs.errors import HivefsError, Refused
from hivefs.model.node import Membership
from hivefs.transport import open_host

ASK_SECONDS = 10.0


async def ask_in(membership: Membership, subject_seed: bytes, transport_seed: bytes, addresses: Sequence[str]) -> str:
    """Greet at one address after the other until a node lets us in: its address; "" when there are none to ask.

    Raises the refusal of a node that answered, else PeerUnreachable and the like. One node that refuses is not believed
    before the others were asked.
    """
    problem: HivefsError | None = None
    async with open_host(transport_seed) as host:
        who = credentials(subject_seed, host.peer_key, membership.hive_key, membership)
        for address in addresses:
            try:
                connection = await host.dial(address, timeout=ASK_SECONDS)
                try:
                    stream = await connection.open_stream(PROTOCOL)
                    async with converse(stream, who, time.time_ns()):
                        return address
                finally:
                    await connection.aclose()
            except HivefsError as error:
                if problem is None or isinstance(error, Refused) or not isinstance(problem, Refused):
                    problem = error
    if problem is not None:
        raise problem
    return ""

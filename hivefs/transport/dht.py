"""Experimental: py-libp2p's Kademlia DHT, for the one thing that is kept in it: what a node signed of its addresses.

It runs on a host of the library as it comes, with its own swarm and Yamux, open to strangers. So it belongs into a process
of its own, with a key of its own and a bound on memory, and never into a node or an engine (decisions/0021). Whoever
keeps a record cannot change it, only withhold it or give an older one: `Judge` is asked about everything that comes or
goes.

The network is one of its own (``/hivefs/kad/1.0.0``). Keys are ``/hivefs/`` and the node's key in hex. Noise is what
protects connections.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import trio
from multiaddr import Multiaddr

from hivefs.errors import BadAddress, BadSetting, PeerUnreachable

Judge = Callable[[bytes, bytes], int]
"""Of a node's key and a record: how new it is (larger is newer). Raises ValueError for what is not that node's."""

NAMESPACE: Final = "hivefs"
MOST_BYTES: Final = 4096
"""Of a record; longer ones are refused before they are looked at."""
CONNECT_SECONDS: Final = 20.0


class Dht:
    """A member of the network; made by ``joined``."""

    def __init__(self, host: Any, table: Any, judge: Judge) -> None:
        self._host = host
        self._table = table
        self._judge = judge

    @property
    def addresses(self) -> list[str]:
        """Where others reach it; none for one that only asks."""
        return [str(address) for address in self._host.get_addrs()]

    async def tell(self, node_key: bytes, record: bytes) -> None:
        """Keep a record here and with the peers that are closest to its key. Raises ValueError when it is not good, or
        older than the one that is kept; PeerUnreachable when the library fails.
        """
        try:
            await self._table.put_value(_name(node_key), record)
        except ValueError:
            raise
        except Exception as error:  # the library raises a dozen types; all mean the same here
            raise _failed(error) from error

    async def find(self, node_key: bytes) -> bytes | None:
        """The newest good record that anybody gave, or None. Raises PeerUnreachable when the library fails."""
        try:
            found = await self._table.get_value(_name(node_key))
        except Exception as error:  # as in tell()
            raise _failed(error) from error
        if found is None:
            return None
        try:
            self._judge(node_key, bytes(found))
        except ValueError:
            return None
        return bytes(found)


def _failed(error: Exception) -> PeerUnreachable:
    return PeerUnreachable(address="the DHT", reason=str(error) or type(error).__name__)


def _name(node_key: bytes) -> str:
    return f"/{NAMESPACE}/{node_key.hex()}"


@asynccontextmanager
async def joined(seed: bytes, listen: Sequence[str], peers: Sequence[str], judge: Judge) -> AsyncIterator[Dht]:
    """In the network for as long as the block runs: a server when it listens, else somebody who only asks. ``listen`` are
    addresses such as /ip4/0.0.0.0/tcp/4101, ``peers`` full ones of other members. Raises BadAddress; BadSetting when
    nothing can listen at one of them; PeerUnreachable when there are peers and none of them answers.
    """
    from libp2p import new_host  # all of the library, from scratch: see lean.py
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key
    from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from libp2p.records.validator import NamespacedValidator, Validator
    from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
    from libp2p.security.noise.transport import Transport as Noise
    from libp2p.tools.anyio_service import background_trio_service

    logging.getLogger("libp2p").setLevel(logging.CRITICAL)

    class Records(Validator):  # type: ignore[misc]
        """The library's view of a Judge."""

        def validate(self, key: str, value: bytes) -> None:
            """Raises ValueError."""
            _judged(judge, key, value)

        def select(self, key: str, values: list[bytes]) -> int:
            """The number of the newest."""
            return max(range(len(values)), key=lambda number: _newness(judge, key, values[number]))

    infos = []
    for peer in peers:
        try:
            infos.append(info_from_p2p_addr(Multiaddr(peer)))
        except Exception:  # noqa: BLE001 - multiaddr and libp2p raise a dozen types for what is no address
            raise BadAddress(address=peer) from None
    places = []
    for address in listen:
        try:
            places.append(Multiaddr(address))
        except Exception:  # noqa: BLE001 - as above
            raise BadAddress(address=address) from None
    key = create_new_key_pair(seed)
    noise = Noise(key, noise_privkey=create_noise_key().private_key)
    host = new_host(key_pair=key, sec_opt={NOISE: noise})
    async with host.run(listen_addrs=places):
        listening = host.get_network().listeners  # the library tries all, and says nothing of those that fail
        for place in places:
            if str(place) not in listening:
                reason = f"nothing can listen at {place}: it is no address of this machine, or is in use, or is not TCP"
                raise BadSetting(name="--listen", reason=reason)
        reached = 0
        for info in infos:
            host.get_peerstore().add_addrs(info.peer_id, info.addrs, 365 * 86_400)
            try:
                with trio.fail_after(CONNECT_SECONDS):
                    await host.connect(info)
                reached += 1
            except Exception as error:  # noqa: BLE001 - the library raises a dozen types; all mean the same here
                logging.getLogger("hivefs.transport").debug("%s does not answer: %s", info.peer_id, error)
        if infos and not reached:
            raise PeerUnreachable(address=peers[0], reason="no member of the DHT that was named answers")
        table = KadDHT(
            host,
            DHTMode.SERVER if places else DHTMode.CLIENT,
            validator=NamespacedValidator({NAMESPACE: Records()}, strict_validation=True),
            validator_changed=True,
            protocol_prefix="/hivefs",
            enable_providers=False,
            strict_validation=True,
        )
        for info in infos:
            await table.routing_table.add_peer(info.peer_id)
        async with background_trio_service(table):
            yield Dht(host, table, judge)


def _judged(judge: Judge, key: str, value: bytes) -> int:
    namespace, _, name = key.removeprefix("/").partition("/")
    if namespace != NAMESPACE or len(name) != 64 or len(value) > MOST_BYTES:
        raise ValueError("no record of a node")
    return judge(bytes.fromhex(name), bytes(value))


def _newness(judge: Judge, key: str, value: bytes) -> int:
    try:
        return _judged(judge, key, value)
    except ValueError:
        return -1

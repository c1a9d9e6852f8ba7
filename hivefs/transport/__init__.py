"""The only door to py-libp2p: proved, encrypted, multiplexed connections between peers.

Importing this costs a fifth of a second and 15 MB (most of it the library), so only processes that need the network do.
"""

from . import lean

lean.prepare()

from .addresses import key_from_peer_id, peer_id_from_key, split_address  # noqa: E402
from .connection import Connection, Handler  # noqa: E402
from .host import Host, open_host  # noqa: E402
from .limits import Limits  # noqa: E402
from .stream import Stream  # noqa: E402

__all__ = [
    "Connection",
    "Handler",
    "Host",
    "Limits",
    "Stream",
    "key_from_peer_id",
    "open_host",
    "peer_id_from_key",
    "split_address",
]

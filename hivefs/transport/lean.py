"""The one patch to py-libp2p: import the parts we use, not everything.

`libp2p/__init__.py` imports the whole library, and `libp2p/custom_types.py:8` imports the QUIC transport for one type
alias; together they bring in aioquic, WebRTC, discovery and more: 53 MB and 0.5 s where 15 MB and 0.2 s do. A node has
90 MB in all. Upstream could do the same with ``if TYPE_CHECKING`` and a lazy ``__getattr__``.

`prepare` puts empty packages in the place of ``libp2p``, ``libp2p.transport`` and ``libp2p.transport.quic``, with the
search paths of the real ones, so that other submodules import as ever. Whoever asks ``libp2p`` for a name of its own
(``from libp2p import new_host``) still gets it: the stand-ins make way and the real library is imported from scratch.
Our modules keep what they have imported before that; nothing is shared between the two but the bytes on the wire.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

STAND_INS = ("libp2p", "libp2p.transport", "libp2p.transport.quic")
QUIC_STREAM = "libp2p.transport.quic.stream"


class _StandIn(ModuleType):
    """An empty package that becomes the real one when somebody needs more than its submodules."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(load_fully(self.__name__), name)


def prepare() -> None:
    """Make later imports of libp2p's submodules lean, unless the library is there already."""
    if "libp2p" in sys.modules:
        return
    found = importlib.util.find_spec("libp2p")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'libp2p'", name="libp2p")
    root = Path(found.submodule_search_locations[0])
    for name in STAND_INS:
        folder = str(root.joinpath(*name.split(".")[1:]))
        module = _StandIn(name)
        module.__path__ = [folder]
        module.__spec__ = importlib.util.spec_from_file_location(
            name, f"{folder}/__init__.py", submodule_search_locations=[folder]
        )
        sys.modules[name] = module
    stream = ModuleType(QUIC_STREAM)
    stream.QUICStream = type("QUICStream", (), {})  # type: ignore[attr-defined]  # for the alias, never instantiated
    sys.modules[QUIC_STREAM] = stream


def load_fully(name: str) -> ModuleType:
    """Import the real library from scratch and return one of its modules."""
    if isinstance(sys.modules.get("libp2p"), _StandIn):
        for loaded in [key for key in sys.modules if key == "libp2p" or key.startswith("libp2p.")]:
            del sys.modules[loaded]
    return importlib.import_module(name)

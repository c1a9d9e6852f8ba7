"""Products of a matrix over GF(256) with blocks of bytes, by the vector instructions of the processor.

ISA-L (https://github.com/intel/isa-l, package libisal2) does it 3 to 8 times as fast as zfec (decisions/0033) and is used
where it is installed. It knows no code: the matrix is the caller's. Its field is zfec's, x^8 + x^4 + x^3 + x^2 + 1.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final

LIBRARY: Final = "libisal.so.2"
"""The name that the linker knows; erasure_code.h of this version is what is called below."""

_TABLE: Final = 32
"""Bytes that ISA-L keeps for each element of a matrix (ec_init_tables)."""


def _load(name: str) -> Any:
    try:
        library = ctypes.CDLL(name)
        init, encode = library.ec_init_tables, library.ec_encode_data
    except (OSError, AttributeError):
        return None  # it is not installed, or something else has its name
    init.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p]
    encode.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int, *[ctypes.c_void_p] * 3]
    init.restype = encode.restype = None
    return library


_library = _load(LIBRARY)

_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
"""A bytes object whose bytes are not set yet: the one that makes it may fill it before anybody else sees it."""
_new_bytes.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t]
_new_bytes.restype = ctypes.py_object


def available() -> bool:
    """Whether the library is there."""
    return _library is not None


class Matrix:
    """To multiply with: each of ``rows`` has one byte for each block. RuntimeError where the library is missing."""

    def __init__(self, rows: Sequence[bytes]) -> None:
        if _library is None:
            raise RuntimeError(f"{LIBRARY} is missing")
        if not rows or not rows[0] or len({len(row) for row in rows}) != 1:
            raise ValueError("rows of one length, at least one of each")
        self._rows, self._columns = len(rows), len(rows[0])
        self._tables = ctypes.create_string_buffer(_TABLE * self._rows * self._columns)
        _library.ec_init_tables(self._columns, self._rows, b"".join(rows), self._tables)

    def times(self, blocks: Sequence[bytes]) -> list[bytes]:
        """One block for each row. The blocks are as many as a row has bytes, and of one length, which is not 0. Nothing
        else of Python waits for it (the lock of the interpreter is not held), and no object is shared between calls.
        """
        size = len(blocks[0])
        if len(blocks) != self._columns or not size or any(len(block) != size for block in blocks):
            raise ValueError("as many blocks as a row has bytes, of one length")
        held = [block if type(block) is bytes else bytes(block) for block in blocks]
        made: list[bytes] = [_new_bytes(None, size) for _ in range(self._rows)]
        sources, targets = (ctypes.c_char_p * len(held))(*held), (ctypes.c_char_p * len(made))(*made)
        _library.ec_encode_data(size, self._columns, self._rows, self._tables, sources, targets)
        return made

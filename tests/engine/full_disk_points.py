"""Where the engine changes its store, and a store that is full there."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lmdb
import trio

import hivefs
from hivefs.metadata.engine_writer import EngineWriter

PACKAGE = Path(hivefs.__file__).parent
ROOMS = ("maintenance", "metadata", "daemon")
OWN = {"metadata/engine_writer.py", "daemon/recover.py", "maintenance/full_disk.py"}
"""The store's own file, a command that makes a store and has no duties, and the look whether there is room."""


def all_points() -> set[str]:
    """Each function that begins a transaction of the engine's store, as "file:name"."""
    found: set[str] = set()

    def look(node: ast.AST, file: str, name: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = name
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                inner = f"{name}.{child.name}" if name else child.name
            if isinstance(child, ast.Call) and isinstance(child.func, ast.Attribute) and child.func.attr == "writing":
                found.add(f"{file}:{name}")
            look(child, file, inner)

    for room in ROOMS:
        for path in sorted((PACKAGE / room).glob("*.py")):
            file = str(path.relative_to(PACKAGE))
            if file not in OWN:
                look(ast.parse(path.read_text()), file, "")
    return found


def point_of(frame: FrameType | None) -> str:
    """The function of the package that began this transaction."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE) and str(path.relative_to(PACKAGE)) not in OWN:
            name = frame.f_code.co_qualname.replace(".<locals>", "")
            return f"{path.relative_to(PACKAGE)}:{name}"
        frame = frame.f_back
    return ""


class FullStore:
    """Lets transactions fail as on a full disk, at their end, when all is done: ``is_full(point)`` says which. With ``own``
    also those of the test's own task (all, or at these points). ``failed`` and ``written`` count by point.
    """

    def __init__(self, is_full: Callable[[str], bool], own: bool | Collection[str] = False) -> None:
        self._is_full = is_full
        self._own = own
        self.failed: Counter[str] = Counter()
        self.written: Counter[str] = Counter()

    def install(self, monkeypatch: Any) -> None:
        """From now on."""
        original, store = EngineWriter.writing, self

        @contextmanager
        def writing(writer: EngineWriter) -> Iterator[EngineWriter]:
            if writer._write is not None:
                yield writer
                return
            point = point_of(sys._getframe(1))
            mine = not trio.lowlevel.in_trio_run() or trio.lowlevel.current_task().name.endswith("bounded")
            mine = mine and not (store._own if isinstance(store._own, bool) else point in store._own)
            with original(writer):
                yield writer
                if not mine and store._is_full(point):
                    store.failed[point] += 1
                    raise lmdb.MapFullError("mdb_put: MDB_MAP_FULL: Environment mapsize limit reached")
            store.written[point] += 1

        monkeypatch.setattr(EngineWriter, "writing", writing)

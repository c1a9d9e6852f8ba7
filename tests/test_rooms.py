"""The rooms of hivefs/ and the direction of imports between them, proved on the syntax trees of all files.

    core     model formats crypto content placement protocol     pure: time, randomness and bytes are arguments
    flows    filesystem chunkstore maintenance                   trio; the outside only through typing.Protocol ports
    edges    fuse transport metadata node stage discovery        one outside library each; never import each other
    top      daemon (wiring), cli (one file per command), testing (shipped fakes)

A room imports rooms of its own row or of rows above it in this picture, never downwards; edges not even their own row.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hivefs"
CORE = ("model", "formats", "crypto", "content", "placement", "protocol")
FLOWS = ("filesystem", "chunkstore", "maintenance")
EDGES = ("fuse", "transport", "metadata", "node", "stage", "discovery")
TOP = ("daemon", "cli", "testing")
RANK = {room: rank for rank, row in enumerate((CORE, FLOWS, EDGES, ("daemon", "testing"), ("cli",))) for room in row}
EVERYWHERE = {"errors", "hivefs"}

NOT_IN_CORE = {
    *(
        "trio",
        "lmdb",
        "pyfuse3",
        "libp2p",
        "multiaddr",
        "noise",
        "os",
        "pathlib",
        "io",
        "socket",
        "select",
        "time",
        "datetime",
    ),
    *("random", "secrets", "threading", "subprocess", "asyncio", "logging", "tempfile", "shutil", "uuid", "click", "rich"),
}
DOORS = {
    "pyfuse3": ("fuse/", "testing/memory_drive.py", "testing/fake_disk/server.py"),
    "libp2p": ("transport/",),
    "multiaddr": ("transport/",),
    "noise": ("transport/noise.py",),
    "lmdb": ("metadata/", "node/"),
    "zfec": ("content/coding.py",),
    "click": ("cli/",),
    "rich": ("cli/",),
    "mnemonic": ("crypto/",),
    "segno": ("cli/",),
    "zeroconf": ("discovery/",),
    "prometheus_client": ("daemon/metrics.py", "daemon/engine_metrics.py"),
}
LONGEST = 600
NO_ROOM = {"utils", "util", "helpers", "helper", "common", "misc", "shared", "lib"}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Full names of everything a file imports, with the line."""
    package = ["hivefs", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            if base in (["hivefs"], package[:1]):
                yield from ((f"hivefs.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield ".".join(base), node.lineno


def room_of(path: Path) -> str:
    """The room a file lies in; "hivefs" for files outside all rooms."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else "hivefs"


def test_every_room_is_in_the_table() -> None:
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert rooms <= {*CORE, *FLOWS, *EDGES, *TOP}
    assert not NO_ROOM & {part for p in FILES for part in (*p.relative_to(PACKAGE).parts[:-1], p.stem)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports(path: Path) -> None:
    room = room_of(path)
    inside = str(path.relative_to(PACKAGE))
    wrong = []
    for name, line in imported(path):
        top, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if top == "hivefs":
            if room not in RANK or target in EVERYWHERE or target == room or not target or target == "__version__":
                continue
            if target not in RANK:
                wrong.append(f"{inside}:{line} imports {name}, which is in no room")
            elif RANK[target] > RANK[room]:
                wrong.append(f"{inside}:{line} ({room}) imports upwards: {name}")
            elif room in EDGES and target in EDGES:
                wrong.append(f"{inside}:{line} an edge imports an edge: {name}")
        elif room in CORE and top in NOT_IN_CORE:
            wrong.append(f"{inside}:{line} the core is pure but imports {name}")
        elif top in DOORS and not inside.startswith(DOORS[top]):
            wrong.append(f"{inside}:{line} imports {name}; the only door to {top} is {', '.join(DOORS[top])}")
        elif room in FLOWS and top in {"socket", "subprocess", "threading", "sqlite3"}:
            wrong.append(f"{inside}:{line} a flow reaches outside: {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST


def test_the_test_sees_what_it_forbids(tmp_path: Path) -> None:
    """The reader of imports finds them in functions, in relative form and from the package itself."""
    path = PACKAGE / "model" / "not_there.py"
    source = "def f():\n    import trio\nfrom ..daemon import home\nfrom hivefs import errors\nfrom . import ids\n"
    real = tmp_path / "x.py"
    real.write_text(source)

    class Fake(type(path)):  # type: ignore[misc]
        def read_text(self, *args: object, **kwargs: object) -> str:
            return source

    names = {name for name, _ in imported(Fake(path))}
    assert names == {"trio", "hivefs.daemon", "hivefs.errors", "hivefs.model"}

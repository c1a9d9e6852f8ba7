"""The inputs of a run, made anew on the local disk: photos, a tree of source files, its tar. And how much of each."""

from __future__ import annotations

import os
import random
import shutil
import sysconfig
import tarfile
from dataclasses import dataclass
from pathlib import Path

from hivefs.testing.bench.tools import MIB, files_below, tree_digests

_LARGEST_SOURCE = 2 * MIB


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything. Bytes where it says so, else counts."""

    sequential_bytes: int = 256 * MIB
    small_files: int = 2000
    random_bytes: int = 64 * MIB
    random_reads: int = 2000
    random_writes: int = 1000
    transactions: int = 500
    saves: int = 100
    photos: int = 150
    photo_bytes: tuple[int, int] = (2 * MIB, 4 * MIB)
    tree_files: int = 2000
    rsync_files: int = 300
    latency_files: int = 400
    busy_bytes: int = 512 * MIB
    stripes: int = 12
    step_limit_s: float = 180.0


FULL = Sizes()
QUICK = Sizes(
    sequential_bytes=16 * MIB,
    small_files=100,
    random_bytes=4 * MIB,
    random_reads=100,
    random_writes=50,
    transactions=20,
    saves=10,
    photos=4,
    photo_bytes=(MIB // 4, MIB // 2),
    tree_files=60,
    rsync_files=20,
    latency_files=40,
    busy_bytes=64 * MIB,
    stripes=2,
    step_limit_s=60.0,
)


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the inputs lie, and the SHA-256 of their files."""

    photos: Path
    photo_digests: dict[str, str]
    photo_total: int
    tree: Path
    tree_digests: dict[str, str]
    tar: Path
    rsync: Path
    rsync_digests: dict[str, str]


def make(directory: Path, sizes: Sizes) -> Sources:
    """Make all of it below ``directory``, which must not exist."""
    directory.mkdir()
    chance = random.Random(1)
    photos = directory / "photos"
    for number in range(sizes.photos):
        folder = photos / f"2024-{number % 4 + 1:02}"
        folder.mkdir(parents=True, exist_ok=True)
        raw = folder / f"IMG_{number:04}.CR2"
        raw.write_bytes(os.urandom(chance.randint(*sizes.photo_bytes)))
        raw.with_suffix(".xmp").write_text(f'<x:xmpmeta rating="{number % 5}"/>\n' * chance.randint(10, 80))
        os.utime(raw, ns=(10**18 + number, 10**18 + 7 * number))
    tree, rsync = directory / "tree", directory / "rsync"
    wanted = sizes.tree_files + sizes.rsync_files
    for number, path in enumerate(_some_sources(wanted)):
        top = tree if number < sizes.tree_files else rsync
        copy = top / f"part{number % 7}" / path.parent.name / f"{number}-{path.name}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    with tarfile.open(directory / "tree.tar", "w") as tar:
        tar.add(tree, ".")
    return Sources(
        photos,
        tree_digests(photos),
        sum(path.stat().st_size for path in files_below(photos)),
        tree,
        tree_digests(tree),
        directory / "tree.tar",
        rsync,
        tree_digests(rsync),
    )


def warm(top: Path) -> None:
    """Read everything below, so that the source's disk is not what is measured."""
    for path in files_below(top):
        path.read_bytes()


def _some_sources(count: int) -> list[Path]:
    """``count`` files of Python's own library, spread over it; again from the start where it has too few."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found = [p for p in files_below(library) if "__pycache__" not in p.parts and p.stat().st_size < _LARGEST_SOURCE]
    chosen = found[:: max(1, len(found) // count)]
    return (chosen * (count // len(chosen) + 1))[:count]

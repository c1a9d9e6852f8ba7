"""The user's table of networks on this machine: read from CSV, handed to the engine, kept beside its store.

The file is named after its digest, and the sealed store says which one counts: a crash leaves the old table or the new one,
and a table that somebody puts there while the machine is locked does not count. (docs/formats/registry.md)
"""

from __future__ import annotations

import csv
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hivefs.daemon.home import write_file
from hivefs.errors import BadSetting, Corrupt, HivefsError
from hivefs.formats.registry import MAX_BYTES, registry_from_bytes, registry_to_bytes
from hivefs.metadata.engine_store import EngineReader, EngineStore
from hivefs.placement.registry import Registry, from_lines

log = logging.getLogger(__name__)

NAME = "registry-"
HANDED = "new-registry-"
MAX_CSV_BYTES = 1 << 30
_INFO = "registry"


def read_csv(path: Path) -> Registry:
    """The table in a file of text. Raises BadSetting."""
    try:
        if path.stat().st_size > MAX_CSV_BYTES:
            raise BadSetting(name="--registry", reason=f"{path} is larger than 1 GiB")
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            return from_lines(csv.reader(file))
    except OSError as error:
        raise BadSetting(name="--registry", reason=f"{path} cannot be read: {error.strerror}") from error
    except csv.Error as error:
        raise BadSetting(name="--registry", reason=f"{path} is not CSV: {error}") from None


@contextmanager
def handed_over(engine: Path, made: Registry) -> Iterator[str]:
    """A file in the engine's directory with this table, for as long as the engine is asked to take it."""
    name = HANDED + os.urandom(8).hex()
    try:
        write_file(engine / name, registry_to_bytes(made))
    except OSError as error:
        raise BadSetting(name="--registry", reason=f"{engine} cannot be written: {error.strerror}") from error
    try:
        yield name
    finally:
        (engine / name).unlink(missing_ok=True)


def take(engine: Path, name: Any) -> tuple[Registry | None, dict[str, Any] | None]:
    """(the table, what is remembered of it) of a file that was handed over; None for no table. Blocks. Raises BadSetting,
    Corrupt, UnknownVersion.
    """
    if name is None:
        return None, None
    if not isinstance(name, str) or not name.startswith(HANDED) or "/" in name:
        raise BadSetting(name="--registry", reason="that is not a file that was handed over")
    data = _read(engine / name)
    made = registry_from_bytes(data)
    digest = hashlib.sha256(data).digest()[:16]
    write_file(engine / (NAME + digest.hex()), data)
    return made, {"digest": digest, "rows": made.rows}


def keep(store: EngineStore, facts: dict[str, Any] | None) -> None:
    """From now on this table counts; others go."""
    with store.writing():
        store.save_info(_INFO, facts)
    kept = "" if facts is None else NAME + facts["digest"].hex()
    for path in store.path.glob(NAME + "*"):
        if path.name != kept:
            with suppress(OSError):  # one that stays does no harm
                path.unlink()


def facts(store: EngineReader) -> dict[str, Any] | None:
    """What is remembered of the table: digest and rows; None when there is none."""
    value = store.info(_INFO)
    return value if isinstance(value, dict) else None


def load(store: EngineReader) -> Registry | None:
    """The table that counts. One that is lost or was changed is not used, and that is logged. Blocks."""
    known = facts(store)
    if known is None:
        return None
    try:
        data = _read(store.path / (NAME + known["digest"].hex()))
        if hashlib.sha256(data).digest()[:16] != known["digest"]:
            raise Corrupt(what="the table of networks", reason="it was changed")
        return registry_from_bytes(data)
    except HivefsError as error:
        log.error("%s; no table is used: bring it again with 'hivefs trust --registry FILE'", error)
        return None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise Corrupt(what=f"the table of networks {path.name}", reason=error.strerror or str(error)) from None
    if len(data) > MAX_BYTES:
        raise Corrupt(what=f"the table of networks {path.name}", reason="it is too large")
    return data

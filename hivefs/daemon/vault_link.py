"""The engine's link to the drive: the mount's VaultService over its control socket (a maintenance.ports.Vault)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from hivefs.daemon import control
from hivefs.errors import HivefsError
from hivefs.model.ids import ChunkId
from hivefs.model.inode import ChunkRef
from hivefs.model.staged import DirtySlot

TIMEOUT = 60.0


class RemoteVault:
    """See the head of the file; every method raises NotMounted or EngineUnavailable when the mount is gone."""

    def __init__(self, client: control.Client) -> None:
        self._client = client
        self._attached = 0

    async def _call(self, name: str, value: Any = None) -> Any:
        return await self._client.call(name, value, timeout=TIMEOUT)

    async def attach(self) -> int:
        """Begin to work for the drive; an engine before us is not listened to any more."""
        self._attached = int(await self._call("attach"))
        return self._attached

    async def dirty(self, limit: int, quiet_ns: int, skip: Collection[tuple[int, int]]) -> list[DirtySlot]:
        """Work to place."""
        answer = await self._call("dirty", {"limit": limit, "quiet_ns": quiet_ns, "skip": [list(s) for s in skip]})
        return [control.dirty_slot_from_value(item) for item in answer]

    async def placed(self, results: list[tuple[int, int, int, ChunkRef]]) -> list[bool]:
        """What was placed; answers after the mount's commit."""
        value = [[ino, slot, generation, control.chunk_ref_to_value(ref)] for ino, slot, generation, ref in results]
        answer = await self._call("placed", {"attached": self._attached, "results": value})
        return [bool(item) for item in answer]

    async def released(self, after: int, limit: int) -> list[tuple[int, ChunkId]]:
        """Chunks that no file names any more."""
        answer = await self._call("released", {"after": after, "limit": limit})
        return [(number, ChunkId(chunk_id)) for number, chunk_id in answer]

    async def released_done(self, upto: int) -> None:
        """They are recorded."""
        await self._call("released_done", upto)

    async def published(self, sequence: int) -> None:
        """A head is out."""
        await self._call("published", sequence)

    async def flush(self) -> None:
        """Commit now."""
        await self._call("flush")

    async def calm(self) -> bool:
        """Whether nobody uses the drive right now."""
        return bool(await self._call("calm"))

    async def policies_of_chunks(self, after: bytes, limit: int) -> tuple[bytes, list[tuple[ChunkId, str]]]:
        """Chunks of files with the policies of these."""
        more, found = await self._call("policies_of_chunks", {"after": after, "limit": limit})
        return bytes(more), [(ChunkId(chunk_id), str(name)) for chunk_id, name in found]

    async def policy_moves(self) -> int:
        """How often a rename may have given files another policy. A mount of an earlier release does not count them."""
        try:
            return int(await self._call("policy_moves"))
        except HivefsError as error:
            if type(error) is not HivefsError:  # what a mount answers that has no such method
                raise
            return 0

    async def set_capacity(self, total: int, free: int) -> None:
        """Room in the hive."""
        await self._call("set_capacity", {"total": total, "free": free})

    async def status(self) -> dict[str, Any]:
        """Counts."""
        return dict(await self._call("status"))

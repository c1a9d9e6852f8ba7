"""The pyfuse3.Operations of a drive: nothing but the two families put together."""

from __future__ import annotations

import pyfuse3

from hivefs.errors import Corrupt
from hivefs.filesystem.filesystem import Filesystem
from hivefs.fuse.answers import FewerNames, Loader
from hivefs.fuse.files import Files
from hivefs.fuse.names import Names


async def nothing_to_load(key: bytes) -> None:
    """The loader of a drive whose metadata is all here."""
    raise Corrupt(what="the metadata", reason="a page is said to be missing, and there is nothing to load it from")


class DriveOperations(Names, Files, pyfuse3.Operations):
    """Answers the kernel from a Filesystem. ``load`` brings metadata pages that are not on this machine yet.

    access() is never asked (default_permissions) and ``poll`` is answered ENOSYS by pyfuse3, which the kernel remembers.
    ``enable_acl`` is switched off by the session (fuse/session.py) for a kernel that does not know ACLs in FUSE.
    """

    enable_writeback_cache = True
    enable_acl = True
    supports_dot_lookup = False

    def __init__(self, fs: Filesystem, load: Loader = nothing_to_load) -> None:
        super().__init__()
        self.fs = fs
        self.load = load
        self.fewer = FewerNames()

"""Requests about names: lookup, create, link, unlink, rename, directories.

Every answer that hands an inode to the kernel is counted (``remembered``); the kernel gives it back with forget.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

import pyfuse3

from hivefs.errors import HivefsError, NotLoaded, PosixError
from hivefs.filesystem.filesystem import Filesystem
from hivefs.fuse.answers import (
    NO_SUCH_NAME,
    FewerNames,
    Loader,
    answering,
    caller_of,
    describe,
    entry_of,
    new_entry,
)
from hivefs.fuse.files import file_info
from hivefs.model.inode import Inode


class Names:
    """See the head of the file."""

    fs: Filesystem
    load: Loader
    fewer: FewerNames

    def _given(self, inode: Inode) -> pyfuse3.EntryAttributes:
        self.fs.remembered(inode.ino)
        return self.fewer.kept(entry_of(inode))

    @answering
    def lookup(self, parent: int, name: bytes, context: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """What a name leads to; the kernel is allowed to remember that there is nothing."""
        try:
            inode = self.fs.lookup(parent, name)
        except PosixError as problem:
            if problem.errno == errno.ENOENT:
                return NO_SUCH_NAME
            raise
        return self._given(inode)

    async def forget(self, given_back: Sequence[tuple[int, int]]) -> None:
        """The kernel drops references. There is nobody to tell an error to."""
        for ino, count in given_back:
            self.fs.forget(ino, count)

    @answering
    def create(
        self, parent: int, name: bytes, mode: int, flags: int, context: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """A new file and a handle on it."""
        inode = self.fs.create(parent, name, mode, caller_of(context))
        self.fs.open(inode.ino, 0)
        return file_info(self.fs, inode.ino, context.uid), self._given(inode)

    @answering
    def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, context: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """A fifo, socket, device or file."""
        return self._given(self.fs.mknod(parent, name, mode, rdev, caller_of(context)))

    @answering
    def mkdir(self, parent: int, name: bytes, mode: int, context: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """A new directory."""
        return self._given(self.fs.mkdir(parent, name, mode, caller_of(context)))

    @answering
    def symlink(self, parent: int, name: bytes, target: bytes, context: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """A new symbolic link."""
        return self._given(self.fs.symlink(parent, name, target, caller_of(context)))

    @answering
    def readlink(self, ino: int, context: pyfuse3.RequestContext) -> bytes:
        """Where a symbolic link points."""
        return self.fs.readlink(ino)

    @answering
    def link(self, ino: int, parent: int, name: bytes, context: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """One more name."""
        return self._given(self.fs.link(ino, parent, name))

    @answering
    def unlink(self, parent: int, name: bytes, context: pyfuse3.RequestContext) -> None:
        """Remove a name."""
        self.fewer.lost(self.fs.unlink(parent, name))

    @answering
    def rmdir(self, parent: int, name: bytes, context: pyfuse3.RequestContext) -> None:
        """Remove an empty directory."""
        self.fs.rmdir(parent, name)

    @answering
    def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int,
        context: pyfuse3.RequestContext,
    ) -> None:
        """rename(2), renameat2(2)."""
        self.fewer.lost(self.fs.rename(parent, name, new_parent, new_name, flags))

    # ---- directories ------------------------------------------------------------------------------------------------

    @answering
    def opendir(self, ino: int, context: pyfuse3.RequestContext) -> int:
        """The handle of a directory is its inode number."""
        self.fs.open(ino, 0)
        return ino

    @answering
    def readdir(self, ino: int, cookie: int, token: pyfuse3.ReaddirToken) -> None:
        """Fill one buffer, with attributes, so that the lookups that would follow are not needed.

        When something fails after some entries, those are answered; the next call meets the failure first.
        """
        reply, kept, entry = pyfuse3.readdir_reply, self.fewer.kept, new_entry()
        answered = False
        given: list[int] = []
        try:
            for next_cookie, name, inode in self.fs.readdir(ino, cookie):
                describe(entry, inode)
                if not reply(token, name, kept(entry), next_cookie):
                    break
                answered = True
                if name != b"." and name != b"..":
                    given.append(inode.ino)
        except (NotLoaded, PosixError, HivefsError):
            if not answered:
                raise
            return
        finally:
            self.fs.remembered_all(given)
        if not cookie:
            self.fs.listed(ino)

    @answering
    def releasedir(self, ino: int) -> None:
        """The handle is closed."""
        self.fs.release(ino)

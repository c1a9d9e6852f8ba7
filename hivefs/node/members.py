"""Who belongs: members by invitation, how often each invitation was used, and who was revoked.

A certificate by invitation proves itself, but neither that the invitation had not ended when it was used nor how often
it was used. That is what nodes remember for each other: the first time a member is seen counts as its use, and is passed
on between nodes. A use that comes too late or once too often is not taken by any node that heard of the others; nodes
that are apart for a while may take one each (docs/decisions/0012).

One thread changes at a time (the store's lock). ``on_revoked`` is called in trio, after a newer list was taken.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Sequence

import trio

from hivefs.errors import Corrupt, HivefsError, UnknownVersion
from hivefs.formats import member, revoked
from hivefs.formats.invite import SKEW_NS
from hivefs.model.node import Membership, Revocations
from hivefs.node.store import ShareStore
from hivefs.protocol.failures import Code, Refusal

MAX_MEMBERS = 100_000
MOST_FRESH = 256
"""Uses that are handed on with the next round of gossip; what is more, the comparison of all finds."""

_LIST = "revoked"


class Members:
    """Of one hive, in the store's index."""

    def __init__(self, store: ShareStore, hive_key: bytes) -> None:
        self._store = store
        self._hive_key = hive_key
        self._uses: Counter[bytes] = Counter()
        self._digest = 0
        self._count = 0
        self._fresh: deque[bytes] = deque(maxlen=MOST_FRESH)
        self.on_revoked: Callable[[], None] = lambda: None
        self.news = trio.Event()
        kept = store.index.info(_LIST)
        self.revoked = None if not kept else revoked.revocations_from_bytes(kept)
        self._recount()

    def _recount(self) -> None:
        self._uses.clear()
        self._digest = self._count = 0
        for subject, invitation, certificate in self._store.index.members():
            self._add(subject, invitation, certificate)

    def _add(self, subject: bytes, invitation: bytes, certificate: bytes, sign: int = 1) -> None:
        self._count += sign
        self._uses[invitation] += sign
        if self.revoked is None or not self.revoked.covers_keys(subject, invitation):
            self._digest ^= int.from_bytes(hashlib.sha256(certificate).digest(), "big")

    # ---- questions --------------------------------------------------------------------------------------------------

    @property
    def sequence(self) -> int:
        """The number of the revocation list; 0 while there is none."""
        return 0 if self.revoked is None else self.revoked.sequence

    @property
    def digest(self) -> bytes:
        """32 bytes: the same for nodes that know the same members by invitation."""
        return self._digest.to_bytes(32, "big")

    def covers(self, membership: Membership) -> bool:
        """Whether it is revoked."""
        return self.revoked is not None and self.revoked.covers(membership)

    def knows(self, membership: Membership) -> bool:
        """Whether its invitation was used for it, as far as this node heard; true for whom the owner itself let in."""
        if membership.invitation is None:
            return True
        kept = self._store.index.member(membership.subject)
        return kept is not None and kept[0] == membership.invitation.key

    def check(self, membership: Membership, now_ns: int) -> None:
        """Raise Refusal unless this valid certificate lets in now."""
        if self.covers(membership):
            raise Refusal(Code.REVOKED, "the hive's owner revoked this membership")
        invitation = membership.invitation
        if invitation is None or self.knows(membership):
            return
        if now_ns - SKEW_NS >= invitation.expires_ns:
            raise Refusal(Code.NOT_MEMBER, "the invitation has expired")
        self._check_uses(membership)

    def _check_uses(self, membership: Membership) -> None:
        invitation = membership.invitation
        if invitation is not None and self._uses[invitation.key] >= invitation.uses:
            raise Refusal(Code.NOT_MEMBER, f"the invitation is used up (it was for {invitation.uses})")
        if self._count >= MAX_MEMBERS:
            raise Refusal(Code.QUOTA, f"this node remembers {MAX_MEMBERS} members by invitation")

    # ---- changes ----------------------------------------------------------------------------------------------------

    def admit(self, membership: Membership, now_ns: int) -> bool:
        """Check and remember; whether it was news. Blocks. Raises Refusal and DiskFull."""
        with self._store.lock:
            self.check(membership, now_ns)
            return self._remember(membership)

    def _remember(self, membership: Membership) -> bool:
        invitation = membership.invitation
        if invitation is None:
            return False
        subject, data = membership.subject, member.member_to_bytes(membership)
        kept = self._store.index.member(subject)
        if kept is not None and member.age(member.member_from_bytes(kept[1])) >= member.age(membership):
            return False
        with self._store.index.writing() as change:
            change.save_member(subject, invitation.key, data)
        if kept is not None:
            self._add(subject, *kept, sign=-1)
        self._add(subject, invitation.key, data)
        self._fresh.append(data)
        return True

    def take(self, blobs: Sequence[bytes], now_ns: int) -> int:
        """What another node says of members: how many were news. It may have seen them before their invitation ended, so
        that is not asked. Blocks: up to four signatures for each. Raises DiskFull.
        """
        count = 0
        for blob in blobs:
            try:
                made = member.member_from_bytes(blob)
            except (Corrupt, UnknownVersion):
                continue
            kept = self._store.index.member(made.subject)
            if made.invitation is None or (kept is not None and kept[1] == blob):
                continue
            if not member.member_valid(made, self._hive_key, now_ns):
                continue
            with self._store.lock:
                try:
                    if self.covers(made):
                        continue
                    if not self.knows(made):
                        self._check_uses(made)
                except Refusal:
                    continue
                count += self._remember(made)
        return count

    def take_revoked(self, blob: bytes) -> bool:
        """Keep a newer list of the hive's owner; whether it was one. Blocks. Raises DiskFull."""
        try:
            made = revoked.revocations_from_bytes(blob)
        except HivefsError:
            return False
        if not revoked.newer(made, self.revoked) or not revoked.revocations_valid(made, self._hive_key):
            return False
        with self._store.lock:
            if not revoked.newer(made, self.revoked):
                return False
            with self._store.index.writing() as change:
                change.save_info(_LIST, blob)
            self.revoked = made
            self._recount()
        return True

    def tell(self, *, revoked_changed: bool = False) -> None:
        """In trio, after something was news: gossip soon, and end the conversations of the revoked."""
        if revoked_changed:
            self.on_revoked()
        self.news.set()
        self.news = trio.Event()

    def fresh(self) -> list[bytes]:
        """Certificates that were news since this was asked last, to be passed on."""
        fresh: list[bytes] = []
        while self._fresh:  # a thread may add to it meanwhile, so it is not exchanged for another
            fresh.append(self._fresh.popleft())
        return fresh

    # ---- pages ------------------------------------------------------------------------------------------------------

    def revoked_page(self) -> list[bytes]:
        """The list, if there is one."""
        return [] if self.revoked is None else [revoked.revocations_to_bytes(self.revoked)]

    def page(self, after: bytes, most_bytes: int) -> tuple[bool, list[bytes]]:
        """(more, certificates by invitation of members behind ``after`` that are not revoked)."""
        known: Revocations | None = self.revoked
        found: list[bytes] = []
        size = 0
        while batch := self._store.index.members(after, 256):
            for subject, invitation, certificate in batch:
                after = subject
                if known is not None and known.covers_keys(subject, invitation):
                    continue
                size += len(certificate) + 4
                if size > most_bytes:
                    return True, found
                found.append(certificate)
        return False, found

    def everyone(self, after: bytes, most_bytes: int) -> tuple[bool, list[bytes]]:
        """(more, certificates of all members behind ``after`` that this node ever heard of). Blocks."""
        newest: dict[bytes, Membership] = {}
        index = self._store.index
        blobs = [certificate for _, _, certificate in index.members()] + index.clients()
        made = [member.member_from_bytes(blob) for blob in blobs]
        made += [member.entry_from_bytes(blob).membership for blob in index.entries(b"", 1 << 40)[1]]
        for one in made:
            if one.subject > after and (one.subject not in newest or member.age(one) > member.age(newest[one.subject])):
                newest[one.subject] = one
        found: list[bytes] = []
        size = 0
        for subject in sorted(newest):
            blob = member.member_to_bytes(newest[subject])
            size += len(blob) + 4
            if size > most_bytes:
                return True, found
            found.append(blob)
        return False, found


__all__ = ["MAX_MEMBERS", "Members"]

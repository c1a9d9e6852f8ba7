"""metadata/store.py and snapshot.py: transactions, seals, damage, the queue of released chunks, snapshots."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from store_tools import KEYS, OTHER_KEYS, make, overwrite, raw, reopen

from hivefs.crypto.seal import RecordSealer
from hivefs.errors import Corrupt, DiskFull, StoreDamaged, VaultInUse
from hivefs.formats.local import local_inode_fields, local_inode_to_bytes
from hivefs.formats.records import dirent_key, inode_key, inode_to_bytes, map_key, map_prefix
from hivefs.metadata.snapshot import MetadataSnapshot
from hivefs.metadata.store import MetadataStore
from hivefs.model.ids import ChunkId
from hivefs.model.inode import Inode

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "metadata.json").read_text())


def test_what_is_put_is_seen_at_once_and_after_a_commit_for_ever(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.put(b"m-one", b"1")
    assert store.get(b"m-one") == b"1"
    store.commit()
    store.put(b"m-one", b"2")
    store.put(b"m-two", b"2")
    store.delete(b"m-none")
    store.close()
    store = reopen(tmp_path)
    assert store.get(b"m-one") == b"1"
    assert store.get(b"m-two") is None
    store.delete(b"m-one")
    store.close(commit=True)
    store = reopen(tmp_path)
    assert store.get(b"m-one") is None
    store.close(commit=True)


def test_commits_are_numbered_and_nothing_to_do_is_no_commit(tmp_path: Path) -> None:
    store = make(tmp_path)
    seq = store.seq
    store.commit()
    assert store.seq == seq
    store.put(b"m", b"1")
    store.commit()
    assert (store.seq, store.changed_seq) == (seq + 1, seq)
    store.put_orphan(5)
    store.commit()
    assert (store.seq, store.changed_seq) == (seq + 2, seq)
    store.close(commit=True)
    store = reopen(tmp_path)
    assert (store.seq, store.changed_seq) == (seq + 2, seq)
    store.close(commit=True)


def test_inode_numbers_carry_the_device_and_are_never_given_twice(tmp_path: Path) -> None:
    store = make(tmp_path, device=7)
    first = [store.next_ino() for _ in range(3)]
    store.put(b"m", b"1")
    store.close(commit=True)
    store = reopen(tmp_path)
    assert first == [7 << 40 | 2, 7 << 40 | 3, 7 << 40 | 4]
    assert store.next_ino() == 7 << 40 | 5
    store.close(commit=True)


def test_scan_keys_and_floor(tmp_path: Path) -> None:
    store = make(tmp_path)
    slots = [0, 1, 5, 300, 1 << 40]
    for slot in slots:
        store.put(map_key(9, slot), str(slot).encode())
    store.put(map_key(8, 7), b"before")
    store.put(map_key(10, 0), b"after")
    prefix = map_prefix(9)
    assert [value for _, value in store.scan(prefix)] == [str(s).encode() for s in slots]
    assert [value for _, value in store.scan(prefix, map_key(9, 2))] == [b"5", b"300", str(1 << 40).encode()]
    assert store.keys(prefix, map_key(9, 1), 2) == [map_key(9, 1), map_key(9, 5)]
    assert store.floor(map_key(9, 299), prefix) == (map_key(9, 5), b"5")
    assert store.floor(map_key(9, 300), prefix) == (map_key(9, 300), b"300")
    assert store.floor(map_key(9, 1 << 60), prefix) == (map_key(9, 1 << 40), str(1 << 40).encode())
    assert store.floor(map_key(7, 5), map_prefix(7)) is None
    assert store.floor(map_key(10, 5), map_prefix(10)) == (map_key(10, 0), b"after")
    store.close(commit=True)


def test_a_scan_goes_on_while_records_change(tmp_path: Path) -> None:
    store = make(tmp_path)
    for slot in range(500):
        store.put(map_key(1, slot), b"x")
    seen = []
    for key, _ in store.scan(map_prefix(1)):
        seen.append(key)
        store.delete(key)
        store.put(map_key(2, len(seen)), b"new")
        if len(seen) == 100:
            store.commit()
    assert seen == [map_key(1, slot) for slot in range(500)]
    assert store.keys(map_prefix(1)) == []
    store.close(commit=True)


# ---- secrecy and damage -----------------------------------------------------------------------------------------------


def test_nothing_on_disk_shows_a_value(tmp_path: Path) -> None:
    store = make(tmp_path, holder="/mnt/drive")
    secret = b"holiday-in-lisbon"
    store.put(dirent_key(1, store.name_hash(1, secret)), secret)
    store.put_staged(1, 2, secret)
    store.put_info(b"capacity", secret)
    store.push_released(ChunkId(secret[:16]))
    store.close(commit=True)
    for file in (tmp_path / "metadata").iterdir():
        assert secret[:16] not in file.read_bytes()
    assert (tmp_path / "metadata" / "lock").read_bytes() == b""


def test_the_same_name_has_another_key_in_another_directory_and_vault(tmp_path: Path) -> None:
    store = make(tmp_path)
    other = MetadataStore(tmp_path / "other", OTHER_KEYS, create=True)
    assert len({store.name_hash(1, b"a"), store.name_hash(2, b"a"), other.name_hash(1, b"a")}) == 3
    store.close(commit=True)
    other.close()


def test_a_record_opens_only_where_it_was_put(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.put(map_key(1, 0), b"one")
    store.put(map_key(1, 1), b"two")
    store.close(commit=True)
    path = tmp_path / "metadata"
    rows = raw(path, "tree")
    overwrite(path, "tree", {map_key(1, 0): rows[map_key(1, 1)], map_key(1, 1): rows[map_key(1, 1)]})
    overwrite(path, "staged", {map_key(1, 0)[1:]: rows[map_key(1, 1)]})
    store = reopen(tmp_path)
    with pytest.raises(Corrupt):
        store.get(map_key(1, 0))
    with pytest.raises(Corrupt):
        store.get_staged(1, 0)
    with pytest.raises(Corrupt):
        store.floor(map_key(1, 0), map_prefix(1))
    assert list(store.scan(map_prefix(1))) == [(map_key(1, 0), None), (map_key(1, 1), b"two")]
    assert list(store.scan_staged()) == [(1, 0, None)]
    store.close(commit=True)


def test_wrong_keys_open_nothing(tmp_path: Path) -> None:
    make(tmp_path).close()
    with pytest.raises(Corrupt):
        MetadataStore(tmp_path / "metadata", OTHER_KEYS)
    with pytest.raises(Corrupt):
        MetadataSnapshot(tmp_path / "metadata", OTHER_KEYS)
    reopen(tmp_path).close()


def test_a_store_that_is_not_there_is_not_made_silently(tmp_path: Path) -> None:
    with pytest.raises(StoreDamaged, match="it is not there"):
        reopen(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "cut in the middle", "garbage", "empty"])
def test_a_damaged_file_is_named_as_such(tmp_path: Path, damage: str) -> None:
    store = make(tmp_path)
    for number in range(3000):
        store.put(map_key(1, number), bytes(200))
    store.close(commit=True)
    file = tmp_path / "metadata" / "data.mdb"
    whole = file.read_bytes()
    if damage == "cut":
        file.write_bytes(whole[: len(whole) - 4096])
    elif damage == "cut in the middle":
        file.write_bytes(whole[:10_000])
    elif damage == "garbage":
        file.write_bytes(os.urandom(len(whole)))
    else:
        shutil.rmtree(tmp_path / "metadata")
        (tmp_path / "metadata").mkdir()
        file.write_bytes(b"")
    before = file.read_bytes()
    with pytest.raises(StoreDamaged) as caught:
        reopen(tmp_path)
    assert "recover" in str(caught.value)
    if damage != "empty":
        assert file.read_bytes() == before
    with pytest.raises((StoreDamaged, Corrupt)):
        MetadataSnapshot(tmp_path / "metadata", KEYS)


def test_a_store_without_an_entry_about_itself_is_damaged(tmp_path: Path) -> None:
    make(tmp_path).close()
    overwrite(tmp_path / "metadata", "info", {b"seq": None})
    with pytest.raises(StoreDamaged):
        reopen(tmp_path)


def test_only_one_opens_it(tmp_path: Path) -> None:
    store = make(tmp_path, holder="/mnt/drive")
    script = (
        "import sys\nfrom pathlib import Path\nfrom hivefs.crypto.keys import VaultKeys\n"
        "from hivefs.metadata.store import MetadataStore\n"
        "MetadataStore(Path(sys.argv[1]), VaultKeys(bytes(range(32))))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "metadata")]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode
    assert "VaultInUse" in refused.stderr and "already mounted at /mnt/drive" in refused.stderr
    with pytest.raises(VaultInUse):
        reopen(tmp_path)
    store.close(commit=True)
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


def test_a_full_disk_delays_a_commit_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(tmp_path)
    store.put(b"m", b"1")
    with monkeypatch.context() as patch:
        patch.setattr(store, "disk", lambda: (1 << 40, 1 << 20))
        with pytest.raises(DiskFull):
            store.commit()
    assert store.pending
    store.put(b"m2", b"2")
    store.commit()
    store.close()
    store = reopen(tmp_path)
    assert (store.get(b"m"), store.get(b"m2")) == (b"1", b"2")
    store.close(commit=True)


def test_after_a_failure_of_lmdb_nothing_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hivefs.metadata.environment.MAP_BYTES", 1 << 20)
    store = make(tmp_path)
    store.put(b"m", b"1")
    with pytest.raises(StoreDamaged):
        for number in range(20_000):
            store.put(map_key(1, number), bytes(500))
    with pytest.raises(StoreDamaged):
        store.get(b"m")
    with pytest.raises(StoreDamaged):
        store.commit()
    store.close(commit=True)
    store = reopen(tmp_path)
    assert store.get(b"m") is None
    store.close(commit=True)


# ---- queues and snapshots ---------------------------------------------------------------------------------------------


def test_released_chunks_are_given_out_once_committed(tmp_path: Path) -> None:
    store = make(tmp_path)
    chunks = [ChunkId(bytes([n]) * 16) for n in range(5)]
    for chunk in chunks[:3]:
        store.push_released(chunk)
    assert store.released(0, 10) == []
    store.commit()
    store.push_released(chunks[3])
    assert store.released(0, 10) == [(1, chunks[0]), (2, chunks[1]), (3, chunks[2])]
    assert store.released(1, 1) == [(2, chunks[1])]
    store.released_done(3)
    store.commit()
    store.released_done(4)
    store.commit()
    store.close(commit=True)
    store = reopen(tmp_path)
    assert store.released(0, 10) == []
    store.push_released(chunks[4])
    store.commit()
    assert store.released(0, 10) == [(5, chunks[4])]
    store.close(commit=True)


def test_changes_since_the_last_checkpoint(tmp_path: Path) -> None:
    store = make(tmp_path)
    inode = Inode(3, 0o100644, size=5)
    store.put(inode_key(3), local_inode_to_bytes(inode, 1, 1))
    store.put(b"m-deleted", b"1")
    store.put(b"m-quiet", b"1", quiet=True)
    first = store.seq
    store.commit()
    store.delete(b"m-deleted")
    store.put(b"x", b"later")
    store.commit()
    snapshot = MetadataSnapshot(tmp_path / "metadata", KEYS, store=store)
    assert list(snapshot.changes()) == [
        (inode_key(3), inode_to_bytes(inode), first),
        (b"m-deleted", None, first + 1),
        (b"x", b"later", first + 1),
    ]
    store.publish(first)
    store.put(b"x", b"unseen")
    store.commit()
    assert [key for key, _, _ in snapshot.changes()] == [inode_key(3), b"m-deleted", b"x"]
    assert snapshot.begin() == first + 2
    assert list(snapshot.changes()) == [(b"m-deleted", None, first + 1), (b"x", b"unseen", first + 2)]
    assert store.forget_changed(b"", 2) is not None
    assert store.forget_changed(b"", 100) is None
    store.commit()
    assert store.counts()["changed"] == 2
    snapshot.close()
    store.close(commit=True)


def test_a_scan_goes_on_where_it_was_when_the_snapshot_is_another(tmp_path: Path) -> None:
    """What was there all the time is given once and in order, whatever comes and goes before and behind it."""
    store = make(tmp_path)
    stays = [b"m%03d" % number for number in range(0, 300, 3)]
    for key in stays:
        store.put(key, b"old" + key)
    store.commit()
    snapshot = MetadataSnapshot(tmp_path / "metadata", KEYS, store=store)
    seen: list[tuple[bytes, bytes | None]] = []
    for key, value in snapshot.scan(b"m"):
        seen.append((key, value))
        at = int(key[1:])
        if key in stays:
            store.put(b"m%03d" % (at + 1), b"ahead")
            store.put(b"m%03d" % max(0, at - 1), b"behind")
        else:
            store.delete(key)
        store.commit()
        snapshot.begin()
    assert seen[0] == (b"m000", b"oldm000")
    assert seen == [row for key in stays for row in ((key, b"old" + key), (b"m%03d" % (int(key[1:]) + 1), b"ahead"))]
    assert list(snapshot.scan(b"n")) == []
    snapshot.close()
    store.close(commit=True)


def test_a_change_after_publishing_in_the_same_transaction_is_not_forgotten(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.put(b"x", b"1")
    store.commit()
    store.publish(store.seq - 1)
    assert store.forget_changed(b"", 100) is None
    store.put(b"x", b"2")
    store.commit()
    snapshot = MetadataSnapshot(tmp_path / "metadata", KEYS, store=store)
    assert [(key, value) for key, value, _ in snapshot.changes()] == [(b"x", b"2")]
    snapshot.close()
    store.close(commit=True)


def test_another_process_reads_while_this_one_writes(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.put(b"m", b"committed")
    store.commit()
    store.put(b"m", b"open")
    script = (
        "import sys\nfrom pathlib import Path\nfrom hivefs.crypto.keys import VaultKeys\n"
        "from hivefs.metadata.snapshot import MetadataSnapshot\n"
        "s = MetadataSnapshot(Path(sys.argv[1]), VaultKeys(bytes(range(32))))\n"
        "print(s.get(b'm').decode(), s.seq, s.next_counter, s.published, s.hydrating)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "metadata")]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout.split() == ["committed", str(store.seq - 1), "2", "0", "False"]
    store.close(commit=True)


# ---- bytes ------------------------------------------------------------------------------------------------------------


def test_vectors() -> None:
    local = VECTORS["local_inode"]
    data = bytes.fromhex(local["bytes"])
    fields, changed_seq, link_seq = local_inode_fields(data)
    inode = Inode(*fields)
    assert (inode.ino, inode.mode, inode.size, inode.parent) == (local["ino"], local["mode"], local["size"], 1)
    assert (changed_seq, link_seq) == (local["changed_seq"], local["link_seq"])
    assert local_inode_to_bytes(inode, changed_seq, link_seq) == data
    for short in (b"", data[:15], data[:60]):
        with pytest.raises(Corrupt):
            local_inode_fields(short)
    for row in VECTORS["sealed"]:
        nonce = bytes.fromhex(row["nonce"])
        sealer = RecordSealer(KEYS.metadata_key, lambda count, nonce=nonce: nonce[:count])
        place = row["table"].encode() + bytes.fromhex(row["key"])
        assert sealer.open(place, bytes.fromhex(row["value"])).hex() == row["plain"]
        assert sealer.seal(place, bytes.fromhex(row["plain"])).hex() == row["value"]

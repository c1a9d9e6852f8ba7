"""The vault's home: locks, tampering, atomic writes, permissions."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from hivefs.crypto.keys import VaultKeys, derive, public_key
from hivefs.daemon import home as home_module
from hivefs.daemon.home import Home, Lock, Secrets, make_key_file, read_key_file, write_file
from hivefs.errors import BadSetting, Corrupt, KeyFileProblem, UnknownVersion, VaultExists, VaultMissing, WrongPassword
from hivefs.formats import vault as vault_format
from hivefs.formats.member import member_valid

NODES = ("/ip4/127.0.0.1/tcp/20001/p2p/12D3KooW",)
SECRETS = Secrets(bytes(range(32)), bytes(range(32, 64)))
HIVE = bytes(range(64, 96))


NO_LOCK = Lock("none")


def make(path: Path, lock: Lock = NO_LOCK, **settings: int) -> Home:
    return Home.create(path, SECRETS, lock, HIVE, NODES, 4, 6, settings)


@pytest.mark.parametrize("lock", [Lock("none"), Lock("password", b"pass w\xc3\xb6rd"), Lock("keyfile", bytes(40))])
def test_create_and_unlock(tmp_path: Path, lock: Lock) -> None:
    make(tmp_path / "deep" / "vault", lock)
    home = Home.load(tmp_path / "deep" / "vault")
    secrets = home.unlock(lock.secret)
    assert secrets == SECRETS
    vault = home.vault
    assert (vault.needed, vault.total, vault.nodes, vault.number) == (4, 6, NODES, 1)
    assert vault.hive_key == public_key(HIVE) and member_valid(vault.membership, vault.hive_key, vault.membership.issued_ns)
    assert vault.membership.subject == VaultKeys(SECRETS.master).owner_key
    with pytest.raises(WrongPassword):
        home.unlock(lock.secret + b"x")


def test_private(tmp_path: Path) -> None:
    make(tmp_path / "v")
    for path in (tmp_path / "v", *(tmp_path / "v").rglob("*")):
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    text = (tmp_path / "v" / "vault.json").read_text()
    assert SECRETS.master.hex() not in text and SECRETS.device_seed.hex() not in text
    assert SECRETS.master.hex() not in repr(SECRETS) + repr(Lock("password", SECRETS.master))


def _change(value: dict[str, Any], path: str, new: Any) -> None:
    *way, last = path.split(".")
    for name in way:
        value = value[name]
    value[last] = new


@pytest.mark.parametrize(
    ("field", "new"),
    [
        ("code.needed", 1),
        ("code.total", 5),
        ("hive.nodes", ["/ip4/6.6.6.6/tcp/1/p2p/x"]),
        ("settings", {"reserve_bytes": 0}),
        ("wrap.memory_kib", 65537),
        ("wrap.iterations", 1),
        ("mac", "00" * 32),
        ("mac", None),
        ("wrapped", "00" * 60),
        ("extra", 1),
    ],
)
def test_no_field_can_be_changed(tmp_path: Path, field: str, new: Any) -> None:
    make(tmp_path / "v", Lock("password", b"p"))
    file = tmp_path / "v" / "vault.json"
    value = json.loads(file.read_text())
    _change(value, field, new)
    file.write_text(json.dumps(value))
    with pytest.raises(WrongPassword):
        Home.load(tmp_path / "v").unlock(b"p")


def test_foreign_certificates_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "v")
    Home.create(tmp_path / "w", Secrets(bytes(32), bytes(32)), Lock("none"), HIVE, NODES, 4, 6)
    value, other = (json.loads((tmp_path / n / "vault.json").read_text()) for n in "vw")
    (tmp_path / "v" / "vault.json").write_text(json.dumps({**value, "device": other["device"]}))
    with pytest.raises(Corrupt):
        Home.load(tmp_path / "v")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b'{"format": "hivefs-vault", "version": 1}', b"[" * 100_000])
def test_garbage(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "vault.json").write_bytes(data)
    with pytest.raises(Corrupt):
        Home.load(tmp_path)


def test_newer_version(tmp_path: Path) -> None:
    make(tmp_path / "v")
    file = tmp_path / "v" / "vault.json"
    file.write_text(file.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(UnknownVersion):
        Home.load(tmp_path / "v")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    with pytest.raises(VaultMissing):
        Home.load(tmp_path / "none")
    make(tmp_path / "v")
    with pytest.raises(VaultExists):
        make(tmp_path / "v")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"x")
    with pytest.raises(BadSetting, match=r"photo\.jpg"):
        make(tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["photo.jpg"]


def test_two_at_once(tmp_path: Path) -> None:
    one, two = (Home.prepare(tmp_path / "v", SECRETS, Lock("none")) for _ in range(2))
    parts = vault_format.from_bytes((make(tmp_path / "w").file).read_bytes())
    one.finish(parts.certificate, parts.membership, NODES, 4, 6)
    with pytest.raises(VaultExists):
        two.finish(parts.certificate, parts.membership, NODES, 2, 3)
    assert Home.load(tmp_path / "v").vault.total == 6


def test_what_an_interrupted_recovery_left_is_kept_aside(tmp_path: Path) -> None:
    Home.prepare(tmp_path / "v", SECRETS, Lock("none"))
    (tmp_path / "v" / "metadata" / "data.mdb").write_bytes(b"left")
    make(tmp_path / "v")
    assert not any((tmp_path / "v" / "metadata").iterdir())
    assert [p.read_bytes() for p in (tmp_path / "v").glob("before-*/metadata/data.mdb")] == [b"left"]


def test_change_keeps_the_rest(tmp_path: Path) -> None:
    home = make(tmp_path / "v", Lock("password", b"p"), node_gone_after_s=5)
    secrets = home.unlock(b"p")
    home.change(secrets, nodes=("/ip4/10.0.0.1/tcp/1/p2p/y",))
    again = Home.load(tmp_path / "v")
    assert again.unlock(b"p") == SECRETS
    assert again.vault.nodes == ("/ip4/10.0.0.1/tcp/1/p2p/y",) and again.vault.setting("node_gone_after_s") == 5


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = make(tmp_path / "v")
    before = home.file.read_bytes()

    def broken(handle: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(home_module.os, "fsync", broken)
    with pytest.raises(home_module.DiskFull):
        home.change(SECRETS, nodes=())
    assert home.file.read_bytes() == before
    assert sorted(p.name for p in home.path.iterdir()) == sorted([*home_module.STORES, "vault.json"])


def test_settings() -> None:
    assert vault_format.check_setting("node_gone_after_s", 5) == 5
    for name, value in (("nope", 1), ("node_gone_after_s", 0), ("cache_bytes", True)):
        with pytest.raises(BadSetting):
            vault_format.check_setting(name, value)


def test_key_files(tmp_path: Path) -> None:
    key = make_key_file(tmp_path / "k")
    assert read_key_file(tmp_path / "k") == key and len(key) == 32
    with pytest.raises(KeyFileProblem):
        make_key_file(tmp_path / "k")
    (tmp_path / "k").chmod(0o644)
    with pytest.raises(KeyFileProblem, match="chmod"):
        read_key_file(tmp_path / "k")
    write_file(tmp_path / "short", b"x")
    for path in (tmp_path / "short", tmp_path / "none", tmp_path):
        with pytest.raises(KeyFileProblem):
            read_key_file(path)


def test_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HIVEFS_HOME", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert home_module.default_home() == tmp_path / "hivefs" / "vault"
    monkeypatch.setenv("XDG_DATA_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", "/home/someone")
    assert home_module.default_home() == Path("/home/someone/.local/share/hivefs/vault")
    monkeypatch.setenv("HIVEFS_HOME", "~/v")
    assert home_module.default_home() == Path("/home/someone/v")


def test_mac_key_has_its_own_label() -> None:
    assert derive(SECRETS.master, "vault-mac") != derive(SECRETS.master, "vault-file")

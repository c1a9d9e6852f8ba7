"""Byte vectors of the vault file and the hive's key file. Never change a vector; add a version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hivefs.crypto.keys import VaultKeys, derive
from hivefs.crypto.wrap import BadWrap, unwrap
from hivefs.daemon import hive
from hivefs.daemon.home import Home, Secrets
from hivefs.formats import vault as vault_format

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "vault.json").read_text())["vectors"]
SECRETS = Secrets(bytes(range(32)), bytes(range(32, 64)))


@pytest.mark.parametrize(("name", "secret"), [("password", "pässword".encode()), ("keyfile", bytes(40)), ("none", b"")])
def test_vault_file(tmp_path: Path, name: str, secret: bytes) -> None:
    data = bytes.fromhex(VECTORS[name])
    (tmp_path / "vault.json").write_bytes(data)
    home = Home.load(tmp_path)
    assert home.unlock(secret) == SECRETS
    vault = home.vault
    assert vault.wrap.method == name and vault.vault_id == VaultKeys(SECRETS.master).vault_id
    assert (vault.needed, vault.total, vault.number, vault.settings) == (4, 6, 3, {"node_gone_after_s": 7})
    assert vault.nodes == ("/ip4/192.0.2.7/tcp/4001/p2p/12D3KooWA", "/ip4/192.0.2.8/tcp/4001/p2p/12D3KooWB")
    assert vault_format.to_bytes(vault, derive(SECRETS.master, "vault-mac")) == data
    with pytest.raises(BadWrap):
        unwrap(vault.wrap, secret + b"!", vault.wrapped)


def test_hive_key() -> None:
    data = bytes.fromhex(VECTORS["hive_key"])
    key = hive.from_bytes(data)
    assert key.seed == bytes(range(64, 96)) and hive.to_bytes(key) == data

"""The vault file: what a machine keeps of a vault, JSON with the secrets wrapped. See docs/formats/vault.md.

It is the one file of HiveFS that a person may read, so it is JSON. Everything in it that is not secret (the hive, the
nodes to ask first, the code) is covered by an HMAC under a key that only the unlocked vault has: a thief who gives the
machine back cannot have pointed it at another hive or lowered the code.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hivefs.crypto.wrap import WrapParams
from hivefs.errors import BadSetting, Corrupt, UnknownVersion
from hivefs.formats import head as head_format
from hivefs.formats import member as member_format
from hivefs.formats import strict
from hivefs.model.head import DeviceCertificate
from hivefs.model.ids import ID_BYTES, VaultId
from hivefs.model.node import Membership

FORMAT = "hivefs-vault"
VERSION = 1
MAX_BYTES = 256 << 10
_WHAT = "the vault file"


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of a vault: its default, the least and the greatest value, and what it means."""

    default: int
    least: int
    most: int
    meaning: str


SETTINGS: Mapping[str, Setting] = {
    "node_gone_after_s": Setting(86_400, 1, 31_536_000, "seconds a node may be away before its shares are made again"),
    "cache_bytes": Setting(2 << 30, 16 << 20, 1 << 50, "most bytes of sealed chunks kept on this machine"),
    "reserve_bytes": Setting(256 << 20, 0, 1 << 50, "free bytes that are left on the local disk"),
    "lan": Setting(0, 0, 1, "1 looks for nodes on the local network (mDNS), which tells it that HiveFS is used"),
    "enforce_entitlement": Setting(0, 0, 1, "1 takes no more data than the vault's own contribution to the hive allows"),
    "maintenance_bytes_s": Setting(0, 0, 1 << 40, "most bytes a second of repair, moving and audits (0: no limit)"),
    "metrics_port": Setting(0, 0, 65_535, "port on 127.0.0.1 where the engine tells Prometheus its counts (0: nowhere)"),
    "relays": Setting(0, 0, 1, "1 reaches nodes that nothing else leads to through relays that they name (experimental)"),
    "read_deadline_s": Setting(60, 1, 3600, "seconds after which a read that no node serves fails"),
}


def check_setting(name: str, value: int) -> int:
    """``value`` if the setting exists and may have it; raises BadSetting."""
    known = SETTINGS.get(name)
    if known is None:
        raise BadSetting(name=name, reason=f"there is none of that name; there are {', '.join(sorted(SETTINGS))}")
    if type(value) is not int or not known.least <= value <= known.most:
        raise BadSetting(name=name, reason=f"it is a whole number from {known.least} to {known.most}")
    return value


@dataclass(frozen=True, slots=True)
class VaultFile:
    """What a machine keeps of a vault. ``wrapped`` opens to the secrets; ``nodes`` are addresses to ask first."""

    vault_id: VaultId
    wrap: WrapParams
    wrapped: bytes
    certificate: DeviceCertificate
    membership: Membership
    nodes: tuple[str, ...]
    needed: int
    total: int
    settings: Mapping[str, int] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """The number of this device in the vault, 1 to 65 535."""
        return self.certificate.number

    @property
    def hive_key(self) -> bytes:
        """The public key of the hive's owner, 32 bytes."""
        return self.membership.hive_key

    def setting(self, name: str) -> int:
        """The value of a setting of SETTINGS: the vault's own, or the default."""
        return self.settings.get(name, SETTINGS[name].default)


def _fields(vault: VaultFile) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "vault_id": vault.vault_id.hex(),
        "wrap": asdict(vault.wrap),
        "wrapped": vault.wrapped.hex(),
        "device": {
            "number": vault.certificate.number,
            "certificate": head_format.certificate_to_bytes(vault.certificate).hex(),
        },
        "hive": {
            "key": vault.membership.hive_key.hex(),
            "membership": member_format.member_to_bytes(vault.membership).hex(),
            "nodes": list(vault.nodes),
        },
        "code": {"needed": vault.needed, "total": vault.total},
        "settings": dict(vault.settings),
    }


def _mac(fields: Mapping[str, Any], mac_key: bytes) -> str:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hmac.new(mac_key, text.encode("ascii"), hashlib.sha256).hexdigest()


def to_bytes(vault: VaultFile, mac_key: bytes) -> bytes:
    """Indented JSON with the HMAC-SHA256 of all other fields under ``mac_key`` (32 bytes)."""
    fields = _fields(vault)
    return (json.dumps({**fields, "mac": _mac(fields, mac_key)}, indent=2, ensure_ascii=True) + "\n").encode("ascii")


def from_bytes(data: bytes) -> VaultFile:
    """Raises Corrupt or UnknownVersion. Nothing is proved before mac_valid was asked."""
    value = _load(data)
    if value.get("format") != FORMAT:
        raise Corrupt(what=_WHAT, reason="it is not a HiveFS vault file")
    version = value.get("version")
    if version != VERSION:
        raise UnknownVersion(what=_WHAT, version=version)
    try:
        device, hive, code = value["device"], value["hive"], value["code"]
        certificate = head_format.certificate_from_bytes(bytes.fromhex(device["certificate"]))
        membership = member_format.member_from_bytes(bytes.fromhex(hive["membership"]))
        if strict.number(device["number"]) != certificate.number or bytes.fromhex(hive["key"]) != membership.hive_key:
            raise ValueError("a certificate says otherwise")
        total = strict.number(code["total"], 1, 255)
        return VaultFile(
            VaultId(strict.blob(bytes.fromhex(value["vault_id"]), ID_BYTES)),
            _wrap(value["wrap"]),
            bytes.fromhex(value["wrapped"]),
            certificate,
            membership,
            tuple(strict.text(address, 256) for address in strict.items(hive["nodes"])),
            strict.number(code["needed"], 1, total),
            total,
            {str(name): check_setting(name, number) for name, number in dict(value["settings"]).items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Corrupt(what=_WHAT, reason=f"a field is missing or wrong ({error})") from None
    except BadSetting as error:
        raise Corrupt(what=_WHAT, reason=str(error)) from None


def mac_valid(data: bytes, mac_key: bytes) -> bool:
    """Whether every field of the file is as the holder of the secrets wrote it."""
    fields = _load(data)
    said = fields.pop("mac", "")
    # JSON can hold half a surrogate pair: a str that has no bytes in UTF-8
    return isinstance(said, str) and said.isascii() and hmac.compare_digest(said, _mac(fields, mac_key))


def _wrap(value: Mapping[str, Any]) -> WrapParams:
    params = WrapParams(**value)
    if type(params.method) is not str or len(bytes.fromhex(params.salt)) < ID_BYTES:
        raise ValueError("wrap")
    for number in (params.memory_kib, params.iterations, params.lanes):
        strict.number(number)
    return params


def _load(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_BYTES:
        raise Corrupt(what=_WHAT, reason="it is too long")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise Corrupt(what=_WHAT, reason="it is not JSON") from None
    if not isinstance(value, dict):
        raise Corrupt(what=_WHAT, reason="it is not a JSON object")
    return value


__all__ = ["FORMAT", "SETTINGS", "VERSION", "VaultFile", "check_setting", "from_bytes", "mac_valid", "to_bytes"]

"""What a node is, in its directory: ``node.json`` (settings, certificate) and ``node.seed`` (32 secret bytes, 0600).

See docs/formats/node.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hivefs.crypto import keys
from hivefs.errors import BadSetting, HivefsError, NodeProblem
from hivefs.formats import attestation, member, strict
from hivefs.model.attestation import Said
from hivefs.model.ids import ID_BYTES, KEY_BYTES, NodeId
from hivefs.model.node import MOST_RELAYS, RELAY_MARK, Attribute, Membership, Role
from hivefs.node.caps import NO_CAP, SAME, Caps, hours_from_text

FORMAT = "hivefs-node"
VERSION = 1
CONFIG, SEED = "node.json", "node.seed"
MAX_CONFIG_BYTES = 1 << 20
MAX_BOOTSTRAP = 64
MOST_RELAY_TEXT = 256 - len(RELAY_MARK)
"""Characters of a relay's address: with its mark it is one of the items of an address record."""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Settings. ``capacity`` and ``vault_quota`` (0: none) are bytes of shares. ``announce`` are the addresses that others
    are told, when they differ from those listened on. ``membership`` is None until the hive's owner has signed. ``lan``
    is whether it tells and looks for nodes of its hive on the local network.
    ``leaving_ns`` is since when the node leaves (0: it stays). ``claims`` and ``attestations`` (bytes) are what it says of
    itself beside its membership (formats/attestation.py). ``credits`` is the id (hex) of the vault that is credited with
    what this node contributes; empty for none. ``relays`` are full addresses of relays through which it is reached, beside
    its own addresses.
    """

    listen: tuple[str, ...]
    capacity: int
    membership: Membership | None
    bootstrap: tuple[str, ...] = ()
    announce: tuple[str, ...] = ()
    vault_quota: int = 0
    lan: bool = False
    caps: Caps = field(default_factory=Caps)
    leaving_ns: int = 0
    claims: Said = ()
    attestations: tuple[bytes, ...] = ()
    credits: str = ""
    relays: tuple[str, ...] = ()


def _to_json(config: NodeConfig) -> bytes:
    value = {
        "format": FORMAT,
        "version": VERSION,
        "listen": list(config.listen),
        "announce": list(config.announce),
        "bootstrap": list(config.bootstrap),
        "capacity": config.capacity,
        "vault_quota": config.vault_quota,
        "lan": config.lan,
        "upload": config.caps.upload,
        "download": config.caps.download,
        "quiet_hours": ",".join(map(str, config.caps.quiet_hours)),
        "quiet_upload": config.caps.quiet_upload,
        "quiet_download": config.caps.quiet_download,
        "leaving_ns": config.leaving_ns,
        "credits": config.credits,
        "relays": list(config.relays),
        "claims": dict(config.claims),
        "attestations": [blob.hex() for blob in config.attestations],
        "membership": None if config.membership is None else member.member_to_bytes(config.membership).hex(),
    }
    return (json.dumps(value, indent=2) + "\n").encode()


def _from_json(path: Path, data: bytes) -> NodeConfig:
    try:
        value = json.loads(data)
        if value["format"] != FORMAT:
            raise NodeProblem(path=path, reason=f"{CONFIG} is not the settings of a HiveFS node")
        if value["version"] != VERSION:
            raise NodeProblem(path=path, reason=f"{CONFIG} has version {value['version']}, this HiveFS knows {VERSION}")
        signed = value["membership"]
        return NodeConfig(
            _texts(value["listen"]),
            strict.number(value["capacity"], 1),
            None if signed is None else member.member_from_bytes(bytes.fromhex(signed)),
            _texts(value["bootstrap"]),
            _texts(value["announce"]),
            strict.number(value["vault_quota"]),
            value.get("lan", False) is True,
            # Added later: a file without them is one that says nothing of them.
            Caps(
                strict.number(value.get("upload", NO_CAP), NO_CAP),
                strict.number(value.get("download", NO_CAP), NO_CAP),
                hours_from_text(strict.text(value.get("quiet_hours", ""))),
                strict.number(value.get("quiet_upload", SAME), SAME),
                strict.number(value.get("quiet_download", SAME), SAME),
            ),
            strict.number(value.get("leaving_ns", 0)),
            attestation.said_from_items([[k, v] for k, v in sorted(value.get("claims", {}).items())], empty=True),
            tuple(_attestation(text) for text in strict.items(value.get("attestations", []), attestation.MAX_ATTESTATIONS)),
            check_credits(strict.text(value.get("credits", ""))),
            tuple(strict.text(item, MOST_RELAY_TEXT) for item in strict.items(value.get("relays", []), MOST_RELAYS)),
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        raise NodeProblem(path=path, reason=f"{CONFIG} is damaged or was edited wrongly") from None


def check_credits(text: str) -> str:
    """``text`` if it is a vault's id in hex, or nothing; else ValueError."""
    if text and (len(text) != 2 * ID_BYTES or set(text) - set("0123456789abcdef")):
        raise ValueError("not a vault's id")
    return text


def _attestation(text: Any) -> bytes:
    data = bytes.fromhex(strict.text(text, 2 * attestation.MAX_BYTES))
    attestation.attestation_from_bytes(data)
    return data


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(strict.text(item, 256) for item in strict.items(value, 256))


def _write(path: Path, data: bytes) -> None:
    """Replace a file as a whole, on disk when this returns; only its owner may read it. The owner is that of the directory
    (root may change the settings of a node that another user runs).
    """
    temporary = path.with_name(path.name + ".tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(handle, 0o600)
        owner = path.parent.stat()
        if os.geteuid() == 0 and owner.st_uid != 0:
            os.fchown(handle, owner.st_uid, owner.st_gid)
        os.write(handle, data)
        os.fsync(handle)
    finally:
        os.close(handle)
    temporary.replace(path)
    handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _translated(directory: Path) -> Any:
    try:
        yield
    except OSError as error:
        raise NodeProblem(path=directory, reason=error.strerror or str(error)) from error


def create_node(
    directory: Path,
    *,
    listen: tuple[str, ...],
    capacity: int,
    attributes: tuple[Attribute, ...] = (),
    hive_seed: bytes | None = None,
    membership: Membership | None = None,
    seed: bytes | None = None,
    bootstrap: tuple[str, ...] = (),
    announce: tuple[str, ...] = (),
    vault_quota: int = 0,
    lan: bool = False,
    caps: Caps = Caps(),  # noqa: B008 - frozen
    now_ns: int = 0,
    random: Callable[[int], bytes] = os.urandom,
) -> NodeId:
    """Make a node's directory; returns its id (public key). ``seed`` is its identity, by default a new one.

    Its certificate is ``membership``, or is signed here with the hive owner's ``hive_seed`` over ``attributes``, or comes
    later through ``set_membership``. Raises NodeProblem (there is a node already, the certificate is another's) and
    BadSetting.
    """
    if capacity < 1 or vault_quota < 0:
        raise BadSetting(name="capacity", reason="it is a positive number of bytes")
    if not listen:
        raise BadSetting(name="listen", reason="a node needs an address to listen on")
    seed = random(KEY_BYTES) if seed is None else seed
    node_id = NodeId(keys.public_key(seed))
    if hive_seed is not None:
        membership = member.sign_member(
            hive_seed, Membership(keys.public_key(hive_seed), node_id, Role.NODE, attributes, now_ns)
        )
    if membership is not None:
        _check_membership(directory, membership, node_id)
    with _translated(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        if (directory / CONFIG).exists():
            raise NodeProblem(path=directory, reason="there is a node in it already")
        _write(directory / SEED, seed)
        _write(
            directory / CONFIG,
            _to_json(NodeConfig(listen, capacity, membership, bootstrap, announce, vault_quota, lan, caps)),
        )
    return node_id


def forget_node(directory: Path) -> None:
    """Undo create_node for a node that never ran. The directory stays, it may have been there before."""
    for name in (CONFIG, SEED):
        (directory / name).unlink(missing_ok=True)


def _check_membership(directory: Path, membership: Membership, node_id: bytes) -> None:
    if membership.subject != node_id or not membership.roles & Role.NODE:
        raise NodeProblem(path=directory, reason="the membership certificate is not that of this node")
    # Whether it has expired is looked at when the node runs; here the signature alone counts.
    if not member.member_valid(membership, membership.hive_key, 0):
        raise NodeProblem(path=directory, reason="the membership certificate is not signed by the hive's owner")


def set_membership(directory: Path, membership: Membership, bootstrap: tuple[str, ...] = ()) -> None:
    """Give a node the certificate that the hive's owner signed for it, and more addresses to ask. Raises NodeProblem."""
    config, seed = load_node(directory)
    _check_membership(directory, membership, keys.public_key(seed))
    addresses = tuple(dict.fromkeys([*bootstrap, *config.bootstrap]))[:MAX_BOOTSTRAP]
    with _translated(directory):
        _write(directory / CONFIG, _to_json(replace(config, membership=membership, bootstrap=addresses)))


def change_settings(directory: Path, change: Callable[[NodeConfig], NodeConfig]) -> NodeConfig:
    """Change the settings of a node, running or not; a running one takes them when it is told (service.Running.reload). One
    change at a time. Raises NodeProblem.
    """
    with _translated(directory):
        try:
            handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise NodeProblem(path=directory, reason="there is no node in it; make one with 'hivefs node init'") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            before, _ = load_node(directory)
            after = change(before)
            if after != before:
                _write(directory / CONFIG, _to_json(after))
        finally:
            os.close(handle)
    return after


def load_node(directory: Path) -> tuple[NodeConfig, bytes]:
    """Settings and seed. Raises NodeProblem."""
    try:
        with (directory / CONFIG).open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        with (directory / SEED).open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            seed = file.read(KEY_BYTES + 1)
    except FileNotFoundError:
        raise NodeProblem(path=directory, reason="there is no node in it; make one with 'hivefs node init'") from None
    except OSError as error:
        raise NodeProblem(path=directory, reason=error.strerror or str(error)) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise NodeProblem(path=directory, reason=f"others can read {SEED}; run 'chmod 600' on it")
    if len(seed) != KEY_BYTES or len(data) > MAX_CONFIG_BYTES:
        raise NodeProblem(path=directory, reason=f"{SEED} or {CONFIG} is damaged")
    try:
        config = _from_json(directory, data)
        if config.membership is not None:
            _check_membership(directory, config.membership, keys.public_key(seed))
    except NodeProblem:
        raise
    except HivefsError as error:
        raise NodeProblem(path=directory, reason=str(error)) from None
    return config, seed

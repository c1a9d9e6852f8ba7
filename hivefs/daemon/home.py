"""A vault's home on this machine: where everything lies, and the one way in (see docs/formats/vault.md).

``vault.json`` is written last when a vault is made and is replaced whole ever after (write aside, fsync, rename, fsync
the directory), so that a crash leaves either the old file or the new one. Directories are 0700 and files 0600.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cbor2

from hivefs.crypto.keys import VaultKeys, derive, public_key
from hivefs.crypto.wrap import BadWrap, WrapParams, unwrap, wrap
from hivefs.errors import NO_ROOM, BadSetting, Corrupt, DiskFull, KeyFileProblem, VaultExists, VaultMissing, WrongPassword
from hivefs.formats import vault as vault_format
from hivefs.formats.head import certificate_valid, sign_certificate
from hivefs.formats.member import sign_member
from hivefs.formats.vault import VaultFile
from hivefs.model.head import DeviceCertificate
from hivefs.model.ids import KEY_BYTES, DeviceId
from hivefs.model.node import Membership, Role
from hivefs.placement.policy import Policy

STORES = ("metadata", "stage", "engine", "cache", "run")
USED = "used"
"""An empty file: this vault was opened here, so metadata that is gone is lost (see first_use.py)."""
DEFAULT_CODE = (4, 6)
"""k and n of a vault for which no other code was said."""

KEY_FILE_MIN, KEY_FILE_MAX = 16, 64 << 10
_MAC_LABEL = "vault-mac"


def data_home() -> Path:
    """``XDG_DATA_HOME/hivefs``, by default ~/.local/share/hivefs."""
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "share") / "hivefs"


def default_home() -> Path:
    """HIVEFS_HOME, by default the XDG directory; always absolute."""
    said = os.environ.get("HIVEFS_HOME", "")
    return Path(said).expanduser().absolute() if said else data_home() / "vault"


@dataclass(frozen=True, repr=False)
class Secrets:
    """What unlocking gives: the vault's master secret and this device's signing seed, 32 bytes each."""

    master: bytes
    device_seed: bytes

    def keys(self) -> VaultKeys:
        """Every key of the vault."""
        return VaultKeys(self.master)

    def to_bytes(self) -> bytes:
        """CBOR, to be wrapped."""
        return cbor2.dumps({"device_seed": self.device_seed, "master": self.master}, canonical=True)

    @staticmethod
    def from_bytes(data: bytes) -> Secrets:
        """Raises Corrupt."""
        try:
            value = cbor2.loads(data)
            master, seed = value["master"], value["device_seed"]
        except (cbor2.CBORDecodeError, TypeError, KeyError, RecursionError):
            raise Corrupt(what="the wrapped secret", reason="its form is wrong") from None
        if not (type(master) is bytes and type(seed) is bytes and len(master) == len(seed) == KEY_BYTES):
            raise Corrupt(what="the wrapped secret", reason="its form is wrong")
        return Secrets(master, seed)

    def __repr__(self) -> str:
        return "Secrets(...)"


@dataclass(frozen=True, repr=False)
class Lock:
    """What opens a vault on this machine: ``method`` is "password", "keyfile" or "none", ``secret`` the bytes of it."""

    method: str
    secret: bytes = b""

    def __repr__(self) -> str:
        return f"Lock({self.method})"


class Home:
    """One vault's directory. ``vault`` is what vault.json says (None while the vault is being made)."""

    def __init__(self, path: Path, vault: VaultFile | None = None) -> None:
        self.path = path
        self._vault = vault
        self._pending: tuple[Secrets, Lock] | None = None
        self.metadata = path / "metadata"
        self.stage = path / "stage"
        self.engine = path / "engine"
        self.cache = path / "cache"
        self.run = path / "run"
        self.file = path / "vault.json"
        self.used = path / USED
        self.mount_log = self.run / "mount.log"
        self.engine_log = self.run / "engine.log"

    # ---- what the file says -----------------------------------------------------------------------------------------

    @staticmethod
    def load(path: Path) -> Home:
        """The vault in ``path``, locked. Raises VaultMissing, Corrupt, UnknownVersion."""
        try:
            data = (path / "vault.json").read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise VaultMissing(home=path) from None
        except OSError as error:
            raise BadSetting(name="HIVEFS_HOME", reason=f"{path} cannot be read: {error.strerror}") from error
        vault = vault_format.from_bytes(data)
        if not certificate_valid(vault.certificate) or vault.certificate.vault_id != vault.vault_id:
            raise Corrupt(what=f"the vault file {path / 'vault.json'}", reason="its device certificate is not valid")
        return Home(path, vault)

    @property
    def vault(self) -> VaultFile:
        """What vault.json says; raises VaultMissing while there is none."""
        if self._vault is None:
            raise VaultMissing(home=self.path)
        return self._vault

    def policy(self) -> Policy:
        """The vault's placement policy: its code, and no authority of one jurisdiction may rebuild or withhold."""
        return Policy(self.vault.needed, self.vault.total)

    # ---- opening ----------------------------------------------------------------------------------------------------

    def unlock(self, secret: bytes) -> Secrets:
        """The secrets, by password bytes, key file bytes, or b"" for a vault without lock. Raises WrongPassword."""
        try:
            plain = unwrap(self.vault.wrap, secret, self.vault.wrapped)
        except (BadWrap, ValueError):
            raise WrongPassword(path=self.file) from None
        secrets = Secrets.from_bytes(plain)
        keys = secrets.keys()
        if (
            keys.vault_id != self.vault.vault_id
            or public_key(secrets.device_seed) != self.vault.certificate.device
            or not vault_format.mac_valid(self.file.read_bytes(), derive(secrets.master, _MAC_LABEL))
        ):
            raise WrongPassword(path=self.file)
        return secrets

    # ---- making -----------------------------------------------------------------------------------------------------

    @staticmethod
    def prepare(path: Path, secrets: Secrets, lock: Lock) -> Home:
        """Make the directories of a vault that does not exist yet; it exists once finish() was called.

        Raises VaultExists; BadSetting when the directory cannot be made or holds something else. Stores that an
        interrupted recovery (or a lost vault.json) left behind are moved aside, not deleted.
        """
        home = Home(path)
        if home.file.exists():
            raise VaultExists(home=path)
        with _writing(path):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            foreign = sorted(p.name for p in path.iterdir() if p.name not in STORES and not _is_ours(p.name))
            if foreign:
                raise BadSetting(name="HIVEFS_HOME", reason=f"{path} is not empty (it holds {foreign[0]!r})")
            _set_aside(path)
            path.chmod(0o700)
            for name in STORES:
                (path / name).mkdir(mode=0o700, exist_ok=True)
        home._pending = (secrets, lock)
        return home

    @property
    def pending(self) -> Secrets:
        """The secrets of a vault between prepare() and finish()."""
        if self._pending is None:
            raise VaultMissing(home=self.path)
        return self._pending[0]

    def finish(
        self,
        certificate: DeviceCertificate,
        membership: Membership,
        nodes: tuple[str, ...],
        needed: int,
        total: int,
        settings: Mapping[str, int] | None = None,
    ) -> None:
        """Write vault.json: from now on the vault exists. Raises VaultExists when another process was faster."""
        if self._pending is None:
            raise ValueError("prepare() comes first")
        secrets, lock = self._pending
        params = WrapParams(lock.method, os.urandom(16).hex())
        wrapped = wrap(params, lock.secret, secrets.to_bytes(), os.urandom(12))
        vault = VaultFile(
            certificate.vault_id, params, wrapped, certificate, membership, nodes, needed, total, dict(settings or {})
        )
        self._save(vault, secrets, new=True)
        self._pending = None

    @staticmethod
    def create(
        path: Path,
        secrets: Secrets,
        lock: Lock,
        hive_seed: bytes,
        nodes: tuple[str, ...],
        needed: int,
        total: int,
        settings: Mapping[str, int] | None = None,
    ) -> Home:
        """A new vault whose first device is this one, a client of the hive whose owner seed is given."""
        membership = client_membership(hive_seed, secrets.keys().owner_key, time.time_ns())
        return Home.create_as(path, secrets, lock, membership, nodes, needed, total, settings)

    @staticmethod
    def create_as(
        path: Path,
        secrets: Secrets,
        lock: Lock,
        membership: Membership,
        nodes: tuple[str, ...],
        needed: int,
        total: int,
        settings: Mapping[str, int] | None = None,
    ) -> Home:
        """The same with a membership certificate that the vault's owner key has already."""
        home = Home.prepare(path, secrets, lock)
        device = DeviceId(public_key(secrets.device_seed))
        certificate = sign_certificate(secrets.keys().owner_seed, device, 1, time.time_ns())
        home.finish(certificate, membership, nodes, needed, total, settings)
        return home

    def change(self, secrets: Secrets, **fields: Any) -> None:
        """Replace fields of vault.json (``nodes``, ``membership``, ``settings``, ...), the wrap unchanged."""
        self._save(replace(self.vault, **fields), secrets, new=False)

    def mark_used(self) -> None:
        """Note that the vault has been opened here; it stays noted. Raises DiskFull, BadSetting."""
        if not self.used.exists():
            with _writing(self.path):
                write_file(self.used, b"")

    def _save(self, vault: VaultFile, secrets: Secrets, *, new: bool) -> None:
        data = vault_format.to_bytes(vault, derive(secrets.master, _MAC_LABEL))
        try:
            with _writing(self.path):
                write_file(self.file, data, new=new)
        except FileExistsError:
            raise VaultExists(home=self.path) from None
        self._vault = vault


def client_membership(hive_seed: bytes, subject: bytes, now_ns: int) -> Membership:
    """The certificate with which the hive's owner lets a vault in; ``subject`` is the vault's owner key."""
    return sign_member(hive_seed, Membership(public_key(hive_seed), subject, Role.CLIENT, issued_ns=now_ns))


# ---- files ------------------------------------------------------------------------------------------------------


def write_file(path: Path, data: bytes, *, new: bool = False) -> None:
    """Write ``path`` whole (0600) and survive a power cut: aside, fsync, rename, fsync of the directory.

    With ``new`` an existing file is kept and FileExistsError raised.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        if new:
            os.link(aside, path)
        else:
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_private(path: Path, most: int) -> bytes:
    """Up to ``most`` bytes of a file that only its owner may read; raises KeyFileProblem."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(most)
    except OSError as error:
        raise KeyFileProblem(path=path, reason=error.strerror or str(error)) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeyFileProblem(path=path, reason="others can read it; run 'chmod 600' on it")
    return data


def read_key_file(path: Path) -> bytes:
    """The bytes of a key file (16 bytes to 64 KiB, readable by its owner alone); raises KeyFileProblem."""
    data = read_private(path, KEY_FILE_MAX + 1)
    if not KEY_FILE_MIN <= len(data) <= KEY_FILE_MAX:
        raise KeyFileProblem(path=path, reason=f"it has {len(data)} bytes and needs {KEY_FILE_MIN} to {KEY_FILE_MAX}")
    return data


def make_key_file(path: Path) -> bytes:
    """A new key file of 32 random bytes; raises KeyFileProblem when it exists or cannot be written."""
    data = os.urandom(32)
    try:
        write_file(path, data, new=True)
    except OSError as error:
        raise KeyFileProblem(path=path, reason=error.strerror or str(error)) from error
    return data


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno in NO_ROOM:
            raise DiskFull(path=path, free=0) from error
        raise BadSetting(name="HIVEFS_HOME", reason=f"{path} cannot be written: {error.strerror}") from error


def _is_ours(name: str) -> bool:
    return name == USED or name.startswith(("before-", ".vault.json.", f".{USED}."))


def _set_aside(path: Path) -> None:
    left = [path / name for name in STORES if name != "run" and (path / name).is_dir() and any((path / name).iterdir())]
    if (path / USED).exists():
        left.append(path / USED)
    if left:
        aside = path / f"before-{time.time_ns()}"
        aside.mkdir(mode=0o700)
        for store in left:
            store.rename(aside / store.name)

"""A systemd unit for a node, as hardened as a node can be (docs/node-operators.md says what each group is for)."""

from __future__ import annotations

import pwd
from pathlib import Path

from hivefs.errors import BadSetting
from hivefs.node.config import load_node

_UNIT = """\
# Made by 'hivefs node unit'. systemctl daemon-reload; systemctl enable --now hivefs-node
[Unit]
Description=HiveFS storage node in {described}
Documentation=man:systemd.exec(5)
Wants=network-online.target
After=network-online.target

[Service]
Type=notify
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=10
TimeoutStartSec=600
TimeoutStopSec=60
User={user}
UMask=0077
LimitNOFILE=65536
LimitCORE=0

# What it may write: its own directory.
ProtectSystem=strict
ProtectHome={home}
ReadWritePaths={directory}
PrivateTmp={private_tmp}
PrivateDevices=yes
ProtectProc=invisible
RemoveIPC=yes

# What it may change of the machine: nothing.
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
KeyringMode=private

# What it may ask of the kernel.
NoNewPrivileges=yes
CapabilityBoundingSet={capabilities}
AmbientCapabilities={capabilities}
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""


def _quoted(word: str, exec_line: bool = False) -> str:
    """A word as systemd.syntax(7) wants it. Raises BadSetting for what no unit can hold."""
    if not word.isprintable():
        raise BadSetting(name="the directory", reason="a unit cannot name it: there are control characters in its name")
    word = word.replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')
    if exec_line:
        word = word.replace("$", "$$")
    return word if word and not set(word) & set(" '\";") else f'"{word}"'


def unit_for(directory: Path, python: Path, user: str = "", metrics: str = "") -> str:
    """The unit. Raises NodeProblem (no node there) and BadSetting."""
    config, _ = load_node(directory)
    words = [str(python), "-P", "-m", "hivefs", "node", "run", str(directory)]
    if metrics:
        from hivefs.daemon.metrics import listen_address

        listen_address(metrics)
        words += ["--metrics", metrics]
    user = user or _owner(directory)
    if not user.replace("-", "").replace("_", "").replace(".", "").isalnum() or user.startswith("-"):
        raise BadSetting(name="--user", reason=f"'{user}' is not the name of a user")
    ports = [int(address.split("/")[4]) for address in config.listen if address.count("/") >= 4]
    low = any(0 < port < 1024 for port in ports)
    places = [directory, python, Path(__file__)]
    return _UNIT.format(
        described=_quoted(str(directory)).strip('"'),
        command=" ".join(_quoted(word, exec_line=True) for word in words),
        directory=_quoted(str(directory)),
        user=user,
        home="read-only" if any(_below(place, "/home", "/root", "/run/user") for place in places) else "yes",
        private_tmp="no" if any(_below(place, "/tmp", "/var/tmp") for place in places) else "yes",  # noqa: S108
        capabilities="CAP_NET_BIND_SERVICE" if low else "",
    )


def _below(path: Path, *tops: str) -> bool:
    return any(path.is_relative_to(top) for top in tops)


def _owner(directory: Path) -> str:
    number = directory.stat().st_uid
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)

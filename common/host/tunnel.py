"""The way between a GPU host and its standby: the host dials out, one ssh with forwards in both directions.

A GPU's ports appear on the standby's loopback, at an address of the GPU's own (`address_of`): a GPU that was given up
and comes back can neither take the ports of the one that the door leads to, nor be taken for it. What a key may bind
and reach there stands in its line of `authorized_keys`; there is no shell, no terminal and no other forward.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from common.errors import NotFound
from common.host.ports import Ports

USER = "tunnel"
KEY, KNOWN_HOSTS, HOST_KEY, USER_HOST_KEY = "tunnel.key", "tunnel.known_hosts", "tunnel.host_key", "ssh_host_key"
AUTHORIZED = "tunnel.authorized_keys"
TAKES = "livesync.take"
"""Socket of a candidate's receiver: the standby sends by the way that the candidate has dialled."""
STATUS = "status.sock"
"""Socket on both machines at which the standby's `/status` answers: a user forwards it, and asks wherever they are."""
USER_KEYS = ".ssh/authorized_keys"
"""Of the user, below their home: `host.access` writes it."""
ALIVE_EVERY_S, ALIVE_TIMES = 5, 3
"""A tunnel whose other end is silent for their product is given up, and dialled anew."""
DIAL_S = 10
KEYGEN_S = 20
SBIN = "/usr/sbin:/usr/local/sbin:/sbin"


def address_of(label: str) -> str:
    """Where on the standby's loopback this machine's ports are: 127.64.0.0 to 127.127.255.255, by its label alone.

    Two labels of one pair meet with a chance of 1 in 4 million.
    """
    digest = hashlib.sha256(label.encode()).digest()
    return f"127.{64 + digest[0] % 64}.{digest[1]}.{1 + digest[2] % 254}"


def program(name: str) -> str:
    """Its path; sshd insists on one, and it lies where a user's PATH does not reach. Raises `NotFound`."""
    found = shutil.which(name) or shutil.which(name, path=SBIN)
    if found is None:
        raise NotFound(f"{name} is not installed here")
    return found


def require_key(file: Path) -> str:
    """An ed25519 key of this machine's own, made once; its public line. Raises `NotFound` without ssh-keygen."""
    if not file.exists():
        new = file.with_name(file.name + ".new")
        for left in (new, _public(new)):
            left.unlink(missing_ok=True)
        words = [program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "dumont", "-f", str(new)]
        subprocess.run(words, check=True, capture_output=True, timeout=KEYGEN_S)
        _public(new).replace(_public(file))
        new.replace(file)
    return _public(file).read_text().strip()


def _public(file: Path) -> Path:
    return file.with_name(file.name + ".pub")


def write_secret(file: Path, text: str) -> bool:
    """For this user alone, whole or not at all; False: it was so already."""
    if file.exists() and file.read_text() == text:
        return False
    new = file.with_name(file.name + ".new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(text)
    new.replace(file)
    return True


def keep_host_key(home: Path, key: str) -> bool:
    """The key that both machines show to the user; False: it was this one already.

    Another text may hold the same key, which is told by its public half: the number in it is anybody's.
    """
    file = home / USER_HOST_KEY
    kept = file.read_text() if file.exists() else None
    if kept is not None and (kept == key or _public_half(kept) == _public_half(key)):
        return False
    return write_secret(file, key)


def _public_half(key: str) -> bytes | None:
    """None: it is no key."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

    try:
        public = load_ssh_private_key(key.encode(), password=None).public_key()
    except ValueError:
        return None
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


# --- the GPU's side


def dial(
    home: Path,
    label: str,
    *,
    host: str,
    ssh_port: int,
    user: str,
    host_key: str,
    ports: Ports,
    inner_ports: Mapping[str, int] | None = None,
    sync_port: int | None = None,
    status_port: int | None = None,
) -> list[str]:
    """The command that holds the tunnel; it ends when the tunnel breaks. Writes the one host key that it trusts.

    `inner_ports`, `sync_port`, `status_port` = the standby's, where they are not the usual ones.
    """
    name = host if ssh_port == 22 else f"[{host}]:{ssh_port}"
    write_secret(home / KNOWN_HOSTS, f"{name} {' '.join(host_key.split()[:2])}\n")
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": DIAL_S,
        "ExitOnForwardFailure": "yes",
        "GlobalKnownHostsFile": "/dev/null",
        "IdentitiesOnly": "yes",
        "LogLevel": "ERROR",
        "ServerAliveCountMax": ALIVE_TIMES,
        "ServerAliveInterval": ALIVE_EVERY_S,
        "StreamLocalBindUnlink": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": home / KNOWN_HOSTS,
    }
    words = [program("ssh"), "-F", "/dev/null", "-N", "-T", "-i", str(home / KEY), "-p", str(ssh_port)]
    words += [word for option, value in options.items() for word in ("-o", f"{option}={value}")]
    for service in ports.services:
        inner_port = (inner_ports or {}).get(service.name, service.inner_port)
        words += ["-R", f"{address_of(label)}:{inner_port}:127.0.0.1:{service.gpu_port}"]
    words += ["-L", f"127.0.0.1:{ports.sync}:127.0.0.1:{sync_port or ports.sync}"]
    words += ["-R", f"{address_of(label)}:{sync_port or ports.sync}:{home / TAKES}"]
    words += ["-L", f"{home / STATUS}:127.0.0.1:{status_port or ports.status}"]
    return [*words, f"{user}@{host}"]


# --- both sides: what the user logs in to


def user_sshd_config(*, host: str, port: int, home: Path, keys: str = USER_KEYS) -> str:
    """Shown to the user on both sides with the same host key; reached through the front door alone."""
    return f"""# Written by dumont.
ListenAddress {host}
Port {port}
HostKey {home / USER_HOST_KEY}
PidFile {home / "sshd.pid"}
AuthorizedKeysFile {keys}
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes {"no" if keys.startswith("/") else "yes"}
UsePAM {"yes" if Path("/etc/pam.d/sshd").exists() else "no"}
UseDNS no
PrintMotd no
PrintLastLog no
AllowTcpForwarding yes
ClientAliveInterval {ALIVE_EVERY_S}
ClientAliveCountMax {ALIVE_TIMES}
AcceptEnv LANG LC_*
Subsystem sftp internal-sftp
"""


# --- the standby's side


def tunnel_sshd_config(*, home: Path, port: int, user: str = USER, host: str = "0.0.0.0") -> str:
    """For the GPU hosts alone: no shell, no terminal, and of forwards what each key's own line permits."""
    return f"""# Written by dumont.
ListenAddress {host}
Port {port}
HostKey {home / HOST_KEY}
PidFile {home / "tunnel.sshd.pid"}
AuthorizedKeysFile {home / AUTHORIZED}
AllowUsers {user}
PermitRootLogin {"prohibit-password" if user == "root" else "no"}
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
UseDNS no
PrintMotd no
PermitTTY no
PermitUserRC no
PermitTunnel no
AllowAgentForwarding no
AllowStreamLocalForwarding no
AllowTcpForwarding yes
GatewayPorts clientspecified
X11Forwarding no
ForceCommand {program("false")}
MaxSessions 1
MaxAuthTries 3
LoginGraceTime 20
ClientAliveInterval {ALIVE_EVERY_S}
ClientAliveCountMax {ALIVE_TIMES}
"""


def authorized_keys(keys: Mapping[str, str], ports: Ports) -> str:
    """Of the machines that may dial in, label -> public key. A key that is none, or tries to be more, is left out."""
    lines, inner_ports = [], [service.inner_port for service in ports.services]
    for label, key in sorted(keys.items()):
        words = key.split()
        if len(words) < 2 or words[0] != "ssh-ed25519" or not _is_plain(words[1]) or "\n" in key.strip():
            continue
        listens = [f'permitlisten="{address_of(label)}:{port}"' for port in (*inner_ports, ports.sync)]
        opens = [f'permitopen="127.0.0.1:{port}"' for port in (ports.sync, ports.status)]
        may = ",".join(["restrict", "port-forwarding", *listens, *opens])
        lines.append(f"{may} {words[0]} {words[1]} {label}\n")
    return "".join(lines)


def _is_plain(base64: str) -> bool:
    return base64.isascii() and all(char.isalnum() or char in "+/=" for char in base64)


def write_keys(home: Path, text: str) -> None:
    """Readable by the sshd that has become the tunnel's user; public keys are no secret."""
    file = home / AUTHORIZED
    if not file.exists() or file.read_text() != text:
        new = file.with_name(file.name + ".new")
        new.write_text(text)
        new.chmod(0o644)
        new.replace(file)

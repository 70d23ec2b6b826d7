"""The demo's user: one ssh key, one address that they know by its host key."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path
from typing import Any

from common.host.tunnel import SBIN
from infra.demo.rental import can_be_apart

CONNECT_S, COMMAND_S = 3, 10


class Shell:
    """Their ssh, with nothing of this computer's own settings."""

    def __init__(self, folder: Path) -> None:
        self._key, self._known = folder / "user.key", folder / "known_hosts"
        if not self._key.exists():
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "user", "-f", str(self._key)]
            subprocess.run(words, check=True, stdin=subprocess.DEVNULL)

    @property
    def public_key(self) -> str:
        return self._key.with_suffix(".key.pub").read_text().strip()

    def says(self, address: dict[str, Any], command: str) -> str | None:
        """What the command prints there; None: nobody let us in. A host key that changes is an error like any other."""
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": str(CONNECT_S),
            "StrictHostKeyChecking": "yes" if self._known.exists() else "accept-new",
            "UserKnownHostsFile": str(self._known),
            "IdentitiesOnly": "yes",
        }
        words = ["ssh", "-F", "/dev/null", "-i", str(self._key), "-p", str(address["port"])]
        words += [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        user = pwd.getpwuid(os.geteuid()).pw_name
        try:
            done = subprocess.run(
                [*words, f"{user}@{address['host']}", command], capture_output=True, text=True, timeout=COMMAND_S
            )
        except subprocess.TimeoutExpired:
            return None
        return done.stdout.strip() if done.returncode == 0 else None


def can_stand_by() -> bool:
    """Can this computer play a standby? It takes root, for machines of their own, and the programs of one."""
    programs = ("haproxy", "sshd", "ssh", "ssh-keygen")
    return can_be_apart() and all(shutil.which(name) or shutil.which(name, path=SBIN) for name in programs)

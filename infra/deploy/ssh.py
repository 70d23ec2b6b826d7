"""A shell on rented machines: the machine's own ssh program, with a key that lives as long as the trial."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common.errors import SettingError

CONNECT_S = 20
COMMAND_WITHIN_S = 180.0


class Ssh:
    """`trial.Shell`. The machines are strangers', seen once: their host keys are written down nowhere that stays."""

    def __init__(self, folder: Path) -> None:
        self._key, self._known = folder / "key", folder / "known_hosts"
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "dumont-doctor", "-f", str(self._key)]
        try:
            subprocess.run(make, check=True, capture_output=True, timeout=30)
        except (OSError, subprocess.SubprocessError) as error:
            raise SettingError(f"no ssh key can be made ({error}); install openssh-client") from None
        self.public_key = self._key.with_suffix(".pub").read_text().strip()

    def run(self, address: Mapping[str, Any], command: str) -> str | None:
        """What it printed; None = it could not be run, or failed."""
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": str(CONNECT_S),
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": str(self._known),
            "IdentitiesOnly": "yes",
            "LogLevel": "ERROR",
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        where = ["-i", str(self._key), "-p", str(address["port"]), f"{address['user']}@{address['host']}"]
        try:
            ran = subprocess.run(
                ["ssh", *words, *where, command], capture_output=True, text=True, timeout=COMMAND_WITHIN_S
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return ran.stdout if ran.returncode == 0 else None


@contextmanager
def shell() -> Iterator[Ssh]:
    """Raises `SettingError` where there is no ssh."""
    with TemporaryDirectory(prefix="dumont-doctor-") as folder:
        yield Ssh(Path(folder))

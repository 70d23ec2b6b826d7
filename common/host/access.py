"""Who may log in: the owner's public key, which a machine of the warm pool learns only when it is assigned."""

from __future__ import annotations

from pathlib import Path


def authorize(home: Path, public_key: str) -> None:
    """Add the key to `home`/.ssh/authorized_keys unless it is there; as the start-up script does."""
    folder = home / ".ssh"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / "authorized_keys"
    known = file.read_text(errors="replace") if file.exists() else ""  # an image's own; comments may be anything
    if public_key not in known.splitlines():
        gap = "" if not known or known.endswith("\n") else "\n"
        with open(file, "a") as keys:
            keys.write(f"{gap}{public_key}\n")
        file.chmod(0o600)

"""The owner's key on a machine that was created before anybody knew whose it would be."""

from __future__ import annotations

from pathlib import Path

from common.host.access import authorize

KEY = "ssh-ed25519 AAAA me@home"


def test_a_key_is_added_once_beside_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    keys = tmp_path / ".ssh" / "authorized_keys"
    keys.write_text("ssh-rsa BBBB admin")

    authorize(tmp_path, KEY)
    authorize(tmp_path, KEY)

    assert keys.read_text().splitlines() == ["ssh-rsa BBBB admin", KEY]
    assert keys.stat().st_mode & 0o777 == 0o600


def test_a_home_without_ssh_gets_a_private_folder(tmp_path: Path) -> None:
    authorize(tmp_path / "new", KEY)

    assert (tmp_path / "new" / ".ssh").stat().st_mode & 0o777 == 0o700


def test_keys_of_an_image_whose_comments_are_of_another_encoding_are_left_as_they_are(tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    keys = tmp_path / ".ssh" / "authorized_keys"
    keys.write_bytes("ssh-rsa BBBB josé\n".encode("latin-1"))

    authorize(tmp_path, KEY)

    assert keys.read_bytes() == "ssh-rsa BBBB josé\n".encode("latin-1") + KEY.encode() + b"\n"

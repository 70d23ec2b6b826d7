"""What a machine may do through the tunnel, word by word, and that sshd and HAProxy take what is written for them."""

from __future__ import annotations

import ipaddress
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from common import auth
from common.host import haproxy, tunnel
from common.host.ports import Ports, Service, ports_of

LABEL, OTHER = "dumont-d-i-1-aaaaaaaa", "dumont-d-i-2-bbbbbbbb"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKq5xYcBzJ0Q0u7q0rK8p1cC1sT1v3n0m9p0o8i7u6y5 someone"


def test_every_label_has_an_address_of_its_own_on_loopback_and_never_the_usual_one() -> None:
    found = {tunnel.address_of(f"dumont-d-i-{n}-aaaaaaaa") for n in range(1000)}

    assert len(found) > 990
    assert all(ipaddress.ip_address(each) in ipaddress.ip_network("127.64.0.0/10") for each in found)
    assert not any(each.endswith((".0", ".255")) for each in found)


def test_a_key_may_bind_its_own_ports_and_reach_the_receiver_and_the_status_alone() -> None:
    text = tunnel.authorized_keys({LABEL: KEY}, Ports())

    assert text.count("\n") == 1
    may, kind, blob, label = text.split(" ")
    assert (kind, blob, label) == (*KEY.split()[:2], LABEL + "\n")
    address = tunnel.address_of(LABEL)
    listens = {f'permitlisten="{address}:{port}"' for port in (12022, 18888, 18080, 7951)}
    opens = {f'permitopen="127.0.0.1:{port}"' for port in (7950, 7951)}
    assert set(may.split(",")) == {"restrict", "port-forwarding", *opens, *listens}


@pytest.mark.parametrize(
    "hostile",
    [
        "",
        "ssh-ed25519",
        "no key at all",
        "ssh-rsa AAAA",
        'command="sh" ssh-ed25519 AAAA',
        f'{KEY}\ncommand="sh" {KEY}',
        'ssh-ed25519 AAAA",permitopen="*:*',
        "ssh-ed25519 ÄÖÜ",
    ],
)
def test_a_key_that_is_none_or_tries_to_be_more_is_left_out(hostile: str) -> None:
    text = tunnel.authorized_keys({OTHER: hostile, LABEL: KEY}, Ports())

    assert text.count("\n") == 1
    assert text.endswith(f" {LABEL}\n")


def test_the_command_trusts_one_host_key_and_ends_when_a_port_is_taken(tmp_path: Path) -> None:
    key = tunnel.require_key(tmp_path / tunnel.KEY)
    words = tunnel.dial(
        tmp_path, LABEL, host="192.0.2.1", ssh_port=2200, user="tunnel", host_key=f"{KEY} more", ports=Ports()
    )

    assert (tmp_path / tunnel.KNOWN_HOSTS).read_text() == f"[192.0.2.1]:2200 {' '.join(KEY.split()[:2])}\n"
    assert {"StrictHostKeyChecking=yes", "ExitOnForwardFailure=yes", "BatchMode=yes"} <= set(words)
    assert words[-1] == "tunnel@192.0.2.1"
    assert f"{tunnel.address_of(LABEL)}:12022:127.0.0.1:2222" in words
    assert f"{tmp_path / tunnel.STATUS}:127.0.0.1:7950" in words
    assert tunnel.require_key(tmp_path / tunnel.KEY) == key
    assert (tmp_path / tunnel.KEY).stat().st_mode & 0o077 == 0
    shown = subprocess.run([words[0], "-G", *words[1:]], capture_output=True, text=True, check=True).stdout
    assert "stricthostkeychecking true" in shown
    assert "serveralivecountmax 3" in shown


def test_a_secret_is_for_its_owner_alone_and_is_written_once(tmp_path: Path) -> None:
    file = tmp_path / "secret"

    assert tunnel.write_secret(file, "one")
    assert not tunnel.write_secret(file, "one")
    assert tunnel.write_secret(file, "two")
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("two", 0o600)


def test_haproxy_takes_its_configuration_and_lets_nobody_in_before_the_watchdog_spoke(tmp_path: Path) -> None:
    text = haproxy.config(runtime=tmp_path / "s", services=Ports().services, host="127.0.0.1")
    (tmp_path / "cfg").write_text(text)

    done = subprocess.run(
        [tunnel.program("haproxy"), "-c", "-f", str(tmp_path / "cfg")], capture_output=True, text=True, timeout=20
    )

    assert done.returncode == 0, done.stderr
    servers = [line for line in text.splitlines() if line.strip().startswith("server ")]
    assert len(servers) == 6
    assert all(" disabled " in line and " check" not in line for line in servers)


def test_of_the_tunnels_sshd_nobody_gets_a_shell_a_terminal_or_a_password_prompt(tmp_path: Path) -> None:
    text = tunnel.tunnel_sshd_config(home=tmp_path, port=2200)

    for line in (
        "AllowUsers tunnel",
        "PermitRootLogin no",
        "PasswordAuthentication no",
        "PermitTTY no",
        "AllowStreamLocalForwarding no",
        "AllowAgentForwarding no",
        f"ForceCommand {tunnel.program('false')}",
    ):
        assert line in text.splitlines()


def test_ports_are_moved_by_one_setting_and_a_wrong_one_is_named() -> None:
    moved = ports_of({"DUMONT_PORTS": '{"beats": 1, "ssh": {"door_port": 2, "gpu_port": 3, "inner_port": 4}}'})

    assert (moved.beats, moved.ssh, moved.http) == (1, Service("ssh", 2, 3, 4), Ports().http)
    assert ports_of({}) == Ports()
    for wrong in ("{", '{"nosuch": 1}', '{"ssh": {"door_port": 2}}', "[]", '{"beats": "x"}'):
        with pytest.raises(ValueError):
            ports_of({"DUMONT_PORTS": wrong})


def test_the_key_of_the_pair_is_the_same_text_in_every_reply_and_one_that_openssh_reads(tmp_path: Path) -> None:
    one, again = auth.ssh_private_key(b"1" * 32), auth.ssh_private_key(b"1" * 32)
    assert one == again
    tunnel.write_secret(tmp_path / "key", one)

    words = ["ssh-keygen", "-y", "-f", str(tmp_path / "key")]
    shown = subprocess.run(words, check=True, capture_output=True, text=True).stdout

    public = Ed25519PrivateKey.from_private_bytes(b"1" * 32).public_key()
    assert shown.strip() == public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def test_the_key_of_the_pair_is_written_once_also_when_its_text_changes(tmp_path: Path) -> None:
    one, other = auth.ssh_private_key(b"1" * 32), auth.ssh_private_key(b"2" * 32)
    private = Ed25519PrivateKey.from_private_bytes(b"1" * 32)
    again = private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    assert one != again  # the library draws a random number for each

    assert tunnel.keep_host_key(tmp_path, one)
    assert not tunnel.keep_host_key(tmp_path, one)
    assert not tunnel.keep_host_key(tmp_path, again)
    assert (tmp_path / tunnel.USER_HOST_KEY).read_text() == one
    assert tunnel.keep_host_key(tmp_path, other)

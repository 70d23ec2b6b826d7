"""The start-up script, as text and by the shell that will run it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.domain.startup import SCRIPT_LIMIT, environment, script, standby_script


def test_the_script_fits_the_marketplaces_limit() -> None:
    assert len(script()) <= SCRIPT_LIMIT


def test_the_script_is_the_same_for_every_rental_and_parses_in_a_plain_shell() -> None:
    assert script() == script()
    assert "@" not in script()
    assert subprocess.run(["sh", "-n"], input=script().encode()).returncode == 0


def test_the_checksum_is_tested_before_anything_is_unpacked() -> None:
    text = script()

    assert text.index("DUMONT_BUNDLE_SHA256") < text.index("tar xzf")
    assert text.index("DUMONT_GLIBC") < text.index("tar xzf")


def test_the_script_needs_one_of_three_downloaders_only() -> None:
    for downloader in ("curl", "wget", "python3"):
        assert downloader in script()


def test_the_bootstrap_token_does_not_stay_in_the_agents_environment() -> None:
    assert script().index("unset DUMONT_BOOTSTRAP") < script().index("agent/agent $DUMONT_KIND && exit 0")


def run_script(folder: Path, *, glibc_floor: str = "2.17", uptime: str = "12345.67") -> list[str]:
    """What a machine that has been up for so long says with curl: each call's words, one after the other."""
    (folder / "programs").mkdir()
    programs = {
        "curl": f'echo "$@" >>{folder}/calls; case "$*" in *bundle*) exit 22;; esac; echo \'{{"token":"t"}}\'',
        "cut": f'case "$*" in */proc/uptime) echo {uptime};; *) exec {shutil.which("cut")} "$@";; esac',
        "sleep": "exit 0",
    }
    for name, does in programs.items():
        (folder / "programs" / name).write_text(f"#!/bin/sh\n{does}\n")
        (folder / "programs" / name).chmod(0o755)
    env = environment(
        url="http://control",
        label="dumont-d-o-1-t",
        bootstrap="once",
        bundle_url="http://control/bundle",
        bundle_sha256="s",
        probe_url="p",
        glibc_floor=glibc_floor,
        ssh_public_key=None,
    )
    places = {"DUMONT_HOME": f"{folder}/home", "DUMONT_WORKSPACE": f"{folder}/workspace", "HOME": str(folder)}
    path = {"PATH": f"{folder}/programs:{os.environ['PATH']}"}
    subprocess.run(["sh"], input=script().encode(), env={**path, **places, **env}, capture_output=True, timeout=60)
    return (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []


def test_why_a_machine_cannot_go_on_is_said_with_the_token_that_it_has(tmp_path: Path) -> None:
    first, failed = run_script(tmp_path, glibc_floor="99.0")

    for call in (first, failed):
        assert "Authorization: Bearer once" in call
    assert "is older than 99.0" in failed


def test_a_machine_that_has_just_been_started_says_so_too(tmp_path: Path) -> None:
    """Where a container has an uptime of its own; the shell takes a number that begins with 0 for an octal one."""
    first, *_ = run_script(tmp_path, uptime="0.08", glibc_floor="99.0")

    assert '"up_for_s":0.00' in first


def test_a_standbys_script_brings_what_it_runs_before_the_bundle_and_parses_in_a_plain_shell() -> None:
    text = standby_script()

    assert subprocess.run(["sh", "-n"], input=text.encode()).returncode == 0
    assert "@" not in text
    assert text.index("haproxy") < text.index("bundle.tgz")
    assert text.endswith(script())


def run_head(folder: Path, *, programs: Sequence[str], env: Mapping[str, str]) -> tuple[str, str]:
    """What the head of a standby's script calls on a machine with these programs, and what it exports."""
    calls = folder / "calls"
    for name in {*programs, "apt-get", "systemctl", "useradd", "usermod", "curl"}:
        program = folder / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >>{calls}\n[ {name} = curl ] && echo 192.0.2.9; true\n')
        program.chmod(0o755)
    for name in ("grep", "sleep", "sh", "echo"):
        (folder / name).symlink_to(shutil.which(name) or name)
    head = standby_script().removesuffix(script()).replace("/usr/sbin/", "/nosuch/").replace("sleep 6", "exit 7")
    done = subprocess.run(
        ["/bin/sh", "-c", head + 'echo "$DUMONT_KIND $DUMONT_ADDRESS"'],
        env={"PATH": str(folder), **env},
        capture_output=True,
        text=True,
    )
    return calls.read_text() if calls.exists() else "", done.stdout.strip()


def test_a_standby_that_has_its_programs_installs_nothing_and_asks_for_no_address_that_it_was_given(
    tmp_path: Path,
) -> None:
    env = {"DUMONT_ADDRESS": "192.0.2.1", "DUMONT_TUNNEL_USER": "root"}
    calls, said = run_head(tmp_path, programs=("haproxy", "sshd", "ssh", "rsync"), env=env)

    assert said == "standby 192.0.2.1"
    assert {line.split()[0] for line in calls.splitlines()} == {"systemctl"}


def test_a_standby_without_them_installs_them_and_makes_a_user_without_a_shell(tmp_path: Path) -> None:
    calls, said = run_head(tmp_path, programs=("sshd", "ssh", "rsync"), env={})
    assert said == ""
    assert "apt-get install" in calls
    assert calls.count("apt-get update") == 10

    for old in tmp_path.iterdir():
        old.unlink()
    calls, said = run_head(tmp_path, programs=("haproxy", "sshd", "ssh", "rsync"), env={})
    assert said == "standby 192.0.2.9"
    assert "nologin tunnel" in calls
    assert "usermod -p * tunnel" in calls


def test_the_environment_holds_no_storage_secret() -> None:
    env = environment(
        url="https://x",
        label="l",
        bootstrap="b",
        bundle_url="u",
        bundle_sha256="s",
        probe_url="p",
        glibc_floor="2.35",
        ssh_public_key=None,
    )

    assert set(env) == {
        "DUMONT_URL",
        "DUMONT_LABEL",
        "DUMONT_BOOTSTRAP",
        "DUMONT_BUNDLE_URL",
        "DUMONT_BUNDLE_SHA256",
        "DUMONT_PROBE_URL",
        "DUMONT_GLIBC",
    }

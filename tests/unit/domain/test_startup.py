"""The start-up script, as text and by the shell that will run it."""

from __future__ import annotations

import subprocess

from common.domain.startup import SCRIPT_LIMIT, environment, script


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
    assert script().index("unset DUMONT_BOOTSTRAP") < script().index("agent/agent && exit 0")


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

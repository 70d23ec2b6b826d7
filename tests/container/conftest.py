"""Where containers run."""

from __future__ import annotations

import subprocess

import pytest

from infra.gpu_host import image as images
from infra.gpu_host.image import CannotBuild, run_command

TRIED_S = 120


@pytest.fixture(scope="session")
def can_run_containers() -> None:
    """Skips where containers cannot be: programs or rights that are missing. What fails after that is a failure."""
    if missing := images.missing_programs():
        pytest.skip(f"not installed: {', '.join(missing)} (infra/local/setup.sh installs them as root)")
    try:
        base = images.require_base()
    except CannotBuild as error:
        pytest.skip(f"no base image: {error}")
    tried = subprocess.run(run_command(base, ["/bin/true"]), capture_output=True, text=True, timeout=TRIED_S)
    if tried.returncode:
        pytest.skip(f"this machine runs no containers: {tried.stderr.strip()[-300:]}")

"""Which processes are the user's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from common.host.writers import Processes, is_system_service

SYSTEMS = {
    "systemd itself": "0::/init.scope\n",
    "the network": "0::/system.slice/systemd-networkd.service\n",
    "the ssh daemon": "0::/system.slice/ssh.service\n",
    "with the first version's hierarchies": "3:cpu:/\n1:name=systemd:/system.slice/systemd-resolved.service\n",
}
USERS = {
    "a login": "0::/user.slice/user-0.slice/session-4.scope\n",
    "a user's own service": "0::/user.slice/user-1000.slice/user@1000.service/app.slice/jupyter.service\n",
    "a container": "0::/system.slice/docker-4f2a.scope\n",
    "a container below its daemon": "0::/system.slice/docker.service/docker/4f2a\n",
    "inside a container": "0::/\n",
    "not to be read": "",
}


@pytest.mark.parametrize("who", SYSTEMS)
def test_a_service_of_the_machine_is_never_frozen(who: str) -> None:
    assert is_system_service(SYSTEMS[who])


@pytest.mark.parametrize("who", USERS)
def test_what_the_user_runs_is_frozen(who: str) -> None:
    assert not is_system_service(USERS[who])


def test_a_program_whose_name_the_kernel_cut_within_a_letter_is_a_process_like_any_other(tmp_path: Path) -> None:
    script = tmp_path / "обучение_модели.sh"
    script.write_text("#!/bin/sh\nread line\n")
    script.chmod(0o755)
    with subprocess.Popen([script], stdin=subprocess.PIPE) as program:
        try:
            assert program.pid not in Processes().users()  # for it is this one's own child
        finally:
            program.kill()

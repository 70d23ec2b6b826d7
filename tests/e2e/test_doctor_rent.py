"""`dumont doctor --rent` as it is typed, against a `dumont up` of its own: to the end, and interrupted half-way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.demo.story import Story

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(590)]
SSH = """#!{python}
# The rentals of this world are directories of this machine: what is asked of a machine is run in its workspace.
import json, subprocess, sys, urllib.request
rows = json.load(urllib.request.urlopen("{world}/rentals"))
[row] = [row for row in rows if row["pid"] and row["state"] == "running"]
sys.exit(subprocess.run(["sh", "-c", sys.argv[-1].replace("/workspace", row["workspace"])]).returncode)
"""


def doctor(story: Story, folder: Path, *options: str) -> subprocess.Popen[str]:
    """With an `ssh` that leads to the machines of the simulated world."""
    (folder / "bin").mkdir(exist_ok=True)
    ssh = folder / "bin" / "ssh"
    ssh.write_text(SSH.format(python=sys.executable, world=story.facts["world"]))
    ssh.chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "DUMONT_API_URL": story.facts["api"],
        "DUMONT_API_KEY": story.facts["api_key"],
    }
    command = [sys.executable, "-m", "common.cli.main", "doctor", "--rent", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def test_a_real_run_rents_restores_gives_back_and_an_interrupted_one_leaves_nothing(tmp_path: Path) -> None:
    story = Story(tmp_path, quiet=True)
    try:
        story.start()
        whole = doctor(story, tmp_path, "--max-usd", "2", "--gpu", "RTX 4090", "--json")
        said, err = whole.communicate(timeout=400)
        assert whole.returncode == 0, said + err
        found = {row["check"]: row for row in json.loads(said)["findings"]}
        for check in ("ready", "snapshot", "restore", "end", "charge"):
            assert found[f"rent: {check}"]["verdict"] == "ok", found
        assert found["answers of vast"]["verdict"] == "ok", found
        assert story.rentals() == []

        stopped = doctor(story, tmp_path, "--max-usd", "2", "--gpu", "RTX 4090")
        deadline = time.monotonic() + 60
        while not story.rentals():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        stopped.send_signal(signal.SIGTERM)
        _, err = stopped.communicate(timeout=150)
        assert stopped.returncode != 0
        assert "ending what was rented" in err
        assert story.rentals() == []
    finally:
        story.end()

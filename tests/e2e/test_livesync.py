"""The live sync's two programs as processes: killed at any moment, nothing confirmed is missing and all comes right."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.host.livesync.standing import read_standing
from tests.livesync_pair import STANDBY, Pair, Programs, save, tree

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    with Programs(Pair(tmp_path)) as made:
        made.start("receive")
        made.start("send")
        made.wait()
        yield made


def dumont_host(programs: Programs, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "common.host.main", "sync", "--agent", str(programs.pair.gpu_home), *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_training_script_waits_until_its_checkpoint_is_on_the_standby(programs: Programs) -> None:
    pair = programs.pair
    (pair.gpu / "checkpoint.pt").write_bytes(os.urandom(5 << 20))

    done = dumont_host(programs, "--wait")

    assert done.returncode == 0, done.stderr
    assert pair.is_equal()
    told = json.loads(dumont_host(programs, "--json").stdout)
    assert (told["is_whole"], told["peer"], told["trouble"]) == (True, STANDBY, "")


def test_the_command_fails_with_a_sentence_and_a_code_when_it_cannot_know(programs: Programs) -> None:
    programs.kill("receive")
    (programs.pair.gpu / "a").write_bytes(b"a")
    unreached = dumont_host(programs, "--wait", "--timeout", "0.5")
    programs.kill("send")
    unanswered = dumont_host(programs, "--wait")

    assert (unreached.returncode, unanswered.returncode) == (8, 8)
    assert "not everything is on the standby after 0.5 s" in unreached.stderr
    assert "no live sync answers on this machine" in unanswered.stderr


@pytest.mark.parametrize("victim", ["receive", "send"])
def test_killed_again_and_again_while_files_are_saved_nothing_confirmed_is_missing(
    programs: Programs, victim: str
) -> None:
    pair, chance = programs.pair, random.Random(victim)
    for _ in range(6):
        until_s = time.monotonic() + chance.uniform(0.1, 0.4)
        (pair.gpu / "large").write_bytes(chance.randbytes(2 << 20))
        while time.monotonic() < until_s:
            save(pair.gpu / f"s{chance.randrange(20)}", chance.randbytes(chance.randrange(2000, 8000)))
        programs.kill(victim)
        for path, (_size, mtime_ns, _at_s) in programs.acked().items():
            if path.startswith(b"s") or path == b"large":
                assert (pair.mirror / os.fsdecode(path)).stat().st_mtime_ns >= mtime_ns
        programs.start(victim)

    programs.wait()

    assert tree(pair.mirror) == tree(pair.gpu)


def test_both_ends_tell_the_agent_how_they_stand(programs: Programs) -> None:
    pair = programs.pair
    end_s = time.monotonic() + 30
    while not (read_standing(pair.gpu_home).is_whole and read_standing(pair.standby_home).is_whole):
        assert time.monotonic() < end_s
        time.sleep(0.05)

    assert read_standing(pair.gpu_home).lag_s == 0.0
    assert read_standing(pair.standby_home).epoch == 1
    assert read_standing(pair.folder).lag_s is None

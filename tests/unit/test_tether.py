"""A program that is tethered ends with whoever started it, however that one ends."""

from __future__ import annotations

import signal
import subprocess
import sys

from common.tether import tethered

STARTER = """
import subprocess
from common.tether import tethered
program = subprocess.Popen(tethered(["sh", "-c", "echo is up; exec sleep 600"]))
program.wait()
"""
ENDS_WITHIN_S = 30


def test_it_is_killed_with_its_starter() -> None:
    starter = subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE)
    assert starter.stdout
    assert starter.stdout.readline() == b"is up\n"

    starter.send_signal(signal.SIGKILL)

    rest, _ = starter.communicate(timeout=ENDS_WITHIN_S)  # the pipe ends when nobody has it any more
    assert rest == b""


def test_it_is_the_program_itself_with_its_words_and_its_exit_code() -> None:
    ended = subprocess.run(tethered(["sh", "-c", 'echo "$0"; exit 7', "--pdeathsig x"]), capture_output=True)

    assert (ended.returncode, ended.stdout) == (7, b"--pdeathsig x\n")

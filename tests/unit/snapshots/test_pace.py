"""A process is held to a rate."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from common.snapshots.pace import BURST_S, paced
from tests.snapshots_fixtures import Box

RATE = 8 << 20
WRITES = "import sys\nwhile True: open('/dev/null', 'wb', 0).write(bytes(1 << 18))"


def written_in(seconds: float, rate: float | None) -> int:
    with subprocess.Popen([sys.executable, "-c", WRITES]) as process:
        try:
            with paced(process.pid, rate):
                time.sleep(seconds)  # what is judged is a rate of real time
                words = Path(f"/proc/{process.pid}/io").read_text().split()
            return int(words[words.index("wchar:") + 1])
        finally:
            process.kill()


def test_a_process_writes_no_faster_than_it_may() -> None:
    free, held = written_in(1.5, None), written_in(1.5, RATE)

    assert held <= RATE * (1.5 + BURST_S) + (free / 1.5) * 0.3  # a look comes a little late
    assert held < free / 4


def test_it_goes_on_freely_afterwards() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        with paced(process.pid, 1.0):
            time.sleep(0.2)
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        process.kill()

    assert state in "SR"


def test_a_snapshot_keeps_to_its_share_of_the_line(box: Box) -> None:
    (box.root / "data").write_bytes(os.urandom(24 << 20))
    import dataclasses

    slow = dataclasses.replace(box.endpoint, max_bytes_s=float(RATE))

    taken = box.take(endpoint=slow)

    assert taken.seconds >= (24 << 20) / RATE / 2  # on loopback much is written between two looks
    assert box.verify(taken.manifest_key).files == 1

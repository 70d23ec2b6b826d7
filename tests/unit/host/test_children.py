"""Programs that are kept running, on a clock that the test turns; the programs are real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.host.children import AGAIN_MAX_S, LOG_BYTES_MAX, STOP_S, Children, started
from common.host.writers import Processes

SLEEP = ["sleep", "600"]
ROOT = Path(__file__).resolve().parents[3]


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def children(tmp_path: Path, clock: Clock) -> Iterator[Children]:
    made = Children(tmp_path, clock)
    yield made
    made.want({})
    clock.now_s += STOP_S + 1
    until(lambda: (made.tend(), made.is_idle)[1])


def until(what: Callable[[], object]) -> None:
    ends_s = time.monotonic() + 20
    while not what():
        assert time.monotonic() < ends_s
        time.sleep(0.01)


def one_of(children: Children) -> int:
    (pid,) = children.pids()
    return pid


def test_a_program_that_ends_is_started_again_later_and_later_within_a_bound(children: Children, clock: Clock) -> None:
    children.want({"quick": ["true"]})
    waits = []
    for _ in range(9):
        until(lambda: (children.tend(), not children.pids())[1])
        began_s = clock.now_s
        while not children.pids():
            clock.now_s += 0.1
            children.tend()
        waits.append(round(clock.now_s - began_s, 3))

    assert waits[0] < 0.5
    assert waits == sorted(waits)
    assert AGAIN_MAX_S - 0.5 < waits[-1] < AGAIN_MAX_S + 0.5


def test_one_that_ran_for_long_is_started_again_at_once(children: Children, clock: Clock) -> None:
    children.want({"long": SLEEP})
    clock.now_s += AGAIN_MAX_S + 1
    first = one_of(children)
    os.kill(first, signal.SIGKILL)
    until(lambda: (children.tend(), first not in children.pids())[1])
    clock.now_s += 0.3
    children.tend()

    assert one_of(children) != first


def test_other_words_are_another_program_and_what_is_not_wanted_ends(children: Children) -> None:
    children.want({"a": SLEEP, "b": [*SLEEP, "1"]})
    before = children.pids()
    children.want({"a": SLEEP, "b": [*SLEEP, "1"]})
    assert children.pids() == before

    children.want({"a": [*SLEEP, "2"]})
    until(lambda: (children.tend(), not any(started(pid) for pid in before))[1])
    assert len(children.pids()) == 1


def test_one_that_does_not_heed_sigterm_is_killed_after_its_time(children: Children, clock: Clock) -> None:
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    children.want({"deaf": [sys.executable, "-c", deaf]})
    log = children.home / "programs/deaf.log"
    until(lambda: log.read_text() == "deaf\n")
    pid = one_of(children)
    children.want({})
    time.sleep(0.2)
    assert started(pid)

    clock.now_s += STOP_S + 1
    until(lambda: (children.tend(), not started(pid))[1])


def a_keeper_that_died(home: Path) -> None:
    """It started one program, and left it behind."""
    code = "import sys; from pathlib import Path; from common.host.children import Children;"
    code += "Children(Path(sys.argv[1]), lambda: 0.0).want({'a': ['sleep', '600']})"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(home)], cwd=ROOT, check=True)


def test_a_keeper_that_was_started_anew_finds_its_programs_and_starts_none_twice(tmp_path: Path, clock: Clock) -> None:
    a_keeper_that_died(tmp_path)
    found = Children(tmp_path, clock)
    first = one_of(found)
    found.want({"a": SLEEP})
    assert one_of(found) == first

    os.kill(first, signal.SIGKILL)
    until(lambda: (found.tend(), first not in found.pids())[1])
    clock.now_s += 1
    found.tend()
    assert one_of(found) != first
    found.want({})
    until(lambda: (found.tend(), found.is_idle)[1])


def test_a_process_of_the_same_number_is_not_taken_for_it(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs/a.json").write_text(f'{{"pid": {os.getpid()}, "started": 1, "words": ["sleep", "600"]}}')
    (tmp_path / "programs/b.json").write_text("torn")

    assert Children(tmp_path, clock).pids() == frozenset()


def test_a_program_that_is_not_there_is_named_in_its_log(children: Children, clock: Clock) -> None:
    children.want({"nosuch": ["/no/such/program"]})

    assert children.pids() == frozenset()
    assert "/no/such/program" in (children.home / "programs/nosuch.log").read_text()
    clock.now_s += 60
    children.tend()


def test_a_log_does_not_grow_for_ever(children: Children) -> None:
    log = children.home / "programs/a.log"
    log.write_bytes(b"x" * (LOG_BYTES_MAX + 1))
    children.want({"a": SLEEP})

    assert log.stat().st_size == 0


def test_a_freeze_holds_still_what_the_user_runs_and_not_the_programs_of_the_pair(tmp_path: Path, clock: Clock) -> None:
    """The programs outlive the agent that started them, so that they are no descendants of it any more."""
    a_keeper_that_died(tmp_path)
    ours = Children(tmp_path, clock)
    parent = int(Path(f"/proc/{one_of(ours)}/stat").read_text().rpartition(")")[2].split()[1])
    users = subprocess.run(
        ["sh", "-c", "sleep 601 >/dev/null 2>&1 & echo $!"], capture_output=True, text=True, check=True
    )
    user = int(users.stdout)
    try:
        assert {one_of(ours), user} <= set(Processes(init=parent).users())
        spared = set(Processes(init=parent, spared=ours.pids).users())
        assert user in spared
        assert one_of(ours) not in spared
    finally:
        os.kill(user, signal.SIGKILL)
        os.kill(one_of(ours), signal.SIGKILL)

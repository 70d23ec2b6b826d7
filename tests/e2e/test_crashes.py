"""kill -9 of a host's agent in the middle of a snapshot, and of every process there is: nothing is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.demo.material import look
from infra.demo.story import Story
from infra.local.up import _alive

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
BIG_FILE_BYTES = 256 << 20


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    """A running instance with one file in its workspace."""
    made = Story(tmp_path, quiet=True)
    try:
        made.start()
        made.sign_in()
        body = {"gpu": "RTX 4090", "strategy": "coldstart", "disk_gb": 32}
        made.instance = made.post("/instances/provision", body, 202)["operation"]["instance_id"]
        made.until("running")
        _workspace(made).joinpath("notes.txt").write_text("worth keeping\n")
        yield made
    finally:
        made.end()


def _workspace(story: Story) -> Path:
    return Path(story.writer()["workspace"])


def _tree_of(root: int) -> dict[int, str]:
    """pid -> program of every process of one rental: they are one process group."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == root:
                    found[int(entry.name)] = (entry / "cmdline").read_text()
    return found


def _kill(*pids: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.05)


def test_an_agent_killed_in_the_middle_of_a_snapshot_loses_neither_the_machine_nor_the_old_snapshot(
    story: Story,
) -> None:
    story.wait(lambda: story.shown()["snapshot"] is not None, "a first snapshot")
    old, rental = story.shown()["snapshot"], story.writer()
    _workspace(story).joinpath("big.bin").write_bytes(os.urandom(BIG_FILE_BYTES))
    story.tree = look(_workspace(story))
    tree = _tree_of(rental["pid"])
    agent = min(pid for pid, program in tree.items() if "agent/agent" in program)
    story.post(f"/instances/{story.instance}/hibernate", {}, 202)
    story.wait(_task_runs(rental["pid"]), "the engine to work")

    _kill(agent)

    assert story.shown()["snapshot"]["id"] == old["id"]
    assert [row["label"] for row in story.rentals()] == [rental["label"]]
    story.until("hibernated")  # the start-up script has started the agent again, and the order still stood
    assert story.shown()["snapshot"]["id"] != old["id"]
    story.post(f"/instances/{story.instance}/wake", {}, 202)
    story.until("running")
    story.same(_workspace(story))


def _task_runs(root: int) -> Callable[[], bool]:
    return lambda: any("--task" in program for program in _tree_of(root).values())


def test_after_a_kill_of_every_process_the_instance_comes_back_from_its_snapshot(story: Story) -> None:
    story.tree = look(_workspace(story))
    story.wait(lambda: story.shown()["snapshot"] is not None, "a snapshot")
    crashed, facts = story.writer(), story.facts
    pids = [int((story.folder / f"{name}.pid").read_text()) for name in ("world", "control")]
    assert story.up
    _kill(story.up.pid, *pids, *_tree_of(crashed["pid"]))
    story.up.wait(10)
    _wait(lambda: not any(_alive(pid) for pid in (*pids, crashed["pid"])), "everything to be dead")

    token = story.api.headers["Authorization"]
    story.end()
    story.start()
    story.api.headers["Authorization"] = token

    assert story.facts == facts
    story.wait(lambda: story.shown()["state"] != "running", "the crash to be noticed")
    story.until("running")
    assert story.writer()["label"] != crashed["label"]
    story.same(_workspace(story))
    story.post(f"/instances/{story.instance}/terminate", {"discard": False}, 202)
    story.until("terminated")
    story.wait(lambda: not story.rentals(), "every rental to be gone")

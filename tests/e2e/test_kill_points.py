"""kill -9 of the control plane at twelve named points of the story and of the world at three: it converges."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from infra.demo import books
from infra.demo.material import look
from infra.demo.story import Story

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

POINTS = (
    "rental.creating:after",
    "market.create:before",
    "market.create:after",
    "rental.serving:before",
    "rental.serving:after",
    "instance.freezing:after",
    "objects.list:after",
    "instance.down:before",
    "instance.down:after",
    "market.destroy:before",
    "market.destroy:after",
    "ledger:after",
)


def _kill_world(story: Story) -> None:
    """The supervisor starts it again; its rentals live on."""
    pid = int((story.folder / "world.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while int((story.folder / "world.pid").read_text()) == pid:
        assert time.monotonic() < deadline, "the world was not started again"
        time.sleep(0.1)


def _write(story: Story) -> None:
    root = Path(story.writer()["workspace"])
    (root / "deep" / "er").mkdir(parents=True)
    (root / "deep" / "er" / "notes.txt").write_text("worth keeping\n" * 1000)
    (root / "link").symlink_to("deep/er/notes.txt")
    story.tree = look(root)


def test_it_converges_after_a_kill_at_every_named_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUMONT_KILL_POINTS", ",".join(POINTS))
    story = Story(tmp_path, quiet=True)
    try:
        story.start()
        story.sign_in()
        body = {"gpu": "RTX 4090", "strategy": "coldstart", "disk_gb": 32}
        story.instance = story.post("/instances/provision", body, 202)["operation"]["instance_id"]
        story.until("running")
        _write(story)
        _kill_world(story)
        story.post(f"/instances/{story.instance}/hibernate", {}, 202)
        story.until("hibernated")
        assert not story.billing()

        story.post(f"/instances/{story.instance}/wake", {}, 202)
        _kill_world(story)
        story.until("running")
        story.same(Path(story.writer()["workspace"]))

        story.post(f"/instances/{story.instance}/terminate", {"discard": False}, 202)
        _kill_world(story)
        story.until("terminated")
        story.wait(lambda: not story.rentals(), "every rental to be gone")
        story.wait(story.is_settled, "the bills to be settled")
        ledger = books.read(story).ledger
        bills = story.in_world("GET", "/bills").json()
    finally:
        story.end()

    fired = (tmp_path / "killed.txt").read_text().split()
    assert sorted(fired) == sorted(POINTS)
    assert ledger == {tuple(row["key"]): Decimal(row["usd"]) for row in bills}
    contracts = Counter(row["key"][0] for row in bills if row["key"][1] == "disk")
    assert contracts
    assert max(contracts.values()) == 1, "one label was rented twice"

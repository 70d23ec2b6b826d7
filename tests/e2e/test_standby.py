"""The GPU dies and the user keeps working: machines of their own, real ssh, the real bundle, a simulated Google."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from common.host.tunnel import STATUS
from infra.demo.shell import can_stand_by
from infra.demo.story import BACK_WITHIN_S, Story

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not can_stand_by(), reason="it takes root, haproxy and sshd to play a standby"),
    pytest.mark.timeout(600),
]


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    made = Story(tmp_path, quiet=True, with_google=True)
    made.start()
    made.sign_in()
    made.deploy()
    yield made
    made.end()


def test_the_user_works_on_at_the_same_address_and_comes_back_to_a_gpu_with_everything(story: Story) -> None:
    (Path(story.writer()["workspace"]) / "before.txt").write_text("before there was a standby\n")
    story.protect()
    editor_reads(story, Path(story.writer()["workspace"]), "gpu")

    story.dies()
    assert (story.mirror() / "before.txt").read_text() == "before there was a standby\n"
    editor_reads(story, story.mirror(), "standby")
    story.back()

    assert story.result["shell_s"] < 60
    story.terminate()
    assert story.result["rentals_left"] == 0
    story.money()


def test_a_gpu_that_only_hung_is_fenced_and_what_it_alone_had_comes_back_beside_the_files(story: Story) -> None:
    gpu = story.writer()
    root = Path(gpu["workspace"])
    (root / "paper.txt").write_text("on both\n")
    story.protect()
    story.in_world("POST", f"/rentals/{gpu['label']}/fault", json={"kind": "freeze"})
    (root / "paper.txt").write_text("saved while it hung\n")
    story.wait(lambda: story.shown()["state"] == "on_standby", "the standby to take over")
    story.in_world("POST", f"/rentals/{gpu['label']}/fault", json={"kind": "thaw"})

    story.until("running", BACK_WITHIN_S)
    back = Path(story.writer()["workspace"])
    story.wait(lambda: list(back.glob("conflicts/*/paper.txt")), "what the old GPU alone had")

    (kept,) = back.glob("conflicts/*/paper.txt")
    assert kept.read_text() == "saved while it hung\n"
    assert (back / "paper.txt").read_text() == "on both\n"


def editor_reads(story: Story, workspace: Path, state: str) -> None:
    """The record knows first: a machine hears of its own part with the answer to its next heartbeat."""
    place = workspace.parent / "dumont" / STATUS
    story.wait(lambda: status_at(place)["state"] == state, f"an editor at {workspace} to read {state}")


def status_at(place: Path) -> dict[str, Any]:
    """What an editor is told there, by way of its folder's descriptor: a socket's path may have 107 bytes."""
    folder = os.open(place.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=f"/proc/self/fd/{folder}/{place.name}")) as client:
            found: dict[str, Any] = client.get("http://dumont/status").raise_for_status().json()
    finally:
        os.close(folder)
    return found

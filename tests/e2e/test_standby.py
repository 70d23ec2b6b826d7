"""The GPU dies and the user keeps working: machines of their own, real ssh, the real bundle, a simulated Google."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.demo.shell import can_stand_by
from infra.demo.story import Story

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

    story.dies()
    assert (story.mirror() / "before.txt").read_text() == "before there was a standby\n"
    story.back()

    assert story.result["shell_s"] < 60
    story.terminate()
    assert story.result["rentals_left"] == 0
    story.money()

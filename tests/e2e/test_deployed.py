"""The archive that a deploy uploads, run as it is deployed: clean environment, a process per function, Firestore."""

from __future__ import annotations

import sys
import time
import uuid
from pathlib import Path

import pytest

from common.topology import FUNCTIONS
from infra.demo.story import Story
from tests.contract.conftest import emulator

__all__ = ["emulator"]
pytestmark = [pytest.mark.e2e, pytest.mark.firestore, pytest.mark.timeout(290)]


def test_the_story_up_to_the_hibernation_holds_on_the_deployed_archive(
    tmp_path: Path, emulator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", emulator)
    store = f"firestore://deployed-{uuid.uuid4().hex[:12]}/dumont"
    story = Story(tmp_path, quiet=True, up_options=("--as-deployed", "--store", store))
    try:
        for chapter in (story.start, story.sign_in, story.deploy, story.write, story.idle):
            began = time.monotonic()
            said = chapter()
            print(f"{time.monotonic() - began:7.2f} s  {said}", file=sys.stderr)
    finally:
        story.end()
    logs = {row.name: (tmp_path / "logs" / f"{row.name}.log").read_text() for row in FUNCTIONS}
    assert not [name for name, log in logs.items() if "Traceback" in log or "internal_error" in log]
    assert '"message": "reconcile"' in logs["reconcile"]
    assert not (tmp_path / "store.db").exists()

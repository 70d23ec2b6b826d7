"""An instance on the marketplace of virtual machines: the same script, bundle and life, as real processes."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from infra.demo.material import look
from infra.demo.story import Story

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(280)]


def test_an_instance_lives_hibernates_wakes_and_ends_on_virtual_machines(tmp_path: Path) -> None:
    story = Story(tmp_path, quiet=True)
    try:
        story.start()
        story.sign_in()
        body = {"gpu": "RTX A6000", "strategy": "coldstart", "disk_gb": 32}
        story.instance = story.post("/instances/provision", body, 202)["operation"]["instance_id"]
        story.until("running")
        (row,) = story.rentals()
        story.wait(lambda: story.shown()["address"] is not None, "the address to be known")
        address = story.shown()["address"]
        root = Path(row["workspace"])
        (root / "deep").mkdir()
        (root / "deep" / "notes.txt").write_text("worth keeping\n" * 1000)
        story.tree = look(root)

        story.post(f"/instances/{story.instance}/hibernate", {}, 202)
        story.until("hibernated")
        assert not story.billing()
        story.post(f"/instances/{story.instance}/wake", {}, 202)
        story.until("running")
        story.same(Path(story.writer()["workspace"]))
        story.terminate()
        money = story.money()
    finally:
        story.end()

    assert row["provider"] == "tensordock"
    assert (address["host"], address["user"]) == ("127.0.0.1", "root")
    assert Decimal(story.result["computed_usd"]) > 0, money
    assert Decimal(story.result["provider_usd"]) == 0

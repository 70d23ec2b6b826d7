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
        story._start()
        story._sign_in()
        body = {"gpu": "RTX A6000", "strategy": "coldstart", "disk_gb": 32}
        story.instance = story._post("/instances/provision", body, 202)["operation"]["instance_id"]
        story._until("running")
        (row,) = story._rentals()
        story._wait(lambda: story._instance()["address"] is not None, "the address to be known")
        address = story._instance()["address"]
        root = Path(row["workspace"])
        (root / "deep").mkdir()
        (root / "deep" / "notes.txt").write_text("worth keeping\n" * 1000)
        story.tree = look(root)

        story._post(f"/instances/{story.instance}/hibernate", {}, 202)
        story._until("hibernated")
        assert not story._billing()
        story._post(f"/instances/{story.instance}/wake", {}, 202)
        story._until("running")
        story._same(Path(story._writer()["workspace"]))
        story._terminate()
        money = story._money()
    finally:
        story.end()

    assert row["provider"] == "tensordock"
    assert (address["host"], address["user"]) == ("127.0.0.1", "root")
    assert Decimal(story.result["computed_usd"]) > 0, money
    assert Decimal(story.result["provider_usd"]) == 0

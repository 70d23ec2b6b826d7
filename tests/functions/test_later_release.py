"""Records of a later release: met while an apply goes on, and after one that was taken back."""

from __future__ import annotations

from common.domain.instance import State
from jobs import reconcile
from tests.functions.conftest import Api
from tests.hand_cranked import ACCOUNT, World


def test_a_setting_that_only_a_later_release_knows_is_passed_over(world: World, admin: Api) -> None:
    id = world.provision(keep={"last": 3})
    world.until(lambda: world.show(id).state is State.RUNNING)
    doc = world.store.get("instances", f"{ACCOUNT}.{id}")
    assert doc
    spec = doc.data["spec"]
    later = {**spec, "of_a_later_release": True, "keep": {**spec["keep"], "yearly": 1}}
    world.store.cas(doc, {**doc.data, "spec": later, "also_later": 1})

    assert reconcile.run(world.app)["failed"] == 0
    assert [one["id"] for one in admin.get("/instances").json["items"]] == [id]
    assert admin.get("/savings").status_code == 200
    assert admin.post("/instances/provision", {"gpu": "H100 SXM", "of_a_later_release": True}).status_code == 422

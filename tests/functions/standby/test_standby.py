"""The GPU dies and the user keeps working: the records' side of it, on a clock that only the test turns."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from common.adapters.s3 import S3
from common.domain import orders as rules_of_orders
from common.domain.account import Role
from common.domain.host import HostRecord, OrderResult
from common.domain.instance import Phase, Protection, State
from common.domain.rental import RentalState
from common.domain.watch import FIRST_BEAT_S
from common.records import load
from common.views.metrics import exposition
from common.views.standbys import DEAF, UNHEARD, standbys
from common.workflows import budgets, hibernate, mirror, restore
from infra.demo.s3_server import S3Server
from tests.functions.conftest import Api, key_for
from tests.functions.test_story_by_hand import rentals
from tests.hand_cranked import ACCOUNT, World
from tests.standby_story import lose_gpu, lose_standby, mirrored, of, standby, states, wish, write


def test_an_instance_gets_a_standby_near_its_gpu_and_its_address_stays(world: World) -> None:
    id = world.provision()
    world.until(lambda: world.show(id).state is State.RUNNING)
    shown = world.show(id)
    assert shown.protection is not Protection.MIRRORED

    world.until(lambda: world.show(id).protection is Protection.MIRRORED)

    shown, record = world.show(id), of(world, id)
    assert shown.address is not None
    assert (shown.address.kind, shown.address.host) == ("standby", record.address)
    assert record.mirror == record.standby
    assert record.writer != record.standby
    (address,) = world.standbys.addresses()
    assert address.ip == record.address


def test_the_gpu_dies_and_the_user_works_on_until_another_gpu_has_everything(world: World) -> None:
    id = mirrored(world)
    write(world, id, "paper.txt", "written on the GPU\n")
    world.pass_time(2)
    before = of(world, id)
    lost = lose_gpu(world, id)

    took_s = world.until(lambda: world.show(id).state is State.ON_STANDBY)

    assert took_s < 10, "the claim comes with the standby's next words, not with the market's listing"
    on_standby = of(world, id)
    assert on_standby.writer == before.standby
    assert on_standby.epoch == before.epoch + 1
    assert on_standby.held == lost
    assert (world.workspace(id) / "paper.txt").read_text() == "written on the GPU\n"
    assert world.show(id).address.host == before.address

    write(world, id, "paper.txt", "written on the standby\n")
    world.until(lambda: of(world, id).cand is not None)
    world.until(lambda: world.show(id).state is State.RUNNING)

    back = of(world, id)
    assert back.writer not in (lost, before.standby)
    assert back.mirror == before.standby
    assert back.epoch == before.epoch + 2
    assert (world.workspace(id) / "paper.txt").read_text() == "written on the standby\n"
    world.until(lambda: lost not in states(world, id) or states(world, id)[lost] is RentalState.RELEASED)


def test_the_hours_in_which_only_the_standby_billed_are_shown_as_hibernated(world: World) -> None:
    id, api = mirrored(world), Api(world, key_for(world, ACCOUNT, Role.ADMIN))
    api.post(f"/instances/{id}/hibernate")
    world.until(lambda: world.show(id).state is State.HIBERNATED)
    asleep = api.get("/savings?days=1").json
    world.pass_time(3 * 3600, step_s=60)

    found = api.get("/savings?days=1").json

    assert 2.9 < found["hibernated_hours"] < 3.1
    assert float(found["spent_usd"]) > float(asleep["spent_usd"])


def test_a_cap_that_the_gpu_breaks_keeps_the_instance_asleep_though_its_standby_is_cheap(world: World) -> None:
    api = Api(world, key_for(world, ACCOUNT, Role.ADMIN))
    id = mirrored(world)
    api.post(f"/instances/{id}/hibernate")
    world.until(lambda: world.show(id).state is State.HIBERNATED)
    assert of(world, id).standby is not None
    world.pass_time(3600, step_s=30)
    cap = budgets.last_price(world.app, f"{ACCOUNT}.{id}") / 2
    assert api.call("PUT", "/api/v1/budget", {"usd_per_hour": str(cap)}).status_code == 200

    refused = api.post(f"/instances/{id}/wake")

    assert (refused.status_code, refused.json["code"]) == (402, "budget_exceeded")
    newest = max(rentals(world, id), key=lambda rental: rental.created_at)
    assert newest.is_standby and newest.offer.usd_per_hour(newest.disk_gb) < cap


def test_a_gpu_that_is_only_cut_off_is_held_until_a_snapshot_of_the_standby_covers_it(world: World) -> None:
    id = mirrored(world)
    gpu = of(world, id).writer or ""
    world.machines[gpu].cut = True

    world.until(lambda: world.show(id).state is State.ON_STANDBY)
    assert states(world, id)[gpu] is RentalState.HELD
    pointer = of(world, id).pointer

    world.until(lambda: states(world, id).get(gpu) is not RentalState.HELD)
    assert of(world, id).pointer != pointer
    assert of(world, id).is_covered


def test_a_gpu_that_comes_back_is_held_still_and_cannot_write(world: World) -> None:
    id = mirrored(world)
    label = of(world, id).writer or ""
    gpu = world.machines[label]
    gpu.cut = True
    world.until(lambda: world.show(id).state is State.ON_STANDBY)
    on_standby = world.workspace(id) / "later.txt"
    on_standby.write_text("of the standby\n")

    gpu.cut = False
    (gpu.agent.workspace / "later.txt").write_text("of the fenced GPU\n")
    world.pass_time(10)

    assert gpu.writers.frozen or label not in world.machines
    assert on_standby.read_text() == "of the standby\n"


def test_both_die_and_the_newest_snapshot_comes_back(world: World) -> None:
    id = mirrored(world)
    write(world, id, "kept.txt", "in the snapshot\n")
    world.until(lambda: of(world, id).pointer is not None)
    first = of(world, id).pointer
    world.until(lambda: of(world, id).pointer != first, within_s=2400)
    lose_standby(world, id)
    lose_gpu(world, id)

    world.until(lambda: world.show(id).state is not State.RUNNING)
    world.until(lambda: world.show(id).state is State.RUNNING, within_s=3600)

    assert (world.workspace(id) / "kept.txt").read_text() == "in the snapshot\n"


def test_the_standby_dies_before_its_first_snapshot_and_the_role_goes_back(world: World) -> None:
    id = mirrored(world)
    before = of(world, id)
    gpu = world.machines[before.writer or ""]
    gpu.cut = True
    world.until(lambda: world.show(id).state is State.ON_STANDBY)
    world.machines[before.standby or ""].cut = True  # before it has reported a snapshot
    lose_standby(world, id)
    gpu.cut = False

    world.until(lambda: of(world, id).phase is Phase.UP)

    assert of(world, id).writer == before.writer
    assert of(world, id).start == "keep"
    world.until(lambda: world.show(id).state is State.RUNNING)
    assert not gpu.writers.frozen


def test_the_user_moves_to_the_standby_and_back(world: World) -> None:
    id = mirrored(world)
    write(world, id, "work.txt", "here\n")
    world.pass_time(2)
    wish(world, id, lambda loaded: mirror.request_failover(world.app, loaded, now=world.now))

    world.until(lambda: world.show(id).state is State.ON_STANDBY)
    assert (world.workspace(id) / "work.txt").read_text() == "here\n"
    world.until(lambda: of(world, id).cand is not None)
    wish(world, id, lambda loaded: mirror.request_hand_back(world.app, loaded, now=world.now))

    world.until(lambda: world.show(id).state is State.RUNNING)
    assert (world.workspace(id) / "work.txt").read_text() == "here\n"


def test_an_instance_hibernates_from_its_standby_and_wakes_with_what_was_written_there(world: World) -> None:
    id = mirrored(world)
    lose_gpu(world, id)
    world.until(lambda: world.show(id).state is State.ON_STANDBY)
    write(world, id, "last.txt", "of the standby\n")
    wish(world, id, lambda loaded: hibernate.request(world.app, loaded, reason="asked", now=world.now))

    world.until(lambda: world.show(id).state is State.HIBERNATED)
    assert of(world, id).standby is not None
    wish(world, id, lambda loaded: restore.request_wake(world.app, loaded, world.now))
    world.until(lambda: world.show(id).protection is Protection.MIRRORED)
    assert (world.workspace(id) / "last.txt").read_text() == "of the standby\n"


def test_a_standby_that_wrote_is_of_its_own_epoch_when_the_gpu_is_back_and_dies_at_once(world: World) -> None:
    id = mirrored(world)
    lose_gpu(world, id)
    world.until(lambda: world.show(id).state is State.ON_STANDBY)
    write(world, id, "paper.txt", "written on the standby\n")
    label = of(world, id).standby or ""
    world.until(lambda: of(world, id).phase is Phase.UP)
    world.unlinked.add(frozenset({of(world, id).writer or "", label}))
    lose_gpu(world, id)

    world.until(lambda: world.show(id).state is State.ON_STANDBY)

    assert (world.workspace(id) / "paper.txt").read_text() == "written on the standby\n"


def behind(world: World) -> tuple[str, str, bytes]:
    """A GPU died when its snapshot had more than its standby, and the bucket lost it: (id, key, manifest)."""
    id = mirrored(world)
    world.links[of(world, id).writer or ""].holds_back = True
    write(world, id, "paper.txt", "in the snapshot alone\n")
    before = of(world, id).pointer
    world.until(lambda: of(world, id).pointer not in (None, before))
    key = (of(world, id).pointer or before).manifest_key  # type: ignore[union-attr]
    manifest = world.objects.get(key)
    world.objects.delete([key])
    lose_gpu(world, id)
    world.until(lambda: (standby_host(world, id).progress.last or DONE).id.startswith("rewind"))
    assert of(world, id).writer != of(world, id).standby
    return id, key, manifest


def standby_host(world: World, id: str) -> HostRecord:
    host = load(world.app, f"{ACCOUNT}.{id}").host(of(world, id).standby)
    assert host
    return host


DONE = OrderResult(id="none", ok=True)


def test_a_standby_that_could_not_get_what_it_lacks_tries_again(world: World) -> None:
    id, key, manifest = behind(world)
    world.objects.put(key, manifest)

    world.until(lambda: world.show(id).state is State.ON_STANDBY)

    assert (world.workspace(id) / "paper.txt").read_text() == "in the snapshot alone\n"


def test_a_standby_that_cannot_get_what_it_lacks_leaves_it_to_a_gpu_that_restores_the_pointer(world: World) -> None:
    id, key, manifest = behind(world)
    lost = of(world, id).writer
    world.until(lambda: rules_of_orders.is_rewind_failed(of(world, id), standby_host(world, id)))
    world.objects.put(key, manifest)

    world.until(lambda: of(world, id).writer not in (lost, None) and world.show(id).state is State.RUNNING)

    assert of(world, id).writer != of(world, id).standby
    assert (world.workspace(id) / "paper.txt").read_text() == "in the snapshot alone\n"
    world.until(lambda: world.show(id).protection is Protection.MIRRORED)
    assert (standby(world, id).agent.workspace / "paper.txt").read_text() == "in the snapshot alone\n"


def test_a_standby_before_a_firewall_that_lets_no_heartbeat_in_never_takes_over_and_says_why(world: World) -> None:
    id = world.provision()
    world.until(lambda: of(world, id).standby in world.links)
    link = world.links[of(world, id).standby or ""]
    link.is_deaf = True
    world.until(lambda: standbys(world.app, ACCOUNT, world.now)[0].why == DEAF)

    world.pass_time(FIRST_BEAT_S + 60)
    assert world.show(id).state is State.RUNNING
    assert world.show(id).protection is not Protection.MIRRORED

    link.is_deaf = False
    world.until(lambda: world.show(id).protection is Protection.MIRRORED)


def test_without_googles_credentials_everything_else_works(
    tmp_path: Path, s3_on_loopback: S3Server, objects: S3
) -> None:
    world = World(tmp_path, s3_on_loopback, objects)
    id = world.provision()
    world.until(lambda: world.show(id).state is State.RUNNING)
    world.pass_time(120)
    assert world.show(id).protection is Protection.UNPROTECTED
    assert world.show(id).address.kind == "direct"
    world.close()


def test_a_standby_that_was_cut_off_for_hours_is_still_heard_and_takes_over(world: World) -> None:
    id = mirrored(world)
    write(world, id, "kept.txt", "on both\n")
    world.pass_time(2)
    label = of(world, id).standby or ""
    world.machines[label].cut = True
    world.pass_time(2 * 3600, step_s=10)  # longer than a GPU's token may be renewed
    world.machines[label].cut = False
    lose_gpu(world, id)

    world.until(lambda: world.show(id).state is State.ON_STANDBY)
    assert (world.workspace(id) / "kept.txt").read_text() == "on both\n"


def shown(world: World, id: str) -> tuple[bool, Protection, str]:
    (row,) = standbys(world.app, ACCOUNT, world.now)
    assert row.protection is world.show(id).protection
    assert f'dumont_standby_in_sync{{instance="{id}"}} {float(row.in_sync)}' in exposition(
        world.app, ACCOUNT, world.now
    )
    return row.in_sync, row.protection, row.why


def test_a_standby_that_google_has_stopped_is_not_said_to_protect(world: World) -> None:
    id = mirrored(world)
    label = of(world, id).standby or ""
    world.google.stockout((world.google.contract_of(label) or "").partition("/")[0], world.now + timedelta(seconds=400))
    world.google.preempt(label, world.now)
    world.pass_time(200)

    in_sync, protection, why = shown(world, id)

    assert (in_sync, protection) == (False, Protection.UNPROTECTED)
    assert "unprotected" in why
    world.until(lambda: shown(world, id)[0])
    assert of(world, id).standby == label


def test_a_standby_that_is_not_heard_is_not_said_to_protect_and_can_be_replaced(world: World) -> None:
    id = mirrored(world)
    label = of(world, id).standby or ""
    world.pass_time(1200, step_s=5)
    assert shown(world, id)[:2] == (True, Protection.MIRRORED)
    standby(world, id).cut = True
    world.pass_time(1200, step_s=5)

    assert shown(world, id) == (False, Protection.UNPROTECTED, UNHEARD)
    for wanted in (False, True):
        wish(world, id, lambda loaded, w=wanted: mirror.request_standby(world.app, loaded, wanted=w, now=world.now))
        world.pass_time(120)
    world.until(lambda: shown(world, id)[0])
    assert of(world, id).standby != label


def test_a_standby_that_vanishes_while_it_writes_is_missed_within_minutes(world: World) -> None:
    id = mirrored(world)
    lose_gpu(world, id)
    world.until(lambda: world.show(id).state is State.ON_STANDBY)
    world.until(lambda: of(world, id).is_covered)
    lose_standby(world, id)

    took_s = world.until(lambda: not of(world, id).is_on_standby, within_s=1200)
    assert took_s < 600

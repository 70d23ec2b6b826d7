"""A standby's machine is preempted, started again and destroyed: Google's own client over the simulator."""

from __future__ import annotations

from datetime import timedelta

import pytest

from common.errors import (
    InvalidInput,
    MarketRefused,
    MarketUnknown,
    NotFound,
    OfferGone,
)
from infra.demo.gcp.compute_work import OPERATION_S
from tests.gcp_rig import (
    LABEL,
    NOTICE_S,
    ZONE,
    Rig,
    alone,
    rig,
)

__all__ = ["alone", "rig"]
pytestmark = pytest.mark.usefixtures("nobody_is_looked_up")


# --- preemption


def test_a_preempted_machine_is_stopped_by_google_and_starts_again_on_its_disk(rig: Rig) -> None:
    ip = rig.reserved()
    id = rig.running(address=ip)
    rig.sim.drain()

    rig.sim.preempt(LABEL, rig.now)
    assert rig.status(id) == "stopped"
    assert rig.sim.drain() == []  # half a minute is its own
    rig.after(NOTICE_S)
    assert [effect.kind for effect in rig.sim.drain()] == ["stop"]
    assert (rig.newest(id).kind, rig.newest(id).is_done) == ("preempted", True)

    name = rig.market.start(id)
    assert rig.status(id) == "starting"
    rig.after(OPERATION_S)
    assert rig.status(id) == "running"
    assert [effect.kind for effect in rig.sim.drain()] == ["start"]
    assert [one.kind for one in rig.market.operations(id)] == ["start", "preempted", "insert"]
    assert (found := rig.market.operation(name)) and found.is_done
    assert (row := rig.market.get(id)) and row.ssh_host == ip


def test_a_start_without_room_fails_later_and_keeps_the_disk(rig: Rig) -> None:
    id = rig.running()
    rig.sim.preempt(LABEL, rig.now)
    rig.after(NOTICE_S)
    rig.sim.stockout(ZONE, rig.now + timedelta(hours=1))

    name = rig.market.start(id)
    rig.after(OPERATION_S)

    ended = rig.market.operation(name)
    assert ended
    assert isinstance(ended.refusal, OfferGone)
    assert rig.status(id) == "stopped"


def test_a_start_in_its_last_half_minute_is_refused(rig: Rig) -> None:
    id = rig.running()
    rig.sim.preempt(LABEL, rig.now)

    with pytest.raises(MarketRefused):
        rig.market.start(id)


def test_a_start_of_a_running_machine_is_harmless(rig: Rig) -> None:
    id = rig.running()
    rig.sim.drain()

    rig.market.start(id)
    rig.after(OPERATION_S)

    assert rig.status(id) == "running"
    assert rig.sim.drain() == []


def test_a_machine_that_is_gone_cannot_be_started(rig: Rig) -> None:
    with pytest.raises(NotFound):
        rig.market.start(f"{ZONE}/{LABEL}")


def test_a_machine_that_switched_itself_off_is_stopped_and_not_preempted(rig: Rig) -> None:
    id = rig.running()
    rig.sim.shut_down(id, rig.now)

    assert rig.status(id) == "stopped"
    assert [one.kind for one in rig.market.operations(id)] == ["insert"]


# --- destroy


def test_a_destroyed_machine_leaves_the_list_and_destroying_it_again_succeeds(rig: Rig) -> None:
    id = rig.running()

    assert rig.market.destroy(id)
    assert rig.status(id) == "stopped"  # only a later listing proves its end
    rig.after(OPERATION_S)

    assert rig.status(id) is None
    assert not rig.market.destroy(id)
    assert rig.sim.drain()[-1].kind == "vanish"


def test_a_delete_that_fails_later_leaves_a_machine_that_is_still_told(rig: Rig) -> None:
    id = rig.running()
    rig.sim.book.fails_later["delete"] = ("INTERNAL_ERROR", "no", 500)
    rig.market.destroy(id)
    rig.after(OPERATION_S)

    assert rig.status(id) == "stopped"
    assert isinstance(rig.newest(id).refusal, MarketRefused)
    rig.market.destroy(id)
    rig.after(OPERATION_S)
    assert rig.status(id) is None


def test_a_delete_that_is_answered_500_is_no_information(rig: Rig) -> None:
    id = rig.running()
    rig.sim.deletes_fail = 1

    with pytest.raises(MarketUnknown):
        rig.market.destroy(id)

    assert rig.status(id) == "running"


def test_a_machine_may_be_destroyed_while_it_is_being_created(rig: Rig) -> None:
    id = rig.rent()
    rig.after(1)
    rig.market.destroy(id)
    rig.after(2 * OPERATION_S)

    assert rig.status(id) is None
    assert "start" not in {effect.kind for effect in rig.sim.drain()}


def test_an_id_that_is_none_of_googles_says_so(alone: Rig) -> None:
    for id in ("4711", "", "/", "zone/", "zone/a/b", "zone/Name", "../x"):
        for call in (alone.market.get, alone.market.destroy, alone.market.start, alone.market.operations):
            with pytest.raises(InvalidInput):
                call(id)
    assert alone.sent == []

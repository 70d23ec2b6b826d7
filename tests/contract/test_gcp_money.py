"""What a standby bills, and what goes on over a restart: Google's own client over the simulator."""

from __future__ import annotations

import json
import random
from datetime import timedelta
from decimal import Decimal

import pytest

from infra.demo.gcp.compute import ComputeSim
from infra.demo.gcp.compute_work import OPERATION_S
from tests.gcp_rig import (
    ADDRESS,
    LABEL,
    MICRO,
    NOTICE_S,
    Rig,
    alone,
    rig,
)

__all__ = ["alone", "rig"]
pytestmark = pytest.mark.usefixtures("nobody_is_looked_up")


def _grown(rig: Rig, label: str, seconds: float) -> dict[str, Decimal]:
    before = rig.sim.charges(rig.now).get(label, {})
    rig.after(seconds)
    after = rig.sim.charges(rig.now).get(label, {})
    return {kind: usd - before.get(kind, Decimal(0)) for kind, usd in after.items()}


def test_what_was_shown_is_what_is_billed(alone: Rig) -> None:
    alone.running()
    alone.after(30)

    grown = _grown(alone, LABEL, 3600)

    assert abs(grown["gpu"] + grown["address"] - alone.offer.gpu_usd_per_hour) <= 3 * MICRO
    assert abs(grown["disk"] - alone.offer.disk_usd_per_hour(30)) <= 2 * MICRO
    assert set(grown) == {"gpu", "disk", "address"}


def test_a_stopped_machine_bills_its_disk_and_the_address_it_holds(alone: Rig) -> None:
    alone.running(address=alone.reserved())
    alone.sim.preempt(LABEL, alone.now)
    alone.after(NOTICE_S + 60)

    grown = _grown(alone, LABEL, 3600)

    assert grown["gpu"] == 0
    assert abs(grown["address"] - Decimal("0.01")) <= 2 * MICRO
    assert abs(grown["disk"] - alone.offer.disk_usd_per_hour(30)) <= 2 * MICRO
    assert _grown(alone, ADDRESS, 3600).get("address", Decimal(0)) == 0  # the machine's bill has it


def test_an_address_that_nobody_holds_bills_four_times_as_much_as_in_use_on_spot(alone: Rig) -> None:
    alone.reserved()

    assert abs(_grown(alone, ADDRESS, 3600)["address"] - Decimal("0.01")) <= 2 * MICRO


def test_a_run_bills_a_minute_at_least(alone: Rig) -> None:
    id = alone.running()
    alone.after(1)
    alone.sim.shut_down(id, alone.now)

    minute = (alone.offer.gpu_usd_per_hour - Decimal("0.0025")) / 60
    assert abs(alone.sim.billed(id, alone.now)["gpu"] - minute) <= 2 * MICRO


def test_a_destroyed_machine_stops_billing(alone: Rig) -> None:
    id = alone.running()
    alone.market.destroy(id)
    alone.after(OPERATION_S)
    bill = alone.sim.billed(id, alone.now)

    alone.after(3600)

    assert sum(bill.values()) > 0
    assert alone.sim.billed(id, alone.now) == bill


def test_a_lost_machine_bills_no_more(alone: Rig) -> None:
    id = alone.running()
    alone.sim.lose(id, alone.now)
    bill = alone.sim.billed(id, alone.now)
    alone.after(3600)

    assert alone.sim.billed(id, alone.now) == bill
    assert alone.market.get(id) is None


def test_a_journalled_project_goes_on_as_if_nothing_had_happened(alone: Rig) -> None:
    ip = alone.reserved()
    id = alone.running(address=ip)
    alone.rent("dumont-abc123-i1-8-00000000", address=ip)
    alone.sim.stockout("us-east1-b", alone.now + timedelta(hours=1))
    alone.sim.preempt(LABEL, alone.now)
    plain = json.loads(json.dumps(alone.sim.to_json()))
    again = ComputeSim.from_json(plain, rng=random.Random(1))
    alone.sim.drain()
    alone.after(40)
    again.tick(alone.now)

    assert again.to_json() == alone.sim.to_json()
    assert again.drain() == alone.sim.drain()
    assert again.billed(id, alone.now) == alone.sim.billed(id, alone.now)

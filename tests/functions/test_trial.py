"""`dumont doctor --rent` on a hand-cranked world: what it rents, what it may cost, what it leaves, what it tells."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest

from common.adapters.vast import Vast
from common.client import Client
from common.domain.account import Role
from common.domain.health import Finding, Verdict
from common.domain.rental import Rental, RentalState
from common.domain.shape import AnswerShape, call_of
from common.web import rest
from common.workflows import users
from common.workflows.answers import Noted, noted
from infra.demo.vast import VastSim
from infra.demo.wire import Answer, Request
from infra.deploy import answers
from infra.deploy.trial import LEFT_AFTER_S, Broken, Trial
from tests.functions.conftest import key_for
from tests.hand_cranked import SimTransport, World

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEgC+HWdqQn2SnyPLoAaQbfzGtlQ/XkoJt4Q4446xAbf doctor"
HALF_AN_HOUR_S = 1800.0


@dataclass
class Hand:
    """What ssh is elsewhere: the command is run for real, in the workspace of the one machine that serves."""

    world: World
    public_key: str = KEY
    commands: list[str] = field(default_factory=list)
    before: Callable[[str], None] = lambda _command: None

    def run(self, address: Mapping[str, Any], command: str) -> str | None:
        assert address["port"]
        self.before(command)
        self.commands.append(command)
        [machine] = self.world.machines.values()
        here = command.replace("/workspace", str(machine.agent.workspace))
        ran = subprocess.run(["sh", "-c", here], capture_output=True, text=True)
        return ran.stdout if ran.returncode == 0 else None


class Differing(VastSim):
    """A vendor that moved on: a listing tells more, and its prices have become text."""

    def handle(self, request: Request, now: datetime) -> Answer:
        answer = super().handle(request, now)
        if request.path.startswith("/api/v1/instances") and answer.status == 200:
            body = json.loads(answer.body)
            for row in body["instances"]:
                row["carbon_kg"], row["dph_total"] = 0.2, str(row["dph_total"])
            return Answer(200, json.dumps(body).encode())
        return answer


@pytest.fixture
def seen(world: World) -> World:
    """As in a deployment, what the marketplace answers is noted."""
    notes = Noted(world.store, "vast")

    def told(method: str, path: str, answer: Any) -> None:
        notes.note(call_of(method, path), answer, world.now)

    market = Vast("sim-key", base_url="http://vast.sim", transport=SimTransport(world), wait=world._wait, told=told)
    world.market.close()
    world.market = market
    world.app = dataclasses.replace(world.app, markets={"vast": market})
    users.appoint_operator(world.store, "acme")
    world.admin_key = key_for(world, "acme", Role.ADMIN)
    return world


def trial(world: World, hand: Hand | None = None, *, max_usd: str = "5", transport: Any = None, **more: Any) -> Trial:
    wsgi = httpx.WSGITransport(app=rest.application(world.app))
    return Trial(
        api=Client("http://api.test", world.admin_key, transport(wsgi) if transport else wsgi),
        shell=hand or Hand(world),
        max_usd=Decimal(max_usd),
        within_s=HALF_AN_HOUR_S,
        now=lambda: world.now.timestamp(),
        sleep=world.pass_time,
        say=lambda _line: None,
        gpu="RTX 4090",
        **more,
    )


def played(made: Trial) -> dict[str, Finding]:
    with closing(made.run()) as findings:
        found = {finding.check: finding for finding in findings}
    made.api.close()
    return found


def rentals(world: World) -> list[Rental]:
    docs = [doc for settled in (True, False) for doc in world.store.query("rentals", [("settled", "==", settled)])]
    return [Rental.model_validate(doc.data) for doc in docs]


def nothing_is_left(world: World) -> bool:
    return not world.sim.contracts() and all(rental.state is RentalState.RELEASED for rental in rentals(world))


def test_a_trial_rents_snapshots_restores_gives_back_and_compares_the_bill(seen: World) -> None:
    hand = Hand(seen)
    made = trial(seen, hand)

    findings = played(made)

    assert {finding.verdict for finding in findings.values()} == {Verdict.OK}, findings
    assert list(findings) == [f"rent: {step}" for step in ("ready", "snapshot", "restore", "end", "charge")]
    assert len(hand.commands) == 2
    assert nothing_is_left(seen)
    assert len([rental for rental in rentals(seen) if rental.create_called_at]) == 2
    cheapest = min(rental.offer.usd_per_hour(rental.disk_gb) for rental in rentals(seen))
    assert all(rental.cap_usd_per_hour and rental.cap_usd_per_hour <= 2 * cheapest for rental in rentals(seen))
    bill = sum((usd for c in seen.sim.all_contracts() for usd in seen.sim.billed(c.id, seen.now).values()), Decimal(0))
    assert f"charged {bill:.6f} USD" in findings["rent: charge"].found
    same = [*answers.compared(made.provider, noted(seen.store))]
    assert [finding.verdict for finding in same] == [Verdict.OK], same
    for call in ("PUT /api/v0/asks/*", "DELETE /api/v0/instances/*", "GET /api/v0/charges"):
        assert call in same[0].found


def test_a_budget_that_is_too_small_refuses_before_anything_is_rented(seen: World) -> None:
    findings = played(trial(seen, max_usd="0.05"))

    [refused] = findings.values()
    assert (refused.check, refused.verdict) == ("rent: budget", Verdict.FAILED)
    assert "Nothing was rented" in refused.found
    assert "--max-usd" in (refused.mend or "")
    assert rentals(seen) == []
    assert seen.sim.all_contracts() == []


def test_the_budget_bounds_price_and_time_of_every_machine_at_once(seen: World) -> None:
    offered = trial(seen, max_usd="0.62")._choose()

    assert offered.usd_per_hour <= offered.cap_usd_per_hour
    assert offered.cap_usd_per_hour * 2 * Decimal("0.5") + offered.traffic_usd <= Decimal("0.62")
    with pytest.raises(Broken, match=r"above 0\.01"):
        trial(seen, max_usd="0.01")._choose()


def test_what_the_vendor_answers_otherwise_than_the_simulator_is_printed(seen: World) -> None:
    seen.sim = Differing(rng=random.Random(1), api_key="sim-key")
    made = trial(seen)
    played(made)

    compared = answers.compared("vast", noted(seen.store))
    [listing] = [finding for finding in compared if finding.verdict is not Verdict.OK]

    assert listing.check == "answers of vast: GET /api/v1/instances"
    assert "instances[].carbon_kg: the vendor sends number, the simulator nothing" in listing.found
    assert "instances[].dph_total: the vendor sends text, the simulator number" in listing.found
    assert "0.2" not in str(noted(seen.store))  # shapes, never values


@pytest.mark.parametrize("half_way", ["no ssh", "machine lost", "interrupted", "interrupted after the wake"])
def test_a_trial_that_fails_half_way_leaves_no_rental(seen: World, half_way: str) -> None:
    hand = Hand(seen)

    def breaks(command: str) -> None:
        if half_way == "no ssh":
            seen.now = datetime.fromtimestamp(made._until + 1, seen.now.tzinfo)  # too long for its time
        elif half_way == "machine lost":
            for contract in seen.sim.contracts():
                seen.sim.lose(contract.id, seen.now)
        elif half_way == "interrupted" or command.startswith("sha256sum"):
            raise KeyboardInterrupt

    hand.before = breaks
    made = trial(seen, hand)
    if half_way.startswith("interrupted"):
        with pytest.raises(KeyboardInterrupt):
            played(made)
    else:
        findings = played(made)
        assert findings["rent: end"].verdict is Verdict.OK, findings
        assert Verdict.FAILED in {finding.verdict for finding in findings.values()}

    assert nothing_is_left(seen)
    assert rentals(seen) != []


class Dropping(httpx.BaseTransport):
    """The answer to the one request that rents is lost on its way."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self._inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self._inner.handle_request(request)
        if request.url.path.endswith("/provision"):
            raise httpx.ReadTimeout("lost", request=request)
        return answer


def test_an_instance_whose_answer_was_lost_is_found_by_its_name_and_ended(seen: World) -> None:
    findings = played(trial(seen, transport=Dropping))

    assert findings["rent"].verdict is Verdict.FAILED
    assert findings["rent: end"].verdict is Verdict.OK
    assert nothing_is_left(seen)
    assert len(rentals(seen)) == 1


def test_what_a_killed_trial_left_is_ended_by_the_next_one(seen: World) -> None:
    killed = trial(seen)
    killed._rent(killed._choose())
    killed.api.close()
    seen.until(lambda: len(seen.machines) == 1)
    assert played(trial(seen, max_usd="0.05")).keys() == {"rent: budget"}
    assert not nothing_is_left(seen), "it may be somebody's who runs it now"
    seen.now += timedelta(seconds=LEFT_AFTER_S)

    findings = played(trial(seen, max_usd="0.05"))

    assert findings["rent: end"].verdict is Verdict.OK
    assert nothing_is_left(seen)


def test_a_shape_has_keys_and_types_and_no_values() -> None:
    from common.domain.shape import differences, shape_of

    theirs = shape_of({"rows": [{"id": 1, "at": None, "tags": []}, {"id": "x", "at": 2.5}], "by": {"4711": True}})
    assert AnswerShape.lines(theirs) == (
        "answer: object",
        "by: object",
        "by.*: bool",
        "rows: list",
        "rows[]: object",
        "rows[].at: null, number",
        "rows[].id: number, text",
        "rows[].tags: list",
    )
    assert differences(theirs, theirs) == []
    assert differences(shape_of({"rows": []}), shape_of({"rows": [{"id": 1}]})) == []
    assert differences(shape_of({"rows": {}}), shape_of({"rows": []})) == [
        "rows: the vendor sends object, the simulator list"
    ]
    assert differences(shape_of({"a": 1}), shape_of({"a": 1, "b": {"c": 1}})) == [
        "b: the simulator sends object, the vendor nothing"
    ]

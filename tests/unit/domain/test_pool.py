"""What the pool rents, keeps and lets go, and who pays for an assigned machine."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from common.domain.host import Attest, HostPhase, HostRecord
from common.domain.ledger import LedgerEntry
from common.domain.pool import PoolRecord, PoolTerms, assignable, ended, serves, surplus, wanting
from common.domain.reliability import Outcome
from common.domain.rental import POOL, Rental, RentalState
from common.domain.spec import Spec
from tests.unit.domain.test_strategy import offer, ranked

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
TERMS = PoolTerms(size=2, budget_usd_per_hour=Decimal("2.50"))


def rental(n: int = 1, *, usd: str = "1", state: RentalState = RentalState.READY, **changes: object) -> Rental:
    facts = {
        "label": f"l{n}",
        "account": POOL,
        "instance_id": None,
        "instance_key": None,
        "provider": "vast",
        "state": state,
        "at": NOW,
        "created_at": NOW,
        "offer": offer(n, usd=usd),
        "image": TERMS.image,
        "disk_gb": 32,
        "not_before": NOW,
    }
    return Rental.model_validate(facts | changes)


def host(silent_s: float = 0) -> HostRecord:
    seen = NOW - timedelta(seconds=silent_s)
    facts = {"label": "l1", "account": POOL, "instance_id": None, "instance_key": None, "last_seen_at": seen}
    return HostRecord(**facts, first_seen_at=seen, phase=HostPhase.READY, attest=Attest())


def end_of(one: Rental, its_host: HostRecord | None, now: datetime = NOW):
    return ended(one, its_host, TERMS, boot_timeout_s=600, silent_after_s=180, now=now)


def test_the_pool_is_filled_to_its_size_with_the_best_ranked_machines() -> None:
    offers = ranked(*(offer(n, usd=f"1.{n}") for n in range(4)))

    chosen = wanting(TERMS, [], offers, tried=[])

    assert [one.offer.machine_id for one in chosen] == ["m0", "m1"]
    assert wanting(TERMS, [rental(1), rental(2)], offers, tried=[]) == []


def test_the_budget_keeps_it_smaller_than_its_size() -> None:
    offers = ranked(offer(3, usd="1.6"), offer(4, usd="1.4"))

    assert [one.offer.machine_id for one in wanting(TERMS, [rental(1)], offers, tried=[])] == ["m4"]
    assert wanting(TERMS, [rental(1, usd="2.4")], offers, tried=[]) == []


def test_machines_tried_lately_or_held_already_come_last_or_not_at_all() -> None:
    offers = ranked(offer(1, usd="0.5"), offer(2, usd="0.6"), offer(3, usd="0.7"))

    chosen = wanting(TERMS, [rental(1)], offers, tried=["m2"])

    assert [one.offer.machine_id for one in chosen] == ["m3"]
    assert PoolRecord(n=3).planning(["m3"]) == PoolRecord(n=4, tried=("m3",))


def test_a_ready_machine_is_let_go_when_silent_or_old_and_only_silence_is_held_against_it() -> None:
    old = NOW + timedelta(seconds=TERMS.max_age_s + 1)

    assert end_of(rental(), host()) is None
    assert (end_of(rental(), host(silent_s=181)) or [None])[0] is Outcome.SILENT
    assert (end_of(rental(), None) or [None])[0] is Outcome.SILENT
    seen_lately = host().model_copy(update={"last_seen_at": old})
    assert (end_of(rental(), seen_lately, old) or [None])[0] is Outcome.SERVED


def test_a_machine_that_does_not_boot_or_is_lost_is_let_go() -> None:
    booting = rental(state=RentalState.CREATING, create_called_at=NOW)

    assert end_of(booting, None) is None
    assert (end_of(booting, None, NOW + timedelta(seconds=601)) or [None])[0] is Outcome.BOOT_TIMEOUT
    assert (end_of(rental(state=RentalState.LOST, loss="gone"), host()) or [None])[0] is Outcome.LOST


def test_a_smaller_size_other_terms_or_a_smaller_budget_make_machines_too_many() -> None:
    cheap, dear, booting = rental(1), rental(2, usd="1.4"), rental(3, state=RentalState.CREATING)

    assert surplus(TERMS, [cheap, dear]) == []
    assert surplus(TERMS, [booting, dear, cheap]) == [booting]
    assert surplus(TERMS.model_copy(update={"size": 1}), [dear, cheap]) == [dear]
    assert surplus(TERMS.model_copy(update={"gpu": "H100 SXM"}), [cheap]) == [cheap]
    assert surplus(TERMS.model_copy(update={"budget_usd_per_hour": Decimal("1.5")}), [cheap, dear]) == [dear]


@pytest.mark.parametrize(
    "wish",
    [
        {"gpu": "RTX 3090"},
        {"num_gpus": 2},
        {"image": "other"},
        {"disk_gb": 64},
        {"max_usd_per_hour": "0.9"},
        {"regions": ("NO",)},
    ],
)
def test_a_machine_serves_only_a_wish_that_it_meets_in_every_point(wish: dict) -> None:
    fitting = {"gpu": "RTX 4090", "image": TERMS.image, "disk_gb": 16, "max_usd_per_hour": "1.02", "regions": ("US",)}

    assert serves(rental(), Spec.model_validate(fitting))
    assert not serves(rental(), Spec.model_validate(fitting | wish))


@pytest.mark.parametrize("state", [s for s in RentalState if s is not RentalState.READY])
def test_only_a_ready_machine_that_was_heard_of_lately_is_assigned(state: RentalState) -> None:
    spec = TERMS.spec()

    def may(one: Rental, its_host: HostRecord | None) -> bool:
        return assignable(one, its_host, spec, silent_after_s=180, now=NOW)

    assert may(rental(), host())
    assert not may(rental(state=state), host())
    assert not may(rental(), host(silent_s=181))
    assert not may(rental(), None)
    assert not may(rental(instance_key="a.i"), host())


def entry(micro_usd: int = 1_000_001) -> LedgerEntry:
    return LedgerEntry(
        account="acme",
        instance_id="i",
        instance_key="acme.i",
        label="l",
        provider="vast",
        kind="gpu",
        hour=NOW,
        micro_usd=micro_usd,
    )


@pytest.mark.parametrize(
    ("assigned_after_min", "of_pool"), [(-10, 0), (0, 0), (20, 333_334), (60, 1_000_001), (90, 1_000_001)]
)
def test_the_hour_of_the_assignment_is_shared_to_the_micro_dollar(assigned_after_min: int, of_pool: int) -> None:
    shared = entry().shared(
        ran_from=NOW - timedelta(hours=3),
        ran_until=NOW + timedelta(hours=3),
        assigned_at=NOW + timedelta(minutes=assigned_after_min),
    )

    assert sum(one.micro_usd for one in shared) == 1_000_001
    assert sum(one.micro_usd for one in shared if one.account == POOL) == of_pool
    assert len({one.id for one in shared}) == len(shared)

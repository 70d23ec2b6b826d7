"""Addresses that stay: Google's own client over the simulator."""

from __future__ import annotations

import pytest
import requests

from common.errors import (
    InvalidInput,
    MarketRefused,
    MarketUnknown,
    QuotaExceeded,
)
from infra.demo.gcp.compute_work import OPERATION_S
from infra.demo.wire import Answer, Request
from tests.gcp_rig import (
    ADDRESS,
    LABEL,
    NOTICE_S,
    REGION,
    Rig,
    alone,
    rig,
)

__all__ = ["alone", "rig"]
pytestmark = pytest.mark.usefixtures("nobody_is_looked_up")


def test_an_address_is_reserved_once_and_told_when_it_is_there(rig: Rig) -> None:
    first = rig.market.reserve(ADDRESS, REGION)
    assert (first.name, first.region, first.ip) == (ADDRESS, REGION, None)
    assert rig.market.reserve(ADDRESS, REGION).ip is None
    rig.after(OPERATION_S)

    found = rig.market.reserve(ADDRESS, REGION)
    assert found.ip
    assert rig.market.addresses() == [found]
    assert found.used_by is None


def test_a_machine_takes_the_address_and_holds_it_while_it_is_stopped(rig: Rig) -> None:
    ip = rig.reserved()
    id = rig.running(address=ip)

    assert (row := rig.market.get(id)) and row.ssh_host == ip
    assert rig.market.reserve(ADDRESS, REGION).used_by == id
    rig.sim.preempt(LABEL, rig.now)
    rig.after(NOTICE_S)
    assert rig.market.addresses()[0].used_by == id
    with pytest.raises(MarketRefused):
        rig.market.release(ADDRESS, REGION)


def test_an_address_that_another_machine_holds_is_told_by_the_operation(rig: Rig) -> None:
    ip = rig.reserved()
    rig.running(address=ip)
    second = rig.rent("dumont-abc123-i1-8-00000000", address=ip)
    rig.after(OPERATION_S)

    assert isinstance(rig.newest(second).refusal, MarketRefused)
    assert rig.market.get(second) is None


def test_a_new_machine_takes_over_the_address_of_one_that_was_destroyed(rig: Rig) -> None:
    ip = rig.reserved()
    rig.market.destroy(rig.running(address=ip))
    rig.after(OPERATION_S)

    second = rig.running("dumont-abc123-i1-8-00000000", address=ip)

    assert (row := rig.market.get(second)) and row.ssh_host == ip


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_machine_gives_its_address_to_another_before_it_is_destroyed(rig: Rig, is_stopped: bool) -> None:
    ip = rig.reserved()
    id = rig.running(address=ip)
    if is_stopped:
        rig.sim.preempt(LABEL, rig.now)
        rig.after(NOTICE_S)

    name = rig.market.detach(id)
    assert rig.market.reserve(ADDRESS, REGION).used_by == id
    rig.after(OPERATION_S)

    assert (done := rig.market.operation(name)) and done.is_done
    assert rig.market.reserve(ADDRESS, REGION).used_by is None
    second = rig.running("dumont-abc123-i1-8-00000000", address=ip)
    assert rig.market.reserve(ADDRESS, REGION).used_by == second
    assert (old := rig.market.get(id)) and old.ssh_host is None
    with pytest.raises(MarketRefused):
        rig.market.detach(id)


def test_an_address_of_nowhere_is_refused_at_once(rig: Rig) -> None:
    with pytest.raises(MarketRefused):
        rig.rent(address="198.51.100.7")
    assert rig.market.list() == []


def test_a_released_address_is_gone_and_releasing_it_again_succeeds(rig: Rig) -> None:
    rig.reserved()

    assert rig.market.release(ADDRESS, REGION)
    rig.after(OPERATION_S)

    assert rig.market.addresses() == []
    assert not rig.market.release(ADDRESS, REGION)
    bill = rig.sim.charges(rig.now)
    rig.after(3600)
    assert rig.sim.charges(rig.now) == bill


def test_an_address_that_was_given_back_can_be_reserved_again(rig: Rig) -> None:
    rig.reserved()
    rig.market.release(ADDRESS, REGION)
    rig.after(OPERATION_S)

    assert rig.reserved()


def test_a_reservation_whose_answer_was_lost_is_found(alone: Rig) -> None:
    def lose_the_answer(request: Request) -> Answer:
        answer = alone.handle(request)
        if request.method == "POST":
            raise requests.ConnectionError("lost")
        return answer

    with pytest.raises(MarketUnknown):
        alone.answering(lose_the_answer).reserve(ADDRESS, REGION)
    alone.after(OPERATION_S)

    assert alone.market.reserve(ADDRESS, REGION).ip
    assert len(alone.market.addresses()) == 1


def test_two_who_reserve_at_once_share_the_address(alone: Rig) -> None:
    def somebody_was_first(request: Request) -> Answer:
        if request.method == "POST":
            alone.market.reserve(ADDRESS, REGION)
        return alone.handle(request)

    assert alone.answering(somebody_was_first).reserve(ADDRESS, REGION).ip is None
    assert len(alone.market.addresses()) == 1


def test_the_quota_of_addresses_is_told_at_once(rig: Rig) -> None:
    rig.sim.quota_addresses = 0

    with pytest.raises(QuotaExceeded):
        rig.market.reserve(ADDRESS, REGION)


@pytest.mark.parametrize("name", ["somebody", "dumont-Upper", ""])
def test_an_address_that_our_listing_would_not_show_is_not_reserved(alone: Rig, name: str) -> None:
    with pytest.raises(InvalidInput):
        alone.market.reserve(name, REGION)
    assert alone.sent == []

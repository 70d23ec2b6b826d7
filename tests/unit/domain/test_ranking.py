"""A standby pulls: machines that stand far from it count as dearer."""

from __future__ import annotations

import pytest

from common.domain.offer import Offer
from common.domain.ranking import Load, rank
from common.domain.region import CountryOfIp
from tests.unit.domain.test_strategy import offer as made

REGISTRY: CountryOfIp = {"200.89.70.1": "CL", "128.214.1.1": "FI", "18.18.0.1": "US"}.get


def offer(
    *, machine_id: str, geolocation: str | None, country: str | None = None, public_ip: str | None = None
) -> Offer:
    changes = {"machine_id": machine_id, "geolocation": geolocation, "country": country, "public_ip": public_ip}
    return made().model_copy(update=changes)


def test_with_a_standby_what_is_far_from_it_counts_as_dearer_and_without_one_nothing_changes() -> None:
    near, far = (
        offer(machine_id=name, geolocation=place) for name, place in (("a", "Finland, FI"), ("b", "Chile, CL"))
    )
    load = Load(disk_gb=32, has_standby=True, standby_region="europe-north1")

    first, second = rank([far, near], load, boot_timeout_s=600)

    assert (first.offer.machine_id, second.offer.machine_id) == ("a", "b")
    assert first.standby_rtt_ms is not None
    assert second.standby_rtt_ms is not None
    assert first.standby_rtt_ms < 20 < 100 < second.standby_rtt_ms
    assert second.rank_usd_per_hour > first.rank_usd_per_hour
    assert second.all_in_usd_per_hour == first.all_in_usd_per_hour  # what it costs is what it costs
    alone = rank([far, near], Load(disk_gb=32), boot_timeout_s=600)
    assert {ranked.standby_rtt_ms for ranked in alone} == {None}
    assert alone[0].rank_usd_per_hour == alone[1].rank_usd_per_hour


def test_a_machine_of_which_nobody_can_tell_where_it_stands_is_ranked_down_too() -> None:
    known, unknown = (
        offer(machine_id="a", geolocation="Finland, FI"),
        offer(machine_id="b", geolocation=None, country=None),
    )

    ranked = rank([unknown, known], Load(disk_gb=32, has_standby=True), boot_timeout_s=600)

    assert [one.offer.machine_id for one in ranked] == ["a", "b"]
    assert ranked[1].standby_rtt_ms is None


def test_a_machine_without_a_text_is_ranked_by_the_country_of_its_address_like_any_other() -> None:
    by_text, near_by_ip, far_by_ip = (
        offer(machine_id="text", geolocation="Chile, CL"),
        offer(machine_id="near", geolocation=None, public_ip="128.214.1.1"),
        offer(machine_id="far", geolocation="somewhere", public_ip="200.89.70.1"),
    )
    load = Load(disk_gb=32, has_standby=True, standby_region="europe-north1")

    ranked = {
        one.offer.machine_id: one
        for one in rank([by_text, far_by_ip, near_by_ip], load, boot_timeout_s=600, country_of_ip=REGISTRY)
    }

    assert next(iter(ranked)) == "near"
    assert ranked["far"].rank_usd_per_hour == ranked["text"].rank_usd_per_hour > ranked["near"].rank_usd_per_hour
    assert [ranked[name].place.told_by for name in ("text", "near", "far")] == ["text", "ip", "ip"]  # type: ignore[union-attr]


def test_of_a_country_alone_the_estimate_is_told_with_how_far_it_may_be() -> None:
    country, city, nobody = (
        offer(machine_id="country", geolocation=None, public_ip="18.18.0.1"),
        offer(machine_id="city", geolocation="Dallas, Texas, USA"),
        offer(machine_id="nobody", geolocation=None, public_ip="10.0.0.1"),
    )

    ranked = {
        one.offer.machine_id: one
        for one in rank(
            [country, city, nobody], Load(disk_gb=32, has_standby=True), boot_timeout_s=600, country_of_ip=REGISTRY
        )
    }

    assert ranked["country"].standby_rtt_ms is not None
    assert ranked["country"].standby_rtt_far_ms == pytest.approx(ranked["country"].standby_rtt_ms + 2700 * 0.015)
    assert ranked["city"].standby_rtt_far_ms is None
    assert (ranked["nobody"].standby_rtt_ms, ranked["nobody"].standby_rtt_far_ms, ranked["nobody"].place) == (None,) * 3


def test_no_address_is_looked_up_where_the_text_says_it_or_no_standby_is_wanted() -> None:
    asked: list[str] = []

    def country_of_ip(ip: str) -> str | None:
        asked.append(ip)
        return REGISTRY(ip)

    known = offer(machine_id="a", geolocation="Finland, FI", public_ip="200.89.70.1")
    unknown = offer(machine_id="b", geolocation=None, public_ip="200.89.70.1")

    rank([known, unknown], Load(disk_gb=32), boot_timeout_s=600, country_of_ip=country_of_ip)
    assert asked == []
    rank([known, unknown], Load(disk_gb=32, has_standby=True), boot_timeout_s=600, country_of_ip=country_of_ip)
    assert asked == ["200.89.70.1"]

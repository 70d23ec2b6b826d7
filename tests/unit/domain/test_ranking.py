"""A standby pulls: machines that stand far from it count as dearer."""

from __future__ import annotations

from common.domain.offer import Offer
from common.domain.ranking import Load, rank
from tests.unit.domain.test_strategy import offer as made


def offer(*, machine_id: str, geolocation: str | None, country: str | None = None) -> Offer:
    return made().model_copy(update={"machine_id": machine_id, "geolocation": geolocation, "country": country})


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

"""What an offer costs, and which numbers of a marketplace can be believed."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from common.domain.offer import Offer, exact, exact_price, exact_rate
from common.domain.region import COUNTRY_CODES, country_of

OFFER = Offer(
    provider="p",
    offer_id="1",
    machine_id="m",
    gpu="H100 SXM",
    num_gpus=1,
    gpu_ram_mb=81920,
    gpu_usd_per_hour=Decimal("2.00"),
    storage_usd_per_gb_month=Decimal("0.036"),
    disk_gb_min=100,
    disk_gb_step=50,
)


@pytest.mark.parametrize(("wished", "created"), [(8, 100), (100, 100), (101, 150), (150, 150), (151, 200)])
def test_a_disk_is_created_in_the_marketplaces_steps_and_priced_so(wished: int, created: int) -> None:
    assert OFFER.created_disk_gb(wished) == created
    assert OFFER.disk_usd_per_hour(wished) == Decimal("0.036") * created / 720


def test_a_marketplace_without_steps_creates_what_was_wished() -> None:
    plain = OFFER.model_copy(update={"disk_gb_min": 0, "disk_gb_step": 1})

    assert plain.created_disk_gb(37) == 37


def test_the_cap_is_what_was_shown_with_its_slack_and_never_above_the_wish() -> None:
    shown = OFFER.usd_per_hour(100)

    assert OFFER.cap_usd_per_hour(100, None) == shown * Decimal("1.02")
    assert OFFER.cap_usd_per_hour(100, Decimal(50)) == shown * Decimal("1.02")
    assert OFFER.cap_usd_per_hour(100, shown) == shown


@pytest.mark.parametrize("value", [None, True, "1.0", float("nan"), 1.5, Decimal("NaN"), Decimal("Infinity"), [], {}])
def test_what_is_no_exact_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="not a number"):
        exact(value)


@pytest.mark.parametrize("value", [0, -1, 10_000, Decimal("-0.01")])
def test_a_price_that_cannot_be_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"price|rate"):
        exact_price(value)


def test_a_rate_may_be_zero() -> None:
    assert exact_rate(0) == 0


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("California, US", "US"),
        (", US", "US"),
        ("Norway", "NO"),
        ("California, United States", "US"),
        ("USA", "US"),
        ("Yutakachō, Shinagawa District, Tokyo, JP", "JP"),
        ("Somewhere", None),
        ("", None),
        (None, None),
    ],
)
def test_a_country_is_found_in_what_marketplaces_write(place: str | None, code: str | None) -> None:
    assert country_of(place) == code


def test_every_country_has_a_code_of_two_capital_letters() -> None:
    assert all(name == name.lower() and len(code) == 2 and code.isupper() for name, code in COUNTRY_CODES.items())

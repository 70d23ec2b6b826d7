"""How long until the next try?"""

from __future__ import annotations

import pytest

from common.domain.backoff import pause_s


def test_it_doubles_up_to_its_bound() -> None:
    assert [pause_s(10, tries, max_s=300) for tries in range(7)] == [10, 20, 40, 80, 160, 300, 300]


@pytest.mark.parametrize("tries", [1023, 1024, 100_000])
def test_who_has_tried_for_days_waits_no_longer_and_tries_again(tries: int) -> None:
    assert pause_s(60.0, tries, max_s=3600.0) == 3600.0

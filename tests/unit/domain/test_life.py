"""What counts as a sign of life, by its thresholds: each alone, and every signal that could not be read."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from common.domain import life
from common.domain.life import Reading, signs

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
FIVE_S = timedelta(seconds=5)
KEY, OTHER = (10, 1), (11, 1)
BEFORE = Reading(at=START, cpu_s={KEY: 100.0}, disk_bytes={KEY: 10**9}, network_bytes={7: 10**9}, ssh_bytes={8: 10**6})
SAME = replace(BEFORE, at=START + FIVE_S)


def test_a_machine_whose_counters_stand_still_shows_no_sign() -> None:
    assert signs(BEFORE, SAME) == ()


@pytest.mark.parametrize(
    ("sign", "quiet", "busy"),
    [
        (life.CPU, {"cpu_s": {KEY: 100.9}}, {"cpu_s": {KEY: 101.0}}),
        (life.DISK, {"disk_bytes": {KEY: 10**9 + (5 << 20) - 1}}, {"disk_bytes": {KEY: 10**9 + (5 << 20)}}),
        (life.NETWORK, {"network_bytes": {7: 10**9 + 640_000}}, {"network_bytes": {7: 10**9 + 660_000}}),
        (life.SSH, {"ssh_bytes": {8: 10**6 + 1279}}, {"ssh_bytes": {8: 10**6 + 1280}}),
        (life.TERMINAL, {}, {"terminal_read_at": {"/dev/pts/3": 5.0}}),
        (life.KERNEL, {"busy_kernels": 0}, {"busy_kernels": 1}),
        (life.COMPILE, {"names": frozenset({"python", "sleep"})}, {"names": frozenset({"nvcc", "sh"})}),
        (life.LEASE, {"lease_until": START}, {"lease_until": START + timedelta(hours=1)}),
        ("unknown:disk", {}, {"missing": frozenset({life.DISK})}),
    ],
)
def test_each_sign_alone_from_its_threshold_on(sign: str, quiet: dict, busy: dict) -> None:
    assert signs(BEFORE, replace(SAME, **quiet)) == ()
    assert signs(BEFORE, replace(SAME, **busy)) == (sign,)


def test_several_small_processes_count_together_and_a_new_one_from_zero() -> None:
    two = replace(SAME, cpu_s={KEY: 100.5, OTHER: 0.5})

    assert signs(BEFORE, two) == (life.CPU,)


def test_a_process_that_ended_hides_no_other_ones_work() -> None:
    before = replace(BEFORE, cpu_s={KEY: 5000.0, OTHER: 1.0})

    assert signs(before, replace(SAME, cpu_s={OTHER: 3.0})) == (life.CPU,)


def test_input_at_a_terminal_is_a_sign_once() -> None:
    typed = replace(BEFORE, terminal_read_at={"/dev/pts/3": 5.0})

    assert signs(typed, replace(SAME, terminal_read_at={"/dev/pts/3": 5.0})) == ()
    assert signs(typed, replace(SAME, terminal_read_at={"/dev/pts/3": 13.0})) == (life.TERMINAL,)


def test_without_an_earlier_look_or_time_between_nothing_is_known() -> None:
    assert signs(None, SAME) == (life.UNKNOWN,)
    assert signs(BEFORE, BEFORE) == (life.UNKNOWN,)

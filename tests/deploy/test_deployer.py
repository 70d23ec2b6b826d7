"""Plan, apply and destroy against a simulated Google."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.topology import FUNCTIONS
from tests.deploy.conftest import Cloud


def test_apply_on_an_empty_project_makes_everything_and_a_second_one_writes_nothing(cloud: Cloud) -> None:
    planned = cloud.plan()
    assert not cloud.sim.writes
    assert {step.act for step in planned} == {"create"}

    made = cloud.apply()

    assert [(step.kind, step.name) for step in made] == [(step.kind, step.name) for step in planned]
    assert {step.act for step in cloud.plan()} == {"keep"}
    cloud.sim.calls.clear()
    writes = cloud.objects.writes
    assert cloud.apply() == []
    assert cloud.sim.writes == []
    assert cloud.objects.writes == writes

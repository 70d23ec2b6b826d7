"""The deployment's secret changes while machines run, which hold what the one before signed."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import pytest
from flask import Flask

from common import auth, bootstrap
from common.domain.instance import State
from common.ports import App
from functions import failover, heartbeat, provision
from tests.functions.test_story_by_hand import rentals
from tests.hand_cranked import World

LATER = "another secret of the deployment than the first"


def with_secrets(world: World, now: str, before: str | None) -> App:
    settings = world.app.settings.model_copy(update={"jwt_secret": now, "jwt_secret_before": before})
    return dataclasses.replace(world.app, settings=settings)


def running(world: World) -> str:
    id = world.provision()
    world.until(lambda: world.show(id).state is State.RUNNING)
    return id


def test_machines_that_run_go_on_and_need_the_one_before_no_longer(world: World) -> None:
    id, first = running(world), world.app.settings.jwt_secret
    [rental] = rentals(world, id)

    world.app = with_secrets(world, LATER, first)
    world.pass_time(600)
    world.app = with_secrets(world, LATER, None)
    world.pass_time(600)

    assert [one.label for one in rentals(world, id)] == [rental.label]
    assert world.show(id).state is State.RUNNING


@pytest.mark.parametrize("module", [heartbeat, failover, provision], ids=lambda module: module.__name__)
def test_what_the_one_before_signed_is_taken_by_every_function_that_machines_call(
    world: World, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    [rental], first, now = rentals(world, running(world)), world.app.settings.jwt_secret, world.now
    agent = world.machines[rental.label].agent
    body: dict[str, Any] = {
        "heartbeat": agent._heartbeat(now).model_dump(mode="json"),
        "failover": {"label": rental.label, "reason": "stopped"},
        "provision": {"label": rental.label, "boot_id": "0123456789abcdef", "up_for_s": 0.0},
    }
    name = module.__name__.rpartition(".")[2]
    sign = auth.bootstrap_token if name == "provision" else (lambda label, **key: auth.host_token(label, 0, **key))
    headers = {"Authorization": f"Bearer {sign(rental.label, secret=first, now=now)}"}
    monkeypatch.setattr(bootstrap, "_used", [with_secrets(world, LATER, first)])

    with Flask("at google").test_request_context("/", method="POST", json=body[name], headers=headers) as context:
        answer = getattr(module, name)(context.request)

    assert isinstance(answer, tuple), answer.get_data(as_text=True)  # a problem is a response
    assert answer[1] in (200, 202)


def test_only_the_tokens_of_machines_are_signed_anew(world: World) -> None:
    old = auth.advance_token("acme.x", secret=world.app.settings.jwt_secret, now=world.now)

    assert auth.signed_anew(old, secret=LATER, before=world.app.settings.jwt_secret) == old

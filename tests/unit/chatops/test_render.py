"""Whatever is shown stays within Block Kit's limits, and nobody's text comes alive in it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common.chatops import blocks, render
from common.chatops.grammar import Ask, Confused, Verb
from common.chatops.press import Press
from common.domain.instance import State
from common.domain.outbox import Kind
from infra.demo import block_kit
from infra.demo.slack import buttons

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
EVIL = "<!channel> & <https://x|y> `code` \u202e" + "long " * 2000


def item(state: str = "running", name: str = "trainer", id: str = "abc123abc123") -> dict[str, Any]:
    return {
        "id": id,
        "name": name,
        "state": state,
        "reason": name,
        "since": NOW.isoformat(),
        "spec": {"gpu": name, "num_gpus": 1},
        "cost": {"usd_per_hour": "0.4", "metered_usd": "1.5"},
        "address": {"host": name, "port": 22, "user": "root"},
        "snapshot": {"at": NOW.isoformat()},
        "failure": {"detail": name},
        "protection": "unprotected",
        "awake_until": NOW.isoformat(),
    }


def offer(text: str) -> dict[str, Any]:
    prices = dict.fromkeys(("usd_per_hour", "all_in_usd_per_hour"), "0.4")
    where = {"geolocation": text, "place_country": "FI", "place_told_by": "ip"}
    return {**prices, **where, "gpu": text, "num_gpus": 1, "ready_s": 30.0, "provider": "vast"}


def everything(text: str) -> dict[str, dict[str, Any]]:
    """One of each answer, with `text` wherever somebody else's words may stand."""
    plan = {
        "offers": [offer(text)],
        "rentals": 1,
        "hedges": 1,
        "usd_per_hour": "0.4",
        "all_in_usd_per_hour": "0.5",
        "first_hour_usd": "0.6",
        "ready_s": 30.0,
    }
    spans = [{"start": NOW.isoformat(), "end": NOW.isoformat()}] * 100
    spent = {"id": "abc", "name": text, "spent_usd": "1", "hibernated_hours": 3.0, "hibernated": spans}
    operation = {"kind": "wake", "detail": text, "progress": 0.3}
    ask = Ask(verb=Verb.DEPLOY, spec={"gpu": text[:200], "name": text[:64]})
    return {
        "help": render.help_(),
        "confused": render.confused(Confused(sentence=text, suggestions=(text, text))),
        "unlinked": render.unlinked(),
        "code": render.link_code("abc", 10),
        "not here": render.not_here(),
        "problem": render.problem(text, gpu=text),
        "list": render.instances([item(s.value, text, f"id{n}") for n, s in enumerate([*State] * 20)], "seed"),
        "empty list": render.instances([], "seed"),
        "show": render.instance(item(name=text), "seed"),
        "plan": render.plan(plan, ask, cap_usd_per_hour="0.4", until=NOW, seed="seed"),
        "destroy": render.confirm_destroy(item(name=text), "seed"),
        **{
            s: render.progress({**operation, "status": s}, item(name=text), "s")
            for s in ("running", "failed", "succeeded")
        },
        "late": render.too_long(operation, item(name=text)),
        "snoozed": render.snoozed(item(name=text)),
        "lease over": render.snoozed({**item(name=text), "awake_until": None}),
        "why": render.why(reasons(text), item(name=text), "seed"),
        "offers": render.offers([offer(text)] * 60, text),
        "savings": render.savings({"days": 7, "spent_usd": "1", "hibernated_hours": 3.0, "items": [spent] * 60}),
        **{kind: render.notification(kind, {"instance_id": "abc", "name": text, "text": text}, "s") for kind in Kind},
    }


def reasons(text: str) -> dict[str, Any]:
    """An answer of `GET /instances/{id}/why`."""
    times = {name: "2026-03-01T12:00:00Z" for _, name in render.WHY_TIMES}
    idle = {"because": text, "policy": "default", "window_s": 180.0, "wake_cost_s": 90.0, **times}
    lines = [{"at": NOW.isoformat(), "kind": "lost", "text": text}] * 60
    return {"id": "abc", "state": "running", "reason": text, "heard_at": None, "idleness": idle, "items": lines}


@pytest.mark.parametrize("name", everything("x"))
@pytest.mark.parametrize("text", ["x", EVIL, "", "\n\n", "`", "&" * 5000])
def test_every_answer_is_one_that_slack_takes(name: str, text: str) -> None:
    assert block_kit.faults(everything(text)[name]) == []


@pytest.mark.parametrize("name", everything("x"))
def test_nobodys_text_mentions_links_or_turns_round(name: str) -> None:
    shown = "\n".join(texts(everything(EVIL)[name]))

    assert "<" not in shown.replace("&lt;", "")
    assert "\u202e" not in shown


def texts(content: Any) -> list[str]:
    """What Slack would interpret, everywhere in a message; the values of buttons are not shown."""
    if isinstance(content, dict):
        return [t for name, part in content.items() if name != "value" for t in texts(part)]
    if isinstance(content, list):
        return [t for part in content for t in texts(part)]
    return [content] if isinstance(content, str) else []


def test_every_kind_of_message_has_a_title() -> None:
    assert set(render.TITLES) == {kind.value for kind in Kind}


def test_a_list_that_is_too_long_says_how_many_more_there_are() -> None:
    content = render.instances([item(id=f"id{n}") for n in range(33)], "seed")

    assert len(content["blocks"]) <= 50
    assert "13 more" in str(content["blocks"][-1])


def test_the_same_message_has_the_same_buttons_and_another_one_has_others() -> None:
    first, again, other = (render.instance(item(), seed) for seed in ("a", "a", "b"))

    assert first == again
    assert not set(buttons(first)) & set(buttons(other))


def test_a_destroy_is_confirmed_and_red() -> None:
    (button,) = buttons(render.confirm_destroy(item(), "seed")).values()

    assert button["style"] == "danger"
    assert "snapshot" in button["confirm"]["text"]["text"]


def test_a_buttons_value_comes_back_as_it_was() -> None:
    press = Press.of("seed", Verb.SNOOZE, instance="abc", minutes=30, until=NOW)

    assert Press.model_validate_json(press.value) == press


@pytest.mark.parametrize("value", ["", "{}", '{"op":"../..","ask":{"verb":"wake"}}', '{"op":1}', "[]"])
def test_a_value_that_we_did_not_write_is_refused(value: str) -> None:
    with pytest.raises(ValidationError):
        Press.model_validate_json(value)


@given(st.text(max_size=400), st.integers(1, 300))
def test_what_is_cut_fits_and_is_never_empty(text: str, length: int) -> None:
    shown = blocks.cut(blocks.escaped(text), length)

    assert 1 <= len(shown) <= max(length, 1)


def test_a_button_that_slack_would_refuse_is_never_made() -> None:
    with pytest.raises(ValueError, match="too long"):
        blocks.button("x", action_id="x", value="v" * 2001)


def test_an_offer_without_a_text_says_that_its_place_is_its_addresss_country() -> None:
    unknown = offer("") | {"place_country": None, "place_told_by": None}

    assert "FI by its IP" in json.dumps(render.offers([offer("")], "RTX 4090"))
    assert "by its IP" not in json.dumps(render.offers([offer("Helsinki, FI")], "RTX 4090"))
    assert "somewhere" in json.dumps(render.offers([unknown], "RTX 4090"))

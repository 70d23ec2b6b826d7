"""What people type is understood, or answered with what they may have meant; a guess is never acted on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.chatops.grammar import ALIASES, TEXT_LENGTH_MAX, Ask, Confused, Verb, close_gpus, parse


def understood(text: str) -> dict:
    found = parse(text)
    assert isinstance(found, Ask), found
    return found.model_dump(exclude_defaults=True, mode="json")


@pytest.mark.parametrize(
    ("text", "ask"),
    [
        ("", {"verb": "help"}),
        ("help me please", {"verb": "help"}),
        ("/gpu list", {"verb": "list"}),
        ("LS", {"verb": "list"}),
        ("show abc", {"verb": "show", "instance": "abc"}),
        ("stop", {"verb": "hibernate"}),
        ('hibernate "my box"', {"verb": "hibernate", "instance": "my box"}),
        ("terminate “my box”", {"verb": "destroy", "instance": "my box"}),
        ("wake 'abc", {"verb": "wake", "instance": "abc"}),
        ("snooze", {"verb": "snooze"}),
        ("snooze abc for 1h30m", {"verb": "snooze", "instance": "abc", "minutes": 90}),
        ("snooze 45min", {"verb": "snooze", "minutes": 45}),
        ("keep abc 2h", {"verb": "snooze", "instance": "abc", "minutes": 120}),
        ("snooze abc 2 hours", {"verb": "snooze", "instance": "abc", "minutes": 120}),
        ("snooze for 90 Minutes abc", {"verb": "snooze", "instance": "abc", "minutes": 90}),
        ("snooze 90 abc", {"verb": "snooze", "instance": "abc", "minutes": 90}),
        ("keep-alive abc 3 days", {"verb": "keep-alive", "instance": "abc", "minutes": 4320}),
        ("keep-alive abc", {"verb": "keep-alive", "instance": "abc"}),
        ("keep-alive for 2d abc", {"verb": "keep-alive", "instance": "abc", "minutes": 2880}),
        ("keepalive 36h", {"verb": "keep-alive", "minutes": 2160}),
        ("keep_alive abc off", {"verb": "keep-alive", "instance": "abc", "minutes": 0}),
        ("why", {"verb": "why"}),
        ("why abc", {"verb": "why", "instance": "abc"}),
        ("savings", {"verb": "savings"}),
        ("savings last month", {"verb": "savings", "days": 30}),
        ("spent 14 days", {"verb": "savings", "days": 14}),
        ("market", {"verb": "market", "spec": {"gpu": "RTX 4090"}}),
        ("prices 3090", {"verb": "market", "spec": {"gpu": "RTX 3090"}}),
        ("deploy 4090", {"verb": "deploy", "spec": {"gpu": "RTX 4090"}}),
        ("deploy 4090 idle 10 mins", {"verb": "deploy", "spec": {"gpu": "RTX 4090", "idle_for_s": 600}}),
        ("deploy geforce rtx-4090", {"verb": "deploy", "spec": {"gpu": "RTX 4090"}}),
        ("rent 2x h100 sxm", {"verb": "deploy", "spec": {"gpu": "H100 SXM", "num_gpus": 2}}),
        ("deploy RTX 4080", {"verb": "deploy", "spec": {"gpu": "RTX 4080"}}),
        (
            "deploy 4090 under $0.50/h in us,de by race as trainer disk=100GB idle 10m",
            {
                "verb": "deploy",
                "spec": {
                    "gpu": "RTX 4090",
                    "max_usd_per_hour": "0.50",
                    "regions": ["US", "DE"],
                    "strategy": "race",
                    "name": "trainer",
                    "disk_gb": 100,
                    "idle_for_s": 600,
                },
            },
        ),
        (
            "deploy --max-usd-per-hour 0.4 4090",
            {"verb": "deploy", "spec": {"gpu": "RTX 4090", "max_usd_per_hour": "0.4"}},
        ),
    ],
)
def test_it_is_forgiving(text: str, ask: dict) -> None:
    assert understood(text) == ask


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("depoly 4090", "/gpu deploy"),
        ("hibernat abc", "/gpu hibernate"),
        ("snoze", "/gpu snooze"),
        ("xyzzy", "/gpu help"),
        ("deploy", "/gpu deploy RTX 4090 max 0.50"),
        ("deploy h100", "/gpu deploy H100 SXM"),
        ("market a100 max 2 in DE", "/gpu market A100 PCIE max 2 in DE"),
        ("deploy 2x h100 max=2", "/gpu deploy 2x H100 SXM max 2"),
        ("deploy 4090 max cheap", "/gpu deploy RTX 4090 max 0.50"),
        ("deploy 4090 max", "/gpu deploy RTX 4090 max 0.50"),
        ("deploy 4090 in Europe", "/gpu deploy RTX 4090 in US,DE"),
        ("deploy 4090 by luck", "/gpu deploy RTX 4090 by race"),
        ("stop my box", '/gpu hibernate "my box"'),
        ("destroy", "/gpu destroy ID"),
        ("snooze a b", "/gpu snooze a 2h"),
        ("snooze abc 25h", "/gpu snooze abc 8h"),
        ("keep-alive abc 8d", "/gpu keep-alive abc 2d"),
        ("keep-alive a b", "/gpu keep-alive a 2h"),
        ("whyy abc", "/gpu why"),
        ("savings 1000", "/gpu savings 7d"),
        ("list all", "/gpu list"),
        ("x" * (TEXT_LENGTH_MAX + 1), "/gpu help"),
    ],
)
def test_what_is_not_understood_gets_a_suggestion_and_no_action(text: str, suggestion: str) -> None:
    found = parse(text)

    assert isinstance(found, Confused)
    assert suggestion in found.suggestions


@pytest.mark.parametrize("text", ["deploy 4090 max 0.5 in us", "snooze a 2h", "savings 7d", 'destroy "a b"', "market"])
def test_every_suggestion_that_names_no_placeholder_is_itself_understood(text: str) -> None:
    for broken in (text[:-1] + "§", text + " §§ §§", "x" + text):
        found = parse(broken)
        if isinstance(found, Confused):
            for suggestion in found.suggestions:
                assert isinstance(parse(suggestion), (Ask, Confused))


def test_every_alias_is_a_verb_and_every_verb_has_itself() -> None:
    assert all(ALIASES[verb.value] is verb for verb in Verb)


@given(st.text(max_size=300))
def test_no_text_crashes_it_and_none_that_is_no_verb_acts(text: str) -> None:
    found = parse(text)

    first = text.split()[0].lower() if text.split() else ""
    if isinstance(found, Ask) and found.verb is not Verb.HELP:
        assert first.strip("\"'") in (*ALIASES, "/gpu", "gpu") or not first.isascii() or "'" in text or '"' in text


@given(st.sampled_from([*ALIASES]), st.text(max_size=200))
def test_whatever_follows_a_verb_is_an_answer(verb: str, text: str) -> None:
    assert isinstance(parse(f"{verb} {text}"), (Ask, Confused))


def test_a_gpu_that_no_market_knows_has_neighbours() -> None:
    assert close_gpus("RTX 4080")[0] in ("RTX 4090", "RTX 3090")
    assert "H100 SXM" in close_gpus("H1OO")
    assert close_gpus("§§§§") == []

"""What a process remembers of hosts, when it is written down, and what a token says of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from common import auth
from common.domain import liveness
from common.domain.host import Heartbeat, HostPhase, Progress, Signal, digest_of, facts_of
from common.domain.liveness import COMPANY_MIN, LABELS_MAX, Heard, Recorded

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECRET = "0123456789abcdef0123456789abcdef"


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def heard(*labels: str, now_s: float = 0.0) -> Heard:
    """A process that has just written down what it remembers of these hosts, who call again in 60 s."""
    memory = Heard("p", 180.0)
    for label in labels:
        memory.note(label, at(now_s), next_in_s=60)
    memory.flushed(memory.begin_flush(at(now_s)), written=None)
    return memory


def test_a_new_process_writes_at_its_first_report() -> None:
    memory = Heard("p", 180.0)
    memory.note("a", NOW, next_in_s=60)

    assert memory.is_flush_due(NOW)


def test_a_report_waits_for_those_that_are_due_soon_and_is_written_with_them() -> None:
    memory = heard(*"abcd", now_s=-55)
    memory.begin_flush(at(0))
    memory.note("e", at(1), next_in_s=60)

    assert not memory.is_flush_due(at(1))
    assert memory.is_flush_due(at(20))
    assert memory.begin_flush(at(20))["e"] == at(1)


def test_a_report_without_enough_company_is_written_at_once() -> None:
    memory = heard(*"abcd"[: COMPANY_MIN - 1], now_s=-55)
    memory.begin_flush(at(0))

    assert memory.is_flush_due(at(1))


def test_who_missed_its_turn_is_no_company() -> None:
    memory = heard(*"abcd", now_s=-90)
    memory.begin_flush(at(0))

    assert memory.is_flush_due(at(1))


def test_only_what_was_written_is_durable() -> None:
    memory = heard("a")
    memory.note("a", at(60), next_in_s=60)
    assert memory.durable_at("a") == at(0)

    content = memory.begin_flush(at(60))
    assert memory.durable_at("a") == at(0)
    memory.flushed(content, written=None)
    assert memory.durable_at("a") == at(60)


def test_a_flush_that_failed_is_tried_again_by_the_next_report() -> None:
    memory = heard(*"abcd")
    memory.begin_flush(at(30))
    assert not memory.is_flush_due(at(45))

    memory.flush_failed()
    assert memory.is_flush_due(at(45))


def test_who_was_not_heard_for_long_is_forgotten() -> None:
    memory = heard("a", "b")
    memory.note("b", at(1000), next_in_s=60)

    assert memory.begin_flush(at(1000)) == {"b": at(1000)}
    assert memory.durable_at("a") is None


def test_a_memory_has_a_bound_and_whom_it_knows_still_finds_room() -> None:
    memory = heard(*(f"host{number}" for number in range(LABELS_MAX)))

    assert memory.has_room("host0")
    assert not memory.has_room("one more")


def test_a_document_of_a_full_memory_fits_into_the_store() -> None:
    """A label has 63 characters at most, a time eight bytes, and each field's name ends with a byte."""
    assert LABELS_MAX * (63 + 1 + 8) < 1_048_487 - 1_000


def beat(**said: object) -> Heartbeat:
    return Heartbeat.model_validate({"label": "l", "sent_at": NOW, "phase": HostPhase.SERVING, **said})


def test_the_digest_of_a_report_holds_what_decisions_depend_on_and_nothing_else() -> None:
    usual = digest_of(facts_of(beat()))
    same = [
        beat(seq=9),
        beat(beat=7, sent_at=at(60)),
        beat(samples={"gpu_percent": Signal(n=12, mean=80)}),
        beat(progress=Progress(done_bytes=5)),
    ]
    other = [
        beat(phase=HostPhase.FROZEN),
        beat(fz="nonce"),
        beat(epoch=2),
        beat(idle_since=NOW),
        beat(vetoes=["ssh"]),
        beat(samples={"gpu_percent": Signal(n=0, missing=12)}),
    ]

    assert {digest_of(facts_of(said)) for said in same} == {usual}
    assert usual not in {digest_of(facts_of(said)) for said in other}


def test_a_token_carries_what_is_recorded_and_never_a_later_time_than_was_written() -> None:
    recorded = Recorded("acme.i1", 7, "0123456789abcdef", at(1.9), at(2.9))
    token = auth.host_token("l", 3, secret=SECRET, now=NOW, recorded=recorded)
    label, told = auth.recorded_of_host(token, secret=SECRET, now=NOW)

    assert label == "l"
    assert told == Recorded("acme.i1", 7, "0123456789abcdef", at(1), at(2))
    assert auth.recorded_of_host(auth.host_token("l", 3, secret=SECRET, now=NOW), secret=SECRET, now=NOW) == ("l", None)


def test_the_times_leave_room_for_a_lost_process_within_what_counts_as_silence() -> None:
    settled_s, silent_after_s = 60.0, 180.0
    flush_s, durable_s = silent_after_s * liveness.FLUSH_PART, silent_after_s * liveness.DURABLE_PART

    assert 2 * settled_s + flush_s < silent_after_s
    assert 2 * settled_s < durable_s < silent_after_s

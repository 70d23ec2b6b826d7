"""The watchdog's judgement on a clock that the test turns: four deaths, bad lines, hostile words."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.domain.role import Role, View
from common.domain.version import Version
from common.domain.watch import (
    BEAT_EVERY_S,
    FIRST_BEAT_S,
    GAPS_KEPT_S,
    LEASE_CAP_S,
    LEASE_FLOOR_S,
    PROBE_AFTER_S,
    RUN_BITS,
    Answer,
    Beat,
    Lease,
    Reason,
    Side,
    State,
    Verdict,
    Watch,
    listens,
    side_of,
    watches,
)

GPU, STANDBY = "dumont-d-i-1-aaaaaaaa", "dumont-d-i-2-bbbbbbbb"
EPOCH = 7


def beat(seq: int, **changes: object) -> Beat:
    plain = {"epoch": EPOCH, "label": GPU, "seq": seq}
    return Beat(**{**plain, **changes})  # type: ignore[arg-type]


class World:
    """A GPU that beats, a line that does what it is told, and a watch that is looked at whenever it asks for it."""

    def __init__(self, lease: Lease | None = None, *, line: Callable[[float], Iterator[float]] | None = None) -> None:
        self.now_s, self.seq = 100.0, 0
        self.watch = Watch(EPOCH, GPU, self.now_s, lease or Lease())
        self.line = line or (lambda sent_s: iter([sent_s]))
        self.beats_until_s = float("inf")
        self.under_way: list[tuple[float, Beat]] = []
        self.sends_s = self.now_s
        self.answer = Answer.MUTE
        self.probes = 0

    def run(self, seconds: float) -> Verdict | None:
        """The first verdict within so many seconds."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            if verdict := self._look():
                return verdict
            moments = [until_s, self.watch.due_s(self.now_s), self.sends_s, *(at_s for at_s, _ in self.under_way)]
            self.now_s = max(self.now_s + 1e-6, min(moments))
        return None

    def _look(self) -> Verdict | None:
        while self.sends_s <= self.now_s:
            if self.sends_s < self.beats_until_s:
                self.seq += 1
                self.under_way += [(at_s, beat(self.seq)) for at_s in self.line(self.sends_s)]
            self.sends_s += BEAT_EVERY_S
        for at_s, one in sorted(self.under_way, key=lambda each: each[0]):
            if at_s <= self.now_s:
                self.watch.heard(one, self.now_s)
        self.under_way = [each for each in self.under_way if each[0] > self.now_s]
        if self.watch.probe_due(self.now_s):
            self.probes += 1
            self.watch.probed(self.answer, self.now_s, self.now_s)
        return self.watch.look(self.now_s)


@pytest.fixture
def world() -> World:
    made = World()
    assert made.run(3.0) is None
    return made


def test_a_machine_whose_processes_are_killed_is_dead_within_two_beats(world: World) -> None:
    world.beats_until_s = died_s = world.now_s
    world.answer = Answer.REFUSED
    world.watch.tether_broke(world.now_s)

    verdict = world.run(5.0)

    assert verdict
    assert verdict.reason is Reason.REFUSED
    assert world.now_s - died_s <= 2 * BEAT_EVERY_S


def test_one_probe_into_a_port_that_is_just_being_closed_is_not_the_last(world: World) -> None:
    world.beats_until_s = died_s = world.now_s
    world.watch.tether_broke(world.now_s)
    assert world.run(0.12) is None
    world.answer = Answer.REFUSED

    verdict = world.run(5.0)

    assert verdict
    assert verdict.reason is Reason.REFUSED
    assert world.now_s - died_s <= PROBE_AFTER_S[-1] + BEAT_EVERY_S


@pytest.mark.parametrize("answer", Answer)
def test_a_broken_tether_alone_is_no_death_while_the_machine_beats(world: World, answer: Answer) -> None:
    world.answer = answer
    world.watch.tether_broke(world.now_s)

    assert world.run(10.0) is None
    assert 1 <= world.probes <= len(PROBE_AFTER_S)


def test_silence_is_death_after_the_lease_and_not_before(world: World) -> None:
    """A cut line and a frozen machine look the same: connections to it are taken by its kernel, and nobody speaks."""
    last_s = world.now_s
    world.beats_until_s = world.now_s

    verdict = world.run(5.0)

    assert verdict
    assert verdict.reason is Reason.SILENT
    assert LEASE_FLOOR_S - BEAT_EVERY_S <= world.now_s - last_s <= LEASE_FLOOR_S + BEAT_EVERY_S
    assert verdict.silent_for_s >= verdict.lease_s == LEASE_FLOOR_S


def test_a_machine_whose_ssh_answers_lives_though_its_beats_are_missing(world: World) -> None:
    """Its heartbeat program died, or a firewall eats datagrams."""
    world.beats_until_s = world.now_s
    world.answer = Answer.ANSWERED
    assert world.run(60.0) is None

    world.answer = Answer.MUTE
    stopped_s = world.now_s
    verdict = world.run(10.0)

    assert verdict
    assert world.now_s - stopped_s <= 2 * LEASE_FLOOR_S


def test_a_standby_that_is_called_takes_over_from_a_gpu_that_lives(world: World) -> None:
    assert world.run(1.0) is None
    world.watch.is_called = True

    verdict = world.run(1.0)

    assert verdict
    assert verdict.reason is Reason.CALLED


def test_a_machine_that_leaves_by_the_records_word_is_not_mourned(world: World) -> None:
    """Its standby hears of it a report later; until then the silence is as long as before a first beat."""
    world.watch.heard(beat(world.seq + 1, state=State.LEAVING), world.now_s)
    world.watch.tether_broke(world.now_s)
    world.beats_until_s, world.answer = world.now_s, Answer.REFUSED

    assert not world.watch.is_armed
    assert world.run(FIRST_BEAT_S - 1.0) is None
    assert world.run(2.0)


def test_a_notice_is_heeded_at_once(world: World) -> None:
    world.watch.heard(beat(world.seq + 1, state=State.STOPPING), world.now_s)

    verdict = world.watch.look(world.now_s)

    assert verdict
    assert verdict.reason is Reason.STOPPING


@pytest.mark.parametrize(
    "hostile",
    [
        beat(10**6, epoch=EPOCH - 1, state=State.STOPPING),
        beat(10**6, epoch=EPOCH + 1, state=State.STOPPING),
        beat(10**6, label=STANDBY, state=State.STOPPING),
        beat(1, state=State.STOPPING),
    ],
    ids=["older epoch", "newer epoch", "another machine", "replayed"],
)
def test_words_of_another_epoch_or_machine_and_old_ones_count_for_nothing(world: World, hostile: Beat) -> None:
    assert not world.watch.heard(hostile, world.now_s)
    assert world.run(1.0) is None

    world.beats_until_s = world.now_s  # nor do they keep a dead machine alive
    ended_s = world.now_s + 2 * LEASE_FLOOR_S
    while world.now_s < ended_s and not world.run(0.01):
        world.watch.heard(hostile, world.now_s)
    assert world.now_s < ended_s


def test_the_watch_begins_when_the_standby_hears_that_it_is_the_mirror_and_silence_means_nothing_before_a_beat() -> (
    None
):
    world = World()
    world.beats_until_s = world.now_s
    world.watch.tether_broke(world.now_s)
    world.answer = Answer.REFUSED
    began_s = world.now_s

    assert world.run(FIRST_BEAT_S - 1.0) is None

    verdict = world.run(10.0)  # but nobody waits for a first beat for ever
    assert verdict
    assert world.now_s - began_s >= FIRST_BEAT_S


@pytest.mark.parametrize("seed", range(24))
def test_a_line_that_loses_a_third_or_delays_a_third_of_a_second_is_no_death(seed: int) -> None:
    chance = random.Random(seed)

    def losing(sent_s: float) -> Iterator[float]:
        if chance.random() >= 0.3:
            yield sent_s + 0.02

    def delaying(sent_s: float) -> Iterator[float]:
        yield sent_s + (0.32 if sent_s % 240.0 >= 120.0 else 0.02)

    world = World(line=losing if seed % 2 else delaying)

    assert world.run(120.0) is None
    assert world.watch.is_armed


@given(st.randoms(use_true_random=False), st.floats(0.0, 0.3), st.floats(0.0, 0.3), st.floats(1.0, 20.0))
@settings(max_examples=60, deadline=None)
def test_however_bad_the_line_a_dead_machine_is_found_and_within_its_lease(
    chance: random.Random, loss: float, delay_s: float, lives_s: float
) -> None:
    def line(sent_s: float) -> Iterator[float]:
        for _ in range(1 + (chance.random() < 0.1)):  # doubled, overtaken, late
            if chance.random() >= loss:
                yield sent_s + chance.uniform(0.0, delay_s)

    world = World(line=line)
    world.run(lives_s)
    world.beats_until_s = died_s = world.now_s
    if not world.watch.is_armed:
        return

    verdict = world.run(LEASE_CAP_S + 2.0)

    assert verdict
    assert world.now_s - died_s <= delay_s + verdict.lease_s + 2 * BEAT_EVERY_S


def test_the_lease_follows_the_longest_gap_of_the_last_hour_within_its_bounds() -> None:
    lease = Lease()
    assert lease.seconds == LEASE_FLOOR_S
    lease.saw(0.5, 1000.0)
    assert lease.seconds == pytest.approx(1.5)
    lease.saw(0.05, 1001.0)
    assert lease.seconds == pytest.approx(1.5)
    lease.saw(30.0, 2000.0)
    assert lease.seconds == LEASE_CAP_S
    lease.saw(0.1, 2000.0 + GAPS_KEPT_S + 1.0)
    assert lease.seconds == LEASE_FLOOR_S
    for second in range(100_000):
        lease.saw(0.05, 10_000.0 + second)
    assert len(lease._gaps) < 100

    fixed = Lease(fixed_s=1.0)
    fixed.saw(3.0, 0.0)
    assert fixed.seconds == 1.0


def test_a_sender_that_was_started_again_is_heard_and_its_pause_is_no_gap_of_the_line(world: World) -> None:
    world.beats_until_s = world.now_s
    assert world.run(0.8) is None

    assert world.watch.heard(beat(1 << RUN_BITS), world.now_s)
    assert not world.watch.heard(beat(world.seq), world.now_s)
    assert world.watch.lease.seconds == LEASE_FLOOR_S


def test_a_standby_that_stood_still_itself_does_not_take_it_for_silence(world: World) -> None:
    world.now_s += 30.0  # moved to another host, or starved: it looks 30 s too late
    world.sends_s = world.now_s

    assert world.watch.look(world.now_s) is None
    assert world.run(2.0) is None
    assert world.watch.lease.seconds == LEASE_FLOOR_S


def test_a_machine_that_died_while_the_standby_stood_still_is_found_a_lease_later(world: World) -> None:
    world.now_s += 30.0
    world.beats_until_s = woke_s = world.now_s
    world.sends_s = world.now_s

    assert world.run(5.0)
    assert world.now_s - woke_s <= LEASE_FLOOR_S + 2 * BEAT_EVERY_S


def test_a_tunnel_that_is_down_for_a_while_makes_no_short_silence_a_death(world: World) -> None:
    world.watch.tether_broke(world.now_s)
    world.answer = Answer.REFUSED
    assert world.run(10.0) is None

    world.beats_until_s = silent_s = world.now_s

    assert world.run(5.0)
    assert world.now_s - silent_s >= LEASE_FLOOR_S - BEAT_EVERY_S


@pytest.mark.parametrize("answer", Answer)
def test_an_answer_to_a_question_of_before_the_last_sign_of_life_says_nothing(world: World, answer: Answer) -> None:
    asked_s = world.now_s - 1.0
    world.watch.tether_broke(asked_s - 0.01)
    world.beats_until_s = silent_s = world.now_s
    assert world.run(0.8) is None
    world.watch.probed(answer, asked_s, world.now_s)

    assert world.run(5.0)
    assert LEASE_FLOOR_S - BEAT_EVERY_S <= world.now_s - silent_s <= LEASE_FLOOR_S + BEAT_EVERY_S


def role(**changes: object) -> Role:
    view = {"rev": 1, "epoch": EPOCH, "writer": GPU, "mirror": STANDBY, "standby": STANDBY}
    sealed = changes.pop("sealed", None)
    whole = Role(label=STANDBY, version=Version(epoch=EPOCH, seq=1), is_whole=True)
    return whole.heard(View(**{**view, **changes})) if sealed is None else _sealed(whole, view)  # type: ignore[arg-type]


def _sealed(whole: Role, view: dict[str, object]) -> Role:
    return whole.heard(View(**view)).seal()  # type: ignore[arg-type]


def test_the_door_leads_where_the_record_says_and_to_the_standby_once_it_has_sealed() -> None:
    assert side_of(role()) is Side.GPU
    assert side_of(role(mirror=None)) is Side.GPU  # it is the user's address before it mirrors anything, too
    assert side_of(role(writer=STANDBY, mirror=None)) is Side.STANDBY
    assert side_of(role(writer=None, mirror=None)) is Side.STANDBY
    assert side_of(role(sealed=True)) is Side.STANDBY

    back = role(sealed=True).heard(View(rev=2, epoch=EPOCH + 1, writer=GPU, mirror=STANDBY))
    assert side_of(back) is Side.GPU
    same_epoch = role(sealed=True).heard(View(rev=2, epoch=EPOCH, writer=GPU, mirror=STANDBY))
    assert side_of(same_epoch) is Side.STANDBY


def test_a_standby_listens_to_a_gpu_before_it_is_its_mirror() -> None:
    assert listens(role(mirror=None))
    assert not listens(role(writer=STANDBY, mirror=None))
    assert not listens(role(sealed=True))


def test_a_gpu_that_was_heard_before_and_is_silent_when_the_watch_begins_is_dead_at_once() -> None:
    watch = Watch(EPOCH, GPU, 0.0)
    watch.heard(beat(1), 0.0)
    watch.due_s(60.0)

    watch.begin(60.0)

    verdict = watch.look(60.0)
    assert verdict
    assert verdict.reason is Reason.SILENT


def test_a_gpu_that_was_never_heard_has_its_time_from_the_begin_of_the_watch() -> None:
    watch, begins_s = Watch(EPOCH, GPU, 0.0), 10 * FIRST_BEAT_S
    watch.due_s(begins_s)
    watch.begin(begins_s)
    assert watch.look(begins_s) is None

    watch.due_s(begins_s + FIRST_BEAT_S)
    assert watch.look(begins_s + FIRST_BEAT_S)


def test_only_the_mirror_of_a_gpu_watches_and_not_any_more_once_it_sealed() -> None:
    assert watches(role())
    assert not watches(role(mirror=None))
    assert not watches(role(mirror="somebody else"))
    assert not watches(role(writer=STANDBY))
    assert not watches(role(sealed=True))

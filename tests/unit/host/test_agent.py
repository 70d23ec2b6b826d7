"""The agent alone, on a clock that the test turns: what it reports at once, what it remembers, how it gives up."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from common.domain.host import Heartbeat, HostPhase, Order, Reply, StorageCredentials, Wanted
from common.host.agent import Agent
from common.host.around import Unanswered
from common.host.samples import Looks

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
PLACE = StorageCredentials(endpoint="http://s3", bucket="b", prefix="p/", access_key="a", secret_key="s")
ORDER_ARGS = {"instance_key": "00", "prefix": "p/", "manifest_key": None}


@dataclass
class Control:
    """A control plane that answers the same until the test says otherwise, or not at all."""

    reply: Reply
    answers: bool = True
    heard: list[Heartbeat] = field(default_factory=list)

    def beat(self, heartbeat: Heartbeat, token: str) -> Reply:
        if not self.answers:
            raise Unanswered("cut")
        self.heard.append(heartbeat)
        return self.reply

    def notice(self, label: str, reason: str, token: str) -> None:
        """Nobody listens."""


@dataclass
class Writers:
    frozen: bool = False

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False


@dataclass
class Work:
    """An engine child that has just ended well, unless it takes its time."""

    order: Order
    epoch: int
    task: dict[str, Any]
    has_ended: bool = True

    def finished(self) -> bool:
        return self.has_ended

    def progress(self) -> dict[str, Any]:
        return {}

    def result(self) -> dict[str, Any]:
        snapshot = {"order": self.order.id, "manifest_key": "m", "epoch": self.epoch, "seq": self.task["seq"]}
        return {"ok": True, "snapshot": snapshot}

    def kill(self) -> None:
        """It has ended."""


@dataclass
class Host:
    """One machine: its agent may be started again over the same disk."""

    home: Path
    control: Control
    writers: Writers = field(default_factory=Writers)
    now: datetime = START
    stopped: int = 0
    tasks: list[dict[str, Any]] = field(default_factory=list)
    is_slow: bool = False
    """Its engine takes its time."""

    def start(self) -> Agent:
        self.agent = Agent(
            label="l",
            home=self.home,
            workspace=self.home,
            control=self.control,
            writers=self.writers,
            looks=Looks(gpu_file=self.home / "gpu"),
            stop_machine=self._stop,
            spawn=self._spawn,
        )
        return self.agent

    def gpu(self, percent: float) -> None:
        (self.home / "gpu").write_text(str(percent))

    def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.now += timedelta(seconds=1)
            self.agent.step(self.now)

    def _stop(self) -> None:
        self.stopped += 1

    def _spawn(self, task: dict[str, Any], _home: Path) -> Any:
        self.tasks.append(task)
        return Work(Order.model_validate(task["order"]), task["epoch"], task, not self.is_slow)


def reply(**changes: Any) -> Reply:
    plain: dict[str, Any] = {"rev": 1, "phase_wanted": Wanted.SERVE, "epoch": 1, "token": "t", "next_in_s": 60}
    return Reply(**{**plain, **changes})


def serving(home: Path) -> Host:
    """A host that serves epoch 1 and is busy."""
    (home / "token").write_text(json.dumps({"token": "t"}))
    order = Order(id="restore-1", kind="restore", args=ORDER_ARGS)
    made = Host(home, Control(reply(orders=[order], storage_credentials=PLACE)))
    made.gpu(90)
    made.start()
    made.pass_time(3)
    made.control.reply = reply()
    assert made.agent.phase is HostPhase.SERVING
    return made


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return serving(tmp_path)


def test_a_host_whose_window_is_over_says_so_at_once_and_that_it_is_busy_again_too(host: Host) -> None:
    host.pass_time(60)
    host.gpu(0)
    host.pass_time(190)
    told = next(beat for beat in host.control.heard if beat.idle_for() and beat.idle_for() >= timedelta(seconds=180))
    assert told.idle_for() < timedelta(seconds=186)

    host.pass_time(20)
    host.gpu(90)
    host.pass_time(6)

    assert host.control.heard[-1].idle_since is None
    assert (host.now - host.control.heard[-1].sent_at).total_seconds() <= 6


def test_a_settled_host_reports_no_more_often_than_it_was_told(host: Host) -> None:
    before = len(host.control.heard)

    host.pass_time(600)

    assert len(host.control.heard) - before in (10, 11)


def test_the_number_of_a_report_rises_over_restarts_of_the_agent(host: Host) -> None:
    host.pass_time(120)
    host.start()
    host.pass_time(120)

    numbers = [beat.beat for beat in host.control.heard]
    assert numbers == sorted(set(numbers))


def test_a_frozen_host_is_frozen_again_after_a_restart_and_a_serving_one_is_not(host: Host) -> None:
    host.control.reply = reply(phase_wanted=Wanted.FREEZE, fz="nonce")
    host.pass_time(61)
    host.writers.frozen = False
    assert host.start().phase is HostPhase.FROZEN
    assert host.writers.frozen

    host.control.reply = reply()
    host.pass_time(61)
    host.writers.frozen = True

    assert host.start().phase is HostPhase.SERVING
    assert not host.writers.frozen


def test_a_host_that_is_cut_off_saves_what_there_is_and_then_stops_itself(host: Host) -> None:
    host.control.reply = reply(dead_man_s=600)
    host.pass_time(61)
    host.control.answers = False

    host.pass_time(590)
    assert not host.writers.frozen
    assert host.stopped == 0
    host.pass_time(100)

    assert host.writers.frozen
    assert host.stopped == 1
    (task,) = [task for task in host.tasks if task["kind"] == "snapshot"]
    assert (task["epoch"], task["credentials"]["prefix"]) == (1, "p/")
    assert task["args"] == {"instance_key": "00", "prefix": "p/", "fz": None}


def test_a_host_whose_market_does_not_stop_it_asks_again_until_it_is_heard(host: Host) -> None:
    host.control.reply = reply(dead_man_s=600)
    host.pass_time(61)
    host.control.answers = False
    host.pass_time(700)
    assert host.stopped == 1

    host.pass_time(600)
    assert host.stopped == 3

    host.control.answers = True
    host.pass_time(600)
    assert host.stopped == 3
    assert len([task for task in host.tasks if task["kind"] == "snapshot"]) == 1


def test_a_host_that_is_heard_again_before_it_stopped_goes_on_and_reports_its_snapshot(host: Host) -> None:
    host.control.reply = reply(dead_man_s=600)
    host.pass_time(61)
    host.control.answers = False
    host.agent.stop_machine = lambda: None  # a machine whose market does not answer either
    host.pass_time(700)
    host.control.answers = True

    host.pass_time(20)

    assert not host.writers.frozen
    assert host.agent.phase is HostPhase.SERVING
    assert host.control.heard[-1].progress.snapshot


def snapshot_of_one_moment(host: Host) -> None:
    args = {**ORDER_ARGS, "freeze": True}
    order = Order(id="snapshot-1", kind="snapshot", args=args)
    host.is_slow, host.control.reply = True, reply(orders=[order], storage_credentials=PLACE)
    host.agent.next_beat_at = None
    host.pass_time(1)
    assert host.tasks[-1]["args"]["freeze"]


def test_a_snapshot_of_one_moment_holds_the_users_processes_still_until_it_ends(host: Host) -> None:
    snapshot_of_one_moment(host)
    assert host.writers.frozen
    assert host.agent.phase is HostPhase.SERVING

    host.agent.work.has_ended = True
    host.pass_time(1)

    assert not host.writers.frozen


def test_a_snapshot_that_takes_long_lets_them_go_after_a_minute(host: Host) -> None:
    snapshot_of_one_moment(host)

    host.pass_time(58)
    assert host.writers.frozen
    host.pass_time(4)

    assert not host.writers.frozen
    assert host.agent.work is not None


def test_a_freeze_that_comes_meanwhile_outlasts_the_snapshot(host: Host) -> None:
    snapshot_of_one_moment(host)
    host.control.reply = reply(rev=2, phase_wanted=Wanted.FREEZE, fz="nonce")
    host.agent.next_beat_at = None
    host.pass_time(1)

    host.agent.work.has_ended = True
    host.pass_time(70)

    assert host.writers.frozen
    assert host.agent.phase is HostPhase.FROZEN


def test_an_agent_that_dies_meanwhile_lets_them_go_when_it_starts_again(host: Host) -> None:
    snapshot_of_one_moment(host)

    host.start()

    assert not host.writers.frozen

"""The rented machines: the real agent, a user who writes, an engine that takes its time, and everything that breaks."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from common.domain.host import Attest, Boot, Heartbeat, HostPhase, Reply
from common.host.agent import Agent, Refused, Unanswered
from common.host.programs import Alone
from tests.simulation.clock import Task
from tests.simulation.engine import SimWork
from tests.simulation.market import Account, Contract, Fate
from tests.simulation.objects import Content
from tests.simulation.pairs import Link, OnItsDisk

if TYPE_CHECKING:
    from tests.simulation.world import World

SAMPLE_S = 15.0
ANSWER_WITHIN_S = 20.0
"""The agent's own patience with a heartbeat (common/host/serve.py)."""
ANSWERS_KEPT = 64
BOOT_CALLS = 20
"""The start-up script's tries of its first call, BOOT_AGAIN_S apart."""
BOOT_AGAIN_S = 2.0
UNPACK_S = (1.0, 10.0)
MEASURE_S = (1.0, 5.0)
WRITE_EVERY_S = (10.0, 60.0)


@dataclass
class Machine:
    """One rented machine. `container` is its process tree; the disk outlives a stop, not an end."""

    is_standby: ClassVar[bool] = False

    world: World
    account: Account
    contract: Contract
    fate: Fate
    home: Path
    token: str
    rng: random.Random
    content: Content | None = None
    container: Task | None = None
    agent: Agent | None = None
    work: SimWork | None = None
    has_frozen_writers: bool = False
    standing_until: float = 0.0
    cut_until: dict[str, float] = field(default_factory=dict)
    """control, replies, objects -> when the host reaches them again."""
    signal: str = ""
    signal_until: float = 0.0
    disk_full_until: float = 0.0
    clock_off_s: float = 0.0
    """Of the host's clock; the agent reads it when it starts, and then counts seconds."""
    agent_off_s: float = 0.0
    looks: list[tuple[float, float | None]] = field(default_factory=list)
    """What the agent saw of the GPU, and when; a time without a look has no entry."""
    measured_at: float = 0.0
    restored: Content | None = None
    """What the last restore left; anything else is work that was done since."""
    has_served: bool = False
    served_epoch: int = 0
    open_epoch: int = 0
    """The user's processes work since the agent served in that epoch; only a freeze stops them."""
    answered_at: list[float] = field(default_factory=list)
    """When the control plane answered the last heartbeats of this host."""
    is_gone: bool = False
    link: Link | None = None
    """To the other machine of its pair."""
    role: OnItsDisk = field(init=False)

    def __post_init__(self) -> None:
        self.role = OnItsDisk(self.home, self.label)

    @property
    def label(self) -> str:
        return self.contract.label

    @property
    def is_running(self) -> bool:
        return self.container is not None and not self.container.is_over and not self.is_gone

    @property
    def key(self) -> str | None:
        return self.world.key_of_label(self.label)

    @property
    def is_standing(self) -> bool:
        """Its processes stand still."""
        return self.standing_until > self.world.loop.now

    @property
    def has_disk(self) -> bool:
        return not self.is_gone

    @property
    def is_alive(self) -> bool:
        """It runs, or may run again with what it has."""
        return self.has_disk and self.contract.listed and not self.contract.is_stopped

    def reaches(self, what: str) -> bool:
        return self.cut_until.get(what, 0.0) <= self.world.loop.now

    def now(self) -> datetime:
        """As the agent counts."""
        return self.world.loop.clock() + timedelta(seconds=self.agent_off_s)

    # --- power

    def start(self) -> None:
        if self.fate.is_mute or self.is_gone or self.is_running:
            return
        self.container = self.world.loop.spawn(self._life, f"host {self.label}")
        self.world.loop.after(self._until_next_write(), self._user_writes)
        if self.link:
            self.link.start()

    def die(self) -> None:
        """Every process is gone; the disk stays."""
        if self.work:
            self.work.kill()
        if self.container and not self.container.is_over:
            self.container.kill()
        self.agent, self.has_frozen_writers = None, False
        if self.link:
            self.link.end()

    def end(self) -> None:
        self.die()
        self.is_gone = True

    def restart_agent(self) -> None:
        """The agent dies; the start-up script starts it again a second later. The user's processes go on."""
        if not self.is_running or self.agent is None:
            return
        if self.work:
            self.work.kill()
        assert self.container
        self.container.kill()
        self.agent = None
        self.container = self.world.loop.spawn(self._serve, f"host {self.label}", delay=1.0)

    # --- the start-up script and the agent's loop

    def _life(self) -> None:
        loop = self.world.loop
        loop.sleep(self.rng.uniform(*UNPACK_S) / max(self.fate.line, 0.1))
        boot_id = f"{self.rng.getrandbits(64):016x}"
        started_at = loop.now
        failed = "the bundle cannot be fetched" if self.fate.refuses_boot else None
        if (self.home / "token").exists():  # started again, on its own disk
            self._serve()
            return
        for _ in range(BOOT_CALLS):
            call = Boot(label=self.label, boot_id=boot_id, up_for_s=loop.now - started_at, failed=failed)
            answer = self.world.web.post(self, "boot", call.model_dump_json(), self.token)
            if failed:
                break
            if answer is not None:
                (self.home / "token").write_text(json.dumps({"token": json.loads(answer)["token"]}))
                self._serve()
                return
            loop.sleep(BOOT_AGAIN_S)
        self._exits()

    def _serve(self) -> None:
        loop = self.world.loop
        self.agent_off_s = self.clock_off_s
        self.agent = agent = Agent(
            label=self.label,
            home=self.home,
            workspace=self.home,
            control=Control(self),
            writers=self,
            looks=Looks(self),  # type: ignore[arg-type]
            stop_machine=self._stop_at_the_market,
            spawn=self._spawn,  # type: ignore[arg-type]
            measure=self._measure,
            programs=self.link or Alone(),
            role_kept_by=lambda _home, _label: self.role,
        )
        while True:
            if self.standing_until > loop.now:
                loop.sleep(self.standing_until - loop.now)
            if not agent.step(self.now()):
                break
            self._goes_on(agent)
            loop.sleep(self._until_due(agent))
        self._exits()

    def _goes_on(self, agent: Agent) -> None:
        """In a new epoch, with what is there."""
        if self.link and agent.memory.started_epoch > self.served_epoch:
            self.has_served, self.served_epoch = True, agent.memory.started_epoch

    def _until_due(self, agent: Agent) -> float:
        due = [at for at in (agent.next_beat_at, agent.next_sample_at) if at]
        wait_s = min((at - self.now()).total_seconds() for at in due) if due else 0.0
        if agent.memory.attest is None:
            wait_s = min(wait_s, 1.0)
        if self.work and agent.work is self.work:
            wait_s = min(wait_s, max(0.0, self.work.ends_at - self.world.loop.now) + 0.1)
        return min(max(wait_s, 0.05), SAMPLE_S)

    def _exits(self) -> None:
        """The container's own process ended: the contract runs, and bills, on."""
        self.agent = None
        self.account.exit(self.contract)

    def _stop_at_the_market(self) -> None:
        if self.contract.listed:
            self.account.stop(self.contract, self.world.loop.clock())

    def _measure(self) -> Attest | None:
        """Takes a few seconds; a slow line is seen, where anything is."""
        if self.fate.is_unmeasurable:
            return Attest()
        self.measured_at = self.measured_at or self.world.loop.now + self.rng.uniform(*MEASURE_S)
        if self.world.loop.now < self.measured_at:
            return None
        line = {"download_mbit_s": 900.0 * self.fate.line, "upload_mbit_s": 700.0 * self.fate.line}
        return Attest.model_validate({**line, **self.contract.hardware()})

    # --- the user's processes

    def freeze(self) -> None:
        self.has_frozen_writers = True

    def thaw(self) -> None:
        self.has_frozen_writers = False

    def _until_next_write(self) -> float:
        return self.rng.uniform(*WRITE_EVERY_S)

    def _user_writes(self) -> None:
        if not self.is_running:
            return
        if self.agent is not None and self.agent.phase is HostPhase.SERVING:
            self.open_epoch = self.served_epoch
        if self.is_open and self.standing_until <= self.world.loop.now and self.content is not None:
            self.content = self.world.workspaces.write(self.content)
            if self.link:
                self.link.send()
        self.world.loop.after(self._until_next_write(), self._user_writes)

    @property
    def is_open(self) -> bool:
        """The user's processes may write: here since the machine serves, or since its seal turned the door to it."""
        serves = self.has_served and self.open_epoch == self.served_epoch
        has_door = self.link is not None and self.link.role.claim is not None
        return (serves or has_door) and not self.has_frozen_writers

    def hold(self, content: Content) -> None:
        """What another machine sent, or a snapshot held, is what stands here now."""
        self.content = self.restored = content

    # --- the engine

    def _spawn(self, task: dict[str, Any], _home: Path) -> SimWork:
        self.work = SimWork(self, task)
        return self.work


class Looks:
    """`host.samples.Looks` of a simulated GPU."""

    every_s = SAMPLE_S

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def look(self) -> dict[str, float | None]:
        machine, world = self._machine, self._machine.world
        percent: float | None = 80.0 if world.users.is_busy(machine.key, world.loop.now) else 0.0
        if machine.signal_until > world.loop.now:
            percent = {"missing": None, "nan": float("nan"), "spikes": percent}[machine.signal]
            if machine.signal == "spikes" and machine.rng.random() < 0.2:
                percent = 95.0
        machine.looks.append((world.loop.now, percent))
        return {"gpu_percent": percent}

    def disk(self, _path: Path) -> dict[str, int]:
        return {"total_bytes": 1 << 40, "used_bytes": 1 << 30, "free_bytes": 1 << 39}


class Control:
    """The agent's way to the control plane."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def beat(self, heartbeat: Heartbeat, token: str) -> Reply:
        answer = self._machine.world.web.post(self._machine, "heartbeat", heartbeat.model_dump_json(), token)
        if answer is None:
            raise Unanswered("no answer")
        if answer == b"404":
            raise Refused("there is no such rental")
        self._machine.answered_at = [*self._machine.answered_at[-ANSWERS_KEPT:], self._machine.world.loop.now]
        return Reply.model_validate_json(answer)

    def notice(self, label: str, reason: str, token: str) -> None:
        """A host of this world that says a last word says it through `World.last_word`."""

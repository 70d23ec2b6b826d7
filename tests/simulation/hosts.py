"""The rented machines: the real agent, a user who writes, an engine that takes its time, and everything that breaks."""

from __future__ import annotations

import contextlib
import json
import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from common.domain.host import Attest, Boot, Heartbeat, HostPhase, Order, Reply, SnapshotReport
from common.domain.version import Version
from common.errors import DiskFull, DumontError, ObjectStoreError, SnapshotDamaged, SnapshotError
from common.host.agent import Agent, Refused, Unanswered
from common.host.programs import Alone
from tests.simulation import objects
from tests.simulation.clock import Task
from tests.simulation.market import Account, Contract, Fate
from tests.simulation.objects import Content, Shot
from tests.simulation.pairs import Link

if TYPE_CHECKING:
    from tests.simulation.world import World

SAMPLE_S = 15.0
ANSWER_WITHIN_S = 20.0
"""The agent's own patience with a heartbeat (common/host/main.py)."""
ANSWERS_KEPT = 10
BOOT_CALLS = 20
"""The start-up script's tries of its first call, BOOT_AGAIN_S apart."""
BOOT_AGAIN_S = 2.0
UNPACK_S = (1.0, 10.0)
MEASURE_S = (1.0, 5.0)
TAKE_S, RESTORE_S = (2.0, 20.0), (3.0, 40.0)
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
        """The user's processes may write."""
        return self.has_served and self.open_epoch == self.served_epoch and not self.has_frozen_writers

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


class SimWork:
    """One order's engine child. What it does to the bucket and the disk happens when it ends, unless it was killed."""

    def __init__(self, machine: Machine, task: dict[str, Any]) -> None:
        self.machine, self.task = machine, task
        self.order = Order.model_validate(task["order"])
        self.epoch = int(task["epoch"])
        self._result: dict[str, Any] | None = None
        self._is_dead = False
        world, rng = machine.world, machine.rng
        takes_s = rng.uniform(*(TAKE_S if task["kind"] == "snapshot" else RESTORE_S)) / machine.fate.line
        self.ends_at = world.loop.now + takes_s
        self._began_at = world.loop.now
        self._frozen_content = machine.content
        self._shot: Shot | None = None
        """Its packs are sent, or fail to be, some time before its manifest."""
        if task["kind"] == "snapshot":
            world.loop.at(world.loop.now + takes_s * rng.random(), self._send_packs)
        if world.strike("engine_dies", machine):
            self.ends_at = world.loop.now + takes_s * rng.random()
            self._result = {"ok": False, "error": "engine_died", "detail": "killed"}
        world.loop.at(self.ends_at, self._end)

    def finished(self) -> bool:
        return self._result is not None and self.machine.world.loop.now >= self.ends_at

    def progress(self) -> dict[str, Any]:
        return {}

    def result(self) -> dict[str, Any]:
        assert self._result is not None
        return self._result

    def kill(self) -> None:
        self._is_dead = True

    def _end(self) -> None:
        """Late when the whole machine stands still meanwhile."""
        machine, loop = self.machine, self.machine.world.loop
        if self._is_dead or self._result is not None or not machine.is_running:
            return
        if machine.standing_until > loop.now:
            self.ends_at = machine.standing_until + 1.0
            loop.at(self.ends_at, self._end)
            return
        try:
            done = {"snapshot": self._snapshot, "copy": self._fetch, "rewind": self._fetch}
            self._result = done.get(self.task["kind"], self._restore)()
        except DumontError as error:
            chunk = error.chunk if isinstance(error, SnapshotDamaged) else None
            self._result = {"ok": False, "error": error.code, "detail": str(error), "chunk": chunk}

    def _send_packs(self) -> None:
        """The first part of a snapshot; one that goes wrong is tried again at its end, and then tells."""
        machine, now = self.machine, self.machine.world.loop.now
        if self._is_dead or self._result is not None or not machine.is_running or machine.standing_until > now:
            return
        with contextlib.suppress(DumontError):
            self._shot = self._packed()

    def _packed(self) -> Shot:
        machine, world, args = self.machine, self.machine.world, self.task["args"]
        if machine.disk_full_until > world.loop.now:
            raise DiskFull("no room to stage packs")
        self._require_bucket()
        # one of a pair has numbered its changes: those of a later number are not counted on
        is_late = machine.has_frozen_writers and machine.link is None
        content = machine.content if is_late else self._frozen_content
        assert content is not None
        shot = objects.take(
            content,
            prefix=args["prefix"],
            instance_key=bytes.fromhex(args["instance_key"]),
            version=Version(epoch=self.epoch, seq=self.task["seq"]),
            taken_at=machine.now().isoformat(),
            previous=self._previous(args),
            salt=f"{machine.label} {self.order.id} {world.loop.now}",
        )
        self._upload(shot)
        return shot

    def _snapshot(self) -> dict[str, Any]:
        machine, world, args = self.machine, self.machine.world, self.task["args"]
        shot = self._shot or self._packed()
        if world.loop.now - self._began_at > args["max_s"]:
            raise SnapshotError("the snapshot took too long")
        self._send_manifest(shot)
        report = SnapshotReport(
            order=self.order.id,
            manifest_key=shot.manifest.key,
            epoch=self.epoch,
            seq=self.task["seq"],
            fz=args.get("fz"),
            files=len(shot.manifest.entries) - 1,
            bytes=shot.manifest.bytes,
            stored_bytes=len(shot.sealed),
        )
        machine.account.sim.traffic(machine.contract.id, 50_000_000, 0, world.loop.clock())
        return {"ok": True, "snapshot": report.model_dump(mode="json"), "uploaded_bytes": 50_000_000}

    def _previous(self, args: dict[str, Any]) -> objects.Manifest | None:
        """As `host.work` does: it raises when the manifest is gone or damaged."""
        if not args.get("previous"):
            return None
        bucket, key = self.machine.world.bucket, bytes.fromhex(args["instance_key"])
        return objects.fetch_manifest(bucket, args["previous"], key)

    def _upload(self, shot: Shot) -> None:
        machine, world, bucket = self.machine, self.machine.world, self.machine.world.bucket
        if world.strike("upload_quota", machine):
            raise ObjectStoreError("403 cap exceeded")
        lacks_packs = world.strike("upload_partial", machine)
        for key, body in shot.packs:
            if lacks_packs:
                continue
            bucket.put(key, body)
            if world.strike("upload_truncated", machine):
                bucket.put(key, body[:-1])
            elif world.strike("upload_garbled", machine):
                bucket.garble(key)

    def _send_manifest(self, shot: Shot) -> None:
        machine, world, bucket = self.machine, self.machine.world, self.machine.world.bucket
        self._require_bucket()
        if world.strike("upload_dies", machine):
            raise ObjectStoreError("the upload broke off")
        world.taken[shot.manifest.key] = shot.content
        world.oracle.sending(shot)
        bucket.put(shot.manifest.key, shot.sealed)
        if world.strike("manifest_garbled", machine):
            bucket.garble(shot.manifest.key)

    def _fetch(self) -> dict[str, Any]:
        """The pointer's content, on a machine that does not write: whatever it held is set aside."""
        machine, args = self.machine, self.task["args"]
        if machine.fate.has_small_disk:
            return {"ok": False, "error": "disk_full", "detail": "too small"}
        self._require_bucket()
        key = bytes.fromhex(args["instance_key"])
        machine.hold(objects.restore(machine.world.bucket, args["manifest_key"], key, machine.world.workspaces.known))
        return {"ok": True, "downloaded_bytes": 50_000_000}

    def _restore(self) -> dict[str, Any]:
        machine, world, args = self.machine, self.machine.world, self.task["args"]
        if machine.served_epoch == self.epoch and machine.content is not machine.restored:
            world.oracle.violate("I3", f"{machine.label} restored again over its own work of epoch {self.epoch}")
        if args.get("manifest_key"):
            if machine.fate.has_small_disk:
                return {"ok": False, "error": "disk_full", "detail": "too small"}
            self._require_bucket()
            key = bytes.fromhex(args["instance_key"])
            machine.content = objects.restore(world.bucket, args["manifest_key"], key, world.workspaces.known)
        elif machine.content is None:
            machine.content = world.workspaces.write(None)
        machine.has_served, machine.served_epoch, machine.restored = True, self.epoch, machine.content
        machine.account.sim.traffic(machine.contract.id, 0, 50_000_000, world.loop.clock())
        return {"ok": True, "downloaded_bytes": 50_000_000}

    def _require_bucket(self) -> None:
        if not self.machine.reaches("objects"):
            raise ObjectStoreError("the object store did not answer")

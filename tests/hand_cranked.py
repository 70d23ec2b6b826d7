"""The whole product on a clock that only the test turns: real store, adapter over the simulator, real agents.

The engine's children are real processes; the clock stands still while one works.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from common import bootstrap
from common.adapters.gcp import ANONYMOUS, GcpCompute
from common.adapters.slack import Slack
from common.adapters.sqlite import SqliteStore
from common.adapters.tensordock import TensorDock
from common.adapters.vast import Vast
from common.config import Settings, Timing
from common.domain.host import Attest, Boot, Heartbeat, HostPhase, Reply
from common.domain.instance import Instance
from common.domain.liveness import Heard
from common.domain.offer import Offer
from common.domain.pool import PoolTerms
from common.domain.spec import Spec
from common.errors import DumontError, NotFound, ObjectStoreError
from common.host import attest
from common.host.agent import Agent
from common.host.around import Refused, Unanswered
from common.host.samples import Looks
from common.ports import App, Grant, Launch, ObjectStore
from common.records import load
from common.views import instances as view
from common.views.instances import InstanceOut
from common.web import problem, slack_outbox
from common.workflows import deploy, hosts, lifecycle, outbox
from infra.demo.gcp.compute import ComputeSim
from infra.demo.s3_server import S3Server
from infra.demo.slack import SlackSim
from infra.demo.tensordock import TensorDockSim
from infra.demo.vast import VastSim
from infra.demo.wire import Effect, Request
from jobs import hibernate_idle, prune_snapshots, reconcile, refill_warm_pool
from tests.gcp_rig import Carrier
from tests.pair_link import Link

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
ACCOUNT = "acme"
SLACK_SECRET = "8f742231b10e8888abcd99yyyzzz85a5"


class SimTransport(httpx.BaseTransport):
    """A simulator of the world as httpx's transport: the adapter's own requests, no socket."""

    def __init__(self, world: Any, sim: str = "sim") -> None:
        self._world, self._sim = world, sim

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        asked = Request(
            method=request.method,
            path=request.url.path,
            query=dict(request.url.params),
            headers=dict(request.headers),
            body=request.read(),
        )
        is_deaf = asked.method == "DELETE" and getattr(self._world, "destroys_are_lost", False)
        if is_deaf or getattr(self._world, "market_is_down", False):
            raise httpx.ConnectError("no answer", request=request)
        answer = getattr(self._world, self._sim).handle(asked, self._world.now)
        if asked.method == "PUT" and getattr(self._world, "creates_are_not_answered", False):
            raise httpx.ReadError("no answer", request=request)
        if answer.status == 429:
            getattr(self._world, "throttled", []).append(f"{asked.method} {asked.path}")
        headers = {"content-type": answer.content_type, **answer.headers}
        return httpx.Response(answer.status, headers=headers, content=answer.body)


@dataclass
class Access:
    """The object store's way to credentials of a host: its own key, for rclone knows no other."""

    s3: S3Server
    is_down: bool = False
    asked: list[tuple[str, float]] = field(default_factory=list)
    """(prefix, for how many seconds)"""

    def grant(self, prefix: str, *, for_s: float, now: datetime) -> Grant:
        if self.is_down:
            raise ObjectStoreError("the vendor does not answer")
        self.asked.append((prefix, for_s))
        return Grant(self.s3.access_key, self.s3.secret_key, None, now + timedelta(seconds=for_s))


class Writers:
    """The user's processes of a machine: whether they may write."""

    frozen = False

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False


@dataclass
class Machine:
    agent: Agent
    writers: Writers
    gpu: Path
    cut: bool = False
    keys: list[str] = field(default_factory=list)
    """Of those who may log in."""
    signs: tuple[str, ...] = ()
    """Of life besides the GPU."""
    link: Link | None = None
    """To the other machine of its pair."""

    def set_gpu(self, percent: float) -> None:
        self.gpu.write_text(str(percent))


@dataclass
class World:
    folder: Path
    s3: S3Server
    objects: ObjectStore
    timing: Timing = field(default_factory=Timing)
    now: datetime = START
    machines: dict[str, Machine] = field(default_factory=dict)
    pool: PoolTerms = field(default_factory=PoolTerms)
    next_job_at: datetime = START
    measure: Callable[[Path, Path], Attest | None] = attest.hardware
    """How hosts measure themselves."""
    followed: dict[str, datetime] = field(default_factory=dict)
    """Instances that another invocation follows, and until when."""
    market_is_down: bool = False
    throttled: list[str] = field(default_factory=list)
    """Calls that a marketplace refused as too frequent."""
    with_tensordock: bool = False
    outbox_until: datetime = START
    """Another invocation follows the outbox until then."""
    with_google: bool = False
    """Instances have standbys."""
    standbys_are_mute: bool = False
    creates_are_not_answered: bool = False
    """They are carried out."""
    destroys_are_lost: bool = False
    """No marketplace hears them."""
    starts_wait: bool = False
    """A machine that the market runs has not begun its start-up script yet: it is in `waiting`."""
    waiting: list[Effect] = field(default_factory=list)
    """Those that start now never reach the control plane."""
    unlinked: set[frozenset[str]] = field(default_factory=set)
    """Pairs of labels between which there is no way."""

    def __post_init__(self) -> None:
        self.sim = VastSim(rng=random.Random(1), api_key="sim-key")
        self.market = Vast("sim-key", base_url="http://vast.sim", transport=SimTransport(self), wait=self._wait)
        self.dock_sim = TensorDockSim(rng=random.Random(1), api_key="sim-key")
        self.dock = TensorDock("sim-key", base_url="http://dock.sim", transport=SimTransport(self, "dock_sim"))
        self.slack_sim = SlackSim(random.Random(1), "xoxb-sim", SLACK_SECRET, base_url="http://127.0.0.1:1")
        self.chat = Slack(
            "xoxb-sim",
            base_url="http://127.0.0.1:1/api",
            loopback_allowed=True,
            transport=SimTransport(self, "slack_sim"),
        )
        self.google = ComputeSim(rng=random.Random(1))
        self.standbys = self._standbys() if self.with_google else None
        self.links: dict[str, Link] = {}
        self.store = SqliteStore(str(self.folder / "store.db"))
        self.access = Access(self.s3)
        settings = Settings(
            store="sqlite:///unused",
            url="https://functions.sim",
            jwt_secret="0123456789abcdef0123456789abcdef",
            storage_endpoint=self.s3.endpoint,
            host_storage_endpoint=self.s3.endpoint,
            bucket=self.s3.bucket,
            storage_key_id=self.s3.access_key,
            storage_application_key=self.s3.secret_key,
            bundle_sha256="0" * 64,
            timing=self.timing,
            pool=self.pool,
            slack_bot_token="xoxb-sim",
            slack_signing_secret=SLACK_SECRET,
        )
        drawn = bootstrap.deployment_of(self.store, START)
        self.app = App(
            settings=settings,
            store=self.store,
            markets={"vast": self.market, **({"tensordock": self.dock} if self.with_tensordock else {})},
            standbys=self.standbys,
            objects=self.objects,
            storage_access=self.access,
            clock=lambda: self.now,
            ids=bootstrap.random_id,
            deployment=lambda: drawn,
            log=lambda event, **fields: self.log.append((event, fields)),
            heard=Heard("process", self.timing.silent_after_s),
            chat=self.chat,
            nudge_outbox=self._follow_outbox,
            country_of_ip=bootstrap.country_of_ip,
            nudge=lambda key: self.followed.update({key: self.now + timedelta(seconds=lifecycle.FOLLOW_S)}),
        )
        self.log: list[tuple[str, dict[str, Any]]] = []

    def close(self) -> None:
        for machine in self.machines.values():
            machine.agent._stop()
        self.market.close()
        self.dock.close()
        self.chat.close()
        if self.standbys:
            self.standbys.close()
        self.store.close()

    def _standbys(self) -> GcpCompute:
        carrier = Carrier(lambda asked: self.google.handle(asked, self.now))
        return GcpCompute(ANONYMOUS, project="demo-project", base_url="http://127.0.0.1:1", carrier=carrier)

    # --- time

    def pass_time(self, seconds: float, step_s: float = 1.0) -> None:
        until = self.now + timedelta(seconds=seconds)
        while self.now < until:
            self.now += timedelta(seconds=step_s)
            self._one_step()

    def _wait(self, seconds: float) -> None:
        """An adapter's own wait between two pages: the clock turns, and nobody else moves."""
        self.now += timedelta(seconds=seconds)

    def until(self, condition: Any, within_s: float = 1200.0, step_s: float = 1.0) -> float:
        """Seconds of virtual time it took; fails when it takes longer than `within_s`."""
        began = self.now
        while not condition():
            assert (self.now - began).total_seconds() < within_s, f"not within {within_s} s; log: {self.log[-12:]}"
            self.now += timedelta(seconds=step_s)
            self._one_step()
        return (self.now - began).total_seconds()

    def _follow_outbox(self) -> None:
        self.outbox_until = self.now + timedelta(seconds=outbox.FOLLOW_S)

    def _one_step(self) -> None:
        self.sim.tick(self.now)
        self.dock_sim.tick(self.now)
        self.google.tick(self.now)
        self._carry_out()
        for machine in list(self.machines.values()):
            if machine.agent.work:
                machine.agent.work.child.wait(timeout=60)
            if machine.agent.phase is not HostPhase.STOPPED:
                machine.agent.step(self.now)
        for key in [key for key, until in self.followed.items() if self.now <= until]:
            lifecycle.advance(self.app, key)
        if self.now <= self.outbox_until:
            outbox.drain(self.app, self.now, slack_outbox.ATTEMPTS)
        if self.now >= self.next_job_at:
            self.next_job_at = self.now + timedelta(seconds=self.timing.reconcile_every_s)
            reconcile.run(self.app)
            hibernate_idle.run(self.app)
            refill_warm_pool.run(self.app)
            prune_snapshots.run(self.app)
        self._carry_out()

    def _carry_out(self) -> None:
        for effect in [*self.sim.drain(), *self.dock_sim.drain(), *self.google.drain()]:
            if effect.kind == "start" and self.starts_wait:
                self.waiting.append(effect)
            elif effect.kind == "start":
                self._start(effect)
            elif machine := self.machines.pop(effect.label, None):
                machine.agent._stop()
                if effect.kind == "vanish":
                    self.links.pop(effect.label, None)

    def _start(self, effect: Effect) -> None:
        if "DUMONT_BOOTSTRAP" not in effect.env:
            return  # somebody else's machine
        home = self.folder / effect.label
        (home / "workspace").mkdir(parents=True, exist_ok=True)
        if not (home / "token").exists():  # a standby that is started again has its disk
            try:
                call = Boot(label=effect.label, boot_id="0123456789abcdef", up_for_s=0.0)
                token = problem.token_of_host(self.app, f"Bearer {effect.env['DUMONT_BOOTSTRAP']}")
                booted, _ = hosts.boot(self.app, call, token, self.now)
            except NotFound:
                return
            assert booted
            (home / "token").write_text(json.dumps({"token": booted.token}))
        gpu, machine = home / "gpu", home / "machine.json"
        gpu.write_text("0" if effect.env.get("DUMONT_KIND") == "standby" else "80")
        machine.write_text(json.dumps(effect.hardware))
        writers, link = Writers(), self._link(effect, home)
        agent = Agent(
            label=effect.label,
            home=home,
            workspace=home / "workspace",
            control=Control(self, effect.label),
            writers=writers,
            looks=Looks(gpu_file=gpu),
            stop_machine=lambda: self._stop_itself(effect.contract_id),
            authorize=lambda key: self.machines[effect.label].keys.append(key),
            life=lambda _now: self.machines[effect.label].signs if effect.label in self.machines else (),
            measure=lambda: self.measure(machine, home / "workspace"),
            **({"programs": link} if link else {}),
        )
        is_mute = self.standbys_are_mute and effect.env.get("DUMONT_KIND") == "standby"
        self.machines[effect.label] = Machine(agent, writers, gpu, cut=is_mute, link=link)

    def _link(self, effect: Effect, home: Path) -> Link | None:
        if not self.with_google:
            return None
        self.links[effect.label] = Link(
            label=effect.label,
            home=home,
            workspace=home / "workspace",
            is_standby=effect.env.get("DUMONT_KIND") == "standby",
            others=self.links,
            now=lambda: self.now,
            reaches=self._reaches,
        )
        return self.links[effect.label]

    def _reaches(self, one: str, other: str) -> bool:
        machines = [self.machines.get(label) for label in (one, other)]
        return all(machine and not machine.cut for machine in machines) and frozenset({one, other}) not in self.unlinked

    def _stop_itself(self, contract_id: int) -> None:
        """What common/host/serve.py does with the container's own key; a standby has none."""
        if not isinstance(contract_id, int):
            return
        headers = {"Authorization": f"Bearer {self.sim.container_key(contract_id)}"}
        stop = Request("PUT", f"/api/v0/instances/{contract_id}/", {}, headers, b'{"state": "stopped"}')
        assert self.sim.handle(stop, self.now).status == 200

    # --- the user

    def provision(self, **spec: Any) -> str:
        id = bootstrap.random_id()
        wanted = Spec(**{"gpu": "H100 SXM", **spec})
        deploy.request(self.app, account=ACCOUNT, id=id, name="", spec=wanted, also=(), now=self.now)
        lifecycle.hint(self.app, f"{ACCOUNT}.{id}")
        return id

    def rent_elsewhere(self, offer: Offer) -> None:
        """Somebody else takes the machine."""
        self.market.create(offer, Launch(label="somebody-else", image="i", disk_gb=8, env={}, start_script="true"))

    def show(self, id: str) -> InstanceOut:
        return view.show(self.app, ACCOUNT, id, self.now)

    def record(self, id: str) -> Instance:
        return load(self.app, f"{ACCOUNT}.{id}").instance.value

    def writer(self, id: str) -> Machine:
        return self.machines[self.record(id).writer or ""]

    def workspace(self, id: str) -> Path:
        return self.writer(id).agent.workspace


@dataclass
class Control:
    """The functions, as a host reaches them: the heartbeat's handler without HTTP around it."""

    world: World
    label: str

    def beat(self, heartbeat: Heartbeat, token: str) -> Reply:
        machine = self.world.machines.get(self.label)
        if machine is None or machine.cut:
            raise Unanswered("cut")
        try:
            token = problem.token_of_host(self.world.app, f"Bearer {token}")
            reply, news = hosts.receive(self.world.app, heartbeat, token, self.world.now)
            if news:
                at_rest = lifecycle.hint(self.world.app, news.rental.instance_key, news.instance)
                reply = hosts.answer(self.world.app, news, at_rest, self.world.now)
        except NotFound as error:
            raise Refused(str(error)) from error
        except DumontError as error:
            raise Unanswered(str(error)) from error
        return reply

    def notice(self, label: str, reason: str, token: str) -> None:
        """Hosts of this world die without a word."""

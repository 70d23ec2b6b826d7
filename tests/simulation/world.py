"""One world per seed: the real product over simulated ports, machines, users, a scheduler, and a nemesis."""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
import shutil
import string
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from common import bootstrap
from common.config import Settings
from common.domain.instance import Instance
from common.domain.liveness import Heard
from common.domain.pool import PoolTerms
from common.domain.retention import Retention
from common.ports import App, Deployment, Market
from common.records import manifest_key_of
from jobs import hibernate_idle, prune_snapshots, reconcile, refill_warm_pool
from tests.simulation import story, tensordock, vast
from tests.simulation.clock import Killed, Loop, Task
from tests.simulation.faults import Faults, Strike
from tests.simulation.google import Google
from tests.simulation.google import adapter as google_adapter
from tests.simulation.hosts import Machine
from tests.simulation.invariants import Oracle
from tests.simulation.invariants_conflict import Conflicts
from tests.simulation.invariants_copies import Copies
from tests.simulation.invariants_pair import Pairs
from tests.simulation.invariants_snapshots import Snapshots
from tests.simulation.mail import Mail
from tests.simulation.market import API_KEY, GPU, Account, Contract
from tests.simulation.nemesis import Nemesis
from tests.simulation.objects import Bucket, Content, Workspaces
from tests.simulation.pairs import Link
from tests.simulation.plan import Plan
from tests.simulation.ports import FaultyAnnouncer, FaultyMarket, FaultyObjects, FaultyStandbys, FaultyStore, Gate
from tests.simulation.slack import SIGNING_SECRET, TOKEN, Workspace
from tests.simulation.slack_people import People
from tests.simulation.standbys import Standby
from tests.simulation.store import MemoryStore
from tests.simulation.users import Users
from tests.simulation.web import SCHEDULE_DEADLINE_S, Web
from tests.simulation.webhooks import Webhooks

JWT_SECRET = "jwt-canary-0123456789abcdef012345"
STORAGE_SECRET = "storage-canary-0123456789"
QUIET_AT_LEAST_S = 120.0
QUIET_AT_MOST_S = 5_400.0
LOOK_EVERY_S = 60.0
KEEP = Retention(last=3, hourly=1, daily=1, weekly=0)
SETTLED_LOOKS = 2
"""The world is judged when it looked the same, and good, so many times in a row."""
JOBS = (
    ("reconcile", reconcile.run),
    ("hibernate_idle", hibernate_idle.run),
    ("refill_warm_pool", refill_warm_pool.run),
    ("prune_snapshots", prune_snapshots.run),
)
ACCOUNTS: dict[str, type[Account]] = {"vast": vast.VastAccount, "tensordock": tensordock.TensorDockAccount}
ADAPTERS: dict[str, Callable[[Account], Market]] = {"vast": vast.adapter, "tensordock": tensordock.adapter}
ANNOUNCING = {"vast"}
ALPHABET = string.ascii_lowercase + string.digits
_homes = itertools.count()


@dataclass
class Outcome:
    seed: int
    violations: list[str]
    events: int
    calls: int
    kills: int
    digest: str
    hits: list[tuple[str, int]]
    cells: dict[tuple[str, str], int]
    virtual_s: float
    pairs: dict[str, int]
    """What became of pairs: how many seals, take-overs, hand-backs, ..."""
    ending: dict[str, tuple[str, int]]
    """Which instance ended in which phase, on how many machines; without those whose end no user chose."""


class World:
    def __init__(self, seed: int, faults: Faults, plan: Plan, folder: Path, *, trace: bool = False) -> None:
        self.seed, self.faults, self.plan = seed, faults, plan
        self.loop = Loop()
        self.faults_end = plan.faults_for_s
        self.calls_with_faults = 0
        self.folder = folder / f"{next(_homes)}"
        self.folder.mkdir()
        self.machines: dict[Any, Machine] = {}
        """By the marketplace's id."""
        self.workspaces = Workspaces()
        self.taken: dict[str, Content] = {}
        """Manifest key -> what was in it, as the world knows."""
        self.log: list[tuple[float, str, dict[str, Any]]] = []
        self.secrets = (JWT_SECRET, API_KEY, STORAGE_SECRET, TOKEN, SIGNING_SECRET)
        self._when_quiet: list[Any] = []
        self._jobs: list[Task] = []
        self._strangers: list[Contract] = []
        self.broke: set[str] = set()
        """Accounts whose cap is used up for good."""
        self._make_ports(trace)
        self.webhooks = {a.name: Webhooks(self, a) for a in self.accounts if a.name in ANNOUNCING}
        self.web = Web(self)
        self.web.crashed = self._crashed
        self.users = Users(self, self.rng("users"), [replace(owned, busy=[]) for owned in plan.owned])
        self.people = People(self, self.slack) if self.slack else None
        self.nemesis = Nemesis(self)
        bootstrap.use(self.app)

    def rng(self, purpose: str) -> random.Random:
        return random.Random(f"{purpose}:{self.seed}")

    def _make_ports(self, trace: bool) -> None:
        rng = self.rng("ids")
        self.deployment = Deployment(id="dep001", key=rng.randbytes(32))
        self.google: Google | None = None
        self.pairs = Pairs(self)
        self.conflicts = Conflicts(self)
        self.copies = Copies(self)
        self.snapshots = Snapshots(self)
        self.oracle = Oracle(self)
        self.store = MemoryStore(self.oracle.see)
        self.gate = Gate(
            self.loop,
            self.faults,
            self.phases,
            self.rng("latency"),
            later=self.at_or_when_quiet,
            trace=[] if trace else None,
        )
        self.mail = Mail(self, self.gate)
        self.slack = Workspace(self, self.gate) if self.plan.in_slack else None
        self.accounts = [self._make_account(name) for name in self.plan.markets]
        if self.plan.with_standby:
            self.google = self._make_google()
        self.bucket = self.make_bucket()
        self.bucket.deleting = self.snapshots.deleting
        settings = Settings(
            store="sqlite:///unused",
            url="https://functions.sim",
            jwt_secret=JWT_SECRET,
            vast_api_key=API_KEY,
            tensordock_api_key=API_KEY,
            storage_endpoint="https://bucket.sim",
            host_storage_endpoint="https://bucket.sim",
            bucket="bucket",
            storage_key_id="key-id",
            storage_application_key=STORAGE_SECRET,
            bundle_sha256="0" * 64,
            timing=self.plan.timing,
            pool=PoolTerms(size=self.plan.pool_size, gpu=GPU),
            keep=KEEP,
            slack_bot_token=TOKEN if self.slack else None,
            slack_signing_secret=SIGNING_SECRET if self.slack else None,
        )
        self.app = App(
            settings=settings,
            store=FaultyStore(self.store, self.gate),
            markets={account.name: self._make_port(account) for account in self.accounts},
            standbys=self._make_standbys(self.google) if self.google else None,
            objects=FaultyObjects(self.bucket, self.gate),
            clock=self.loop.clock,
            ids=lambda: "".join(rng.choices(ALPHABET, k=bootstrap.ID_LENGTH)),
            deployment=lambda: self.deployment,
            log=self._note,
            random=self.rng("keys").randbytes,
            heard=Heard("unused", self.plan.timing.silent_after_s),
            nudge=lambda key: self.web.nudge(key),
            courier=self.mail,
            chat=self.slack.chat if self.slack else None,
            nudge_outbox=lambda: self.web.nudge_outbox(),
        )

    def _make_account(self, name: str) -> Account:
        account = ACCOUNTS[name](self.loop, self.faults, self.phases, self.rng("market" if name == "vast" else name))
        account.after = functools.partial(self._carry_out, account)
        account.created = functools.partial(self._created, account)
        account.destroying = self.oracle.destroying
        return account

    def _make_port(self, account: Account) -> Market:
        kind = FaultyAnnouncer if account.name in ANNOUNCING else FaultyMarket
        market = kind(self.make_market(account), self.gate)
        market.about = lambda provider_id: next(
            (c.label for c in account.sim.all_contracts() if str(c.id) == provider_id), ""
        )
        market.create_again = account.create_again
        return market

    def _make_google(self) -> Google:
        google = Google(self.loop, self.faults, self.phases, self.rng("google"))
        google.after = functools.partial(self._carry_out, google)
        google.created = self.oracle.created
        google.destroying = self.oracle.destroying
        return google

    def _make_standbys(self, google: Google) -> FaultyStandbys:
        port = FaultyStandbys(google_adapter(google), self.gate)
        port.about = lambda provider_id: provider_id.rpartition("/")[2]
        return port

    def make_market(self, account: Account) -> Market:
        return ADAPTERS[account.name](account)

    def make_bucket(self) -> Bucket:
        return Bucket(lambda: self.loop.now)

    # --- running

    def run(self) -> Outcome:
        self.begin()
        while self.loop.now < self.faults_end and not self.loop.stopped:
            self.loop.run(min(self.faults_end, self.loop.now + LOOK_EVERY_S))  # a story sets its own end
            if self.faults.has_hit_its_cells:
                self.faults_end = self.loop.now
        self.calm()
        self._until_settled()
        self.oracle.judge_the_end()
        return self.end()

    def begin(self) -> None:
        self._subscribe()
        if self.plan.story:
            (owned,) = self.users.owned
            live = story.live_with_standby if self.plan.with_standby else story.live
            self.loop.spawn(lambda: live(self, owned), "user")
        else:
            self.users.begin()
        self.loop.at(1.0, self._minute)
        self.loop.at(1.0, self.nemesis.look)

    def _subscribe(self) -> None:
        """By hand, before anything breaks."""
        self.faults.active = False
        self.mail.subscribe()
        if self.people:
            self.people.begin()
        for webhooks in self.webhooks.values():
            webhooks.subscribe()
        self.faults.active = True

    def calm(self) -> None:
        """Faults stop; what was on its way still arrives."""
        self.faults.active, self.calls_with_faults = False, self.gate.calls
        self.gate.reach.cut_until.clear()
        for account in self.accounts:
            account.has_offers, account.is_fuzzy = True, False
        for fate in [fate for account in self.accounts for fate in account.fates.values()]:
            fate.fails_destroy_until = fate.throttles_destroy_until = fate.defers_destroy_s = 0.0
            fate.line, fate.has_small_disk, fate.is_mute = max(fate.line, 0.5), False, fate.is_mute
        for machine in self.machines.values():
            machine.cut_until.clear()
            machine.standing_until = machine.disk_full_until = machine.signal_until = 0.0
        for action in self._when_quiet:
            action()
        if self.google:
            self.google.calm()
        self._when_quiet.clear()
        self.oracle.quiet_since = self.loop.now

    def _until_settled(self) -> None:
        """Judged as soon as it holds still; what never does is a violation of its own."""
        looks, until = 0, self.loop.now + QUIET_AT_MOST_S
        self.loop.run(self.loop.now + QUIET_AT_LEAST_S)
        while self.loop.now < until and looks < SETTLED_LOOKS and not self.loop.stopped:
            self.loop.run(self.loop.now + LOOK_EVERY_S)
            looks = looks + 1 if self.oracle.is_settled() else 0

    def end(self) -> Outcome:
        self.loop.stopped = True
        digest = hashlib.sha256(self._final_state().encode()).hexdigest()[:16]
        shutil.rmtree(self.folder, ignore_errors=True)
        self.loop.end()
        return Outcome(
            seed=self.seed,
            violations=self.oracle.violations,
            events=self.loop.events,
            calls=self.gate.calls,
            kills=self.gate.kills,
            digest=digest,
            hits=self.faults.hits,
            cells=dict(self.faults.cells),
            virtual_s=self.loop.now,
            pairs=dict(self.pairs.counts + self.conflicts.counts + self.copies.counts),
            ending=self._ending(),
        )

    def _ending(self) -> dict[str, tuple[str, int]]:
        """A budget that is used up, or nothing that could be restored, decides in its user's place."""
        ending: dict[str, tuple[str, int]] = {}
        for number, owned in enumerate(self.users.owned):
            record = self.record(owned.key)
            if record is None or not owned.final or owned.account in self.broke:
                continue
            if record["phase"] == "ended" and owned.final != "gone":
                continue
            billing = [c for c in self.gpus() if c.listed and self.key_of_label(c.label) == owned.key]
            ending[f"instance {number}"] = record["phase"], len(billing)
        return ending

    def _final_state(self) -> str:
        docs = [
            (c, id, str(doc.data)) for c, docs in sorted(self.store.docs.items()) for id, doc in sorted(docs.items())
        ]
        bills = [
            (c.id, c.label, str(account.sim.billed(c.id, self.loop.clock())))
            for account in [*self.accounts, *([self.google] if self.google else [])]
            for c in account.sim.all_contracts()
        ]
        return f"{docs} {bills} {self.loop.events} {self.gate.calls}"

    # --- the scheduler

    def _minute(self) -> None:
        self.loop.after(self.plan.timing.reconcile_every_s, self._minute)
        for name, job in JOBS:
            if self.strike("schedule_skipped", ""):
                continue
            delay = late.length_s() if (late := self.struck("schedule_late", "")) else 0.0
            starts = 2 if self.strike("schedule_double", "") else 1
            for _ in range(starts):
                self.loop.after(delay, lambda name=name, job=job: self._start_job(name, job))

    def _start_job(self, name: str, job: Any) -> None:
        """Cloud Scheduler starts no second run while one is younger than its deadline."""
        running = [t for t in self._jobs if t.name == name and not t.is_over]
        if running and self.loop.now - running[-1].facts["at"] < SCHEDULE_DEADLINE_S and self.faults.active is False:
            return
        task = self.web.invoke(name, lambda: job(self.app), at=self.loop.now)
        self._jobs = [t for t in self._jobs if not t.is_over] + [task]

    # --- faults

    def strike(self, knob: str, about: Any) -> bool:
        return self.struck(knob, about) is not None

    def struck(self, knob: str, about: Any) -> Strike | None:
        """`about`: a machine, an instance's key, or '' for everything."""
        if knob not in self.faults.on:
            return None
        text = about if isinstance(about, str) else about.label
        return self.faults.strike(knob, lambda: self.phases(text))

    def phases(self, about: str) -> set[str]:
        phases = self.oracle.phases
        found = {phase for key, phase in phases.items() if key.partition(".")[2] in about}
        return found or set(phases.values())

    def at_or_when_quiet(self, when: float, action: Any) -> None:
        """At that time, or when the faults stop."""
        done: list[bool] = []

        def once() -> None:
            if not done:
                done.append(True)
                action()

        self.loop.at(when, once)
        self._when_quiet.append(once)

    @staticmethod
    def delta(seconds: float) -> timedelta:
        return timedelta(seconds=seconds)

    # --- machines

    def gpus(self) -> list[Contract]:
        """All that ever were, on every marketplace."""
        return [contract for account in self.accounts for contract in account.sim.all_contracts()]

    def contracts(self) -> list[Contract]:
        """And the standbys."""
        return [*self.gpus(), *(self.google.sim.all_contracts() if self.google else ())]  # type: ignore[list-item]

    def _created(self, account: Account, contract: Contract) -> None:
        self.oracle.created(contract)
        for after_s in account.boot_times(contract):
            self.loop.after(after_s + 0.01, functools.partial(self._tick, account))

    def _tick(self, account: Account) -> None:
        account.sim.tick(self.loop.clock())
        self._carry_out(account)

    def _carry_out(self, account: Any) -> None:
        for effect in account.sim.drain():
            contract = next(c for c in account.sim.all_contracts() if c.id == effect.contract_id)
            if self.is_stranger(contract):
                continue
            machine = self.machines.get(contract.id)
            if effect.kind == "start":
                self._start(account, contract, effect.env["DUMONT_BOOTSTRAP"])
            elif machine and effect.kind == "stop":
                machine.die()
            elif machine:
                machine.end()
                shutil.rmtree(machine.home, ignore_errors=True)
        if account.name in self.webhooks:
            self.webhooks[account.name].send_due()

    def _start(self, account: Any, contract: Contract, token: str) -> None:
        if before := self.machines.get(contract.id):
            before.start()  # Google's, on its own disk
            return
        is_standby = account is self.google
        home = self.folder / (contract.label if is_standby else str(contract.id))
        home.mkdir()
        machine = (Standby if is_standby else Machine)(
            world=self,
            account=account,
            contract=contract,
            fate=account.fate(contract.id),
            home=home,
            token=token,
            rng=self.rng(f"machine:{contract.label}"),
        )
        machine.link = Link(machine) if self.google else None
        self.machines[contract.id] = machine
        machine.start()

    def add_stranger(self, label: str) -> None:
        contract = self.rng(label).choice(self.accounts).strangers(label, self.loop.clock())
        if contract:
            self._strangers.append(contract)

    def is_stranger(self, contract: Contract) -> bool:
        return any(contract is stranger for stranger in self._strangers)

    def machine_of(self, label: str | None) -> Machine | None:
        return next((m for m in self.machines.values() if m.label == label), None)

    def key_of_label(self, label: str) -> str | None:
        """Which instance a label belongs to, as its record says."""
        doc = self.store.docs.get("rentals", {}).get(label)
        return doc.data["instance_key"] if doc else None

    def data_key(self, key: str) -> bytes:
        """With which an instance's snapshots are encrypted."""
        record = self.record(key)
        assert record
        return manifest_key_of(self.app, Instance.model_validate(record))

    def record(self, key: str) -> dict[str, Any] | None:
        doc = self.store.docs.get("instances", {}).get(key)
        return doc.data if doc else None

    # --- what the product says

    def _note(self, event: str, **fields: Any) -> None:
        if event == "internal_error":
            self.oracle.violate("I0", f"an internal error: {fields.get('error')} {str(fields.get('trace'))[-600:]}")
        self.log.append((self.loop.now, event, fields))

    def _crashed(self, task: Task, error: BaseException) -> None:
        if not isinstance(error, Killed):
            import traceback

            self.oracle.violate(
                "I0", f"{task.name} raised {error!r}: {''.join(traceback.format_exception(error))[-800:]}"
            )


__all__ = ["Faults", "Outcome", "World"]

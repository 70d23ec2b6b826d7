"""What breaks by itself: every NEMESIS_S the world looks at each machine, the account and the bucket."""

from __future__ import annotations

import functools
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING

from common.domain.host import ClaimReport, Notice
from common.domain.retention import Retention
from common.domain.spec import SnapshotTerms
from common.records import load
from common.workflows import budgets, prune
from tests.simulation.faults import Strike
from tests.simulation.hosts import Machine

if TYPE_CHECKING:
    from tests.simulation.world import World

NEMESIS_S = 20.0
SPENT_USD_PER_DAY = Decimal("0.0001")
STAYS_SPENT = 0.5


class Nemesis:
    def __init__(self, world: World) -> None:
        self._world = world
        self._hosts, self._account = (
            {knob: strike_it for knob, strike_it in table.items() if knob in world.faults.on}
            for table in (HOST, ACCOUNT)
        )
        self._pairs = {knob: strike_it for knob, strike_it in PAIR.items() if knob in world.faults.on and world.google}

    def look(self) -> None:
        world = self._world
        if world.loop.now < world.faults_end:
            world.loop.after(NEMESIS_S, self.look)
        for machine in list(world.machines.values()):
            if not machine.is_gone:
                self._machine(machine)
        for knob, strike_it in self._account.items():
            if strike := world.struck(knob, ""):
                strike_it(self, strike)

    def _machine(self, machine: Machine) -> None:
        for knob, strike_it in self._hosts.items():
            if machine.is_standby and knob in OF_CONTAINERS:
                continue
            if machine.is_running and (strike := self._world.struck(knob, machine)):
                strike_it(self, machine, strike)
        for knob, strike_pair in self._pairs.items():
            is_meant = machine.is_standby == (knob in OF_STANDBYS)
            if is_meant and machine.is_running and (strike := self._world.struck(knob, machine)):
                strike_pair(self, machine, strike)

    # --- machines

    def outbid(self, machine: Machine, _strike: Strike) -> None:
        world = self._world
        if machine.contract.listed and not machine.contract.is_stopped:
            world.web.last_word(machine)
            machine.account.stop(machine.contract, world.loop.clock())

    def lost(self, machine: Machine, _strike: Strike) -> None:
        world = self._world
        if machine.contract.listed:
            world.web.last_word(machine)
            machine.account.lose(machine.contract, world.loop.clock())

    def offline(self, machine: Machine, strike: Strike) -> None:
        """The market sees the host go, and nobody reaches it; it comes back as it was."""
        world, until = self._world, self._until(strike)
        if machine.contract.listed and machine.account.offline(machine.contract):
            machine.cut_until |= {"control": until, "objects": until}
            world.at_or_when_quiet(until, lambda: machine.account.back_online(machine.contract))

    def expires(self, machine: Machine, strike: Strike) -> None:
        world, account, contract = self._world, machine.account, machine.contract
        if not contract.listed or contract.is_stopped:
            return
        account.stop(contract, world.loop.clock())
        until = world.loop.now + 300 + strike.length_s()
        world.at_or_when_quiet(until, lambda: contract.listed and account.lose(contract, world.loop.clock()))

    def crash(self, machine: Machine, _strike: Strike) -> None:
        machine.die()
        machine.account.exit(machine.contract)

    def freeze(self, machine: Machine, strike: Strike) -> None:
        machine.standing_until = self._until(strike)

    def agent_restarts(self, machine: Machine, _strike: Strike) -> None:
        machine.restart_agent()

    def cut_control(self, machine: Machine, strike: Strike) -> None:
        machine.cut_until["control"] = self._until(strike)

    def cut_replies(self, machine: Machine, strike: Strike) -> None:
        machine.cut_until["replies"] = self._until(strike)

    def cut_bucket_of_host(self, machine: Machine, strike: Strike) -> None:
        machine.cut_until["objects"] = self._until(strike)

    def clock_jumps(self, machine: Machine, strike: Strike) -> None:
        machine.clock_off_s += strike.length_s() * strike.rng.choice((-1, 1))

    def disk_fills(self, machine: Machine, strike: Strike) -> None:
        machine.disk_full_until = self._until(strike)

    def gpu_stale(self, machine: Machine, strike: Strike) -> None:
        """The sampling loop hangs: no sample is taken, and none is made up."""
        if machine.agent is not None:
            machine.agent.next_sample_at = machine.now() + (self._world.delta(30 + strike.length_s()))

    def signal(self, kind: str) -> Callable[[Machine, Strike], None]:
        def change(machine: Machine, strike: Strike) -> None:
            machine.signal, machine.signal_until = kind, self._until(strike) + 120

        return change

    def _until(self, strike: Strike) -> float:
        """Faults stop when their time is over, however long they would have been."""
        world = self._world
        return min(world.loop.now + 5 + strike.length_s(), max(world.faults_end, world.loop.now))

    # --- pairs

    def standby_preempted(self, standby: Machine, _strike: Strike) -> None:
        assert self._world.google
        self._world.google.preempt(standby.contract)  # type: ignore[arg-type]

    def standby_lost(self, standby: Machine, _strike: Strike) -> None:
        self._lose(standby)

    def _lose(self, machine: Machine) -> None:
        if machine.contract.listed:
            machine.account.lose(machine.contract, self._world.loop.clock())

    def cut_pair(self, machine: Machine, strike: Strike) -> None:
        machine.cut_until["pair"] = self._until(strike)

    def gpu_dies_unheard(self, standby: Machine, strike: Strike) -> None:
        """What the standby has and would say, nobody hears."""
        record = self._world.record(standby.key or "")
        gpu = self._world.machine_of(record["writer"]) if record else None
        if gpu and gpu is not standby and record and record["mirror"] == standby.label:
            standby.cut_until["control"] = self._until(strike)
            self._lose(gpu)

    def second_death(self, standby: Machine, strike: Strike) -> None:
        """Of the standby that writes, the GPU that is held, or the candidate."""
        record = self._world.record(standby.key or "")
        if record is None or record["writer"] != standby.label:
            return
        labels = [label for label in (record["standby"], record["held"], record["cand"]) if label]
        if machine := self._world.machine_of(strike.rng.choice(labels)):
            self._lose(machine)

    def claim_forged(self, gpu: Machine, _strike: Strike) -> None:
        """With its own token, which is all that a stranger's machine has."""
        record = self._world.record(gpu.key or "")
        if record is None or gpu.agent is None:
            return
        claim = ClaimReport(epoch=record["epoch"], version_epoch=record["epoch"], version_seq=1_000_000)
        body = Notice(label=gpu.label, reason="sealed", claim=claim).model_dump_json()
        self._world.web.claim(gpu, body, gpu.agent.memory.token)

    def google_stockout(self, strike: Strike) -> None:
        if google := self._world.google:
            google.stock_out(strike, self._until(strike) + 120)

    def google_quota(self, strike: Strike) -> None:
        if google := self._world.google:
            google.use_up_quota(strike)
            self._world.at_or_when_quiet(self._world.loop.now + 60 + strike.length_s(), google.calm)

    def google_slow(self, strike: Strike) -> None:
        if google := self._world.google:
            google.sim.slow(60 + 300 * strike.rng.random())
            self._world.at_or_when_quiet(self._world.loop.now + 60 + strike.length_s(), google.calm)

    # --- the account, the network of the control plane, the bucket

    def credit_gone(self, strike: Strike) -> None:
        world = self._world
        account = strike.rng.choice(world.accounts)
        account.set_credit("0")
        account.sim.tick(world.loop.clock())
        account.after()
        world.at_or_when_quiet(world.loop.now + 60 + strike.length_s(), lambda: account.set_credit("1000000"))

    def region_down(self, strike: Strike) -> None:
        world = self._world
        running = [machine for machine in world.machines.values() if machine.contract.listed]
        place = strike.rng.choice(sorted({m.account.place(m.contract) for m in running} or {""}))
        for machine in running:
            if machine.contract.listed and machine.account.place(machine.contract) == place:
                machine.account.lose(machine.contract, world.loop.clock())

    def no_offers(self, strike: Strike) -> None:
        world = self._world
        account = strike.rng.choice(world.accounts)
        account.has_offers = False
        world.at_or_when_quiet(world.loop.now + 30 + strike.length_s(), lambda: setattr(account, "has_offers", True))

    def price_fuzz(self, strike: Strike) -> None:
        world = self._world
        account = strike.rng.choice(world.accounts)
        account.is_fuzzy = True
        world.at_or_when_quiet(world.loop.now + 30 + strike.length_s(), lambda: setattr(account, "is_fuzzy", False))

    def budget_spent(self, strike: Strike) -> None:
        """A cap that the first machine of the day uses up: set by a user, and taken back by one unless it stays."""
        world = self._world
        account = strike.rng.choice(sorted({owned.account for owned in world.plan.owned}))
        budgets.put(world.app, account, usd_per_hour=None, usd_per_day=SPENT_USD_PER_DAY)
        if strike.rng.random() < STAYS_SPENT:
            world.broke.add(account)
        elif account not in world.broke:
            raised = functools.partial(self._raise_budget, account)
            world.at_or_when_quiet(world.loop.now + 120 + strike.length_s(), raised)

    def _raise_budget(self, account: str) -> None:
        if account not in self._world.broke:
            budgets.put(self._world.app, account, usd_per_hour=None, usd_per_day=None)

    def foreign_machine(self, strike: Strike) -> None:
        self._world.add_stranger(f"my-own-box-{strike.count}")

    def forged_label(self, strike: Strike) -> None:
        """Another deployment's label, or one of ours with a tag that nobody signed."""
        deployment = self._world.deployment.id if strike.rng.random() < 0.5 else "other0"
        owner = next((owned.key.partition(".")[2] for owned in self._world.users.owned if owned.key), "nobody")
        self._world.add_stranger(f"dumont-{deployment}-{owner}-{1 + strike.count}-{strike.rng.getrandbits(32):08x}")

    def cut(self, port: str) -> Callable[[Strike], None]:
        def cut_off(strike: Strike) -> None:
            self._world.gate.reach.cut_until[port] = self._until(strike)

        return cut_off

    def keeps_less(self, strike: Strike) -> None:
        """The user's write: nothing may come of it that the newest snapshot does not hold."""
        world = self._world
        keys = sorted(owned.key for owned in world.users.owned if owned.key and world.record(owned.key))
        if keys:
            terms = SnapshotTerms(keep=Retention(last=1, hourly=0, daily=0, weekly=0))
            prune.change_terms(world.app, load(world.app, strike.rng.choice(keys)), terms, world.loop.clock())

    def bit_rot(self, strike: Strike) -> None:
        bucket = self._world.bucket
        if keys := sorted(bucket.objects):
            bucket.garble(strike.rng.choice(keys), is_rot=True)

    def object_vanishes(self, strike: Strike) -> None:
        bucket = self._world.bucket
        if keys := sorted(bucket.objects):
            bucket.lose(strike.rng.choice(keys))


HOST: dict[str, Callable[[Nemesis, Machine, Strike], None]] = {
    "outbid": Nemesis.outbid,
    "lost": Nemesis.lost,
    "offline": Nemesis.offline,
    "expires": Nemesis.expires,
    "crash": Nemesis.crash,
    "freeze": Nemesis.freeze,
    "agent_restarts": Nemesis.agent_restarts,
    "cut_control": Nemesis.cut_control,
    "cut_replies": Nemesis.cut_replies,
    "cut_objects": Nemesis.cut_bucket_of_host,
    "clock_jumps": Nemesis.clock_jumps,
    "disk_fills": Nemesis.disk_fills,
    "gpu_missing": lambda self, machine, strike: self.signal("missing")(machine, strike),
    "gpu_nan": lambda self, machine, strike: self.signal("nan")(machine, strike),
    "gpu_spikes": lambda self, machine, strike: self.signal("spikes")(machine, strike),
    "gpu_stale": Nemesis.gpu_stale,
}
OF_CONTAINERS = frozenset({"outbid", "lost", "offline", "expires", "crash"})
"""What a marketplace does to its machines."""
PAIR: dict[str, Callable[[Nemesis, Machine, Strike], None]] = {
    "standby_preempted": Nemesis.standby_preempted,
    "standby_lost": Nemesis.standby_lost,
    "cut_pair": Nemesis.cut_pair,
    "gpu_dies_unheard": Nemesis.gpu_dies_unheard,
    "second_death": Nemesis.second_death,
    "claim_forged": Nemesis.claim_forged,
}
OF_STANDBYS = PAIR.keys() - {"claim_forged"}
ACCOUNT: dict[str, Callable[[Nemesis, Strike], None]] = {
    "credit_gone": Nemesis.credit_gone,
    "region_down": Nemesis.region_down,
    "no_offers": Nemesis.no_offers,
    "price_fuzz": Nemesis.price_fuzz,
    "budget_spent": Nemesis.budget_spent,
    "foreign_machine": Nemesis.foreign_machine,
    "forged_label": Nemesis.forged_label,
    "cut_market": lambda self, strike: self.cut("market")(strike),
    "cut_bucket": lambda self, strike: self.cut("objects")(strike),
    "cut_store": lambda self, strike: self.cut("store")(strike),
    "chat_cut": lambda self, strike: self.cut("chat")(strike),
    "google_stockout": Nemesis.google_stockout,
    "google_quota": Nemesis.google_quota,
    "google_slow": Nemesis.google_slow,
    "keeps_less": Nemesis.keeps_less,
    "bit_rot": Nemesis.bit_rot,
    "object_vanishes": Nemesis.object_vanishes,
}

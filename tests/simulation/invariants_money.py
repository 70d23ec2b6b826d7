"""I8: the ledger is the bill, to the micro-dollar, and our own meter is as near to the truth as could be known."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from common.config import Timing
from common.domain.address import KIND as ADDRESS
from common.domain.ledger import hour_of, to_micro
from common.ports import Data
from tests.simulation.knobs import BY_NAME

if TYPE_CHECKING:
    from tests.simulation.world import World

METER_UNDER_S = 600.0
"""Ten looks of the reconcile: what our meter may lack where nobody tells when a machine began and ended."""
LOOK_S = Timing().reconcile_every_s
"""And where no listing could show the machine for longer than that, because the market lists a new one late or answers
none: that time, and one look."""
DEFERRED_S = BY_NAME["destroy_deferred"].longest_s
"""And that, when a destroy was answered with success and nobody could see that the machine went on."""
DEAD_MAN_S = Timing().dead_man_s
"""An end that nobody could see is paid for in our books until the market lists again, or the dead man's time ends."""


class Money:
    """Judged once, when the world has come to rest."""

    def __init__(self, world: World) -> None:
        self._world = world

    def judge_the_end(self) -> None:
        self._ledger_is_the_bill()
        self._entries_are_the_rental_s()
        self._our_meter_is_near()

    def _ledger_is_the_bill(self) -> None:
        world, now = self._world, self._world.loop.clock()
        ledger: Counter[tuple[str, str]] = Counter()
        for doc in world.store.docs.get("ledger", {}).values():  # what the pool paid before it had an owner is apart
            ledger[doc.data["label"], doc.data["kind"]] += doc.data["micro_usd"]
        bill: Counter[tuple[str, str]] = Counter()
        billing = {account.name: account for account in world.accounts if account.publishes_a_bill}
        for account in billing.values():
            for contract in account.sim.all_contracts():
                if not contract.listed and not world.is_stranger(contract):
                    for (kind, _), usd in account.billed(contract, now).items():
                        bill[contract.label, kind] += to_micro(usd)
        ended = {c.label for account in billing.values() for c in account.sim.all_contracts() if not c.listed}
        ours = {key: usd for key, usd in ledger.items() if key[0] in ended}
        if ours != bill:
            keys = [key for key in {**ours, **bill} if ours.get(key) != bill.get(key)]
            told = [f"{' '.join(key)} ledger {ours.get(key)} bill {bill[key]}" for key in keys[:3]]
            self._violate(f"the ledger is not the bill: {'; '.join(told)}")

    def _entries_are_the_rental_s(self) -> None:
        """In the hours of its life, and together what its record says that its owner pays."""
        docs, owners = self._world.store.docs, Counter[str]()
        for entry in (doc.data for doc in docs.get("ledger", {}).values() if doc.data["kind"] != ADDRESS):
            rental = docs["rentals"][entry["label"]].data
            owners[entry["label"]] += entry["micro_usd"] if entry["account"] == rental["account"] else 0
            last_heard = max(rental["at"], rental["destroy_called_at"] or rental["at"])  # it may outlive a destroy
            if not hour_of(rental["created_at"]) <= entry["hour"] <= last_heard:
                self._violate(f"{entry['label']} pays for {entry['hour']:%H}h, in which it was not")
        for label, rental in ((id, doc.data) for id, doc in docs.get("rentals", {}).items()):
            if rental["booked_micro_usd"] != owners[label]:
                self._violate(f"{label} says {rental['booked_micro_usd']}, the ledger {owners[label]}")

    def _our_meter_is_near(self) -> None:
        """As near to the truth as could be known: budgets go by it, and the ledger where a market publishes no bill."""
        world = self._world
        for account in (*world.accounts, *([world.google] if world.google else [])):
            is_fooled = account is not world.google and "body_missing_field" in world.faults.on
            if is_fooled:
                continue  # a success that a broken gateway made up ends no meter at the right time
            for contract in account.sim.all_contracts():
                doc = world.store.docs.get("rentals", {}).get(contract.label)
                if not contract.listed and doc is not None and not world.is_stranger(contract):
                    silent_s = world.app.seller(account.name).longest_silence_s
                    over_s = METER_UNDER_S + max(silent_s, DEAD_MAN_S)
                    unlisted_s = account.fate(contract.id).unlisted_s
                    lacks_s = max(METER_UNDER_S, unlisted_s + silent_s + LOOK_S)
                    self._metered(doc.data, account.ran_s(contract), over_s=over_s, lacks_s=lacks_s)

    def _metered(self, rental: Data, ran_s: dict[str, float], *, over_s: float, lacks_s: float) -> None:
        meter = rental["meter"]
        open_until = rental["at"] if rental["state"] == "released" else self._world.loop.clock()
        for kind, truth_s in ran_s.items():
            since, until = meter[f"{kind}_from"], meter[f"{kind}_until"] or meter["offline_from"] or open_until
            paused_s = meter["paused_s" if kind == "gpu" else "disk_paused_s"]
            ours_s = (until - since).total_seconds() - paused_s if since else 0.0
            is_late = "market_late" in self._world.faults.on  # a create may have been carried out much later
            deferred_s = ("destroy_deferred" in self._world.faults.on) * DEFERRED_S
            is_dear = ours_s - truth_s > over_s and not is_late
            if is_dear or truth_s - ours_s > lacks_s + deferred_s:
                self._violate(f"{rental['label']} {kind} ran for {truth_s:.0f} s, metered {ours_s:.0f} s")

    def _violate(self, what: str) -> None:
        self._world.oracle.violate("I8", what)

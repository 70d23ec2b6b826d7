"""`dumont doctor --rent`: one instance from the offer to the bill, on a real machine, through the deployed product.

It is an ordinary instance of whoever asks: what rents, snapshots, restores and destroys is the product, under its own
rules. Here are only the wishes, the bound on their cost, and the looks at what came of them.
"""

from __future__ import annotations

import contextlib
import math
import re
import secrets
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import ROUND_DOWN, ROUND_UP, Decimal
from typing import Any, Protocol

from common.client import ApiProblem, Client
from common.domain.boot import HEDGES_MAX
from common.domain.health import Finding, failed, ok, warning
from common.domain.quotes import RECORDED_GPUS

NAME = "doctor"
"""Of the instances: what an earlier run left is found by it."""
STRATEGY, MACHINES_AT_ONCE = "coldstart", 1 + HEDGES_MAX
DISK_GB = 16
BYTES = 100_000_000
MOVES_BY = Decimal("1.25")
"""The cheapest may be gone or dearer a moment later: up to so many times its price is accepted."""
TRAFFIC_GB = Decimal("0.6")
"""The host bundle and the data down twice, the data up; a machine whose traffic is dear is not the cheapest."""
MODELS_ASKED = 3
"""Searches are few: the vendors bound them."""
IDLE_FOR_S = 600
"""Should nobody be left to end it, the product hibernates it after so long, and nothing bills any more."""
ENDING_S = 300.0
"""Of the time that was allowed: kept for the end."""
LEFT_AFTER_S = 4 * 3600.0
"""Longer than a run may take. What it left before that costs nothing: idle for IDLE_FOR_S, it was hibernated."""
SETTLED_WITHIN_S = 1200.0
GONE_WITHIN_S = 1800.0
POLL_S = 5.0
SSH_TRIES = 24
"""A machine's sshd comes up after its agent."""
SLACK_S, SLACK_SHARE = Decimal(2), Decimal("0.02")
"""By which a charge may differ from our meter: seconds per machine, or a share of the amount."""
FILE = "/workspace/doctor.bin"
FILL = f"mkdir -p /workspace && head -c {BYTES} /dev/urandom > {FILE} && sync && sha256sum {FILE}"
LOOK = f"sha256sum {FILE}"
SHA256 = re.compile(r"\b[0-9a-f]{64}\b")
PRICE = Decimal("0.000001")
LATE_S = 130.0
"""A wish whose answer was lost may be written down for so long: twice the API's time, and a little."""


class Shell(Protocol):
    """A way to run a command on a machine."""

    public_key: str

    def run(self, address: Mapping[str, Any], command: str) -> str | None:
        """What it printed; None = it could not be run, or failed."""


class Broken(Exception):
    """A step of the trial failed: its finding."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.found)
        self.finding = finding


@dataclass(frozen=True)
class Offered:
    """The cheapest machine that may be had, and the price above which none is created."""

    gpu: str
    provider: str
    usd_per_hour: Decimal
    traffic_usd: Decimal
    cap_usd_per_hour: Decimal = Decimal(0)


@dataclass
class Trial:
    """`now()` = seconds since 1970: that this machine slept meanwhile stretches no time; `sleep` lets them pass."""

    api: Client
    shell: Shell
    max_usd: Decimal
    within_s: float
    now: Callable[[], float]
    sleep: Callable[[float], object]
    say: Callable[[str], None]
    gpu: str | None = None
    instance_id: str = ""
    provider: str = ""
    _name: str = field(default_factory=lambda: f"{NAME} {secrets.token_hex(4)}")
    _until: float = math.inf
    _asked_at: float | None = None
    """When the instance was asked for."""

    def run(self) -> Generator[Finding, None, None]:
        """What was seen, step by step. Whatever happens, its instance is ended before this returns or raises."""
        yield from self._end_leftovers()
        try:
            offered = self._choose()
        except Broken as broken:
            yield broken.finding
            return
        self._until = self.now() + self.within_s - ENDING_S
        try:
            yield from self._live(offered)
        except Broken as broken:
            yield broken.finding
        except ApiProblem as problem:
            yield failed("rent", f"the API refused: {problem}", "dumont doctor looks at the rest; then try again")
        finally:
            gone = self._end(self._name)
        yield gone
        if self.instance_id:
            yield from self._charge()

    # --- before anything is rented

    def _choose(self) -> Offered:
        """The cheapest of a few models, if all that may be rented for it stays below the budget to the last second."""
        offers = [offer for gpu in self._models() for offer in self._offers(gpu)]
        if not offers:
            raise Broken(failed("rent: offer", "no machine is offered", "name a model with --gpu, or ask again later"))
        best = min(offers, key=lambda offer: offer.usd_per_hour)
        hours = Decimal(str(self.within_s)) / 3600
        affordable = (self.max_usd - best.traffic_usd) / (hours * MACHINES_AT_ONCE)
        cap = min(best.usd_per_hour * MOVES_BY, affordable).quantize(PRICE, ROUND_DOWN)
        if best.usd_per_hour > cap:
            most = best.usd_per_hour * hours * MACHINES_AT_ONCE + best.traffic_usd
            raise Broken(
                failed(
                    "rent: budget",
                    f"the cheapest machine is a {best.gpu} at {best.usd_per_hour:.4f} USD/h ({best.provider}); "
                    f"{MACHINES_AT_ONCE} of them for {self.within_s / 60:.0f} minutes may come to {most:.4f} USD, "
                    f"above {self.max_usd}. Nothing was rented",
                    f"allow it: --max-usd {most.quantize(Decimal('0.01'), ROUND_UP)}, or less time: --within-min",
                )
            )
        return Offered(best.gpu, best.provider, best.usd_per_hour, best.traffic_usd, cap)

    def _models(self) -> list[str]:
        """The cheapest by what was recorded of the market; on a young deployment the first that are recorded at all."""
        if self.gpu:
            return [self.gpu]
        rows = [row for row in self.api.get("/spot/market")["items"] if row["now"]]
        rows.sort(key=lambda row: Decimal(str(row["now"]["with_disk_usd_per_hour"])))
        return list(dict.fromkeys([*(row["gpu"] for row in rows), *RECORDED_GPUS]))[:MODELS_ASKED]

    def _offers(self, gpu: str) -> Iterator[Offered]:
        try:
            rows = self.api.get("/offers", gpu=gpu, disk_gb=DISK_GB)["items"]
        except ApiProblem as problem:
            self.say(f"{gpu}: {problem}")
            return
        for row in rows:
            if row["blocked_until"] is None:
                per_gb = Decimal(str(row["download_usd_per_gb"])) + Decimal(str(row["upload_usd_per_gb"]))
                yield Offered(gpu, row["provider"], Decimal(str(row["usd_per_hour"])), per_gb * TRAFFIC_GB)

    # --- its life

    def _live(self, offered: Offered) -> Iterator[Finding]:
        self._rent(offered)
        shown = self._until_state("running", "rent: ready")
        self.provider = next(row["provider"] for row in shown["rentals"] if row["state"] == "serving")
        yield ok("rent: ready", f"{offered.gpu} at {self.provider}, below {offered.cap_usd_per_hour:.4f} USD/h")
        written = self._sha256(FILL, "rent: write")
        self._ask("hibernate")
        snapshot = self._until_state("hibernated", "rent: snapshot")["snapshot"]
        if snapshot is None or snapshot["bytes"] < BYTES:
            raise Broken(failed("rent: snapshot", f"it does not hold {BYTES} bytes: {snapshot}", "read its events"))
        yield ok("rent: snapshot", f"{snapshot['bytes']} bytes verified, and the machine given back")
        self._ask("wake")
        self._until_state("running", "rent: restore")
        if (found := self._sha256(LOOK, "rent: restore")) != written:
            raise Broken(failed("rent: restore", f"SHA-256 {found}, not {written}", "keep the instance's snapshots"))
        yield ok("rent: restore", "byte-identical on another rental")

    def _rent(self, offered: Offered) -> None:
        body = {
            "gpu": offered.gpu,
            "strategy": STRATEGY,
            "name": self._name,
            "disk_gb": DISK_GB,
            "max_usd_per_hour": str(offered.cap_usd_per_hour),
            "ssh_public_key": self.shell.public_key,
            "idle_for_s": IDLE_FOR_S,
        }
        self.say(f"renting a {offered.gpu}, at most {body['max_usd_per_hour']} USD/h")
        self._asked_at = self.now()
        operation = self.api.post("/instances/provision", body, key=secrets.token_hex(12))["operation"]
        self.instance_id = operation["instance_id"]

    def _ask(self, verb: str) -> None:
        self.say(verb)
        self.api.post(f"/instances/{self.instance_id}/{verb}", {}, key=secrets.token_hex(12))

    def _until_state(self, state: str, check: str) -> Any:
        """The instance in that state; raises `Broken` when it fails or the time is over."""
        shown: Any = {"state": "unknown"}
        while self.now() < self._until:
            before = shown["state"]
            with contextlib.suppress(ApiProblem):  # whoever does not answer now may do so the next time
                shown = self.api.get(f"/instances/{self.instance_id}")
            if shown["state"] != before:
                self.say(f"  it is {shown['state']}")
            if shown["state"] == state:
                return shown
            if shown["state"] in ("failed", "terminated"):
                raise Broken(failed(check, f"it {shown['state']}: {shown['failure']}", self._mend()))
            self.sleep(POLL_S)
        minutes = self.within_s / 60
        raise Broken(failed(check, f"still {shown['state']} when {minutes:.0f} minutes were used up", self._mend()))

    def _mend(self) -> str:
        return f"dumont instances why {self.instance_id}; more time: --within-min"

    def _sha256(self, command: str, check: str) -> str:
        """Of the file on the present machine, after the command."""
        for _ in range(SSH_TRIES):
            address = self.api.get(f"/instances/{self.instance_id}")["address"]
            said = self.shell.run(address, command) if address else None
            if said is not None and (found := SHA256.search(said)):
                return found[0]
            if self.now() >= self._until:
                break
            self.sleep(POLL_S)
        raise Broken(failed(check, f"the machine takes no command by ssh at {address}", "see dumont ssh --print"))

    # --- its end

    def _end_leftovers(self) -> Iterator[Finding]:
        """Of an earlier run that nobody could end; one that is younger may be somebody's who runs it now."""
        for shown in self._instances(lambda name: name.startswith(f"{NAME} ")):
            age_s = self.now() - datetime.fromisoformat(shown["created_at"]).timestamp()
            if shown["state"] != "terminated" and age_s > LEFT_AFTER_S:
                self.say(f"ending {shown['id']}, left by an earlier run")
                yield self._end(shown["name"])

    def _end(self, name: str) -> Finding:
        """Asked for until the product says that a later listing lacks every machine; silence is not believed."""
        deadline, last = self.now() + GONE_WITHIN_S, "nobody answers"
        while self.now() < deadline:
            try:
                found = self._instances(lambda shown: shown == name)
                open_ = [self._pushed(shown) for shown in found]
                if not any(open_) and not self._may_come(name, found):
                    self._purge(found)
                    return ok("rent: end", f"{len(found)} instance ended; every machine of it is gone from the listing")
                last = "; ".join(line for line in open_ if line)
            except ApiProblem as problem:
                last = str(problem)
            self.sleep(POLL_S)
        mend = f"watch: dumont instances show {self.instance_id or '(see dumont instances list)'}; the product goes on"
        return failed("rent: end", f"not all gone after {GONE_WITHIN_S / 60:.0f} minutes: {last}", mend)

    def _may_come(self, name: str, found: list[Any]) -> bool:
        """Its wish was sent, no answer came, and none is listed yet."""
        asked_at = self._asked_at if name == self._name and not found else None
        return asked_at is not None and self.now() < asked_at + LATE_S

    def _instances(self, fits: Callable[[str], bool]) -> list[Any]:
        page = self.api.get("/instances")
        found = [*page["items"]]
        while page["next_cursor"]:
            page = self.api.get("/instances", cursor=page["next_cursor"])
            found += page["items"]
        return [shown for shown in found if fits(shown["name"])]

    def _pushed(self, shown: Any) -> str:
        """What is still open of one instance, which is told to end if it was not; empty = nothing."""
        self.instance_id = self.instance_id or (shown["id"] if shown["name"] == self._name else "")
        if shown["want"] != "gone" and shown["state"] != "terminated":
            self.api.post(f"/instances/{shown['id']}/terminate", {"discard": True}, key=secrets.token_hex(12))
        machines = [f"{row['label']} {row['state']}" for row in shown["rentals"] if row["state"] != "released"]
        return f"{shown['id']} is {shown['state']} {machines}" if machines or shown["state"] != "terminated" else ""

    def _purge(self, found: list[Any]) -> None:
        """Its snapshots are of no worth; that they stay for some days would cost nothing to speak of."""
        for shown in found:
            with contextlib.suppress(ApiProblem):
                self.api.post(f"/instances/{shown['id']}/purge", {}, key=secrets.token_hex(12))

    # --- its bill

    def _charge(self) -> Iterator[Finding]:
        """What the provider charged beside what we computed."""
        self.say("waiting for the bill")
        deadline, shown = self.now() + SETTLED_WITHIN_S, None
        while self.now() < deadline:
            with contextlib.suppress(ApiProblem):
                shown = self.api.get(f"/instances/{self.instance_id}")
                if not shown["rentals"]:
                    break
            self.sleep(POLL_S)
        if shown is None or shown["rentals"]:
            mend = f"look later: dumont instances show {self.instance_id}"
            yield warning("rent: charge", f"not settled after {SETTLED_WITHIN_S / 60:.0f} minutes", mend)
            return
        yield self._judged(Decimal(str(shown["cost"]["ledger_usd"])), Decimal(str(shown["cost"]["metered_usd"])))

    def _judged(self, charged: Decimal, computed: Decimal) -> Finding:
        found = f"charged {charged:.6f} USD, computed {computed:.6f} USD, allowed {self.max_usd} USD"
        if self.provider == "tensordock":
            found += "; the provider publishes no bill, so both are our own"
        slack = max(computed * SLACK_SHARE, SLACK_S * MACHINES_AT_ONCE * 2 * self.max_usd / Decimal(str(self.within_s)))
        if charged > self.max_usd:
            return failed("rent: charge", found, "look at the bill: what is not ours in it?")
        if abs(charged - computed) > slack:
            return warning("rent: charge", found, "compare the provider's bill with dumont instances show")
        return ok("rent: charge", found)

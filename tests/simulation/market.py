"""A marketplace of the world: its simulator behind the real adapter, answering as badly as a vendor can.

What all of them share is here; each vendor's own words are in `vast` and `tensordock`.
"""

from __future__ import annotations

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar, Protocol

from infra.demo import wire
from infra.demo.wire import Answer, Request
from tests.simulation.clock import Loop
from tests.simulation.faults import Faults, Strike

API_KEY = "sim-key-canary-7f3a"
GPU = "RTX 4090"
BOOT_S = (15.0, 90.0)
HTML = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
FUZZ = (0, -1, 1e9, "free", None, "NaN")
Striker = Callable[[str], Strike | None]

NOT_DONE: Mapping[str, Answer] = {
    "body_html_502": Answer(502, HTML, "text/html"),
    "body_500": Answer(500, b'{"success": false, "error": "internal", "msg": "internal error"}'),
    "body_success_false": Answer(200, b'{"success": false, "error": "try_again", "msg": "please try again"}'),
    "body_401": Answer(401, b'{"success": false, "error": "auth_error", "msg": "Invalid user key"}'),
    "body_404": Answer(404, b'{"success": false, "error": "not_found", "msg": "no such endpoint"}'),
}
"""Answers of something in front of the market: it never saw the request."""
DONE: Mapping[str, Callable[[Answer], Answer]] = {
    "body_html_200": lambda _: Answer(200, HTML, "text/html"),
    "body_empty": lambda _: Answer(200, b""),
    "body_truncated": lambda answer: Answer(answer.status, answer.body[: len(answer.body) // 2]),
    "body_list": lambda answer: Answer(answer.status, b"[" + answer.body + b"]"),
    "body_missing_field": lambda _: Answer(200, b'{"success": true}'),
    "body_500_done": lambda _: Answer(500, b'{"success": false, "error": "internal"}'),
}
"""Answers to a request that was carried out."""


class Contract(wire.Contract, Protocol):
    """One rented machine, whatever its vendor calls it."""

    @property
    def listed(self) -> bool: ...

    @property
    def is_stopped(self) -> bool:
        """Its GPU is given back; the disk is kept, and bills."""

    def hardware(self) -> dict[str, Any]: ...


@dataclass
class Fate:
    """What the world has decided about one machine."""

    fails_destroy_until: float = 0.0
    throttles_destroy_until: float = 0.0
    defers_destroy_s: float = 0.0
    refuses_boot: bool = False
    is_mute: bool = False
    is_unmeasurable: bool = False
    line: float = 1.0
    """Part of the advertised bandwidth."""
    has_small_disk: bool = False
    unlisted_s: float = 0.0
    """For so long after its create no listing shows it."""


@dataclass
class Account(ABC):
    """One account at one vendor. `handle` is the vendor's wire, for the adapter in process and the HTTP face alike."""

    loop: Loop
    faults: Faults
    phases: Callable[[str], set[str]]
    rng: random.Random
    sim: Any = field(init=False)
    """`infra.demo.wire.Marketplace`."""
    fates: dict[Any, Fate] = field(default_factory=dict)
    created: Callable[[Contract], None] = lambda _contract: None
    destroying: Callable[[Contract], None] = lambda _contract: None
    after: Callable[[], None] = lambda: None
    """Whenever the market's state may have changed."""
    has_offers: bool = True
    is_fuzzy: bool = False
    _doomed: set[Any] = field(default_factory=set)
    _last_create: Request | None = None

    name: ClassVar[str]
    publishes_a_bill: ClassVar[bool] = True
    offer_gone: ClassVar[Answer]
    destroy_failed: ClassVar[Answer]
    destroyed: ClassVar[Answer]

    def __post_init__(self) -> None:
        self._not_done = {knob: answer for knob, answer in NOT_DONE.items() if knob in self.faults.on}
        self._done = {knob: mar for knob, mar in DONE.items() if knob in self.faults.on}
        self.sim = self.make_sim()
        self.set_credit("1000000")

    def handle(self, request: Request, now: datetime) -> Answer:
        verb, contract = self.verb_of(request)
        about = contract.label if contract else self.label_in(request) if verb == "create" else ""
        strike = self._striker(about)
        self._last_create = request if verb == "create" else self._last_create
        for knob, answer in self._not_done.items():
            if strike(knob):
                return answer
        answer = self._special(verb, contract, strike) or self._carry_out(request, verb, contract, strike, now)
        self.after()
        return self._marred(verb, answer, strike)

    def create_again(self) -> None:
        """Something on the way delivers the last create twice."""
        if self._last_create:
            self.handle(self._last_create, self.loop.clock())

    def _striker(self, about: str) -> Striker:
        on = self.faults.on
        return lambda knob: self.faults.strike(knob, lambda: self.phases(about)) if knob in on else None

    # --- what the vendor itself does

    def _special(self, verb: str, contract: Contract | None, strike: Striker) -> Answer | None:
        if verb == "search" and strike("search_quota"):
            return json_answer(429, {"success": False, "error": "search_quota_exceeded", "msg": "daily quota"})
        if verb == "create" and strike("offer_gone"):
            return self.offer_gone
        if verb != "destroy" or contract is None:
            return None
        fate = self.fate(contract.id)
        if fate.fails_destroy_until > self.loop.now:
            return self.destroy_failed
        if fate.throttles_destroy_until > self.loop.now:
            return Answer(429, b"API requests too frequent: endpoint threshold=3.0", "text/plain")
        if fate.defers_destroy_s and contract.listed:
            self._end_later(contract, fate.defers_destroy_s)
            return self.destroyed
        return None

    def _end_later(self, contract: Contract, after_s: float) -> None:
        self.destroying(contract)
        if contract.id in self._doomed:
            return
        self._doomed.add(contract.id)

        def end() -> None:
            if contract.listed:
                self.lose(contract, self.loop.clock())

        self.loop.after(after_s, end)

    def _carry_out(
        self, request: Request, verb: str, contract: Contract | None, strike: Striker, now: datetime
    ) -> Answer:
        if verb == "destroy" and contract and contract.listed:
            self.destroying(contract)
            answer: Answer = self.sim.handle(request, now)
            if self.is_over(contract) and (ghost := strike("listing_ghosts")):
                self.haunt(contract, ghost.length_s())
            return answer
        known = len(self.sim.all_contracts()) if verb == "create" else 0
        answer = self.sim.handle(request, now)
        if verb == "create" and len(self.sim.all_contracts()) > known:
            return self._created(self.sim.all_contracts()[-1], answer, strike, now)
        return answer

    def _created(self, contract: Contract, answer: Answer, strike: Striker, now: datetime) -> Answer:
        self.fates[contract.id] = self._fate(contract, strike)
        self.created(contract)
        return self.refused_but_rented(contract, now) if strike("refused_but_rented") else answer

    def _fate(self, contract: Contract, strike: Striker) -> Fate:
        """Drawn once, at the create."""
        fate = Fate()
        if lag := strike("listing_lags"):
            fate.unlisted_s = lag.length_s()
            self.hide(contract, fate.unlisted_s)
        if strike("boot_stuck"):
            self.boots_at(contract, None)
        elif slow := strike("boot_slow"):
            self.boots_at(contract, BOOT_S[1] + slow.length_s())
        elif died := strike("boot_dies"):
            self.loop.after(5 + 60 * died.rng.random(), lambda: self.die_at_boot(contract))
        if moved := strike("price_moves"):
            self.reprice(contract, round(0.8 + moved.rng.random(), 2))
        fate.refuses_boot = strike("boot_refuses") is not None
        fate.is_mute = strike("mute") is not None
        fate.has_small_disk = (small := strike("small_disk")) is not None
        fate.is_unmeasurable = strike("attest_missing") is not None
        if wrong := strike("wrong_gpu"):
            self.give_wrong_gpu(contract, wrong.rng)
        if small and small.rng.random() < 0.5:
            self.give_small_disk(contract)
        if slow := strike("slow_line"):
            fate.line = 0.01 + 0.3 * slow.rng.random()
        if failing := strike("destroy_fails"):
            fate.fails_destroy_until = self.loop.now + 300 + failing.length_s()
        if throttled := strike("destroy_throttled"):
            fate.throttles_destroy_until = self.loop.now + 300 + throttled.length_s()
        if deferred := strike("destroy_deferred"):
            fate.defers_destroy_s = 5 + deferred.length_s()
        return fate

    def fate(self, id: Any) -> Fate:
        return self.fates.setdefault(id, Fate())

    # --- what becomes of an answer

    def _marred(self, verb: str, answer: Answer, strike: Striker) -> Answer:
        for knob, mar in self._done.items():
            if strike(knob):
                return mar(answer)
        if answer.status != 200:
            return answer
        if verb == "search":
            return self._searched(answer, strike)
        if verb == "charges" and strike("charges_lag"):
            return self.charged_late(answer)
        return self._listed(answer, strike) if verb == "list" else answer

    def _searched(self, answer: Answer, strike: Striker) -> Answer:
        if strike("body_null_rows"):
            return self.offers_answer(answer, None)
        if not self.has_offers:
            return self.offers_answer(answer, [])
        return self.fuzzed(answer) if self.is_fuzzy else answer

    def _listed(self, answer: Answer, strike: Striker) -> Answer:
        rows = self.rows_of(answer)
        if strike("body_null_rows"):
            return self.listing_answer(answer, None, 0)
        if omits := strike("listing_omits"):
            kept = [row for row in rows if omits.rng.random() < 0.5]
            return self.listing_answer(answer, kept, len(kept) - len(rows))
        if strike("listing_miscounts"):
            return self.listing_answer(answer, rows, 1)
        return answer

    # --- what happens without a request

    def stop(self, contract: Contract, now: datetime) -> None:
        self.sim.outbid(contract.id, now)
        self.after()

    def lose(self, contract: Contract, now: datetime) -> None:
        self.sim.lose(contract.id, now)
        self.after()

    def exit(self, contract: Contract) -> None:
        """Every process of its machine is gone."""
        if contract.listed:
            self.sim.exited(contract.id, self.loop.clock())

    def set_credit(self, usd: str) -> None:
        self.sim.set_credit(usd)

    def strangers(self, label: str, now: datetime) -> Contract | None:
        """A machine that somebody else rents on the account; None when the market has no free one."""
        request = self.strangers_create(label)
        answer: Answer | None = self.sim.handle(request, now) if request else None
        return self.sim.all_contracts()[-1] if answer and answer.status in (200, 201) else None

    # --- each vendor's own words

    @abstractmethod
    def make_sim(self) -> Any: ...

    @abstractmethod
    def verb_of(self, request: Request) -> tuple[str, Any | None]:
        """search, create, list, show, destroy, change, charges or another; and the machine that it names, if any."""

    @abstractmethod
    def label_in(self, request: Request) -> str:
        """Of a create."""

    @abstractmethod
    def is_over(self, contract: Any) -> bool:
        """Destroyed, or being so; it bills no more."""

    @abstractmethod
    def haunt(self, contract: Any, for_s: float) -> None:
        """Listed for a while although it is over."""

    @abstractmethod
    def hide(self, contract: Any, for_s: float) -> None:
        """Not listed for a while although it is there."""

    @abstractmethod
    def refused_but_rented(self, contract: Any, now: datetime) -> Answer: ...

    @abstractmethod
    def boots_at(self, contract: Any, after_s: float | None) -> None:
        """None = never."""

    @abstractmethod
    def boot_times(self, contract: Any) -> Collection[float]:
        """Seconds after the create at which it may change by itself."""

    @abstractmethod
    def die_at_boot(self, contract: Any) -> None: ...

    @abstractmethod
    def reprice(self, contract: Any, factor: float) -> None:
        """The contract costs another price than the offer showed."""

    @abstractmethod
    def give_wrong_gpu(self, contract: Any, rng: random.Random) -> None: ...

    @abstractmethod
    def give_small_disk(self, contract: Any) -> None: ...

    @abstractmethod
    def offline(self, contract: Any) -> bool:
        """Its host is lost; False when it was already."""

    @abstractmethod
    def back_online(self, contract: Any) -> None: ...

    @abstractmethod
    def place(self, contract: Any) -> str: ...

    @abstractmethod
    def billed(self, contract: Any, now: datetime) -> dict[tuple[str, datetime], Decimal]:
        """(kind, hour) -> dollars, rounded to micro-dollars."""

    @abstractmethod
    def ran_s(self, contract: Any) -> dict[str, float]:
        """kind -> seconds that it billed."""

    @abstractmethod
    def rows_of(self, listing: Answer) -> list[Any]: ...

    @abstractmethod
    def listing_answer(self, listing: Answer, rows: list[Any] | None, off_by: int) -> Answer:
        """The listing with these rows, and a total that is off by so many where the vendor tells one."""

    @abstractmethod
    def offers_answer(self, found: Answer, offers: list[Any] | None) -> Answer: ...

    @abstractmethod
    def fuzzed(self, found: Answer) -> Answer:
        """Every second price is none."""

    def charged_late(self, charges: Answer) -> Answer:
        return charges

    @abstractmethod
    def strangers_create(self, label: str) -> Request | None: ...


class LightHttp:
    """In place of an adapter's HTTP client: its requests go to `handle` as they are, without a socket."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._headers = {"authorization": f"Bearer {API_KEY}"}

    def request(self, method: str, path: str, *, json: Any = None, params: Mapping[str, str] | None = None) -> Response:
        body = _dumped(json) if json is not None else b""
        request = Request(method, path, params or {}, self._headers, body)
        return Response(self._account.handle(request, self._account.loop.clock()))

    def close(self) -> None:
        pass


class Response:
    """What the adapters look at of a response."""

    headers: ClassVar[Mapping[str, str]] = {}

    def __init__(self, answer: Answer) -> None:
        self.status_code, self.content = answer.status, answer.body
        self.is_success = 200 <= answer.status < 300

    @property
    def text(self) -> str:
        return self.content.decode()


def json_answer(status: int, body: Any) -> Answer:
    return Answer(status, _dumped(body))


def _dumped(body: Any) -> bytes:
    return json.dumps(body).encode()

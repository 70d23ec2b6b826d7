"""What the simulated marketplaces have in common: a request in, an answer out, effects on the real world between."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def authorization(self) -> str | None:
        return {name.lower(): value for name, value in self.headers.items()}.get("authorization")


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    """Beside the content's own."""


def json_answer(status: int, body: Any, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, json.dumps(body).encode(), headers=headers or {})


def json_body(request: Request) -> dict[str, Any] | None:
    """The body as an object; None when it is no JSON."""
    try:
        body = json.loads(request.body or b"{}")
    except ValueError:
        return None
    return body if isinstance(body, dict) else {}


@dataclass(frozen=True)
class Effect:
    """What must happen to the real machine of a contract."""

    kind: Literal["start", "stop", "vanish"]
    contract_id: int | str
    label: str
    env: Mapping[str, str] = field(default_factory=dict)
    onstart: str = ""
    hardware: Mapping[str, Any] = field(default_factory=dict)
    """What the machine really has, as its host measures it: `domain.host.Attest`, lies included."""


class Simulator(Protocol):
    """A service of the world as a state machine without clock, thread or socket. `now` never goes back."""

    def handle(self, request: Request, now: datetime) -> Answer: ...


class Contract(Protocol):
    """One machine on a simulated marketplace, as the world shows it."""

    @property
    def id(self) -> Any: ...

    @property
    def label(self) -> str: ...

    @property
    def state(self) -> str: ...

    def usd_per_hour(self) -> Decimal:
        """What bills right now."""


class Marketplace(Protocol):
    """A simulated marketplace: a state machine without clock, thread or socket. `now` never goes back.

    What the real world must do (start a machine, stop it, wipe it) waits in `drain()` for whoever owns the machines.
    A contract's id is the marketplace's own: a number or a text.
    """

    name: str

    def handle(self, request: Request, now: datetime) -> Answer: ...

    def tick(self, now: datetime) -> None: ...

    def drain(self) -> list[Effect]: ...

    def contracts(self) -> Sequence[Contract]:
        """Those that are listed."""

    def all_contracts(self) -> Sequence[Contract]:
        """All that ever were."""

    def contract_of(self, label: str) -> Any | None:
        """The id of the listed contract of that label."""

    def billed(self, id: Any, now: datetime) -> dict[str, Decimal]:
        """kind -> dollars billed so far."""

    def traffic(self, id: Any, up_bytes: int, down_bytes: int, now: datetime) -> None:
        """Bytes that its machine sent and received."""

    def exited(self, id: Any, now: datetime) -> None:
        """Every process of its machine is gone."""

    def outbid(self, id: Any, now: datetime) -> None:
        """The GPU is taken from it: processes killed, disk kept and billed."""

    def lose(self, id: Any, now: datetime) -> None:
        """It disappears without notice; nothing of it bills from now on."""

    def to_json(self) -> dict[str, Any]: ...

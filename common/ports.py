"""The narrow interfaces between the product and the technologies it uses, each with its contract."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol, runtime_checkable

from common.config import Settings
from common.domain.liveness import Heard
from common.domain.offer import Offer, Survey, Wanted
from common.domain.pacing import Limits
from common.errors import MarketError, QueryRefused, Unauthenticated

Data = dict[str, Any]
"""A document's content: JSON types plus aware UTC datetimes and nested dicts and lists of them."""


# --- the store -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Doc:
    """One document as it was read. `rev` rises by one with each write; `token` is the backend's own version."""

    collection: str
    id: str
    data: Data
    rev: int
    token: Any = field(default=None, compare=False, repr=False)
    read_as: dict[type, Any] = field(default_factory=dict, init=False, compare=False, repr=False)
    """The records that were read out of it: neither it nor they ever change."""


@dataclass(frozen=True)
class Create:
    """Write a new document; fails with `Exists`."""

    collection: str
    id: str
    data: Data


@dataclass(frozen=True)
class Cas:
    """Replace the content of exactly the version that was read; fails with `Stale` (or `Missing`)."""

    doc: Doc
    data: Data


@dataclass(frozen=True)
class Delete:
    """Delete exactly the version that was read; fails with `Stale` (or `Missing`)."""

    doc: Doc


@dataclass(frozen=True)
class Check:
    """Write nothing, but fail the whole commit with `Stale` unless the document still is the version that was read."""

    doc: Doc


@dataclass(frozen=True)
class Increment:
    """Add numbers to top-level fields without a read; the document must exist (`Missing`)."""

    collection: str
    id: str
    amounts: Mapping[str, int]


Write = Create | Cas | Delete | Check | Increment

OPERATORS = ("==", "<", "<=", ">", ">=")
Where = tuple[str, Literal["==", "<", "<=", ">", ">="], Any]

MAX_WRITES_PER_COMMIT = 100
MAX_QUERY_LIMIT = 500


class Store(Protocol):
    """Compare-and-set documents in flat collections; no transactions, no leases.

    All methods raise `StoreUnavailable` when the backend does not answer; a write's outcome is then unknown.
    What a document cannot hold (more than 1 MiB, a naive datetime, Decimal, bytes, tuple, NaN, a bad id) is
    `InvalidInput`.
    """

    def get(self, collection: str, id: str) -> Doc | None:
        """The document, or None when it does not exist."""

    def create(self, collection: str, id: str, data: Data) -> Doc:
        """A new document; raises `Exists`."""

    def cas(self, doc: Doc, data: Data) -> Doc:
        """Replace what was read; raises `Stale` when somebody wrote first, `Missing` when it is gone."""

    def delete(self, doc: Doc) -> None:
        """Delete what was read; raises `Stale` or `Missing`."""

    def commit(self, writes: Sequence[Write]) -> None:
        """All writes or none (at most MAX_WRITES_PER_COMMIT, one per document); raises `Exists`, `Stale`, `Missing`."""

    def query(
        self,
        collection: str,
        where: Sequence[Where] = (),
        *,
        order_by: str | None = None,
        newest_first: bool = False,
        limit: int = MAX_QUERY_LIMIT,
        start_after: str | None = None,
    ) -> list[Doc]:
        """Equality filters plus at most one range, in the order of the range field (or `order_by`), then of the id.

        `newest_first` turns the order round. `start_after` is the id of the last document of the page before. A shape
        that is not in `INDEXES` raises `QueryRefused` on every backend. `limit` above MAX_QUERY_LIMIT is a ValueError.
        """

    def put(self, collection: str, id: str, data: Data) -> None:
        """Blind write, for documents that have one writer and no readers' guards (a host's heartbeat)."""

    def increment(self, collection: str, id: str, amounts: Mapping[str, int]) -> None:
        """Add to top-level integer fields without a read; creates the document when it is missing."""

    def append(self, collection: str, data: Data) -> Doc:
        """A new document under a random id."""


@dataclass(frozen=True)
class Index:
    """One permitted shape of query: equality fields, then at most one range or order field."""

    collection: str
    equal: tuple[str, ...] = ()
    order: str | None = None
    newest_first: bool = False
    """Firestore reads a composite index in its own direction only."""


INDEXES: tuple[Index, ...] = (
    Index("instances", equal=("account",)),
    Index("instances", equal=("active",)),
    Index("instances", equal=("restless",)),
    Index("instances", order="keep_until"),
    Index("instances", order="prune_due_at"),
    Index("instances", equal=("wrapped_by",)),
    Index("instances", order="drill_due_at"),
    Index("rentals", equal=("settled",)),
    Index("rentals", equal=("restless",)),
    Index("rentals", equal=("account", "settled")),
    Index("rentals", equal=("state",)),
    Index("rentals", equal=("instance_key",)),
    Index("rentals", equal=("instance_key", "settled")),
    Index("hosts", order="idle_since"),
    Index("seen", order="at"),
    Index("users", equal=("email",)),
    Index("users", equal=("account",)),
    Index("api_keys", equal=("account",)),
    Index("snapshots", equal=("instance_key",), order="taken_at", newest_first=True),
    Index("ledger", equal=("label",)),
    Index("ledger", equal=("instance_key",)),  # the books of one instance: infra/demo reads them beside the bills
    Index("events", equal=("instance_key",), order="at", newest_first=True),
    Index("operations", equal=("instance_key",)),
    Index("outbox", order="next_at"),
    Index("outbox", equal=("account", "state")),
    Index("webhooks", equal=("account",)),
    Index("slack_links", equal=("account",)),
    Index("budgets"),
    Index("addresses", equal=("is_idle",)),
    Index("ledger", equal=("account",), order="hour"),
    Index("outlooks"),
    Index("answers"),
    Index("market_history"),
    Index("machines"),
    Index("machines", equal=("provider",)),
    Index("machines", order="blocked_until"),
    Index("machines", equal=("provider",), order="blocked_until"),
)
"""The only queries there are: both backends refuse any other, and the deployer creates exactly these."""


EXPIRES_AFTER: Mapping[str, timedelta] = {
    "announcements": timedelta(days=30),  # markets repeat a delivery for days at most
    "boots": timedelta(days=30),  # a bootstrap token lives for an hour at most
    "events": timedelta(days=400),
    "idempotency": timedelta(days=30),
    "offers": timedelta(days=1),
    "operations": timedelta(days=90),
    "outbox": timedelta(days=90),  # after its end: what still waits never expires
    "quotes": timedelta(days=60),
    "seen": timedelta(days=1),
}
"""Documents that end by themselves, so long after their write. Their field EXPIRY_FIELD is native time; the deployer
makes one policy per row. Google deletes within a day or so after: a reader never relies on it. Everything else is kept,
a rental's record for ever."""
EXPIRY_FIELD = "expires_at"
EXPIRING = (*EXPIRES_AFTER, "slack_codes", "slack_seen")
"""All collections with that field; the last two set it themselves, to the time for which they are good."""


def expiring(collection: str, data: Data, now: datetime) -> Data:
    """The content with the time from which the document may be deleted."""
    return {**data, EXPIRY_FIELD: now + EXPIRES_AFTER[collection]}


_SHAPES = frozenset(
    (index.collection, tuple(sorted(index.equal)), index.order, index.newest_first) for index in INDEXES
)


def refuse_unindexed(
    collection: str, where: Sequence[Where], order_by: str | None, newest_first: bool = False
) -> str | None:
    """The field that orders the answer (None = the id); raises `QueryRefused` for a shape outside INDEXES."""
    equal = tuple(sorted(name for name, op, _ in where if op == "=="))
    ranges = {name for name, op, _ in where if op != "=="}
    order = order_by or next(iter(ranges), None)
    legal = all(op in OPERATORS for _, op, _ in where) and len(ranges) <= 1 and (not ranges or order in ranges)
    if legal and (collection, equal, order, newest_first) in _SHAPES:
        return order
    turned = " newest first" if newest_first else ""
    raise QueryRefused(f"no index for {collection}: equal {equal}, range {sorted(ranges)}, order {order}{turned}")


QUERY_PAGES_MAX = 200
"""Of MAX_QUERY_LIMIT documents each: what a job may ask for in one run."""


def every(
    store: Store,
    collection: str,
    where: Sequence[Where] = (),
    *,
    order_by: str | None = None,
    newest_first: bool = False,
) -> Iterator[Doc]:
    """All documents of a query, page after page, each page read when it is needed.

    Raises `QueryRefused` past QUERY_PAGES_MAX pages rather than leave documents out, and what `query` raises.
    """
    last: str | None = None
    for _ in range(QUERY_PAGES_MAX):
        page = store.query(collection, where, order_by=order_by, newest_first=newest_first, start_after=last)
        yield from page
        if len(page) < MAX_QUERY_LIMIT:
            return
        last = page[-1].id
    raise QueryRefused(f"more than {QUERY_PAGES_MAX * MAX_QUERY_LIMIT} documents in {collection}")


# --- the marketplaces -------------------------------------------------------------------------------------------


MachineStatus = Literal["starting", "running", "exited", "stopped", "offline", "unknown"]
"""starting: not up yet; exited: its container ended, and it bills on; stopped: its contract is (by us or the market);
offline: the host is lost."""


@dataclass(frozen=True)
class Listed:
    """One machine on our account as the marketplace lists it."""

    provider_id: str
    label: str
    status: MachineStatus
    message: str = ""
    ssh_host: str | None = None
    ssh_port: int | None = None
    usd_per_hour: str | None = None
    """GPU + disk while it runs, as the marketplace states it for this machine; None = it does not say."""
    runs_since: datetime | None = None
    """Of a running machine, as the marketplace states it; None = it does not say."""
    in_full: bool = True
    """False: a row of a listing that names and states only; `get` tells the price and the address."""


@dataclass(frozen=True)
class Charge:
    """What the provider billed for one machine and kind; `amount_usd` is a decimal string.

    The span is as coarse as its bill: hours, days, or all of the machine's life.
    """

    provider_id: str
    kind: Literal["gpu", "disk", "bandwidth_up", "bandwidth_down"]
    start: datetime
    end: datetime
    amount_usd: str
    label: str = ""
    """Of the machine, where the market's bill names it."""


@dataclass(frozen=True)
class Launch:
    """What a machine is created with."""

    label: str
    image: str
    disk_gb: int
    env: Mapping[str, str]
    start_script: str
    max_usd_per_hour: str | None = None
    """Cap on GPU + disk: what is known to cost more is not created. None = no cap."""
    bid_usd_per_hour: str | None = None
    """None = on demand."""
    address: str | None = None
    """The reserved IP address that the machine takes, in its own region (`Standbys`); None = one of the moment."""


Told = Callable[[str, str, Any], None]
"""told(method, path, answer): an adapter's word of each answer that it could read. Raises nothing, keeps no value."""


def untold(_method: str, _path: str, _answer: Any) -> None:
    """Nobody wants to know."""


class Market(Protocol):
    """One marketplace account. No method retries.

    Every method may raise `Throttled`, `MarketKeyRefused`, `QuotaExceeded` (definite: nothing was done)
    or `MarketUnknown` (no information: it may or may not have worked), after a timeout as `MarketSilent`.
    """

    name: str
    limits: Limits
    """How often the vendor lets each call be made on one account; a call that is missing has no known limit."""

    def search(self, wanted: Wanted) -> list[Offer]:
        """Offers that match, cheapest first, with all prices filled in for the wanted disk. Empty when none."""

    def survey(self, gpu: str) -> Survey:
        """Everything it has of one model, without any other wish; one call, counted as a search."""

    def create(self, offer: Offer, launch: Launch) -> str:
        """Rent one machine under `launch.label`; returns the provider's id, which is only a hint.

        The disk is created with `offer.created_disk_gb(launch.disk_gb)`, as it was priced. A price that is known to be
        above `launch.max_usd_per_hour` is `OfferGone`; where the price can rise between the search and the create
        without the create telling, the machine's own `usd_per_hour` (`get`) is the last word, and the caller's to read.
        Raises `OfferGone`, `NoCredit`, `MarketRefused` (its `provider_id` names a machine that exists all the same).
        """

    def list(self) -> Sequence[Listed]:
        """Every machine on the account, all pages, freshly; raises rather than return a part."""

    def get(self, provider_id: str) -> Listed | None:
        """One machine; None = the marketplace says definitely that it does not exist."""

    def destroy(self, provider_id: str) -> bool:
        """Ask for the end; False = it was gone already. Only a later listing or `get` proves that it is."""

    def credit_usd(self) -> str | None:
        """Spendable money on the account as a decimal string; None = the marketplace does not tell."""

    def charges(self, since: datetime, until: datetime) -> Sequence[Charge] | None:
        """Everything billed in the span, all pages; None = the marketplace publishes no bill.

        What was billed is never guessed here: without a bill the ledger is computed from our own meter and says so.
        """


@dataclass(frozen=True)
class Subscription:
    """A webhook of the marketplace to us. The marketplace shows the secret once, when it is made."""

    id: str
    url: str
    secret: str = field(repr=False, default="")


@dataclass(frozen=True)
class MarketEvent:
    """What a marketplace says happened. A hint: it names no machine, and nothing in it is believed."""

    id: str
    kind: str
    """The marketplace's own word."""
    text: str


@runtime_checkable
class Announcing(Protocol):
    """A market that can tell us when something happened."""

    def subscribe(self, url: str) -> Subscription:
        """Raises what every call of `Market` may raise."""

    def unsubscribe(self, id: str) -> None:
        """Succeeds when it is already gone."""

    def subscriptions(self) -> Sequence[Subscription]:
        """All of this account, without their secrets."""

    def event(self, headers: Mapping[str, str], body: bytes, *, secret: str, now: datetime) -> MarketEvent:
        """A delivery whose signature and age are right; raises `Unauthenticated` or `BadRequest`."""


# --- the standbys' machines --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """What the provider does after its answer, as it stands now. How it ended is data: nothing waits for it."""

    name: str
    """Where to look again: `zones/<zone>/operations/<id>` or `regions/<region>/operations/<id>`."""
    kind: str
    """insert, start, stop, delete, preempted, or another of the provider's own words."""
    target: str
    """Name of the machine (its label) or of the address."""
    is_done: bool
    refusal: MarketError | None = None
    """What a finished one ended with: `OfferGone` (the zone has no room), `QuotaExceeded`, `MarketRefused`."""
    begun_at: datetime | None = None


@dataclass(frozen=True)
class Address:
    """A reserved IP address of ours; it bills from its reservation until its release, used or not."""

    name: str
    region: str
    ip: str | None
    """None = it is still being reserved: ask again."""
    used_by: str | None = None
    """Provider id of the machine that holds it, also while that machine is stopped."""


@runtime_checkable
class Standbys(Market, Protocol):
    """A market of plain machines that keep disk and address. Raises what `Market` raises; nothing waits, none retries.

    `create` returns at once and may fail later: then `operations` of that machine tell it, and no machine is there.
    """

    def start(self, provider_id: str) -> str:
        """Start a stopped machine on its own disk; returns the operation's name, which may fail later.

        Raises `NotFound` when the machine is definitely gone.
        """

    def detach(self, provider_id: str) -> str:
        """Take its address from a machine, also from a stopped one, so that another can be created with it.

        Returns the operation's name; once it is done, `Address.used_by` is None. Raises `NotFound`, and `MarketRefused`
        for a machine that has none.
        """

    def operation(self, name: str) -> Operation | None:
        """How it stands; None = the provider no longer knows it (it keeps them for weeks)."""

    def operations(self, provider_id: str) -> Sequence[Operation]:
        """All of one machine, the newest first: also of a create whose answer was lost, and of a preemption."""

    def reserve(self, name: str, region: str) -> Address:
        """The address of that name, reserved now if it is not yet. May be repeated; raises `QuotaExceeded`."""

    def release(self, name: str, region: str) -> bool:
        """Give it back; False = it was gone already. Raises `MarketRefused` while a machine holds it."""

    def addresses(self) -> Sequence[Address]:
        """All reserved ones of ours, in every region; raises rather than return a part."""


# --- the object store -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """One object as the store lists it; `md5` is the store's own single-part checksum where it gives one."""

    key: str
    size: int
    md5: str | None


class ObjectStore(Protocol):
    """One bucket. Raises `ObjectStoreError` for every failure that is not a definite answer."""

    def get(self, key: str) -> bytes:
        """The whole object; raises `ObjectMissing`."""

    def put(self, key: str, data: bytes) -> None:
        """Write the whole object in one part."""

    def put_file(self, key: str, path: str) -> None:
        """Upload a local file."""

    def read(self, key: str) -> Iterator[bytes]:
        """The object's bytes in pieces of at most 1 MiB; raises `ObjectMissing`."""

    def list(self, prefix: str) -> Iterator[Stored]:
        """Every object below the prefix, in key order."""

    def delete(self, keys: Sequence[str]) -> None:
        """Delete; deleting what is not there succeeds."""

    def presign_get(self, key: str, expires_s: int) -> str:
        """A URL that reads the object without credentials until it expires."""

    def presign_put(self, key: str, size_bytes: int, expires_s: int) -> str:
        """A URL that writes exactly `size_bytes` to that one key by PUT, without credentials, until it expires."""


WRITABLE = ("manifests", "packs")
"""Directories of an instance's prefix that its host writes to."""


@dataclass(frozen=True)
class Grant:
    """Credentials of a host, for one prefix and a while."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(repr=False)
    expires_at: datetime


class StorageAccess(Protocol):
    """Makes credentials that can do less than ours."""

    def grant(self, prefix: str, *, for_s: float, now: datetime) -> Grant:
        """They read below the prefix, write to WRITABLE there, and delete nothing for good.

        Raises `ObjectStoreError`. For less than `for_s` where the vendor allows no more; `expires_at` says it.
        """


# --- the way to people ------------------------------------------------------------------------------------------


class Courier(Protocol):
    """Takes one message to a webhook."""

    def post(self, url: str, payload: bytes, headers: Mapping[str, str]) -> None:
        """Returns when the target said 2xx.

        Raises `DeliveryRefused` when another attempt would not help, else `DeliveryFailed` (it may have arrived).
        """


class Chat(Protocol):
    """Our bot in one Slack workspace. A message is {text, blocks} of Block Kit, within its published limits.

    Every method raises `DeliveryRefused` when another attempt would not help, else `DeliveryFailed` (it may have
    arrived; `retry_after_s` when Slack asked for that).
    """

    def post(self, channel: str, message: Data) -> tuple[str, str]:
        """A new message in a channel, or to a user by the user's id: (channel, ts) of what was posted."""

    def update(self, channel: str, ts: str, message: Data) -> None:
        """Put another content in the place of one of our own messages."""

    def respond(self, response_url: str, message: Data) -> None:
        """Answer a command or a pressed button by the URL that came with it, 5 times within 30 minutes."""


# --- the app ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deployment:
    """Drawn at random when a store is created, and kept only in that store."""

    id: str
    key: bytes

    def derive(self, purpose: str, subject: str) -> bytes:
        """A key for one purpose and subject: HMAC-SHA256 under the deployment's key."""
        return hmac.new(self.key, f"{purpose}:{subject}".encode(), hashlib.sha256).digest()


def no_google_key(id: str) -> dict[str, Any]:
    """Of an app that knows no key of Google's."""
    raise Unauthenticated(f"no key {id} is known here")


@dataclass(frozen=True)
class App:
    """Everything a workflow may use; made by bootstrap, or by a test."""

    settings: Settings
    store: Store
    markets: Mapping[str, Market]
    objects: ObjectStore
    clock: Callable[[], datetime]
    """Aware UTC now."""
    ids: Callable[[], str]
    """A random id of twelve characters [a-z0-9]."""
    deployment: Callable[[], Deployment]
    log: Callable[..., None]
    """log(event, **fields): one structured line."""
    heard: Heard
    """What this process has heard of hosts and need not have written down yet."""
    random: Callable[[int], bytes] = os.urandom
    """So many bytes that nobody can guess."""
    courier: Courier | None = None
    """None = this process delivers no messages: they wait."""
    chat: Chat | None = None
    """None = Slack is not set up."""
    standbys: Standbys | None = None
    """None = no credentials of Google's: no instance has a standby."""
    storage_access: StorageAccess | None = None
    """None = hosts are given the deployment's own key, because a setting says so."""
    google_key: Callable[[str], dict[str, Any]] = no_google_key
    """The public key (a JSON Web Key) by which Google signs tokens under that id; raises `Unauthenticated`."""
    country_of_ip: Callable[[str], str | None] = lambda _ip: None
    """`region.CountryOfIp`, offline: for machines whose marketplace does not say where they stand."""
    nudge: Callable[[str], None] = lambda _key: None
    """nudge(instance key): have another invocation follow the instance for a while. A hint: it may be lost."""
    nudge_outbox: Callable[[], None] = lambda: None
    """The same for the outbox."""
    silences: Counter[str] | None = None
    """How often each market let a call of this run time out (`pacing.patient`); None = nobody counts."""

    @property
    def sellers(self) -> tuple[str, ...]:
        """Names of everybody who bills us for machines: the marketplaces, and who sells the standbys."""
        return (*self.markets, *((self.standbys.name,) if self.standbys else ()))

    def seller(self, name: str) -> Market:
        """Raises KeyError for one whose credentials are not set."""
        return self.standbys if self.standbys and self.standbys.name == name else self.markets[name]

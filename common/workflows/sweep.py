"""The provider's listing against our records: orphans are destroyed, losses noted, releases confirmed.

Two orders of reading, and they are opposite. ORPHAN: list first, then read the record of each row. LOST: read the
records first, then list. So: read, list, read again.

A rental that simply serves is not read at all while its host is heard and the market lists it as running.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum, auto
from functools import partial

from common.config import Timing
from common.domain.host import HostRecord
from common.domain.pacing import Priority
from common.domain.rental import Label, Loss, Rental, RentalState
from common.domain.standby import STOPPED_MAX_S
from common.errors import MarketError, Stale, Throttled
from common.ports import App, Listed
from common.records import Kept, dump, heard_of, overlaid, read, restless_rentals
from common.workflows import pacing, rentals
from common.workflows.pacing import Paced

DESTROYS_PER_RUN_MAX = 25
RUN_EVERY_S = 60.0
LISTED_PER_MINUTE = 1000
"""Pages of 25 rows, of which each takes 1.1 s of waiting and 0.4 s to answer: the slower one of the marketplaces."""
RENTALS_MAX = 5000
MESSAGE_KEPT = 500
"""Characters of what a market says about a machine."""
SECOND_LISTING_AFTER_S = 1.0
"""Two listings that lack a machine count as two only when they are at least so far apart."""


@dataclass
class Summary:
    """What one sweep saw and did, or would do."""

    listed: int = 0
    foreign: int = 0
    orphans: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    noted: list[str] = field(default_factory=list)
    """Live rentals about which the listing told something new, the lost ones among them."""
    keys: list[str] = field(default_factory=list)
    """Of the instances that they belong to."""
    released: list[str] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """Markets that gave no information."""


def orphan_bound_s(rentals: int) -> float:
    """Within how many seconds a machine without a live record is destroyed, while the market answers.

    One key lists LISTED_PER_MINUTE rows a minute. The machine appears just after a listing began, the next one begins
    when a minute or that listing is over, and its destroy waits for a turn once more. 3 minutes up to 1,000 rentals,
    15 at most: up to 5,000 rentals, above which a second account is needed (ValueError).
    """
    if rentals > RENTALS_MAX:
        raise ValueError(f"one account is swept up to {RENTALS_MAX} rentals, not {rentals}")
    return 3 * max(RUN_EVERY_S, rentals / LISTED_PER_MINUTE * 60)


def look(app: App) -> Summary:
    """A dry run: what the next sweep would destroy or alarm about. Nothing is written, nothing is destroyed."""
    summary = Summary()
    for name in app.sellers:
        try:
            rows = pacing.market(app, name, Priority.POLL, who="sweep").list()
        except MarketError as error:
            app.log("listing_failed", market=name, error=str(error))
            summary.unknown.append(name)
            continue
        summary.listed += len(rows)
        for label in _ours(app, rows, summary):
            kept = read(app, "rentals", label, Rental)
            if kept is None:
                summary.alarms.append(label)
            elif not kept.value.is_live:
                summary.orphans.append(label)
    return summary


def run(
    app: App, now: datetime, *, only: str | None = None, before: Mapping[str, Kept[Rental]] | None = None
) -> Summary:
    """One pass over every market, or the one named. A market that does not answer, or not whole, changes nothing.

    `before` = the restless rentals by label, or more, read already; what is gone is judged by records older than the
    listing. One that simply serves is read only when the listing or its host's silence says something about it.
    """
    summary = Summary()
    before = restless_rentals(app) if before is None else before
    heard = heard_of(app, now)
    listings = _listings(app, only, summary)
    listed = {label: row for rows in listings.values() for label, row in rows.items()}
    fresh = {label for label, at in heard.items() if _is_fresh(app, at, now)}
    live = {label for label, kept in before.items() if kept.value.is_live} | (fresh - before.keys())
    _destroy_orphans(app, listed, live, summary, now)
    for label, kept in before.items():
        if kept.value.provider in listings:
            _note(app, kept, listed.get(label), heard, summary, now)
    for label in (listed.keys() | heard.keys()) - before.keys():
        row = listed.get(label)
        if row is None or row.status != "running" or label not in fresh:
            _note_serving(app, label, row, listings, heard, summary, now)
    return summary


def _listings(app: App, only: str | None, summary: Summary) -> dict[str, Mapping[str, Listed]]:
    """Our machines by label, of each market that gave a whole answer."""
    listings: dict[str, Mapping[str, Listed]] = {}
    for name in [name for name in app.sellers if only in (None, name)]:
        try:
            rows = pacing.market(app, name, Priority.POLL, who="sweep").list()
        except MarketError as error:
            app.log("listing_failed", market=name, error=str(error))
            summary.unknown.append(name)
            continue
        summary.listed += len(rows)
        listings[name] = _ours(app, rows, summary)
    return listings


def _ours(app: App, rows: Sequence[Listed], summary: Summary) -> Mapping[str, Listed]:
    """Rows whose label verifies. Foreign and unlabelled machines are counted, never touched."""
    deployment = app.deployment()
    verified: dict[str, Listed] = {}
    for row in rows:
        if Label.parse(row.label, deployment=deployment.id, key=deployment.key):
            verified[row.label] = row
        else:
            summary.foreign += 1
    return verified


def _destroy_orphans(
    app: App, listed: Mapping[str, Listed], live: Collection[str], summary: Summary, now: datetime
) -> None:
    """Listed, then read: retired -> destroyed, any number of times. A verified label without a record is an alarm.

    One that was `live` just before the listing is left to the next pass, should it have been retired since.
    """
    for label, row in listed.items():
        if label in live:
            continue
        kept = read(app, "rentals", label, Rental)
        if kept is None:
            summary.alarms.append(label)
            app.log("alarm_label_without_record", label=label)
        elif not kept.value.is_live and len(summary.orphans) < DESTROYS_PER_RUN_MAX:
            called, again_s = kept.value.destroy_called_at, app.settings.timing.destroy_again_s
            if now < kept.value.not_before or (called and (now - called).total_seconds() < again_s):
                continue
            # with what the listing says of it: a write of its own would only make this one, or that one, stale
            known = kept.value.model_copy(update={"provider_id": row.provider_id})
            seen = replace(kept, value=rentals.shown_running(known, row, now))
            _unless_stale(app, label, partial(rentals.destroy, app, seen, row.provider_id, now))
            summary.orphans.append(label)


def _is_fresh(app: App, heard_at: datetime, now: datetime) -> bool:
    return (now - heard_at).total_seconds() <= app.settings.timing.silent_after_s


def _note(
    app: App,
    kept: Kept[Rental],
    row: Listed | None,
    heard: Mapping[str, datetime],
    summary: Summary,
    now: datetime,
) -> None:
    """What the listing says about one rental that was read before it; written under the guard of that read."""
    rental = kept.value
    market = pacing.market(app, rental.provider, Priority.POLL, who="sweep")
    late_create_s = app.settings.timing.late_create_s
    gone = row is None and rentals.released(rental, late_create_s=late_create_s, now=now)
    if rental.state is RentalState.RELEASING and gone and not _may_remain(app, market, rental):
        # for the case that no destroy was ever answered with success, or that its answer was not written down
        ended = rentals.began(rental).meter.ended(rental.destroy_called_at or now)
        _save(app, kept, rental.to(RentalState.RELEASED, at=now).model_copy(update={"meter": ended}))
        summary.released.append(rental.label)
    elif rental.state is RentalState.RELEASING and row is not None:
        _keep(app, kept, rentals.shown_running(rental, row, now), summary)  # its destroy waits, and it bills
    elif rental.is_standby and rental.is_live and row is not None and rental.state is not RentalState.LOST:
        _keep(app, kept, _standby(rental, row, now), summary)
    elif rental.is_live and rental.state is not RentalState.LOST and rental.create_called_at is not None:
        row = _in_full(app, market, rental, row) if row else None
        heard_at = heard.get(rental.label)
        is_fresh = heard_at is not None and _is_fresh(app, heard_at, now)
        if row and row.status == "running" and rental.state is RentalState.SERVING and is_fresh:
            noted = _with_row(rental, row, now).model_copy(update={"unreachable_at": None})
        else:
            found = read(app, "hosts", rental.label, HostRecord)
            host = overlaid(found.value if found else None, heard)
            noted = _with_row(rental, row, now) if row else _absent(app, market, rental, host, now)
            noted = _judged(app, noted, row, host, now)
        _keep(app, kept, noted, summary)


def _note_serving(
    app: App,
    label: str,
    row: Listed | None,
    listings: Mapping[str, object],
    heard: Mapping[str, datetime],
    summary: Summary,
    now: datetime,
) -> None:
    """What a listing says of one that was not restless before it, and so served then, or was settled.

    Its record is read only now, after the listing: that it is absent is a note, which the next pass reads first.
    """
    kept = read(app, "rentals", label, Rental)
    if kept is None or kept.value.provider not in listings:
        return
    is_up = kept.value.state is RentalState.SERVING or (kept.value.is_standby and kept.value.state is RentalState.READY)
    if not is_up:
        return
    if row is not None:
        _note(app, kept, row, heard, summary, now)
    elif kept.value.absent_at is None:
        _keep(app, kept, kept.value.model_copy(update={"absent_at": now}), summary)


def _keep(app: App, kept: Kept[Rental], noted: Rental, summary: Summary) -> None:
    if noted == kept.value:
        return
    _save(app, kept, noted)
    summary.noted.append(noted.label)
    if noted.instance_key:
        summary.keys.append(noted.instance_key)
    if noted.state is RentalState.LOST:
        summary.lost.append(noted.label)


def _in_full(app: App, market: Paced, rental: Rental, row: Listed) -> Listed:
    """One GET for a running machine whose address the listing does not tell and we do not know yet."""
    if row.in_full or rental.ssh_host or row.status != "running":
        return row
    try:
        return market.get(row.provider_id) or row
    except MarketError as error:
        app.log("get_failed", provider_id=row.provider_id, error=str(error))
        return row


def _with_row(rental: Rental, row: Listed, now: datetime) -> Rental:
    """While it boots, the market's words tell a slow download from a machine that will never come up."""
    update: dict[str, object] = {"provider_id": row.provider_id, "absent_at": None}
    if rental.state is RentalState.CREATING and row.message:
        update["message"] = row.message[:MESSAGE_KEPT]
    return rentals.looked_at(rentals.exists(rental.model_copy(update=update)), row, now)


def _standby(rental: Rental, row: Listed, now: datetime) -> Rental:
    """A standby that Google stopped keeps its disk and is started again: it is lost when it is still listed as stopped
    much later."""
    seen = rentals.exists(rental.model_copy(update={"provider_id": row.provider_id, "absent_at": None}))
    meter = seen.meter
    if row.status == "stopped":
        since = rental.stopped_at or now
        stopped = seen.model_copy(update={"stopped_at": since, "meter": meter.stopped(now)})
        is_over = (now - since).total_seconds() > STOPPED_MAX_S
        return rentals.as_lost(stopped, "Google does not give it back", now) if is_over else stopped
    if row.status == "running":
        since = min(row.runs_since or now, now)
        runs = meter.resumed(since) if rental.stopped_at else meter.begun(since, bills_gpu=True)
        return seen.model_copy(update={"stopped_at": None, "meter": runs})
    return seen


def _absent(app: App, market: Paced, rental: Rental, host: HostRecord | None, now: datetime) -> Rental:
    """GONE only when two listings, a GET by id and a silent heartbeat agree.

    Where no listing ever told the id there is nothing to GET: then it must be absent for `dead_man_s`, after which
    its host would have stopped itself (rule R10).
    """
    if rental.absent_at is None:
        return rental.model_copy(update={"absent_at": now})
    if (now - rental.absent_at).total_seconds() < SECOND_LISTING_AFTER_S or not _is_silent(app, rental, host, now):
        return rental
    timing = app.settings.timing
    unknown_for_s = (now - rental.absent_at).total_seconds() if rental.provider_id is None else timing.dead_man_s
    if unknown_for_s < timing.dead_man_s or _still_there(app, market, rental):
        return rental
    return _lost(rental, "gone", host, now, timing=timing, both=True)


def _may_remain(app: App, market: Paced, rental: Rental) -> bool:
    """A GET has the last word. Without a turn for it, a listing that lacks it must do after a destroy that worked.

    Not so when it is not asked for because the market hangs: a call that failed proves nothing.
    """
    try:
        return rental.provider_id is not None and market.get(rental.provider_id) is not None
    except Throttled:
        return rental.destroyed_at is None or market.name in pacing.given_up(app)
    except MarketError as error:
        app.log("get_failed", label=rental.label, error=str(error))
        return True


def _still_there(app: App, market: Paced, rental: Rental) -> bool:
    """Does a GET by id, where the id is known, still show it? A failed answer counts as yes: it is no information."""
    try:
        return rental.provider_id is not None and market.get(rental.provider_id) is not None
    except MarketError as error:
        app.log("get_failed", label=rental.label, error=str(error))
        return True


def _judged(app: App, rental: Rental, row: Listed | None, host: HostRecord | None, now: datetime) -> Rental:
    """INTERRUPTED: listed as stopped, not by us, credit > 0. UNREACHABLE: listed as up (or as stopped by a marketplace
    that does not tell the credit), silent."""
    if row is None or rental.state is RentalState.LOST:
        return rental
    if row.status == "stopped":
        credit = _credit_left(app, rental)
        if rental.state is RentalState.HELD or credit is Credit.UNTOLD:
            rental = rental.model_copy(update={"meter": rental.meter.stopped(now)})  # it will never serve again
        if credit is not Credit.UNTOLD:
            interrupted = credit is Credit.LEFT
            return _lost(rental, "interrupted", host, now, timing=app.settings.timing) if interrupted else rental
    # stopped, and nobody tells whether for want of credit: it is replaced like a silent machine, and kept until then
    booting_died = rental.state is RentalState.CREATING and row.status in ("exited", "offline", "stopped")
    if booting_died:
        return rental.model_copy(update={"loss": "boot_failed", "message": row.message or "the container died"})
    if _is_silent(app, rental, host, now) and rental.state is RentalState.SERVING:
        return rental.model_copy(update={"unreachable_at": rental.unreachable_at or now, "message": row.message})
    return rental.model_copy(update={"unreachable_at": None})


class Credit(Enum):
    """Has the account money left? Without it every machine stops, and replacing them would not work."""

    LEFT = auto()
    NONE_OR_UNKNOWN = auto()
    """None left, or the call failed: nothing is concluded."""
    UNTOLD = auto()
    """The marketplace never tells."""


def _credit_left(app: App, rental: Rental) -> Credit:
    try:
        usd = pacing.market(app, rental.provider, Priority.FAILOVER, who=rental.label).credit_usd()
    except MarketError as error:
        app.log("credit_unknown", error=str(error))
        return Credit.NONE_OR_UNKNOWN
    if usd is None:
        return Credit.UNTOLD
    return Credit.LEFT if Decimal(usd) > 0 else Credit.NONE_OR_UNKNOWN


def _is_silent(app: App, rental: Rental, host: HostRecord | None, now: datetime) -> bool:
    if host is None:
        return (now - rental.at).total_seconds() > app.settings.timing.silent_after_s
    return host.silent_for_s(now) > app.settings.timing.silent_after_s


def _lost(
    rental: Rental, loss: Loss, host: HostRecord | None, now: datetime, *, timing: Timing, both: bool = False
) -> Rental:
    """The GPU's meter stops half a heartbeat after the host was last heard of, our own records' best estimate, but not
    before the sweep that came before the first to miss it: until then it was listed, and only its reports were late."""
    missed_at = rental.absent_at or now
    listed_at = missed_at - timedelta(seconds=timing.reconcile_every_s)
    heard_at = host.last_seen_at + timedelta(seconds=timing.heartbeat_settled_s / 2) if host else missed_at
    ended_at = min(missed_at, max(listed_at, heard_at))
    meter = rental.meter.ended(ended_at) if both else rental.meter.stopped(ended_at)
    return rental.to(RentalState.LOST, at=now).model_copy(update={"loss": loss, "meter": meter})


def _save(app: App, kept: Kept[Rental], noted: Rental) -> None:
    """That it runs is true of the record that somebody else wrote meanwhile, too."""
    is_written = _unless_stale(app, noted.label, lambda: app.store.cas(kept.doc, dump(noted)))
    gpu_from = noted.meter.gpu_from
    if is_written or gpu_from is None or gpu_from == kept.value.meter.gpu_from:
        return
    newest = read(app, "rentals", noted.label, Rental)
    if newest and newest.value.meter.gpu_from is None and newest.value.meter.disk_until is None:
        seen = rentals.began(newest.value.model_copy(update={"provider_id": noted.provider_id}))
        begun = seen.model_copy(update={"meter": seen.meter.begun(gpu_from, bills_gpu=True)})
        _unless_stale(app, noted.label, lambda: app.store.cas(newest.doc, dump(begun)))


def _unless_stale(app: App, label: str, write: Callable[[], object]) -> bool:
    """Was it written? If somebody moved the rental meanwhile, the next sweep looks again."""
    try:
        write()
    except Stale:
        app.log("sweep_stale", label=label)
        return False
    return True

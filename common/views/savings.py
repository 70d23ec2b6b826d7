"""What an account spent, and in which hours no GPU was billed because its instances were hibernated."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal

from common.domain.instance import Instance
from common.domain.ledger import LedgerEntry, hour_of, to_usd
from common.domain.model import Model
from common.domain.offer import Usd
from common.domain.rental import Rental
from common.domain.savings import hibernated
from common.ports import App, Where, every
from common.records import record_of

HOUR = timedelta(hours=1)


class SpanOut(Model):
    """No GPU was rented for the instance from `start` to `end`."""

    start: datetime
    end: datetime


class InstanceSavingsOut(Model):
    id: str
    name: str
    spent_usd: Usd
    hibernated_hours: float
    hibernated: list[SpanOut]


class SavingsOut(Model):
    days: int
    since: datetime
    """A full UTC hour: the ledger counts in hours."""
    until: datetime
    spent_usd: Usd
    """The ledger's entries, and our own meter for machines whose bill is not settled yet."""
    hibernated_hours: float
    items: list[InstanceSavingsOut]


def show(app: App, account: str, *, days: int, now: datetime) -> SavingsOut:
    since = hour_of(now - timedelta(days=days))
    of_account: list[Where] = [("account", "==", account)]
    booked = [
        LedgerEntry.model_validate(d.data) for d in every(app.store, "ledger", [*of_account, ("hour", ">=", since)])
    ]
    instances = [record_of(doc, Instance) for doc in every(app.store, "instances", of_account)]
    unsettled = every(app.store, "rentals", [*of_account, ("settled", "==", False)])
    costly = {entry.instance_key for entry in booked} | {doc.data["instance_key"] for doc in unsettled}
    items = [_item(app, one, booked, since, now) for one in instances if _lived(one, since) or one.key in costly]
    shown = [item for item in items if item.spent_usd or item.hibernated]
    return SavingsOut(
        days=days,
        since=since,
        until=now,
        spent_usd=sum((item.spent_usd for item in items), Decimal(0)),
        hibernated_hours=sum(item.hibernated_hours for item in items),
        items=shown,
    )


def _lived(instance: Instance, since: datetime) -> bool:
    """In the span, for a while at least. Nearly all instances of an account have ended long ago and stay on record."""
    return instance.ended_at is None or instance.ended_at > since


def _item(
    app: App, instance: Instance, booked: Sequence[LedgerEntry], since: datetime, now: datetime
) -> InstanceSavingsOut:  # fmt: skip
    docs = every(app.store, "rentals", [("instance_key", "==", instance.key)])
    rentals = [Rental.model_validate(doc.data) for doc in docs]
    until = min(now, instance.ended_at) if instance.ended_at else now
    spans = [SpanOut(start=start, end=end) for start, end in hibernated(rentals, since=since, until=until)]
    return InstanceSavingsOut(
        id=instance.id,
        name=instance.name,
        spent_usd=_spent(instance, rentals, booked, since, now),
        hibernated_hours=sum(((span.end - span.start) / HOUR for span in spans), 0.0),
        hibernated=spans,
    )


def _spent(
    instance: Instance, rentals: Sequence[Rental], booked: Sequence[LedgerEntry], since: datetime, now: datetime
) -> Decimal:
    """A settled machine's bill; of one that is not settled the larger of its bill so far and our meter."""
    billed: dict[str, int] = defaultdict(int)
    for entry in booked:
        if entry.instance_key == instance.key:
            billed[entry.label] += entry.micro_usd
    unsettled = {rental.label: _metered(rental, since, now) for rental in rentals if not rental.settled}
    settled = sum((to_usd(micro) for label, micro in billed.items() if label not in unsettled), Decimal(0))
    return settled + sum((max(usd, to_usd(billed.get(label, 0))) for label, usd in unsettled.items()), Decimal(0))


def _metered(rental: Rental, since: datetime, now: datetime) -> Decimal:
    start = max(since, rental.assigned_at) if rental.assigned_at else since
    return sum(rental.metered_usd(now, since=start).values(), Decimal(0))

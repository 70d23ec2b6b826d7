"""An instance's address as we keep it, and what it costs while no machine holds it."""

from datetime import datetime, timedelta

from common.domain.ledger import LedgerEntry, by_hour, to_micro
from common.domain.model import Model
from common.domain.standby_price import ADDRESS_USD_PER_HOUR

KIND = "address"
ENTERED_EVERY = timedelta(hours=1)
"""The cost of one that stays idle; what an entry says at first grows with the next one of its hour."""


def address_name(deployment: str, instance_id: str) -> str:
    """Of the instance, and for ever: a new standby takes it over."""
    return f"dumont-{deployment}-{instance_id}"


class AddressRecord(Model):
    """The document `addresses/<name>`, written before the address is asked for. Its name is the instance's for ever."""

    account: str
    instance_key: str
    is_idle: bool = False
    """It is reserved and no machine holds it, as the last listing told."""
    idle_from: datetime | None = None
    """From here on that is in no ledger entry yet."""
    entered_micro_usd: int = 0
    """What the ledger says of it in all."""

    def is_due(self, now: datetime, *, still_idle: bool) -> bool:
        return self.idle_from is not None and (not still_idle or now - self.idle_from >= ENTERED_EVERY)

    def entered(self, now: datetime, *, still_idle: bool, micro_usd: int = 0) -> "AddressRecord":
        entered = {"entered_micro_usd": self.entered_micro_usd + micro_usd}
        return self.model_copy(update={"is_idle": still_idle, "idle_from": now if still_idle else None, **entered})

    def entries(self, name: str, until: datetime, provider: str) -> list[LedgerEntry]:
        """What it cost from `idle_from` on, per UTC hour, at the dated prices: Google publishes no bill to read."""
        return [
            LedgerEntry(
                account=self.account,
                instance_id=self.instance_key.rpartition(".")[2],
                instance_key=self.instance_key,
                label=name,
                provider=provider,
                kind=KIND,
                hour=hour,
                micro_usd=to_micro(usd),
                source="computed",
            )
            for hour, usd in by_hour(ADDRESS_USD_PER_HOUR["unused"], self.idle_from, until)
        ]

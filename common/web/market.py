"""The market as it is now."""

from decimal import Decimal

from pydantic import ConfigDict, Field, field_validator

from common.domain.account import Right
from common.domain.credit import Level, Runway
from common.domain.model import Model
from common.domain.offer import Usd
from common.domain.spec import CAP_USD_MAX, Spec, gpu_name
from common.errors import Forbidden
from common.records import read
from common.views import market as view
from common.views.market import SpotMarket
from common.web.instances import OfferOut, offer_out
from common.web.routes import Call, Page, Route
from common.workflows import announcements, offers, sweep, users


class OffersQuery(Model):
    model_config = ConfigDict(extra="forbid")

    gpu: str = Field(min_length=1, max_length=64, examples=["RTX 4090"])
    num_gpus: int = Field(default=1, ge=1, le=16)
    disk_gb: int = Field(default=32, ge=8, le=16_000)
    max_usd_per_hour: Decimal | None = Field(default=None, gt=0, le=CAP_USD_MAX)

    @field_validator("gpu")
    @classmethod
    def _spaces_for_underscores(cls, gpu: str) -> str:
        return gpu_name(gpu)


class SpotQuery(Model):
    model_config = ConfigDict(extra="forbid")

    gpu: str | None = Field(default=None, min_length=1, max_length=64, examples=["RTX 4090"])
    region: str | None = Field(default=None, pattern=r"^([A-Za-z]{2}|\?\?)$", examples=["US"])
    provider: str | None = Field(default=None, pattern=r"^[a-z]{1,32}$", examples=["vast"])


class MarketOut(Model):
    """One marketplace account. What it does not tell is null."""

    name: str
    credit_usd: Usd | None
    burn_usd_per_hour: Usd | None
    hours_left: float | None
    """null = nothing burns, or it is not known."""
    level: Level | None
    webhook_url: str | None
    """Where it announces what happens; null = nothing is subscribed."""


class WebhookOut(Model):
    url: str


def list_markets(call: Call) -> Page[MarketOut]:
    _only_operators(call)
    return Page(items=[_market(call, name) for name in sorted(call.app.markets)])


def _market(call: Call, name: str) -> MarketOut:
    kept, webhook = read(call.app, "runways", name, Runway), call.app.store.get("subscriptions", name)
    runway = kept.value if kept else None
    return MarketOut(
        name=name,
        credit_usd=runway.credit_usd if runway else None,
        burn_usd_per_hour=runway.burn_usd_per_hour if runway else None,
        hours_left=runway.hours_left if runway else None,
        level=runway.level if runway else None,
        webhook_url=webhook.data["url"] if webhook else None,
    )


class SweepOut(Model):
    """What the next sweep would do."""

    listed: int
    foreign: int
    """Machines on the account that are not ours: never touched."""
    orphans: list[str]
    """Labels of machines without a live record: destroyed."""
    alarms: list[str]
    """Our own labels without any record: never destroyed, somebody must look."""
    unknown: list[str]
    """Marketplaces that gave no information."""
    orphan_bound_s: float


def look_at_sweep(call: Call) -> SweepOut:
    _only_operators(call)
    seen = sweep.look(call.app)
    return SweepOut(
        listed=seen.listed,
        foreign=seen.foreign,
        orphans=seen.orphans,
        alarms=seen.alarms,
        unknown=seen.unknown,
        orphan_bound_s=sweep.orphan_bound_s(min(seen.listed, sweep.RENTALS_MAX)),
    )


def subscribe_market(call: Call) -> WebhookOut:
    _only_operators(call)
    return WebhookOut(url=announcements.subscribe(call.app, call.ids["market"], call.now))


def _only_operators(call: Call) -> None:
    """The marketplace accounts are the deployment's, not a tenant's."""
    if not users.is_operator(call.app.store, call.caller.account):
        raise Forbidden("only an admin of the account that runs this deployment may do this")


def list_offers(call: Call) -> Page[OfferOut]:
    spec = Spec.model_validate(call.query.model_dump())
    return Page(items=[offer_out(ranked) for ranked in offers.for_user(call.app, spec, call.now)])


def show_spot_market(call: Call) -> SpotMarket:
    query: SpotQuery = call.query
    region = query.region.upper() if query.region else None
    return view.spot(call.app, now=call.now, gpu=query.gpu, region=region, provider=query.provider)


ROUTES = (
    Route("GET", "/markets", list_markets, "The marketplace accounts and how long their credit lasts", Page[MarketOut], right=Right.MANAGE_USERS, tag="market"),
    Route("GET", "/markets/sweep", look_at_sweep, "What the next sweep would destroy; nothing is", SweepOut, right=Right.MANAGE_USERS, tag="market"),
    Route("POST", "/markets/{market}/webhook", subscribe_market, "Have a marketplace announce what happens", WebhookOut, right=Right.MANAGE_USERS, tag="market", errors=(404,)),
    Route("GET", "/offers", list_offers, "What can be rented now, best ranked first, with the parts of price and wait", Page[OfferOut], query=OffersQuery, tag="market", errors=(409,)),
    Route("GET", "/spot/market", show_spot_market, "Per GPU, region and marketplace: price now and to come, survival, bid, waiting", SpotMarket, query=SpotQuery, tag="market", errors=(422,)),
)  # fmt: skip

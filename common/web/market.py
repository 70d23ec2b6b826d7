"""The market as it is now."""

from __future__ import annotations

from decimal import Decimal

from pydantic import BaseModel, ConfigDict, Field

from common.domain.instance import Spec
from common.web.instances import OfferOut, offer_out
from common.web.routes import Call, Page, Route
from common.workflows import offers


class OffersQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    gpu: str = Field(min_length=1, max_length=64, examples=["RTX 4090"])
    num_gpus: int = Field(default=1, ge=1, le=16)
    disk_gb: int = Field(default=32, ge=8, le=16_000)
    max_usd_per_hour: Decimal | None = Field(default=None, gt=0)


def list_offers(call: Call) -> Page[OfferOut]:
    spec = Spec.model_validate(call.query.model_dump())
    return Page(items=[offer_out(offer, spec.disk_gb) for offer in offers.for_user(call.app, spec)])


ROUTES = (
    Route("GET", "/offers", list_offers, "What can be rented now, cheapest first", Page[OfferOut], query=OffersQuery, tag="market", errors=(409,)),
)  # fmt: skip

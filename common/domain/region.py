"""Where a machine stands: marketplaces write free text or tell only an address, users ask for ISO 3166 alpha-2 country
codes, and a standby stands in the Google Cloud region that is nearest to it."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from common.domain.offer import Offer

COUNTRY_CODES = {
    "argentina": "AR", "armenia": "AM", "australia": "AU", "austria": "AT", "azerbaijan": "AZ", "bahrain": "BH",
    "bangladesh": "BD", "belarus": "BY", "belgium": "BE", "bolivia": "BO", "bosnia and herzegovina": "BA",
    "brazil": "BR", "bulgaria": "BG", "canada": "CA", "chile": "CL", "china": "CN", "colombia": "CO",
    "costa rica": "CR", "croatia": "HR", "cyprus": "CY", "czech republic": "CZ", "czechia": "CZ", "denmark": "DK",
    "dominican republic": "DO", "ecuador": "EC", "egypt": "EG", "estonia": "EE", "finland": "FI", "france": "FR",
    "georgia": "GE", "germany": "DE", "greece": "GR", "guatemala": "GT", "hong kong": "HK", "hungary": "HU",
    "iceland": "IS", "india": "IN", "indonesia": "ID", "ireland": "IE", "israel": "IL", "italy": "IT",
    "japan": "JP", "jordan": "JO", "kazakhstan": "KZ", "kenya": "KE", "kuwait": "KW", "kyrgyzstan": "KG",
    "latvia": "LV", "lithuania": "LT", "luxembourg": "LU", "malaysia": "MY", "malta": "MT", "mexico": "MX",
    "moldova": "MD", "mongolia": "MN", "montenegro": "ME", "morocco": "MA", "nepal": "NP", "netherlands": "NL",
    "the netherlands": "NL", "new zealand": "NZ", "nigeria": "NG", "north macedonia": "MK", "norway": "NO",
    "oman": "OM", "pakistan": "PK", "panama": "PA", "paraguay": "PY", "peru": "PE", "philippines": "PH",
    "poland": "PL", "portugal": "PT", "puerto rico": "PR", "qatar": "QA", "romania": "RO", "russia": "RU",
    "saudi arabia": "SA", "serbia": "RS", "singapore": "SG", "slovakia": "SK", "slovenia": "SI",
    "south africa": "ZA", "south korea": "KR", "korea": "KR", "spain": "ES", "sweden": "SE", "switzerland": "CH",
    "taiwan": "TW", "thailand": "TH", "tunisia": "TN", "turkey": "TR", "türkiye": "TR", "ukraine": "UA",
    "united arab emirates": "AE", "uae": "AE", "united kingdom": "GB", "uk": "GB", "united states": "US",
    "united states of america": "US", "usa": "US", "uruguay": "UY", "uzbekistan": "UZ", "vietnam": "VN",
}  # fmt: skip
"""Lower-case names as marketplaces write them -> ISO 3166 alpha-2."""


def country_of(place: str | None) -> str | None:
    """The country of free text whose last comma part is a code or a name ("Quebec, CA"); None = it cannot be told."""
    last = (place or "").rpartition(",")[2].strip()
    return last.upper() if len(last) == 2 and last.isalpha() and last.isascii() else COUNTRY_CODES.get(last.lower())


FIBRE_KM_PER_MS = 200.0
"""Light in glass: the speed of light over a refractive index of about 1.47, there and back counted apart."""
DETOUR = 1.5
"""A cable's way over the great circle's: what measured paths between cities commonly come to (1.3 to 2)."""
RTT_MS_MIN = 1.0
"""Switches and access lines: no path is shown as faster."""
EARTH_KM = 6371.0
COUNTRY_REACH_KM = {
    "AR": 2400.0, "AU": 3300.0, "BR": 2700.0, "CA": 3600.0, "CL": 2200.0, "CN": 2400.0, "DZ": 1600.0, "ID": 3800.0,
    "IN": 1600.0, "KZ": 2000.0, "MX": 2300.0, "NO": 1200.0, "RU": 6500.0, "SA": 1100.0, "TR": 1300.0, "US": 2700.0,
    "ZA": 1100.0,
}  # fmt: skip
"""From a large country's point in places.json to its furthest city: Perth, Manaus, Vancouver, Urumqi, Vladivostok,
Seattle (Alaska and Hawaii apart). Great circles between coordinates of common knowledge, rounded up."""
OTHER_REACH_KM = 1000.0
"""Of any other country: the north of Sweden or of Japan from the point."""
_SPACES = re.compile(r"\s+")

CountryOfIp = Callable[[str], str | None]
"""A public address -> the country that it is registered in (ISO 3166 alpha-2). Never raises; None = it cannot be told:
no address, a private or reserved one, or one that is nobody's."""


def nowhere(_ip: str) -> str | None:
    """`CountryOfIp` without a database."""
    return None


class Place(BaseModel):
    """A point for free text, and how much of the text it stands for."""

    model_config = ConfigDict(frozen=True)

    latitude: float
    longitude: float
    precision: Literal["city", "subdivision", "country"]
    """A country stands for its main city of data centres, a large one without such a city for where the middle of its
    people lives: what is estimated from it may be off by `reach_km`."""
    country: str
    """ISO 3166 alpha-2."""
    told_by: Literal["text", "ip"] = "text"
    """By the marketplace, or only by where its address is registered: with about one address in twenty that is another
    country than the machine's (a block may be used anywhere)."""

    @property
    def reach_km(self) -> float | None:
        """How far from the point the machine may stand where only its country is known; None = more is known."""
        return COUNTRY_REACH_KM.get(self.country, OTHER_REACH_KM) if self.precision == "country" else None

    def km_to(self, region: Region) -> float:
        return great_circle_km((self.latitude, self.longitude), region.at)

    def rtt_ms_to(self, region: Region) -> float:
        """An ESTIMATE from the distance."""
        return estimated_rtt_ms(self.km_to(region))

    def rtt_far_ms_to(self, region: Region) -> float | None:
        """The same if the machine stands at the far end of its country; None = more than the country is known."""
        return None if self.reach_km is None else estimated_rtt_ms(self.km_to(region) + self.reach_km)


class Region(BaseModel):
    """A Google Cloud region: the city it stands at, its zones, its prices as of `standby_price.PRICES_AS_OF`."""

    model_config = ConfigDict(frozen=True)

    name: str
    place: str
    country: str
    at: tuple[float, float]
    """(latitude, longitude) of that city."""
    zones: tuple[str, ...]
    """Full names, `us-central1-a`."""
    e2_medium: Decimal
    """USD per hour."""
    e2_medium_spot: Decimal
    pd_standard: Decimal
    """USD per GiB and month of 730 hours."""
    pd_balanced: Decimal


class Near(BaseModel):
    """A region as seen from a place. `rtt_ms` is an ESTIMATE from the distance, and is shown as one."""

    model_config = ConfigDict(frozen=True)

    region: Region
    km: float
    rtt_ms: float


def place_of(text: str | None) -> Place | None:
    """Where free text of a marketplace points, for example "Quebec, CA", "Dallas, Texas, USA" or ", US".

    The last comma part names the country; of the others the first one that is known as a city there counts, else as a
    subdivision, else the country itself. None = the country is not known, or the text contradicts it (a place of the
    United States before another country's code: "Chicago, IL"): nothing is guessed.
    """
    country = country_of(text)
    if country is None or country not in _places()["countries"]:
        return None
    parts = [part for part in map(_plain, (text or "").split(",")[:-1]) if part]
    for precision, kind in (("city", "cities"), ("subdivision", "subdivisions")):
        names = _places()[kind].get(country, {})
        for part in parts:
            if part in names:
                return _place(names[part], precision, country)
    if parts and country != "US" and _is_american(parts, _plain((text or "").rpartition(",")[2])):
        return None
    return _place(_places()["countries"][country], "country", country)


def place_of_machine(offer: Offer, country_of_ip: CountryOfIp, ip: str | None = None) -> Place | None:
    """Where the marketplace says that it stands, else the country of its public address; `ip` = one learnt since.

    The offer's country counts only where there is no text: it is read from the end of the text, and of a text that
    contradicts itself that end says nothing.
    """
    if place := place_of(offer.geolocation or offer.country):
        return place
    address = offer.public_ip or ip
    by_ip = place_of(country_of_ip(address)) if address else None
    return by_ip and by_ip.model_copy(update={"told_by": "ip"})


@cache
def near(place: Place) -> tuple[Near, ...]:
    """All regions, the nearest first."""
    seen = (_seen(place, region) for region in regions().values())
    return tuple(sorted(seen, key=lambda near: (near.km, near.region.name)))


def nearest(place: Place) -> Near:
    return near(place)[0]


def region_of(zone: str) -> str:
    """`us-central1-a` -> `us-central1`."""
    return zone.rpartition("-")[0]


def estimated_rtt_ms(km: float) -> float:
    """There and back through fibre that takes DETOUR times the great circle: 2 x DETOUR x km / FIBRE_KM_PER_MS."""
    return max(2 * DETOUR * km / FIBRE_KM_PER_MS, RTT_MS_MIN)


def great_circle_km(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Haversine over (latitude, longitude) in degrees."""
    (lat1, lon1), (lat2, lon2) = ((math.radians(lat), math.radians(lon)) for lat, lon in (one, other))
    half = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return 2 * EARTH_KM * math.asin(min(1.0, math.sqrt(half)))


@cache
def regions() -> Mapping[str, Region]:
    """Google's regions by name (google_regions.json): those that any project can use and whose prices are known."""
    rows = json.loads(resources.files("common.domain").joinpath("google_regions.json").read_text("utf-8"))
    return {name: Region(**_region(name, row)) for name, row in rows.items()}


def _region(name: str, row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "name": name, "zones": tuple(f"{name}-{letter}" for letter in row["zones"])}


def _seen(place: Place, region: Region) -> Near:
    return Near(region=region, km=place.km_to(region), rtt_ms=place.rtt_ms_to(region))


@cache
def _places() -> dict[str, Any]:
    """places.json: countries, subdivisions and cities by their plain names; coordinates of common knowledge."""
    found: dict[str, Any] = json.loads(resources.files("common.domain").joinpath("places.json").read_text("utf-8"))
    return found


def _place(at: list[float], precision: Any, country: str) -> Place:
    return Place(latitude=at[0], longitude=at[1], precision=precision, country=country)


def _is_american(parts: list[str], last: str) -> bool:
    """Is a place of the United States named where the last part is the code of another country, or `Georgia`?"""
    cities, states = (_places()[kind]["US"] for kind in ("cities", "subdivisions"))
    return (len(last) > 2 and last in states) or any(part in cities or part in states for part in parts)


def _plain(name: str) -> str:
    """Lower case, without accents."""
    split = unicodedata.normalize("NFKD", name.strip().replace("ø", "o").replace("Ø", "O").replace("ł", "l"))
    return _SPACES.sub(" ", "".join(c for c in split if not unicodedata.combining(c)).casefold())

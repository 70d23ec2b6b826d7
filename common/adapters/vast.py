"""Vast.ai over HTTPS: the vendor's words and units stop here. Nothing is ever retried."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

import httpx

from common.domain.offer import Offer, Survey, Wanted, exact, exact_price, exact_rate
from common.domain.pacing import SLACK, Limit, Limits
from common.domain.region import country_of
from common.errors import (
    BadRequest,
    MarketKeyRefused,
    MarketRefused,
    MarketSilent,
    MarketUnknown,
    NoCredit,
    OfferGone,
    QuotaExceeded,
    Throttled,
    Unauthenticated,
)
from common.ports import Charge, Launch, Listed, MachineStatus, MarketEvent, Subscription, Told, untold

TIMEOUT = httpx.Timeout(30.0, connect=10.0)
PAGES_MAX = 200
"""Of 25 rows each: 5,000 machines on one account."""
PAGE_ROWS = 25
PAGE_INTERVAL_S = 1.0 * SLACK
CHARGE_ROWS = 500
DEFAULT_RETRY_AFTER_S = 5.0
DISK_GB_MIN = 8
SURVEY_ROWS = 512
"""Of one search; the vendor gives the cheapest first."""
EVENT_TYPES = (
    "client:outbid",
    "client:instance_stopped",
    "client:instance_offline",
    "client:upcoming_downtime",
    "client:low_credit",
)
EVENT_AGE_MAX_S = 300
MARGIN_S = 0.5
"""What two calls may differ by on their way: a create that arrives too early costs a penalty of 12 s."""
LIMITS: Limits = {
    "search": Limit("search", interval_s=10.0, burst=4),
    "create": Limit("create", interval_s=4.5 + MARGIN_S),
    "list": Limit("list", interval_s=1.0),
    "get": Limit("get", interval_s=2.0),
    "destroy": Limit("destroy", interval_s=3.0),
    "charges": Limit("charges", interval_s=1.0),
}
"""The vendor's documentation of its rate limits: a least interval per endpoint and key, and ten searches a minute."""
RUNTYPE = "ssh_direc ssh_proxy"
CHARGE_KINDS: Mapping[str, Literal["gpu", "disk", "bandwidth_up", "bandwidth_down"]] = {
    "gpu": "gpu",
    "disk": "disk",
    "bwu": "bandwidth_up",
    "bwd": "bandwidth_down",
}
Json = dict[str, Any]
_EXACT = json.JSONDecoder(parse_float=Decimal)


class Vast:
    """`ports.Market` on one Vast.ai account."""

    name = "vast"
    limits: Limits = LIMITS

    def __init__(
        self,
        api_key: str,
        *,
        base_url: str = "https://console.vast.ai",
        transport: httpx.BaseTransport | None = None,
        verify: ssl.SSLContext | bool = True,
        wait: Callable[[float], object] = time.sleep,
        told: Told = untold,
    ) -> None:
        """`wait` passes the seconds between two pages of one answer: each page counts as a call."""
        headers = {"Authorization": f"Bearer {api_key}", "Accept": "application/json"}
        self._http = httpx.Client(
            base_url=base_url, headers=headers, timeout=TIMEOUT, transport=transport, verify=verify
        )
        self._wait, self._told = wait, told

    def close(self) -> None:
        self._http.close()

    def search(self, wanted: Wanted) -> list[Offer]:
        body = {
            "verified": {"eq": True},
            "external": {"eq": False},
            "rentable": {"eq": True},
            "gpu_name": {"eq": wanted.gpu},
            "num_gpus": {"eq": wanted.num_gpus},
            "disk_space": {"gte": wanted.disk_gb},
            "order": [["dph_total", "asc"]],
            "type": "on-demand",
            "limit": wanted.limit,
            "allocated_storage": wanted.disk_gb,
            **({"geolocation": {"in": list(wanted.regions)}} if wanted.regions else {}),
            **({"dph_total": {"lte": float(wanted.max_usd_per_hour)}} if wanted.max_usd_per_hour else {}),
        }
        rows = _rows(self._call("POST", "/api/v0/bundles/", body=body), "offers")
        offers = [offer for row in rows if (offer := _offer(row)) is not None]
        cap = wanted.max_usd_per_hour
        fitting = [offer for offer in offers if cap is None or offer.usd_per_hour(wanted.disk_gb) <= cap]
        return sorted(fitting, key=lambda offer: offer.usd_per_hour(wanted.disk_gb))

    def survey(self, gpu: str) -> Survey:
        body = {
            "verified": {"eq": True},
            "external": {"eq": False},
            "rentable": {"eq": True},
            "gpu_name": {"eq": gpu},
            "order": [["dph_total", "asc"]],
            "type": "on-demand",
            "limit": SURVEY_ROWS,
        }
        rows = _rows(self._call("POST", "/api/v0/bundles/", body=body), "offers")
        offers = tuple(offer for row in rows if (offer := _offer(row)) is not None)
        return Survey(offers=offers, is_whole=len(rows) < SURVEY_ROWS)

    def create(self, offer: Offer, launch: Launch) -> str:
        """`cancel_unavail` also for bids: a lost race must not leave a stopped contract that bills its disk.

        The call takes no cap for a machine on demand; a bid is one of its own.
        """
        _check_bid(offer, launch)
        body = {
            "client_id": "me",
            "image": launch.image,
            "env": dict(launch.env),
            "price": float(launch.bid_usd_per_hour) if launch.bid_usd_per_hour else None,
            "disk": offer.created_disk_gb(launch.disk_gb),
            "label": launch.label,
            "onstart": launch.start_script,
            "runtype": RUNTYPE,
            "cancel_unavail": True,
        }
        answer = self._call("PUT", f"/api/v0/asks/{offer.offer_id}/", body=body)
        if answer.get("new_contract") is None:
            raise MarketUnknown("vast.ai accepted the create but named no contract")
        return str(answer["new_contract"])

    def list(self) -> Sequence[Listed]:
        rows: dict[str, Listed] = {}
        token: str | None = None
        for _ in range(PAGES_MAX):
            query = {"select_filters": "{}", "order_by": '[{"col": "id", "dir": "asc"}]', "limit": str(PAGE_ROWS)}
            page = self._call("GET", "/api/v1/instances/", query=query | ({"after_token": token} if token else {}))
            rows |= {listed.provider_id: listed for listed in map(_listed, _rows(page, "instances"))}
            token = page.get("next_token")
            if not token:
                return _whole([*rows.values()], page)
            self._wait(PAGE_INTERVAL_S)
        raise MarketUnknown(f"vast.ai's listing did not end after {PAGES_MAX} pages")

    def get(self, provider_id: str) -> Listed | None:
        answer = self._call("GET", f"/api/v0/instances/{provider_id}/", query={"owner": "me"})
        if "instances" not in answer:
            raise MarketUnknown("vast.ai answered without the instance")
        return _listed(answer["instances"]) if answer["instances"] else None

    def destroy(self, provider_id: str) -> bool:
        try:
            self._call("DELETE", f"/api/v0/instances/{provider_id}/", body={})
        except MarketRefused as refused:
            if "no_such_instance" not in str(refused):
                raise
            return False
        return True

    def credit_usd(self) -> str:
        answer = self._call("GET", "/api/v0/users/current")
        try:
            return str(exact(answer.get("credit")))
        except ValueError as error:
            raise MarketUnknown(f"vast.ai stated no credit: {error}") from error

    def charges(self, since: datetime, until: datetime) -> Sequence[Charge]:
        """Of whole days, and of one more: a row is of a contract, and dated by the midnights of its first and last day
        (docs.vast.ai, "show charges")."""
        first_day = since.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)
        day = {"day": {"gte": first_day.timestamp(), "lte": until.timestamp()}}
        query = {"select_filters": json.dumps(day), "limit": str(CHARGE_ROWS), "format": "table"}
        found: list[Charge] = []
        token: str | None = None
        for _ in range(PAGES_MAX):
            page = self._call("GET", "/api/v0/charges/", query=query | ({"after_token": token} if token else {}))
            found += [charge for row in _rows(page, "results") for charge in _charges(row)]
            token = page.get("next_token")
            if not token:
                return found
            self._wait(PAGE_INTERVAL_S)
        raise MarketUnknown(f"vast.ai's charges did not end after {PAGES_MAX} pages")

    def subscribe(self, url: str) -> Subscription:
        body = {"name": "dumont", "webhook_url": url, "event_types": list(EVENT_TYPES)}
        answer = self._call("POST", "/api/v0/webhooks/", body=body)
        made = answer.get("webhook")
        if not isinstance(made, dict) or not made.get("webhook_secret"):
            raise MarketUnknown("vast.ai made a webhook and did not tell its secret")
        return Subscription(str(made["id"]), url, str(made["webhook_secret"]))

    def unsubscribe(self, id: str) -> None:
        try:
            self._call("DELETE", f"/api/v0/webhooks/{id}/", body={})
        except MarketRefused as refused:
            if "not_found" not in str(refused):
                raise

    def subscriptions(self) -> Sequence[Subscription]:
        rows = _rows(self._call("GET", "/api/v0/webhooks/"), "webhooks")
        return [Subscription(str(row.get("id")), str(row.get("webhook_url"))) for row in rows]

    def event(self, headers: Mapping[str, str], body: bytes, *, secret: str, now: datetime) -> MarketEvent:
        """HMAC-SHA256 over "<timestamp>.<raw body>", at most EVENT_AGE_MAX_S old (the vendor's documentation)."""
        stamp, signature = headers.get("X-Vast-Timestamp", ""), headers.get("X-Vast-Signature-256", "")
        right = hmac.new(secret.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(signature.encode(), f"sha256={right}".encode()):
            raise Unauthenticated("this is not signed with the webhook's secret")
        if not stamp.isdigit() or abs(now.timestamp() - int(stamp)) > EVENT_AGE_MAX_S:
            raise Unauthenticated("this was signed too long ago")
        try:
            said = json.loads(body)
            return MarketEvent(str(said["event_id"]), str(said["notif_type"]), str(said.get("message") or ""))
        except (ValueError, KeyError, TypeError):
            raise BadRequest("this is no event") from None

    def _call(
        self, method: str, path: str, *, body: Json | None = None, query: Mapping[str, str] | None = None
    ) -> Json:
        """The parsed answer of a call that worked; every other outcome is one of the errors of `ports.Market`."""
        try:
            answer = self._http.request(method, path, json=body, params=query)
        except httpx.HTTPError as error:
            unknown = MarketSilent if isinstance(error, httpx.TimeoutException) else MarketUnknown
            raise unknown(f"vast.ai did not answer {method} {path}: {type(error).__name__}") from error
        parsed = _parsed(answer)
        if answer.status_code == 429:
            raise _throttled(answer, parsed)
        if answer.status_code >= 500 or parsed is None:
            raise MarketUnknown(f"vast.ai answered {answer.status_code} to {method} {path} without information")
        if answer.status_code >= 400 or parsed.get("success") is False:
            raise _refusal(answer.status_code, parsed)
        if not answer.is_success:
            raise MarketUnknown(f"vast.ai answered {answer.status_code} to {method} {path}")
        self._told(method, path, parsed)
        return parsed


def _parsed(answer: httpx.Response) -> Json | None:
    """The body as an object with exact numbers, or None when it is no such thing."""
    try:
        parsed = _EXACT.decode(answer.content.decode())
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


def _throttled(answer: httpx.Response, parsed: Json | None) -> Exception:
    if parsed and parsed.get("error") == "search_quota_exceeded":
        return QuotaExceeded("vast.ai's daily search quota is used up; it resets at 00:00 UTC")
    threshold = re.search(r"threshold=([0-9.]+)", answer.text)
    return Throttled("vast.ai: too many requests", float(threshold[1]) if threshold else DEFAULT_RETRY_AFTER_S)


def _refusal(status: int, parsed: Json) -> Exception:
    """The vendor's refusals by slug, then by text; one that names a contract left a machine behind."""
    slug, text = str(parsed.get("error") or ""), str(parsed.get("msg") or parsed.get("error") or "")
    if slug == "auth_error" or status in (401, 403):
        return MarketKeyRefused(f"vast.ai refuses the key: {text}")
    if parsed.get("new_contract") is not None:
        return MarketRefused(f"{slug}: {text}", provider_id=str(parsed["new_contract"]))
    if slug == "no_such_ask" or "no_such_ask" in text:
        return OfferGone(f"the offer was taken: {text}")
    if slug in ("insufficient_credit", "spend_rate_limit"):
        # a new account's spending limit is, like an empty one, nothing that another machine would cure
        return NoCredit(text or slug)
    return MarketRefused(f"{slug or status}: {text}")


def _check_bid(offer: Offer, launch: Launch) -> None:
    if launch.bid_usd_per_hour is None or launch.max_usd_per_hour is None:
        return
    price = Decimal(launch.bid_usd_per_hour) + offer.disk_usd_per_hour(launch.disk_gb)
    if price > Decimal(launch.max_usd_per_hour):
        raise OfferGone(f"the bid comes to {price:.4f} USD/h with its disk, above {launch.max_usd_per_hour}")


def _rows(answer: Json, name: str) -> list[Json]:
    rows = answer.get(name)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise MarketUnknown(f"vast.ai answered without {name}")
    return rows


def _whole(rows: list[Listed], last_page: Json) -> list[Listed]:
    """A listing whose pages do not add up is no information."""
    total = last_page.get("total_instances")
    if isinstance(total, int) and total != len(rows):
        raise MarketUnknown(f"vast.ai listed {len(rows)} machines of {total}")
    return rows


def _offer(row: Json) -> Offer | None:
    """None for a row that cannot be trusted: a price that is missing, zero, negative or not a number."""
    try:
        gpu, storage = exact_price(row["dph_base"]), exact_rate(row["storage_cost"])
        place = row.get("geolocation") or None
        return Offer(
            provider="vast",
            offer_id=str(row["id"]),
            machine_id=str(row["machine_id"]),
            gpu=row["gpu_name"],
            num_gpus=row["num_gpus"],
            gpu_ram_mb=int(row["gpu_ram"]),
            gpu_usd_per_hour=gpu,
            bid_floor_usd_per_hour=_bid_floor(row),
            storage_usd_per_gb_month=storage,
            upload_usd_per_gb=exact_rate(row.get("inet_up_cost") or 0),
            download_usd_per_gb=exact_rate(row.get("inet_down_cost") or 0),
            upload_mbit_s=float(row.get("inet_up") or 0),
            download_mbit_s=float(row.get("inet_down") or 0),
            reliability=float(row.get("reliability") or row.get("reliability2") or 0),
            country=country_of(place),
            geolocation=place,
            public_ip=str(row["public_ipaddr"]).strip() if row.get("public_ipaddr") else None,
            cuda_max=float(row["cuda_max_good"]) if row.get("cuda_max_good") else None,
            driver_version=row.get("driver_version"),
            disk_space_gb=float(row.get("disk_space") or 0),
            disk_gb_min=DISK_GB_MIN,
            vcpus=float(row.get("cpu_cores_effective") or 0),
            ram_gb=_ram_gb(row),
        )
    except (KeyError, ValueError, TypeError, ArithmeticError):
        return None


def _bid_floor(row: Json) -> Decimal | None:
    """A floor that cannot be believed is none: the offer can still be rented on demand."""
    try:
        return exact_price(row.get("min_bid"))
    except ValueError:
        return None


def _ram_gb(row: Json) -> float:
    """The offer's share: `cpu_ram` (MB) is the whole machine's."""
    share = float(row.get("cpu_cores_effective") or 0) / float(row.get("cpu_cores") or 1)
    return round(float(row.get("cpu_ram") or 0) * min(share, 1) / 1000, 1)


def _listed(row: Json) -> Listed:
    try:
        port = ((row.get("ports") or {}).get("22/tcp") or [{}])[0].get("HostPort")
        return Listed(
            provider_id=str(row["id"]),
            label=str(row.get("label") or ""),
            status=_status(row),
            message=str(row.get("status_msg") or ""),
            ssh_host=str(row["public_ipaddr"]).strip() if port and row.get("public_ipaddr") else None,
            ssh_port=int(port) if port else None,
            usd_per_hour=str(exact_rate(row["dph_total"])) if row.get("dph_total") is not None else None,
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise MarketUnknown(f"vast.ai listed a machine that does not parse: {error}") from error


def _status(row: Json) -> MachineStatus:
    """Decided on the contract's own words; what the host last told only says whether it is up."""
    actual, contract = row.get("actual_status"), {row.get("cur_state"), row.get("intended_status")}
    if contract == {"stopped"}:
        return "stopped"
    if actual in ("offline", "unknown"):
        return "offline"
    if actual == "running":
        return "running"
    if actual == "exited":
        return "exited"
    return "starting" if actual in (None, "loading", "created") else "unknown"


def _charges(row: Json) -> list[Charge]:
    try:
        source = str(row["source"])
        if row.get("type") != "instance" or not source.startswith("instance-"):
            return []
        start, end = (datetime.fromtimestamp(float(row[name]), UTC) for name in ("start", "end"))
        id, label = source.removeprefix("instance-"), str((row.get("metadata") or {}).get("label") or "")
        return [
            Charge(id, CHARGE_KINDS[item["type"]], start, end, str(exact(item["amount"])), label)
            for item in row["items"]
            if item["type"] in CHARGE_KINDS
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MarketUnknown(f"vast.ai sent a charge that does not parse: {error}") from error

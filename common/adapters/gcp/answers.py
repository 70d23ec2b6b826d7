"""What Google's answers say, in the words of the ports: which errors are definite, and what a row describes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from common.errors import (
    MarketError,
    MarketKeyRefused,
    MarketRefused,
    MarketSilent,
    MarketUnknown,
    NoCredit,
    OfferGone,
    QuotaExceeded,
    Throttled,
)
from common.ports import Address, Listed, MachineStatus, Operation

DEFAULT_RETRY_AFTER_S = 10.0
PAGES_MAX = 200
SSH_PORT = 22
PREEMPTED = "compute.instances.preempted"

STATUSES: Mapping[str, MachineStatus] = {
    "PROVISIONING": "starting",
    "STAGING": "starting",
    "RUNNING": "running",
    "PENDING_STOP": "stopped",
    "STOPPING": "stopped",  # also while it is deleted
    "STOPPED": "stopped",
    "TERMINATED": "stopped",  # by whomever: its operations tell whether Google took it
    "SUSPENDING": "stopped",
    "SUSPENDED": "stopped",
    "DEPROVISIONING": "stopped",
    "REPAIRING": "offline",
}
NO_ROOM = ("RESOURCE_POOL_EXHAUSTED", "RESOURCEPOOLEXHAUSTED", "STOCKOUT", "RESOURCE_AVAILABILITY")
NO_QUOTA = ("QUOTA_EXCEEDED", "QUOTAEXCEEDED")
TOO_OFTEN = ("RATELIMITEXCEEDED", "RATE_LIMIT_EXCEEDED")
NO_BILLING = ("BILLING",)
"""Parts of Google's reasons and codes, in capitals."""


class Missing(MarketRefused):
    """404 that names exactly the thing that was asked for."""


class There(MarketRefused):
    """409: a thing of that name exists."""


@contextmanager
def answers(asked: str, *, missing: str | None = None) -> Iterator[None]:
    """Every way in which a call can fail becomes one of the errors of `ports.Market`.

    A 404 is `Missing` only if its sentence ends the path of what was asked for with `missing`: a wrong project or
    something in front of Google answers 404 too.
    """
    import requests
    from google.api_core.exceptions import GoogleAPICallError
    from google.auth.exceptions import GoogleAuthError, TransportError
    from google.protobuf.json_format import ParseError

    try:
        yield
    except GoogleAPICallError as error:
        raise _refusal(error, asked, missing) from error
    except TransportError as error:
        raise MarketUnknown(f"google's tokens cannot be had for {asked}: {type(error).__name__}") from error
    except GoogleAuthError as error:
        raise MarketKeyRefused(f"google takes no credentials of ours for {asked}: {error}") from error
    except (requests.RequestException, ParseError, ValueError, TypeError, AttributeError) as error:
        unknown = MarketSilent if isinstance(error, requests.Timeout) else MarketUnknown
        raise unknown(f"google did not answer {asked} with information: {type(error).__name__}") from error


def _refusal(error: Any, asked: str, missing: str | None) -> MarketError:
    """Nothing is believed of an answer that is not in Google's own form."""
    status, rows = int(error.code or 0), [row for row in error.errors or () if isinstance(row, dict)]
    sentence = f"google answered {status} to {asked}: {error.message}"
    if status == 429:
        return Throttled(sentence, _retry_after_s(error))
    if not rows:
        return MarketUnknown(f"google answered {status} to {asked} without information")
    reasons = [str(row.get("reason", "")) for row in rows]
    if status == 401:
        return MarketKeyRefused(sentence)
    if status == 404:
        named = missing is not None and missing in str(error.message)
        return Missing(sentence) if named else _of(reasons, sentence, 400 if missing is None else 500)
    if status == 409:
        return There(sentence)
    return _of(reasons, sentence, status)


def _of(reasons: Iterable[str], sentence: str, status: int) -> MarketError:
    """By Google's own reasons; where they say nothing, by the status."""
    text = " ".join(reasons).upper()
    for parts, kind in ((NO_ROOM, OfferGone), (NO_QUOTA, QuotaExceeded), (NO_BILLING, NoCredit)):
        if any(part in text for part in parts):
            return kind(sentence)
    if any(part in text for part in TOO_OFTEN):
        return Throttled(sentence, DEFAULT_RETRY_AFTER_S)
    if status == 403:
        return MarketKeyRefused(sentence)
    return MarketRefused(sentence) if 400 <= status < 500 else MarketUnknown(sentence)


def _retry_after_s(error: Any) -> float:
    try:
        return max(float(error.response.headers["retry-after"]), 0.1)
    except (AttributeError, KeyError, TypeError, ValueError):
        return DEFAULT_RETRY_AFTER_S


def whole(page: Any) -> Any:
    """A page of a listing; an answer that is none says nothing, and one that leaves something out is refused."""
    if not page.kind:
        raise MarketUnknown("google answered without a listing")
    if left_out := [*getattr(page, "unreachables", ())]:
        raise MarketUnknown(f"google could not reach {left_out[0]}")
    if page.warning.code not in ("", "NO_RESULTS_ON_PAGE"):
        raise MarketUnknown(f"google listed a part: {page.warning.code}")
    return page


def rows_of(page: Any, kind: str) -> list[Any]:
    """The rows of a page over all zones or regions."""
    rows: list[Any] = []
    for place, scope in whole(page).items.items():
        if scope.warning.code not in ("", "NO_RESULTS_ON_PAGE"):
            raise MarketUnknown(f"google listed {kind} without those of {place}: {scope.warning.code}")
        rows += getattr(scope, kind)
    return rows


def bounded(pages: Iterable[Any]) -> Iterator[Any]:
    """Raises `MarketUnknown` past PAGES_MAX rather than return a part."""
    for number, page in enumerate(pages):
        if number >= PAGES_MAX:
            raise MarketUnknown(f"google lists more than {PAGES_MAX} pages")
        yield page


def listed(row: Any) -> Listed:
    zone = _last(row.zone)
    if not row.name or not zone or not row.status:
        raise MarketUnknown("google listed a machine without name, zone or status")
    ip = next((access.nat_i_p for nic in row.network_interfaces for access in nic.access_configs), "")
    return Listed(
        provider_id=f"{zone}/{row.name}",
        label=row.name,
        status=STATUSES.get(row.status, "unknown"),
        message=": ".join(part for part in (row.status, row.status_message) if part),
        ssh_host=ip or None,
        ssh_port=SSH_PORT if ip else None,
        runs_since=_moment(row.last_start_timestamp),
    )


def _moment(text: str) -> datetime | None:
    """RFC 3339, with the zone; one that cannot be read tells nothing."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else None


def address(row: Any) -> Address:
    if not row.name or not row.region:
        raise MarketUnknown("google listed an address without name or region")
    found = re.search(r"/zones/([^/]+)/instances/([^/]+)\Z", row.users[0]) if row.users else None
    used_by = f"{found[1]}/{found[2]}" if found else row.users[0] if row.users else None
    return Address(row.name, _last(row.region), row.address or None, used_by)


def operation(row: Any) -> Operation:
    name = operation_name(row)
    if row.status.name not in ("PENDING", "RUNNING", "DONE") or not row.operation_type:
        raise MarketUnknown(f"google showed operation {name} without its state")
    is_done = row.status.name == "DONE"
    return Operation(
        name=name,
        kind="preempted" if row.operation_type == PREEMPTED else row.operation_type,
        target=_last(row.target_link),
        is_done=is_done,
        refusal=later_refusal(row) if is_done else None,
        begun_at=datetime.fromisoformat(row.insert_time) if row.insert_time else None,
    )


def operation_name(row: Any) -> str:
    """`zones/<zone>/operations/<id>`; an answer without it accepted nothing that can be followed."""
    kind, place = ("zones", _last(row.zone)) if row.zone else ("regions", _last(row.region))
    if not row.name or not place:
        raise MarketUnknown("google accepted the call but named no operation")
    return f"{kind}/{place}/operations/{row.name}"


def later_refusal(row: Any) -> MarketError | None:
    """What a finished operation ended with; None = it worked."""
    errors = list(row.error.errors)
    if not errors and row.http_error_status_code < 400:
        return None
    reasons = [error.code for error in errors]
    text = "; ".join(f"{error.code}: {error.message}" for error in errors) or row.http_error_message
    refused = _of(reasons, f"google's {row.operation_type} of {_last(row.target_link)} failed: {text}", 400)
    return MarketRefused(str(refused)) if isinstance(refused, MarketUnknown | Throttled) else refused


def _last(url: str) -> str:
    return str(url).rpartition("/")[2]

"""gpus market: what a GPU costs where, now and in the hours to come."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from common.cli import session


def spot_market(
    gpu: Annotated[str | None, typer.Option(help="As the market calls it; left out: every recorded one.")] = None,
    region: Annotated[str | None, typer.Option(help="Two-letter country code.")] = None,
    provider: Annotated[str | None, typer.Option(help="vast or tensordock.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Per GPU, region and marketplace: price now and in a day, discount, survival, bid, whether to wait."""
    with session.client() as api:
        found = api.get("/spot/market", gpu=gpu, region=region, provider=provider)
    if json_:
        session.out(found)
        return
    if not found["items"]:
        asked = " ".join(filter(None, (gpu, region, provider)))
        of = f" of {asked}; left out, they show all that is" if asked else " yet"
        print(f"nothing is recorded{of}: the market is looked at every few minutes")
        return
    session.table([_outlook(row) for row in found["items"]], *OUTLOOK_COLUMNS)
    best = found["rent_now"]
    if best:
        print(f"rent now: {best['gpu']} in {best['region']} at {best['provider']}, {_all_in(best)} USD/h all in")
    print("USD per hour for one GPU; 24 h = the middle 80 % of what is expected; error = ours over the last value's")


OUTLOOK_COLUMNS = (
    "gpu", "region", "provider", "now", "all in", "24 h", "error", "trend", "discount", "available", "alive 1 h",
    "alive 6 h", "bid", "outbid 24 h", "wait for", "waiting saved",
)  # fmt: skip


def _outlook(row: dict[str, Any]) -> dict[str, Any]:
    """One row as text; what is not known is left empty."""
    day: dict[str, Any] = next((f for f in row["forecasts"] if f["horizon_s"] == 86_400), {})
    bid, wait, alive = row["bid"] or {}, row["wait"] or {}, row["survival"]
    return {
        "gpu": row["gpu"],
        "region": row["region"],
        "provider": row["provider"],
        "now": f"{float(row['now']['usd_per_hour']):.4f}" if row["now"] else "none",
        "all in": _all_in(row),
        "24 h": f"{day['p10']:.3f} .. {day['p90']:.3f}" if day else "",
        "error": f"{day['served_rmae']:.2f}" if day and day["served_rmae"] is not None else "",
        "trend": day.get("trend") or "",
        "discount": _percent(row["discount"]),
        "available": _percent(row["availability_24h"]),
        "alive 1 h": _percent(alive.get("1h")),
        "alive 6 h": _percent(alive.get("6h")),
        "bid": f"{bid['usd_per_hour']:.4f}" if bid else "",
        "outbid 24 h": _percent(bid.get("outbid_within_24h")),
        "wait for": f"{wait['cheap_usd_per_hour']:.4f}" if wait.get("wait") else "",
        "waiting saved": _percent(wait.get("saved_share")),
    }


def _all_in(row: dict[str, Any]) -> str:
    return f"{float(row['now']['all_in_usd_per_hour']):.4f}" if row["now"] else ""


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"

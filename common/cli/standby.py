"""standby, failover: what protects an instance, and the way there and back."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection
from typing import Annotated, Any

import typer

from common.cli import session
from common.cli.fleet import Json
from common.client import Client

DRILL_WITHIN_S = 1800
"""Each way: a GPU must be found, filled and handed the role."""
POLL_S = 0.5
SHOWN = ("instance_id", "part", "in_sync", "lag_s", "zone", "address", "estimated_rtt_ms", "usd_per_month", "why")
standby = typer.Typer(add_completion=False, no_args_is_help=True)
failover = typer.Typer(add_completion=False, no_args_is_help=True)


@standby.command("list")
def list_standbys(
    instance: Annotated[str | None, typer.Option(help="Only of this one.")] = None, json_: Json = False
) -> None:
    """Whether each instance is in sync with its standby, how far it lags, and what that costs a month."""
    with session.client() as api:
        found = api.get("/standby", instance=instance)
    session.out(found) if json_ else session.table([_short(row) for row in found["items"]], *SHOWN)


@standby.command("on")
def switch_on(id: str, json_: Json = False) -> None:
    """Rent a standby for it."""
    _wish("put", "/standby", {"instance_id": id, "standby": True}, f"{id} gets a standby", json_)


@standby.command("off")
def switch_off(id: str, json_: Json = False) -> None:
    """Let its standby go, once what only it and the GPU have is in a snapshot."""
    _wish("put", "/standby", {"instance_id": id, "standby": False}, f"{id} goes on without a standby", json_)


@failover.command("now")
def move(id: str, json_: Json = False) -> None:
    """Move to the standby although the GPU lives."""
    _wish("post", "/standby/failover", {"instance_id": id}, f"{id} moves to its standby", json_)


@failover.command("back")
def back(id: str, json_: Json = False) -> None:
    """Agree to go back to a GPU as soon as one has everything."""
    _wish("post", "/standby/hand-back", {"instance_id": id}, f"{id} goes back to a GPU", json_)


@failover.command("drill")
def drill(id: str, json_: Json = False) -> None:
    """Move to the standby and back, and say how long each way took. Meanwhile another GPU is rented, and paid for."""
    with session.client() as api:
        (before,) = api.get("/standby", instance=id)["items"]
        if not before["in_sync"]:
            session.fail(f"{id} is not in sync with a standby: {before['why']}", session.CONFLICT)
        began = time.monotonic()
        api.post("/standby/failover", {"instance_id": id}, key=secrets.token_hex(12))
        _until(api, id, ("on_standby", "handing_over"))
        there_s = time.monotonic() - began
        api.post("/standby/hand-back", {"instance_id": id}, key=secrets.token_hex(12))
        _until(api, id, ("running",))
        told = {"instance_id": id, "there_s": round(there_s, 2), "round_s": round(time.monotonic() - began, 2)}
    session.out(told) if json_ else print(f"{id}: on the standby after {there_s:.1f} s, back after {told['round_s']} s")


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """The estimate with how far it may be off: `17.9 to 58.4 (by its IP)` of a GPU whose country alone is known."""
    rtt = row["estimated_rtt_ms"]
    far = "" if row["estimated_rtt_far_ms"] is None else f" to {row['estimated_rtt_far_ms']}"
    by_ip = " (by its IP)" if row["gpu_place_told_by"] == "ip" else ""
    return row | {"estimated_rtt_ms": None if rtt is None else f"{rtt}{far}{by_ip}"}


def _wish(method: str, path: str, body: dict[str, Any], sentence: str, json_: bool) -> None:
    with session.client() as api:
        found = api.put(path, body) if method == "put" else api.post(path, body, key=secrets.token_hex(12))
    session.out(found) if json_ else print(sentence)


def _until(api: Client, id: str, states: Collection[str]) -> None:
    """Raises `typer.Exit` after DRILL_WITHIN_S."""
    until = time.monotonic() + DRILL_WITHIN_S
    while time.monotonic() < until:
        if api.get(f"/instances/{id}")["state"] in states:
            return
        time.sleep(POLL_S)
    session.fail(f"{id} was not {' or '.join(states)} within {DRILL_WITHIN_S} s", session.FAILED)

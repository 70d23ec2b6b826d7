"""gpus, instances, ssh: the market and what you own."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from common.chatops.grammar import minutes_of
from common.cli import session
from common.cli.market import spot_market
from common.client import Client
from common.domain.policy import IdlePolicy
from common.domain.strategy import Strategy

WAIT_POLLS = 3600
"""Seconds that a verb waits for its operation."""
gpus = typer.Typer(add_completion=False, no_args_is_help=True)
markets = typer.Typer(add_completion=False, no_args_is_help=True)
instances = typer.Typer(add_completion=False, no_args_is_help=True)
budget = typer.Typer(add_completion=False, no_args_is_help=True)
pool = typer.Typer(add_completion=False, no_args_is_help=True)
machines = typer.Typer(add_completion=False, no_args_is_help=True)
"""Every verb of instances, and the history of the machines themselves."""
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Do not wait until it is done.")]
err = Console(stderr=True)


@gpus.command("list")
def list_offers(
    gpu: Annotated[str, typer.Option(help="As the market calls it.")] = "RTX 4090",
    max_usd_per_hour: Annotated[float | None, typer.Option()] = None,
    disk_gb: Annotated[int, typer.Option()] = 32,
    json_: Json = False,
) -> None:
    """What can be rented now, best ranked first: price, price all in, expected seconds to ready."""
    with session.client() as api:
        found = api.get("/offers", gpu=gpu, max_usd_per_hour=max_usd_per_hour, disk_gb=disk_gb)
    session.out(found) if json_ else session.table(
        [_short(offer) for offer in found["items"]],
        *("usd_per_hour", "all_in_usd_per_hour", "ready_s", "gpu", "machine_id", "geolocation", "blocked_until"),
    )


gpus.command("market")(spot_market)


@gpus.command("deploy")
def deploy(
    gpu: str,
    strategy: Annotated[Strategy, typer.Option()] = Strategy.RACE,
    max_usd_per_hour: Annotated[float | None, typer.Option()] = None,
    disk_gb: Annotated[int, typer.Option()] = 32,
    image: Annotated[str | None, typer.Option()] = None,
    region: Annotated[list[str] | None, typer.Option(help="Two-letter country code; may be repeated.")] = None,
    ssh_key: Annotated[Path | None, typer.Option(help="Your public key.", exists=True)] = None,
    name: Annotated[str, typer.Option()] = "",
    idle_for_s: Annotated[float | None, typer.Option()] = None,
    idle_policy: Annotated[
        IdlePolicy, typer.Option(help="adaptive: no sooner than a wake has cost; shadow: only noted.")
    ] = IdlePolicy.DEFAULT,
    snapshot_every_s: Annotated[float | None, typer.Option()] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only show what it would cost.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    no_wait: NoWait = False,
    json_: Json = False,
) -> None:
    """Rent a machine for a new instance, after showing its price."""
    wishes = {
        "gpu": gpu,
        "strategy": strategy.value,
        "max_usd_per_hour": str(max_usd_per_hour) if max_usd_per_hour is not None else None,
        "disk_gb": disk_gb,
        "image": image,
        "regions": region,
        "ssh_public_key": ssh_key.read_text().strip() if ssh_key else None,
        "name": name,
        "idle_for_s": idle_for_s,
        "idle_policy": idle_policy.value,
        "snapshot_every_s": snapshot_every_s,
    }
    body = {field: value for field, value in wishes.items() if value is not None}
    with session.client() as api:
        planned = api.post("/instances/plan", body)
        if plan:
            session.out(planned) if json_ else print(_price(planned))
            return
        err.print(_price(planned))
        if not yes and not typer.confirm("rent it?", err=True):
            raise typer.Exit(session.OK)
        _done(api, api.post("/instances/provision", body, key=secrets.token_hex(12)), no_wait, json_)


def _short(offer: dict[str, Any]) -> dict[str, Any]:
    prices = {name: f"{float(offer[name]):.4f}" for name in ("usd_per_hour", "all_in_usd_per_hour")}
    by_ip = f"{offer['place_country']} by its IP" if offer["place_told_by"] == "ip" else None
    where = offer["geolocation"] or by_ip
    return offer | prices | {"ready_s": f"{offer['ready_s']:.0f}", "geolocation": where}


def _price(plan: dict[str, Any]) -> str:
    price, all_in, first = (float(plan[n]) for n in ("usd_per_hour", "all_in_usd_per_hour", "first_hour_usd"))
    machines = f"{plan['rentals']}" + (" (and a second if the first is slow)" if plan["hedges"] else "")
    return (
        f"{price:.4f} USD/h (GPU + disk), {all_in:.4f} all in, ready in about {plan['ready_s']:.0f} s, "
        f"at most {first:.4f} USD in the first hour; machines: {machines}"
    )


@markets.command("list")
def list_markets(json_: Json = False) -> None:
    """The marketplace accounts: credit, burn, how long it lasts."""
    with session.client() as api:
        found = api.get("/markets")
    session.out(found) if json_ else session.table(
        found["items"], "name", "credit_usd", "burn_usd_per_hour", "hours_left", "level", "webhook_url"
    )


@markets.command("sweep")
def look_at_sweep(json_: Json = False) -> None:
    """A dry run of the orphan sweep: what it would destroy."""
    with session.client() as api:
        found = api.get("/markets/sweep")
    if json_:
        session.out(found)
        return
    print(
        f"{found['listed']} machines listed, {found['foreign']} of them not ours; no answer: {found['unknown'] or '-'}"
    )
    print(f"would destroy: {', '.join(found['orphans']) or 'nothing'}  (within {found['orphan_bound_s']:.0f} s)")
    print(f"labels without a record: {', '.join(found['alarms']) or 'none'}")


@markets.command("subscribe")
def subscribe(name: str, json_: Json = False) -> None:
    """Have a marketplace announce what happens to its machines."""
    with session.client() as api:
        found = api.post(f"/markets/{name}/webhook")
    session.out(found) if json_ else print(f"{name} announces to {found['url']}")


@instances.command("list")
def list_instances(json_: Json = False) -> None:
    """Your instances."""
    with session.client() as api:
        found = api.get("/instances")
        while cursor := found["next_cursor"]:
            page = api.get("/instances", cursor=cursor)
            found = {"items": found["items"] + page["items"], "next_cursor": page["next_cursor"]}
    session.out(found) if json_ else session.table(found["items"], "id", "name", "state", "protection", "reason")


@instances.command("show")
def show(id: str, json_: Json = False) -> None:
    """One instance."""
    with session.client() as api:
        found = api.get(f"/instances/{id}")
    if json_:
        session.out(found)
        return
    cost = found["cost"]
    print(f"{found['id']}  {found['state']}  since {found['since']}  ({found['reason']})")
    print(f"{found['protection']}; snapshot: {(found['snapshot'] or {}).get('at', 'none yet')}")
    print(f"{float(cost['usd_per_hour']):.4f} USD/h now, {float(cost['metered_usd']):.4f} USD so far")
    if found["progress"]:
        print(_progress(found["progress"]))
    for conflict in found["conflicts"]:
        where = "in the workspace" if conflict["brought"] is not None else "kept, not in the workspace yet"
        print(f"conflicts/{conflict['name']}: {conflict['files']} files that only an earlier machine had, {where}")
    for copy in found["copies"]:
        when = "on its way" if found["state"] == "running" else "comes with the next GPU"
        print(f"restored/{copy['snapshot']}: {_named(copy['paths'])}, {when}")
    if found["failure"]:
        print(f"failed: {found['failure']['detail']}")


def _named(paths: list[str]) -> str:
    """notes.txt and 2 more"""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0]}{more}" if paths else "everything"


def _progress(now: dict[str, Any]) -> str:
    """upload: 120 of 480 MiB, 5,200 files, 96 MB/s, 3.1 : 1, about 4 s left"""
    said = [f"{now['what']}: {now['done_bytes'] >> 20:,} of {now['total_bytes'] >> 20:,} MiB, {now['files']:,} files"]
    if now["bytes_per_s"]:
        said.append(f"{now['bytes_per_s'] / 1e6:.0f} MB/s")
    if now["ratio"]:
        said.append(f"{now['ratio']:.1f} : 1")
    if now["seconds_left"] is not None:
        said.append(f"about {now['seconds_left']:.0f} s left")
    return ", ".join(said)


@instances.command("why")
def why(id: str, json_: Json = False) -> None:
    """Why it runs on, or what is about to happen to it, and the story of its decisions."""
    with session.client() as api:
        found = api.get(f"/instances/{id}/why")
    if json_:
        session.out(found)
        return
    idle = found["idleness"]
    print(f"{id} is {found['state']} ({found['reason']}); its machine was last heard at {found['heard_at'] or 'never'}")
    print(f"now: {idle['act']}, because {idle['because']}")
    cost = f", a wake takes {idle['wake_cost_s']:.0f} s" if idle["wake_cost_s"] is not None else ""
    print(f"policy {idle['policy']}: hibernated after {idle['window_s']:.0f} s of quiet{cost}")
    for name in ("idle_since", "awake_until", "warned_at", "warns_at", "hibernates_at"):
        if idle[name]:
            print(f"{name.replace('_', ' ')}: {idle[name]}")
    session.table(found["items"], "at", "kind", "text")


def _verb(id: str, verb: str, body: dict[str, Any], no_wait: bool, json_: bool) -> None:
    with session.client() as api:
        _done(api, api.post(f"/instances/{id}/{verb}", body, key=secrets.token_hex(12)), no_wait, json_)


@instances.command("wake")
def wake(id: str, no_wait: NoWait = False, json_: Json = False) -> None:
    """Bring it back on any machine."""
    _verb(id, "wake", {}, no_wait, json_)


@instances.command("stop")
@instances.command("hibernate")
def hibernate(id: str, no_wait: NoWait = False, json_: Json = False) -> None:
    """Snapshot, verify, stop paying."""
    _verb(id, "hibernate", {}, no_wait, json_)


@instances.command("snooze")
def snooze(
    id: str,
    minutes: Annotated[int, typer.Option(help="From now.", min=1, max=24 * 60)] = 60,
    json_: Json = False,
) -> None:
    """Do not hibernate it for a while, however idle it is."""
    with session.client() as api:
        found = api.post(f"/instances/{id}/snooze", {"minutes": minutes}, key=secrets.token_hex(12))
    session.out(found) if json_ else print(f"{id} is kept awake until {found['awake_until']}")


@instances.command("keep-alive")
def keep_alive(
    id: str,
    for_: Annotated[str, typer.Option("--for", help="How long from now: 45m, 2h, 1h30m; at most a week.")] = "1h",
    end: Annotated[bool, typer.Option("--end", help="End the lease instead.")] = False,
    json_: Json = False,
) -> None:
    """A lease: until it is over idleness hibernates nothing."""
    minutes = 0 if end else minutes_of(for_)
    if minutes is None or (minutes == 0 and not end):
        session.fail(f"{for_!r} is not a span of time; write it as 45m, 2h or 1h30m", session.USAGE)
    with session.client() as api:
        found = api.post(f"/instances/{id}/keep-alive", {"minutes": minutes}, key=secrets.token_hex(12))
    until = found["awake_until"]
    session.out(found) if json_ else print(f"{id} is kept awake until {until}" if until else f"{id} has no lease")


@instances.command("terminate")
@instances.command("destroy")
def destroy(
    id: str,
    discard: Annotated[bool, typer.Option("--discard", help="Without a last snapshot.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    no_wait: NoWait = False,
    json_: Json = False,
) -> None:
    """End it, after a last verified snapshot; `restore` brings it back for some days."""
    question = f"end {id} and GIVE UP what no snapshot holds?" if discard else f"end {id} after a last snapshot?"
    if not yes and not typer.confirm(question, err=True):
        raise typer.Exit(session.OK)
    _verb(id, "terminate", {"discard": discard}, no_wait, json_)


@instances.command("restore")
def restore(id: str, no_wait: NoWait = False, json_: Json = False) -> None:
    """Bring a terminated one back."""
    _verb(id, "restore", {}, no_wait, json_)


@instances.command("purge")
def purge(id: str, yes: Annotated[bool, typer.Option("--yes")] = False, json_: Json = False) -> None:
    """Delete the snapshots of a terminated one for ever."""
    if not yes and not typer.confirm(f"delete every snapshot of {id} for ever?", err=True):
        raise typer.Exit(session.OK)
    _verb(id, "purge", {}, False, json_)


@machines.command("history")
def history(
    provider: Annotated[str | None, typer.Option(help="vast or tensordock.")] = None,
    blocked: Annotated[bool | None, typer.Option("--blocked/--not-blocked", help="Only those.")] = None,
    json_: Json = False,
) -> None:
    """What the machines that we rented did, and which are kept out of deploys."""
    with session.client() as api:
        found = api.get("/machines/history", provider=provider, blocked=blocked)
        while cursor := found["next_cursor"]:
            page = api.get("/machines/history", provider=provider, blocked=blocked, cursor=cursor)
            found = {"items": found["items"] + page["items"], "next_cursor": page["next_cursor"]}
    session.out(found) if json_ else session.table(
        found["items"], "provider", "machine_id", "gpu", "success_rate_bound", "blocked_until", "outcomes", "last_at"
    )


machines.registered_commands = [*instances.registered_commands, *machines.registered_commands]


@pool.command("show")
def show_pool(json_: Json = False) -> None:
    """The machines that wait for an instance, and what they cost."""
    with session.client() as api:
        found = api.get("/pool")
    if json_:
        session.out(found)
        return
    terms = found["terms"]
    print(
        f"{found['ready']} ready of {terms['size']} x {terms['gpu']}; {float(found['usd_per_hour']):.4f} USD/h now, "
        f"at most {terms['budget_usd_per_hour']}"
    )
    session.table(found["machines"], "label", "state", "age_s", "usd_per_hour", "cost_usd", "message")


@budget.command("show")
def show_budget(json_: Json = False) -> None:
    """The caps, what is spent, and what will be."""
    with session.client() as api:
        _print_budget(api.get("/budget"), json_)


@budget.command("set")
def set_budget(
    usd_per_hour: Annotated[str | None, typer.Option(help="USD, or none. Left out: as it is.")] = None,
    usd_per_day: Annotated[str | None, typer.Option(help="USD, or none. Left out: as it is.")] = None,
    json_: Json = False,
) -> None:
    """Set the caps of your account; one that is used up hibernates everything, and kills nothing."""
    caps = {"usd_per_hour": usd_per_hour, "usd_per_day": usd_per_day}
    changes = {name: None if cap == "none" else cap for name, cap in caps.items() if cap is not None}
    if not changes:
        session.fail("say --usd-per-hour or --usd-per-day: an amount, or none", session.USAGE)
    with session.client() as api:
        before = api.get("/budget")
        _print_budget(api.put("/budget", {name: before[name] for name in caps} | changes), json_)


def _print_budget(found: dict[str, Any], json_: bool) -> None:
    if json_:
        session.out(found)
        return
    for period in ("hour", "day"):
        cap = found[f"usd_per_{period}"]
        spent, predicted = (float(found[name]) for name in (f"{period}_usd", f"predicted_{period}_usd"))
        print(f"per {period}: {spent:.4f} USD spent, {predicted:.4f} predicted, cap {cap or 'none'}")
    for finding in found["findings"]:
        print(f"{finding['level']}: {finding['text']}")


@pool.callback()
def _pool() -> None:
    """One verb so far: the callback keeps it a verb."""


def ssh(
    id: str,
    show_only: Annotated[bool, typer.Option("--print", help="Only print the command.")] = False,
    json_: Json = False,
) -> None:
    """Open a shell on an instance."""
    with session.client() as api:
        found = api.get(f"/instances/{id}")
    address = found["address"]
    if address is None:
        session.fail(f"{id} is {found['state']} and has no address; wake it first", session.CONFLICT)
    command = ["ssh", "-p", str(address["port"]), f"{address['user']}@{address['host']}"]
    if json_ or show_only:
        session.out({"command": command}) if json_ else print(" ".join(command))
        return
    os.execvp("ssh", command)


def _done(api: Client, accepted: dict[str, Any], no_wait: bool, json_: bool) -> None:
    """Wait for the operation unless told not to; a failed one is exit code 1 with its reason."""
    operation = accepted["operation"]
    if not no_wait:
        with session.waiting(operation["kind"]) as say:
            operation = api.follow(
                operation,
                sleep=time.sleep,
                show=lambda now: say(f"{now['kind']}: {now['detail']} {now['progress']:.0%}"),
                polls=WAIT_POLLS,
            )
    session.out({"operation": operation}) if json_ else print(
        f"{operation['instance_id']}  {operation['detail'] or operation['status']}"
    )
    if operation["status"] == "failed":
        session.fail(operation["detail"], session.FAILED)

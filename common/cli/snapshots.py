"""`dumont snapshots`: what an instance has kept."""

from __future__ import annotations

import secrets
import time
from typing import Annotated, Any

import typer

from common.chatops.grammar import minutes_of
from common.cli import session
from common.client import Client

WAIT_S = 3600
"""For files that come to a GPU; one that is settled hears of them within a minute."""
snapshots = typer.Typer(no_args_is_help=True, help="What your instances have kept.")
Id = Annotated[str, typer.Argument(help="Of the instance.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
MIB = 1 << 20


@snapshots.command("list")
def list_(id: Id, json_: Json = False) -> None:
    """Its verified snapshots, newest first; * = the one that the next machine starts from."""
    with session.client() as api:
        found = api.get(f"/instances/{id}/snapshots")
    if json_:
        session.out(found)
        return
    columns = ("", "snapshot", "taken", "files", "MiB", "uploaded MiB", "wasted MiB", "proof", "")
    session.print_table(columns, map(_row, found["items"]))


def _row(row: dict[str, Any]) -> list[str]:
    sizes = [f"{row[kind] / MIB:,.1f}" for kind in ("bytes", "stored_bytes", "wasted_bytes")]
    mark, damage = "*" if row["is_current"] else "", "damaged" if row["damaged"] else ""
    return [mark, row["id"], row["taken_at"][:19], f"{row['files']:,}", *sizes, row["proof"], damage]


@snapshots.command("terms")
def terms(
    id: Id,
    every: Annotated[str | None, typer.Option(help="Between two snapshots: 10m, 1h.")] = None,
    keep: Annotated[str | None, typer.Option(help="last,hourly,daily,weekly: how many of each; 12,24,7,4.")] = None,
    max_cpus: Annotated[int | None, typer.Option(help="Processors for a snapshot; 0 = no cap.", min=0)] = None,
    max_mbit_s: Annotated[float | None, typer.Option(help="Of the line for a snapshot; 0 = no cap.", min=0)] = None,
    freeze: Annotated[
        bool | None, typer.Option("--freeze/--no-freeze", help="Hold processes still for a snapshot of one moment.")
    ] = None,
    json_: Json = False,
) -> None:
    """How it is kept: shown, and changed where an option is given."""
    changes: dict[str, Any] = {}
    if every is not None:
        changes["snapshot_every_s"] = 60 * _minutes(every)
    if keep is not None:
        changes["keep"] = _retention(keep)
    if max_cpus is not None:
        changes["snapshot_max_cpus"] = max_cpus or None
    if max_mbit_s is not None:
        changes["snapshot_max_mbit_s"] = max_mbit_s or None
    if freeze is not None:
        changes["snapshot_freeze"] = freeze
    path = f"/instances/{id}/snapshots/terms"
    with session.client() as api:
        found = api.patch(path, changes) if changes else api.get(path)
    if json_:
        session.out(found)
        return
    many = ", ".join(f"{count} {kind}" for kind, count in found["keep"].items())
    print(f"a snapshot every {found['snapshot_every_s'] / 60:g} min; kept: {many}")
    caps = [f"{found['snapshot_max_cpus']} processors"] if found["snapshot_max_cpus"] else []
    caps += [f"{found['snapshot_max_mbit_s']:g} Mbit/s"] if found["snapshot_max_mbit_s"] else []
    print(f"caps: {', '.join(caps) or 'none'}; processes are {'' if found['snapshot_freeze'] else 'not '}held still")
    print(f"removed so far: {found['snapshots_removed']} snapshots, {found['bytes_freed'] / MIB:,.1f} MiB freed")
    if last := found["last_drill"]:
        print(f"last drill: {last['at'][:19]}, {last['snapshot']} {'sound' if last['is_sound'] else last['damage']}")


def _minutes(span: str) -> int:
    minutes = minutes_of(span)
    if not minutes:
        session.fail(f"{span!r} is not a span of time; write it as 10m, 1h or 1h30m", session.USAGE)
    return minutes


def _retention(text: str) -> dict[str, int]:
    words = text.split(",")
    if len(words) != 4 or not all(word.strip().isdigit() for word in words):
        session.fail(f"{text!r} is not four numbers such as 12,24,7,4", session.USAGE)
    return dict(zip(("last", "hourly", "daily", "weekly"), map(int, words), strict=True))


@snapshots.command("diff")
def diff(
    id: Id,
    older: Annotated[str, typer.Argument(help="As `list` shows it, for example 1-3.")],
    newer: Annotated[str, typer.Argument()],
    json_: Json = False,
) -> None:
    """Names that were added, changed and removed between two of them."""
    with session.client() as api:
        found = api.get(f"/instances/{id}/snapshots/{newer}/since/{older}")
    if json_:
        session.out(found)
        return
    for sign, kind in (("+", "added"), ("~", "changed"), ("-", "removed")):
        _names(sign, found[kind])


@snapshots.command("restore")
def restore(
    id: Id,
    snapshot: Annotated[str, typer.Argument(help="As `list` shows it, for example 1-3.")],
    paths: Annotated[
        list[str] | None, typer.Argument(help="Files and directories in the workspace; left out: everything.")
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait until they are there.")] = False,
    timeout_s: Annotated[int, typer.Option(help="Wait no longer than that.", min=1)] = WAIT_S,
    json_: Json = False,
) -> None:
    """Files of it into `restored/SNAPSHOT` of the workspace: nothing that is there is overwritten or removed.

    Where no GPU runs they come with the next one.
    """
    with session.client() as api:
        body = {"paths": paths or []}
        asked = api.post(f"/instances/{id}/snapshots/{snapshot}/restore", body, key=secrets.token_hex(12))
        operation = asked["operation"]
        if not no_wait and api.get(f"/instances/{id}")["state"] == "running":
            with session.waiting(operation["detail"]) as say:
                operation = api.follow(
                    operation, sleep=time.sleep, show=lambda now: say(now["detail"]), polls=timeout_s
                )
    session.out({"operation": operation}) if json_ else print(operation["detail"])
    if operation["status"] == "failed":
        session.fail(operation["detail"], session.FAILED)


@snapshots.command("verify")
def verify(id: Id, snapshot: Annotated[str, typer.Argument()], json_: Json = False) -> None:
    """Is every object that it needs in the store, with its size and checksum? Exit code 1 names what is damaged."""
    with session.client() as api:
        found = api.get(f"/instances/{id}/snapshots/{snapshot}/check")
    if json_:
        session.out(found)
        return
    print(f"{snapshot} is whole: {found['files']:,} files, {found['bytes'] / MIB:,.1f} MiB")
    for name in found["torn"]:
        print(f"changed while it was read: {name}")


@snapshots.command("drill")
def drill(
    id: Id,
    snapshot: Annotated[str | None, typer.Argument(help="As `list` shows it; the current one when left out.")] = None,
    json_: Json = False,
) -> None:
    """Read it back on a machine of ours: decrypted, decoded, compared. Exit code 1 = it is damaged."""
    with session.client() as api:
        name = snapshot or _current(api, id)
        found = api.post(f"/instances/{id}/snapshots/{name}/drill")
    if json_:
        session.out(found)
    elif found["is_sound"]:
        part = f"{found['bytes'] / MIB:,.1f} of {found['of_bytes'] / MIB:,.1f} MiB"
        extent = "all of it" if found["is_whole"] else part
        print(f"{name} is sound: {extent} read back, {found['files']:,} of {found['of_files']:,} files")
    else:
        print(f"{name} is damaged: {found['damage']}")
    if not found["is_sound"]:
        raise typer.Exit(1)


def _current(api: Client, id: str) -> str:
    current = [row["id"] for row in api.get(f"/instances/{id}/snapshots")["items"] if row["is_current"]]
    if not current:
        session.fail(f"{id} has no snapshot yet", session.NOT_FOUND)
    return str(current[0])


def _names(sign: str, names: dict[str, Any]) -> None:
    for name in names["listed"]:
        print(f"{sign} {name}")
    if names["count"] > len(names["listed"]):
        print(f"{sign} and {names['count'] - len(names['listed'])} more")

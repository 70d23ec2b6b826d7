"""`dumont snapshots`: what an instance has kept."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from common.cli import session

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
    table = Table("", "snapshot", "taken", "files", "MiB", "uploaded MiB", "proof", "")
    for row in found["items"]:
        sizes = (f"{row['bytes'] / MIB:,.1f}", f"{row['stored_bytes'] / MIB:,.1f}")
        mark, damage = "*" if row["is_current"] else "", "damaged" if row["damaged"] else ""
        table.add_row(mark, row["id"], row["taken_at"][:19], f"{row['files']:,}", *sizes, row["proof"], damage)
    Console().print(table)


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


def _names(sign: str, names: dict[str, Any]) -> None:
    for name in names["listed"]:
        print(f"{sign} {name}")
    if names["count"] > len(names["listed"]):
        print(f"{sign} and {names['count'] - len(names['listed'])} more")

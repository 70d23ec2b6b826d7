"""The child that does one order's engine work: a task file in, progress and a result file out.

It loads the engine, and nothing of the agent: not its models, nor their library, which take as long as the engine.
"""

from __future__ import annotations

import gc
import json
import os
import time  # noqa: TID251 - it measures how long the engine worked
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import DumontError, SnapshotDamaged
from common.host.atomic import write_atomically
from common.host.epoch import Epoch
from common.host.wanted import Wishes
from common.tether import die_with

if TYPE_CHECKING:
    from common.snapshots import engine

NICENESS = 10
ENGINE = "engine"
"""In the agent's folder: what the engine remembers of the workspace."""
APART = "engine-apart"
"""Of the snapshots that are not of all of it."""


def run_task(folder: Path, now: datetime) -> None:
    """Do the task, write the result whole or not at all."""
    task = json.loads((folder / "task.json").read_text())
    die_with(task["agent_pid"])  # a snapshot by a dead agent's child would be nobody's, and in the next one's way
    os.nice(NICENESS)
    _use_at_most(task["args"].get("max_cpus"))
    gc.disable()  # a short run that makes many small things and drops none of them
    (folder / "task.json").unlink()  # it holds credentials
    try:
        result = _result(task, folder, now)
    except DumontError as error:
        chunk = error.chunk if isinstance(error, SnapshotDamaged) else None
        result = {"ok": False, "error": error.code, "detail": str(error), "chunk": chunk}
    except OSError as error:
        result = {"ok": False, "error": "os_error", "detail": str(error)}
    write_atomically(folder / "result.json", json.dumps(result).encode())


def _result(task: dict[str, Any], folder: Path, now: datetime) -> dict[str, Any]:
    match task["kind"]:
        case "snapshot":
            return _snapshot(task, folder, now)
        case "save":
            return _save(task, folder, now)
        case "bring":
            return _bring(task, folder)
        case _:
            return _restore(task, folder)


def _save(task: dict[str, Any], folder: Path, now: datetime) -> dict[str, Any]:
    """A snapshot of what this machine alone may have; without one when that is nothing."""
    from common.host.livesync.standing import confirmed_until_ns
    from common.snapshots import engine

    home, role = Path(task["home"]), Epoch(Path(task["home"]), "")
    workspace, args = Path(task["workspace"]), task["args"]
    if role.read().refused is not None:
        since_ns = role.sealed_at_ns()
    else:
        since_ns = confirmed_until_ns(home) if args.get("mirrored") else None
    names = engine.changed_since(workspace, _compared_with(task), since_ns)
    if not names:
        return {"ok": True}
    if args.get("anew"):
        args = {**args, "previous": None}
    return _snapshot({**task, "args": args, "epoch": args["of"]}, folder, now, place=APART, only=names)


def _compared_with(task: dict[str, Any]) -> engine.Manifest | None:
    """The newest snapshot. One that cannot be read is asked for once more, and done without when saving anew."""
    from common.snapshots import engine

    args = task["args"]
    if not (key := args.get("previous")):
        return None
    try:
        return engine.fetch_manifest(key, root=Path(task["workspace"]), **_place(task, _endpoint(task), APART))
    except DumontError:
        if args.get("anew"):
            return None
        raise


def _bring(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A snapshot, or some names of it, into a folder of the workspace, where nothing is removed and nothing newer
    overwritten."""
    from common.snapshots import engine

    workspace, args = Path(task["workspace"]), task["args"]
    into = workspace / args["into"]
    if into.resolve() != workspace.resolve() / args["into"]:
        return {"ok": False, "error": "os_error", "detail": f"{args['into']} leads out of the workspace"}
    where = _place(task, _endpoint(task), APART)
    part = None
    if names := {path.encode() for path in args.get("paths", ())}:
        part = engine.selected(engine.fetch_manifest(args["manifest_key"], root=workspace, **where), names)
    report = engine.restore(
        args["manifest_key"],
        into,
        clock=time.monotonic,
        progress=_progress_to(folder, engine.Counts()),
        keeps_newer=True,
        manifest=part,
        **where,
    )
    return {"ok": True, "downloaded_bytes": report.bytes_fetched}


def _snapshot(
    task: dict[str, Any], folder: Path, now: datetime, *, place: str = ENGINE, only: frozenset[bytes] | None = None
) -> dict[str, Any]:
    """`place` = what the engine remembers of; `only` = the names that it is of."""
    from common.snapshots import engine

    args, endpoint = task["args"], _endpoint(task)
    where, counts = _place(task, endpoint, place), engine.Counts()

    def previous() -> engine.Manifest | None:
        key = args.get("previous")
        return engine.fetch_manifest(key, root=Path(task["workspace"]), **where) if key else None

    report = engine.take(
        Path(task["workspace"]),
        only=only,
        epoch=task["epoch"],
        seq=lambda: _number(Path(task["home"]), task["seq"]),
        taken_at=now,
        previous=previous,
        clock=time.monotonic,
        progress=_progress_to(folder, counts),
        counts=counts,
        max_seconds=float(args.get("max_s") or engine.MAX_SECONDS),
        repacks=bool(args.get("repacks")),
        **where,
    )
    snapshot = {  # a `SnapshotReport`
        "order": task["order"]["id"],
        "manifest_key": report.manifest_key,
        "epoch": task["epoch"],
        "seq": report.manifest.version.seq,
        "fz": args.get("fz"),
        "files": report.files,
        "bytes": report.bytes,
        "stored_bytes": report.stored_bytes,
        "seconds": report.seconds,
    }
    return {
        "ok": True,
        "snapshot": snapshot,
        "uploaded_bytes": report.stored_bytes,
        "torn": len(report.torn),
    }


def _number(home: Path, above: int) -> int:
    """Of the snapshot that has just read everything: the live sync's, where it runs, so that a mirror can be compared
    with it."""
    from common.host.livesync import control
    from common.host.livesync.errors import NotInSync

    try:
        return control.number(home, above - 1)
    except NotInSync:
        return above


def _restore(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """No snapshot: the workspace starts as it is."""
    from common.snapshots import engine

    args = task["args"]
    if not args.get("manifest_key"):
        Path(task["workspace"]).mkdir(parents=True, exist_ok=True)
        return {"ok": True}
    counts, wishes = engine.Counts(), Wishes(Path(task["home"]), Path(task["workspace"]))
    wishes.open()
    try:
        report = engine.restore(
            args["manifest_key"],
            Path(task["workspace"]),
            clock=time.monotonic,
            progress=_progress_to(folder, counts),
            counts=counts,
            wanted=wishes,
            keeps_newer=task["kind"] == "rewind",
            **_place(task, _endpoint(task)),
        )
    finally:
        wishes.close()
    return {"ok": True, "downloaded_bytes": report.bytes_fetched}


def _place(task: dict[str, Any], endpoint: engine.Endpoint, remembered: str = ENGINE) -> dict[str, Any]:
    """Where the instance's objects are, under which key they are authenticated, and what the engine remembers."""
    args = task["args"]
    return {
        "prefix": args["prefix"],
        "instance_key": bytes.fromhex(args["instance_key"]),
        "endpoint": endpoint,
        "state_dir": Path(task["home"]) / remembered,
    }


def _endpoint(task: dict[str, Any]) -> engine.Endpoint:
    from common.snapshots import engine

    credentials = task["credentials"]  # `StorageCredentials`
    return engine.Endpoint(
        url=credentials["endpoint"],
        region=credentials["region"],
        bucket=credentials["bucket"],
        access_key=credentials["access_key"],
        secret_key=credentials["secret_key"],
        session_token=credentials["session_token"],
        max_bytes_s=task["args"]["max_mbit_s"] * 125_000 if task["args"].get("max_mbit_s") else None,
    )


def _progress_to(folder: Path, counts: engine.Counts) -> engine.Progress:
    started = time.monotonic()

    def write(done_bytes: int, total_bytes: int, what: str) -> None:
        said = {"done_bytes": done_bytes, "total_bytes": total_bytes, "what": what, "files": counts.files}
        seconds = round(time.monotonic() - started, 3)
        text = json.dumps({**said, "stored_bytes": counts.stored_bytes, "seconds": seconds})
        new = folder / "progress.new"
        new.write_text(text)
        new.replace(folder / "progress.json")

    return write


def _use_at_most(cpus: int | None) -> None:
    """Of the processors, for the engine's workers and s5cmd too: the others are the user's alone."""
    if cpus is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cpus:])

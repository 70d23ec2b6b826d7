"""Prometheus' text exposition (version 0.0.4) of an account's instances, and for the operator of the schedules' runs.

Rendered from state: nothing is counted in a process, so a restart or a second process changes no figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from common.domain.health import Run
from common.domain.instance import Instance
from common.domain.snapshot import DrillRecord
from common.ports import App, every
from common.records import World, load, operator_of, read
from common.topology import SCHEDULES
from common.views.instances import state_shown
from common.views.standbys import is_in_sync, sync_of

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Labels = dict[str, str]
ORDERS = (
    ("done_bytes", "done_bytes", "Done of the order under way."),
    ("total_bytes", "total_bytes", "All of the order under way."),
    ("files", "files", "Files done of the order under way."),
    ("bytes_per_second", "bytes_per_s", "How fast it goes."),
    ("compression_ratio", "ratio", "Bytes read for each byte stored."),
    ("seconds_left", "seconds_left", "If it goes on like this."),
)
"""(metric, field of a host's progress, help)."""


@dataclass(frozen=True)
class Family:
    name: str
    kind: Literal["gauge", "counter"]
    help: str
    samples: list[tuple[Labels, float]]


def exposition(app: App, account: str, now: datetime) -> str:
    """Of the account's instances that have not ended."""
    docs = every(app.store, "instances", [("account", "==", account)])
    worlds = [load(app, doc.id) for doc in docs if doc.data["ended_at"] is None]
    instances = [world.instance.value for world in worlds]
    families = [*_states(worlds), *_snapshots(instances, now), *_orders(worlds)]
    families += _standbys(app, worlds, now)
    families += [*_removed(app, instances), *_drills(app, instances, now)]
    if account == operator_of(app.store):
        families += _schedules(app, now)
    return "".join(_lines(families))


def _states(worlds: list[World]) -> Iterator[Family]:
    shown = [(world.instance.value, state_shown(world)) for world in worlds]
    labels = [{"instance": one.id, "name": one.name, "state": state, "gpu": one.spec.gpu} for one, state in shown]
    samples = [(label, 1.0) for label in labels]
    yield Family("dumont_instance_info", "gauge", "1 for each instance, with its state.", samples)


def _snapshots(instances: list[Instance], now: datetime) -> Iterator[Family]:
    kept = [({"instance": one.id}, one.pointer) for one in instances if one.pointer]
    ages = [(label, (now - pointer.at).total_seconds()) for label, pointer in kept]
    yield Family("dumont_snapshot_age_seconds", "gauge", "Since the newest verified snapshot was verified.", ages)
    sizes = [(label, float(pointer.bytes)) for label, pointer in kept]
    yield Family("dumont_snapshot_bytes", "gauge", "What the newest verified snapshot holds.", sizes)
    files = [(label, float(pointer.files)) for label, pointer in kept]
    yield Family("dumont_snapshot_files", "gauge", "Files in the newest verified snapshot.", files)
    failures = [({"instance": one.id}, float(one.snapshot_failures)) for one in instances]
    yield Family("dumont_snapshot_failures", "gauge", "Snapshots that failed in a row.", failures)


def _standbys(app: App, worlds: list[World], now: datetime) -> Iterator[Family]:
    """Of every instance that wants one, also while it has none: what is not told is not taken for well."""
    wanted = [world for world in worlds if world.instance.value.spec.standby]
    labels = [{"instance": world.instance.value.id} for world in wanted]
    equal = [float(is_in_sync(app, world, now)) for world in wanted]
    help = "1 = the standby is there and proven equal to the GPU; 0 = unprotected, or not in sync yet."
    yield Family("dumont_standby_in_sync", "gauge", help, [*zip(labels, equal, strict=True)])
    lags = [(label, sync_of(world).lag_s) for label, world in zip(labels, wanted, strict=True)]
    help = "Age of the oldest change that the other side had not confirmed, as the writer last told it."
    yield Family("dumont_standby_lag_seconds", "gauge", help, [(one, lag) for one, lag in lags if lag is not None])


def _orders(worlds: list[World]) -> Iterator[Family]:
    """What the machines are doing now: a snapshot or a restore under way."""
    running = [
        ({"instance": world.instance.value.id, "what": host.progress.what}, host.progress)
        for world in worlds
        if (host := world.writer_host) and host.progress.order
    ]
    for metric, field, help in ORDERS:
        values = [(label, getattr(progress, field)) for label, progress in running]
        samples = [(label, float(value)) for label, value in values if value is not None]
        yield Family(f"dumont_order_{metric}", "gauge", help, samples)


def _removed(app: App, instances: list[Instance]) -> Iterator[Family]:
    counts = [({"instance": one.id}, doc.data) for one in instances if (doc := app.store.get("pruned", one.key))]
    for field, metric, help in (
        ("snapshots", "snapshots_removed_total", "Old snapshots that were removed."),
        ("bytes", "bytes_freed_total", "Freed in the object store."),
    ):
        samples = [(label, float(data.get(field, 0))) for label, data in counts]
        yield Family(f"dumont_{metric}", "counter", help, samples)


def _drills(app: App, instances: list[Instance], now: datetime) -> Iterator[Family]:
    drills = [
        ({"instance": one.id}, kept.value) for one in instances if (kept := read(app, "drills", one.key, DrillRecord))
    ]
    ages = [(label, (now - drill.at).total_seconds()) for label, drill in drills]
    yield Family("dumont_drill_age_seconds", "gauge", "Since a snapshot was last read back on a machine of ours.", ages)
    sound = [(label, float(drill.is_sound)) for label, drill in drills]
    yield Family("dumont_drill_sound", "gauge", "0 = the last drill found damage.", sound)


def _schedules(app: App, now: datetime) -> Iterator[Family]:
    runs = [({"job": row.name}, kept.value) for row in SCHEDULES if (kept := read(app, "runs", row.name, Run))]
    ages = [(label, (now - run.at).total_seconds()) for label, run in runs]
    yield Family("dumont_job_age_seconds", "gauge", "Since a schedule's job last ended.", ages)
    took = [(label, run.seconds) for label, run in runs]
    yield Family("dumont_job_seconds", "gauge", "What its last run took.", took)
    failed = [(label, float(run.failed is not None)) for label, run in runs]
    yield Family("dumont_job_failed", "gauge", "1 = its last run failed.", failed)


def _lines(families: Iterable[Family]) -> Iterator[str]:
    for family in families:
        yield f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.kind}\n"
        for labels, value in family.samples:
            inside = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())
            yield f"{family.name}{{{inside}}} {value!r}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

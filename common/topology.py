"""THE table of functions and schedules: the local dispatcher, the deployer and the documentation read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypedDict


@dataclass(frozen=True)
class Right:
    """What one word in a row's `rights` stands for: roles on the project, secrets it may read, settings it is given."""

    roles: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    """Names of settings; `{STORAGE}` = the storage provider's name in capitals."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Plain ones by name; `{PROJECT}` = where it is deployed."""


RIGHTS: Mapping[str, Right] = {
    "store": Right(roles=("roles/datastore.user",), secrets=("JWT_SECRET", "JWT_SECRET_BEFORE")),
    "market": Right(secrets=("VAST_API_KEY", "TENSORDOCK_API_KEY")),
    "objects": Right(
        secrets=(
            *("{STORAGE}_KEY_ID", "{STORAGE}_APPLICATION_KEY"),
            *("DUMONT_SNAPSHOT_SECRET", "DUMONT_SNAPSHOT_SECRET_BEFORE"),
        )
    ),
    # of Google's own roles these two are the least: the first may not reserve addresses, the second no machines
    "standby": Right(
        roles=("roles/compute.instanceAdmin.v1", "roles/compute.publicIpAdmin"),
        settings={"GCP_CREDENTIALS": "default", "GCP_PROJECT": "{PROJECT}"},
    ),
    "slack": Right(secrets=("SLACK_BOT_TOKEN", "SLACK_SIGNING_SECRET")),
}


@dataclass(frozen=True)
class Function:
    """One Cloud Function: `folder/name.py`, whose entry point has the same name."""

    name: str
    folder: str
    path: str
    """Where it answers; everything below belongs to it."""
    timeout_s: int
    memory_mb: int
    concurrency: int
    """Requests at a time in one instance, and so many threads; more than one needs a whole CPU."""
    rights: tuple[str, ...]
    """What its service account may use: words of RIGHTS."""
    public: bool
    cpu: str = "1"
    max_instances: int = 20
    min_instances: int = 0

    @property
    def source(self) -> str:
        return f"{self.folder}/{self.name}.py"

    @property
    def service(self) -> str:
        """Its name at Google, where an underscore is not allowed; the last part of its URL."""
        return self.name.replace("_", "-")


Period = Literal["reconcile_every_s", "ticker_period_s", "market_every_s", "prune_every_s", "drill_every_s"]


@dataclass(frozen=True)
class Schedule:
    """One Cloud Scheduler job that posts to a function of the `jobs` folder."""

    name: str
    cron: str
    deadline_s: int
    period: Literal["reconcile_every_s", "ticker_period_s", "market_every_s", "prune_every_s", "drill_every_s"] = (
        "ticker_period_s"
    )
    """The setting of time that stands for the cron expression where the local ticker posts it."""
    retries: int = 1
    """After a run that failed or was not answered; a run that was missed is made up for by the next."""

    @property
    def every_s(self) -> float:
        """Seconds from run to run, of a cron expression whose minute or hour is `*`, `*/n` or one number."""
        minute, hour = self.cron.split()[:2]
        if minute.startswith("*"):
            return 60.0 * int(minute.partition("/")[2] or 1)
        return 3600.0 * int(hour.partition("/")[2] or 1) if hour.startswith("*") else 86_400.0


class _Job(TypedDict):
    public: bool
    cpu: str
    max_instances: int


_JOB: _Job = {"public": False, "cpu": "0.5", "max_instances": 1}
"""Half a CPU: a job mostly waits for others. One instance: two runs of one job never overlap."""

_RECONCILE_S = 540
"""A whole listing of the largest account takes 300 (`sweep.RENTALS_MAX`); a market that hangs, 30 for each call."""

_RUN = ("store", "market", "objects")
"""Whatever rents machines or looks at markets."""
_ADVANCE = (*_RUN, "standby")
"""Whatever may advance an instance."""
_ALL = (*_ADVANCE, "slack")

FUNCTIONS: tuple[Function, ...] = (
    Function("api", "functions", "/", 60, 512, 16, _ADVANCE, public=True),
    Function("provision", "functions", "/provision", 60, 512, 16, _ADVANCE, public=True),
    Function("heartbeat", "functions", "/heartbeat", 60, 512, 32, _ADVANCE, public=True),
    Function("failover", "functions", "/failover", 60, 512, 16, _ADVANCE, public=True),
    Function("slack", "functions", "/slack", 60, 512, 16, _ALL, public=True),
    Function("metrics", "functions", "/metrics", 60, 512, 16, ("store", "objects"), public=True),
    Function("reconcile", "jobs", "/jobs/reconcile", _RECONCILE_S, 512, 1, _ALL, **_JOB),
    Function("hibernate_idle", "jobs", "/jobs/hibernate_idle", 120, 512, 1, _ALL, **_JOB),
    Function("refill_warm_pool", "jobs", "/jobs/refill_warm_pool", 120, 512, 1, _RUN, **_JOB),
    Function("poll_prices", "jobs", "/jobs/poll_prices", 120, 512, 1, _RUN, **_JOB),
    Function("prune_snapshots", "jobs", "/jobs/prune_snapshots", 540, 512, 1, ("store", "objects"), **_JOB),
    Function("drill_snapshots", "jobs", "/jobs/drill_snapshots", 540, 512, 1, ("store", "objects"), **_JOB),
)

SCHEDULES: tuple[Schedule, ...] = (
    Schedule("reconcile", "* * * * *", _RECONCILE_S, period="reconcile_every_s"),
    Schedule("hibernate_idle", "* * * * *", 120),
    Schedule("refill_warm_pool", "* * * * *", 120),
    Schedule("poll_prices", "*/5 * * * *", 120, period="market_every_s"),
    Schedule("prune_snapshots", "17 * * * *", 540, period="prune_every_s"),
    Schedule("drill_snapshots", "37 4 * * *", 540, period="drill_every_s"),
)


def function(name: str) -> Function:
    """Raises KeyError for a name that is not in the table."""
    return {row.name: row for row in FUNCTIONS}[name]

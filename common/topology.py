"""THE table of functions and schedules: the local dispatcher, the deployer and the documentation read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
    rights: tuple[str, ...]
    """What its service account may use."""
    public: bool

    @property
    def source(self) -> str:
        return f"{self.folder}/{self.name}.py"


@dataclass(frozen=True)
class Schedule:
    """One Cloud Scheduler job that posts to a function of the `jobs` folder."""

    name: str
    cron: str
    deadline_s: int
    period: Literal["reconcile_every_s", "ticker_period_s"] = "ticker_period_s"
    """The setting of time that stands for the cron expression where the local ticker posts it."""
    retries: int = 1


FUNCTIONS: tuple[Function, ...] = (
    Function("api", "functions", "/", 60, 512, 16, ("store", "market", "objects"), public=True),
    Function("provision", "functions", "/provision", 60, 512, 16, ("store", "market", "objects"), public=True),
    Function("heartbeat", "functions", "/heartbeat", 60, 512, 32, ("store", "market", "objects"), public=True),
    Function("failover", "functions", "/failover", 60, 512, 16, ("store", "market", "objects"), public=True),
    Function("slack", "functions", "/slack", 60, 512, 16, ("store", "market", "objects", "slack"), public=True),
    Function("reconcile", "jobs", "/jobs/reconcile", 120, 512, 1, ("store", "market", "objects"), public=False),
    Function(
        "hibernate_idle", "jobs", "/jobs/hibernate_idle", 120, 512, 1, ("store", "market", "objects"), public=False
    ),
    Function(
        "refill_warm_pool", "jobs", "/jobs/refill_warm_pool", 120, 512, 1, ("store", "market", "objects"), public=False
    ),
)

SCHEDULES: tuple[Schedule, ...] = (
    Schedule("reconcile", "* * * * *", 120, period="reconcile_every_s"),
    Schedule("hibernate_idle", "* * * * *", 120),
    Schedule("refill_warm_pool", "* * * * *", 120),
)


def function(name: str) -> Function:
    """Raises KeyError for a name that is not in the table."""
    return {row.name: row for row in FUNCTIONS}[name]

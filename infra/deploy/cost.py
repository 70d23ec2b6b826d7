"""What a deployment costs a month: counted operations times a dated table of prices, without any free tier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import ROUND_CEILING, Decimal

from common.domain.region import regions
from common.domain.spec import Spec
from common.domain.standby_price import StandbyCost, Terms, monthly_cost
from common.topology import FUNCTIONS, SCHEDULES, Function, Schedule

PRICES_AS_OF = "2026-11"
"""Cloud Run: its price page, tier 1, request-based billing. Scheduler: its price page. Firestore: the multi-regional
prices from its price page, the regional ones from a secondary source: look them up again before you promise them."""
DAYS_PER_MONTH = Decimal(30)
SECONDS_PER_MONTH = DAYS_PER_MONTH * 86_400
BILLED_STEP_S = Decimal("0.1")
"""Cloud Run rounds the time in which an instance serves at least one request up to this."""


@dataclass(frozen=True)
class Prices:
    usd_per_vcpu_s: Decimal = Decimal("0.000024")
    usd_per_gib_s: Decimal = Decimal("0.0000025")
    usd_per_million_requests: Decimal = Decimal("0.40")
    usd_per_schedule_month: Decimal = Decimal("0.10")
    usd_per_100k_reads: Decimal = Decimal("0.03")
    usd_per_100k_writes: Decimal = Decimal("0.09")
    usd_per_100k_deletes: Decimal = Decimal("0.01")
    usd_per_secret_version_month: Decimal = Decimal("0.06")


REGIONAL = Prices()
MULTI_REGIONAL = Prices(
    usd_per_100k_reads=Decimal("0.06"), usd_per_100k_writes=Decimal("0.18"), usd_per_100k_deletes=Decimal("0.02")
)


@dataclass(frozen=True)
class Load:
    """Operations of something in a day."""

    reads: Decimal = Decimal(0)
    writes: Decimal = Decimal(0)
    deletes: Decimal = Decimal(0)
    requests: Decimal = Decimal(0)
    busy_s: Decimal = Decimal(0)
    """Seconds in which one instance serves it alone, each request rounded up to BILLED_STEP_S."""

    def __add__(self, other: Load) -> Load:
        ours, theirs = asdict(self), asdict(other)
        return Load(**{name: ours[name] + theirs[name] for name in ours})

    def times(self, factor: Decimal) -> Load:
        return Load(**{name: value * factor for name, value in asdict(self).items()})


HOST_DAY = Load(
    reads=Decimal(2_183),
    writes=Decimal(304),
    requests=Decimal(1_440),
    busy_s=Decimal(144),
)
"""One of 1,000 running hosts, its part of the jobs included: measured by `make bench-cost` (20 hosts, 60 minutes)."""
JOB_RUN = Load(reads=Decimal(4), writes=Decimal("1.4"), requests=Decimal(1), busy_s=Decimal("0.5"))
"""One run of a job that finds nothing to do: its reads and writes as counted there, its time is an assumption."""


POLL_RUN = Load(reads=Decimal(23), writes=Decimal(16), requests=Decimal(1), busy_s=Decimal(2))
"""One run of `poll_prices` on two marketplaces, its operations as a test counts them; it waits for four searches."""
RUNS: Mapping[str, Load] = {"poll_prices": POLL_RUN}


def usd_per_month(load_per_day: Load, prices: Prices, *, cpu: Decimal, memory_gib: Decimal) -> Decimal:
    """`load_per_day` on instances of that size."""
    load = load_per_day.times(DAYS_PER_MONTH)
    hundred_thousand = Decimal(100_000)
    store = (
        load.reads * prices.usd_per_100k_reads
        + load.writes * prices.usd_per_100k_writes
        + load.deletes * prices.usd_per_100k_deletes
    ) / hundred_thousand
    compute = load.busy_s * (cpu * prices.usd_per_vcpu_s + memory_gib * prices.usd_per_gib_s)
    return store + compute + load.requests * prices.usd_per_million_requests / 1_000_000


def shared(busy_s: Decimal, *, calls_per_s: Decimal, call_s: Decimal, concurrency: int) -> Decimal:
    """Billed seconds when many callers share an instance: `busy_s` of one alone / how many overlap on average.

    An instance bills the time in which at least one request is in it. With calls at random (Poisson) at a rate r,
    each of length d, an instance is busy a share 1 - exp(-r d) of the time and holds r d requests: the seconds billed
    per second of work are (1 - exp(-r d)) / (r d). More than `concurrency` at a time need a second instance, so the
    gain is at most that factor.
    """
    overlap = calls_per_s * call_s
    if overlap == 0:
        return busy_s
    gain = (1 - (-overlap).exp()) / overlap
    return busy_s * max(gain, Decimal(1) / concurrency)


def flushes_per_host_day(*, calls_per_s: Decimal, call_s: Decimal, flush_s: Decimal, hosts: int) -> Decimal:
    """Writes of `seen/<process>` that one of `hosts` pays for: a process writes for all that it heard.

    While it is called at all it writes every `flush_s` seconds. With calls at random at a rate r, each of length d, an
    average of r d are served at a time, by ceil(r d) processes at least; twice as many are counted, for the platform
    starts more than it needs. A host never costs more writes than it makes calls.
    """
    processes = 2 * (calls_per_s * call_s).to_integral_value(ROUND_CEILING)
    per_day = processes * 86_400 / flush_s
    return min(per_day, calls_per_s * 86_400) / hosts


def fixed_usd_per_month(
    prices: Prices,
    *,
    functions: Sequence[Function] = FUNCTIONS,
    schedules: Sequence[Schedule] = SCHEDULES,
    secrets: int = 4,
    runs: Mapping[str, Load] | None = None,
) -> Decimal:
    """What a deployment without any host costs: its schedules, their runs, its secrets.

    `runs` = one run of each job, measured; RUNS and JOB_RUN for those that are not in it.
    """
    rows = {row.name: row for row in functions}
    total = prices.usd_per_schedule_month * len(schedules) + prices.usd_per_secret_version_month * secrets
    for schedule in schedules:
        row, run = rows[schedule.name], {**RUNS, **(runs or {})}.get(schedule.name, JOB_RUN)
        per_day = run.times(runs_per_day(schedule.cron))
        total += usd_per_month(
            per_day, prices, cpu=Decimal(row.cpu), memory_gib=Decimal(row.memory_mb) / 1024
        )  # fmt: skip
    return total


def runs_per_day(cron: str) -> Decimal:
    """Of an expression with `*`, `*/n`, a number or a list for minute and hour; raises ValueError for others."""
    minute, hour, *rest = cron.split()
    if rest != ["*", "*", "*"]:
        raise ValueError(f"{cron!r} is not a daily rhythm")
    return Decimal(_times(minute, 60) * _times(hour, 24))


def _times(part: str, of: int) -> int:
    if part.startswith("*/"):
        return len(range(0, of, int(part[2:])))
    return of if part == "*" else len({int(number) for number in part.split(",")})


def min_instances_usd_per_month(prices: Prices, functions: Sequence[Function] = FUNCTIONS) -> Decimal:
    """Instances that are kept warm are billed all the time (the idle price of CPU is a tenth, memory's is the same)."""
    warm = [row for row in functions if row.min_instances]
    return sum(
        (
            SECONDS_PER_MONTH
            * row.min_instances
            * (Decimal(row.cpu) * prices.usd_per_vcpu_s / 10 + Decimal(row.memory_mb) / 1024 * prices.usd_per_gib_s)
            for row in warm
        ),
        Decimal(0),
    )


STANDBY_DISK_GB: int = Spec.model_fields["disk_gb"].default
"""A standby's disk is as large as the instance's."""


def standby_month(region: str) -> StandbyCost:
    """Of one Spot standby with the usual disk, running all month; raises KeyError for a region without prices."""
    return monthly_cost(Terms(zone=regions()[region].zones[0]), STANDBY_DISK_GB)


def standby_range() -> tuple[StandbyCost, StandbyCost]:
    """The same where it is cheapest and where it is dearest."""
    months = sorted((standby_month(region) for region in regions()), key=lambda month: month.usd_per_month)
    return months[0], months[-1]

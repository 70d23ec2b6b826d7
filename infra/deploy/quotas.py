"""What a deployment needs of Google's quotas, beside what the project has.

The wire is Service Usage v1beta1 (services.consumerQuotaMetrics), which a deployment has switched on in any case; it
tells limits, not how much of them others in the project use.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from common.domain.health import Finding, failed, ok, warning
from common.topology import FUNCTIONS, SCHEDULES
from infra.deploy.google import Google, GoogleRefused, GoogleSilent

UNLIMITED = -1
CPU_MILLI = 1000
MIB = 1 << 20
OWN_ACCOUNTS = 2
"""Beside those of the functions: the schedules' and the builds'."""
BUILD_CPUS = 1
"""Builds wait for each other when there are no more."""
CONSOLE = "https://console.cloud.google.com/iam-admin/quotas"
MAY_READ = "serviceusage.quotas.get (for instance roles/servicemanagement.quotaViewer)"


@dataclass(frozen=True)
class Need:
    """One quota: below `least` the deployment does not work, below `most` it does until it is busy."""

    service: str
    metric: str
    """A regular expression over the names of its metrics, which follow the service's own."""
    what: str
    least: int
    most: int
    shown_per: int = 1
    """So many of Google's units are one of those that are shown."""
    documented: int | None = None
    """What Google's pages state (November 2026), where its interface may list no such metric."""


def needs() -> list[Need]:
    """Of the table of functions and schedules."""
    one_of_each = sum(float(row.cpu) for row in FUNCTIONS)
    cpu_of_one = max(float(row.cpu) * row.max_instances for row in FUNCTIONS)
    cpu_of_all = sum(float(row.cpu) * row.max_instances for row in FUNCTIONS)
    mib_of_one = max(row.memory_mb * row.max_instances for row in FUNCTIONS)
    mib_of_all = sum(row.memory_mb * row.max_instances for row in FUNCTIONS)
    instances = sum(row.max_instances for row in FUNCTIONS)
    accounts = len(FUNCTIONS) + OWN_ACCOUNTS
    return [
        # a revision whose instances would not all fit is refused when it is deployed
        Need("run", "cpu_allocation", "CPUs", _milli(max(cpu_of_one, one_of_each)), _milli(cpu_of_all), CPU_MILLI),
        Need("run", "mem_allocation", "MiB of memory", mib_of_one * MIB, mib_of_all * MIB, MIB),
        Need("run", "instances", "instances", len(FUNCTIONS), instances),
        Need("cloudscheduler", ".*jobs?(_count)?", "schedules", *_just(len(SCHEDULES)), documented=1000),
        Need("firestore", "databases", "databases", *_just(1), documented=100),
        Need("iam", "quota/service-account-count", "service accounts", *_just(accounts), documented=100),
        Need("cloudbuild", "concurrent_public_pool_build_cpus", "build CPUs", *_just(BUILD_CPUS)),
    ]  # fmt: skip


def _just(count: int) -> tuple[int, int]:
    return count, count


def _milli(cpus: float) -> int:
    return round(cpus * CPU_MILLI)


def examine(google: Google) -> Iterator[Finding]:
    """Every need once. A service that cannot be asked is one finding, and does not keep the others from being asked."""
    for service in dict.fromkeys(need.service for need in needs()):
        of_it = [need for need in needs() if need.service == service]
        try:
            metrics = list(google.pages("serviceusage", _path(google, service), "metrics", pageSize="100"))
        except GoogleRefused as refused:
            yield _refused(google, service, refused)
            if "SERVICE_DISABLED" not in str(refused):
                return  # the others would be refused for the same reason
        except GoogleSilent as silent:
            yield warning(f"quotas of {service}", f"not known: {silent}", "ask again in a minute")
        else:
            yield from (judge(need, limit_of(need, metrics, google.region), google.project) for need in of_it)


def _path(google: Google, service: str) -> str:
    return f"/v1beta1/projects/{google.project}/services/{service}.googleapis.com/consumerQuotaMetrics"


def limit_of(need: Need, metrics: Sequence[dict[str, Any]], region: str) -> int | None:
    """The smallest of the metric's limits that hold in the region; None = Google lists no such metric."""
    limits = [
        limit
        for metric in metrics
        if re.fullmatch(need.metric, str(metric.get("metric")).removeprefix(f"{need.service}.googleapis.com/"))
        for limit in metric.get("consumerQuotaLimits", [])
    ]
    found = [amount for limit in limits if (amount := _in_region(limit.get("quotaBuckets", []), region)) is not None]
    bounded = [amount for amount in found if amount != UNLIMITED]
    return min(bounded) if bounded else (UNLIMITED if found else None)


def _in_region(buckets: Sequence[dict[str, Any]], region: str) -> int | None:
    """The region's own bucket, else the one without dimensions, which holds wherever there is none of its own."""
    of_region = [bucket for bucket in buckets if bucket.get("dimensions", {}).get("region") == region]
    of_all = [bucket for bucket in buckets if not bucket.get("dimensions")]
    for bucket in [*of_region, *of_all]:
        # Google leaves out a number that is zero
        stated = str(bucket.get("effectiveLimit", "0" if "defaultLimit" in bucket else ""))
        if re.fullmatch(r"-?\d+", stated):
            return int(stated)
    return None


def judge(need: Need, limit: int | None, project: str) -> Finding:
    check = f"quota of {need.what}"
    least, most = need.least // need.shown_per, need.most // need.shown_per
    wanted = f"{most}" if least == most else f"{least} to work, {most} when everything is busy"
    if limit == UNLIMITED:
        return ok(check, f"needs {wanted}, and there is no limit")
    if limit is None and need.documented is None:
        mend = f"look at {CONSOLE}?project={project} for one like {need.metric}"
        return warning(check, f"needs {wanted}; Google lists no such quota for {need.service}", mend)
    known = need.documented if limit is None else limit
    assert known is not None
    source = " (as documented: Google's interface does not list it)" if limit is None else ""
    found = f"needs {wanted}, of {known // need.shown_per}{source}"
    mend = f"ask for {most} at {CONSOLE}?project={project}" + (
        ", or lower max_instances in common/topology.py and apply" if need.service == "run" else ""
    )
    if known < need.least:
        return failed(check, found, mend)
    return warning(check, found, mend) if known < need.most else ok(check, found)


def _refused(google: Google, service: str, refused: GoogleRefused) -> Finding:
    if "SERVICE_DISABLED" in str(refused):
        mend = f"switch it on: dumont deploy apply --project {google.project} --region {google.region}"
        return failed(f"quotas of {service}", f"the interface is off: {refused}", mend)
    if refused.status == 403:
        mend = f"give the account that asks the permission {MAY_READ} on {google.project}"
        return warning("quotas", f"they may not be read: {refused}", mend)
    return warning("quotas", f"they cannot be read: {refused}", f"see that {google.project} is the project")

"""What a deployment consists of: a pure function of the tables, the target and its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from common.topology import FUNCTIONS, RIGHTS, SCHEDULES, Function, Schedule
from infra.deploy.archive import Archive
from infra.deploy.database import DATABASE, composite_indexes, field_settings
from infra.deploy.network import RULE, open_to_all
from infra.deploy.product import ABORT_AFTER_DAYS, UNFINISHED
from infra.deploy.project import DRAWN, NEW_VERSION, PREFIX, email
from infra.deploy.resource import Spec, Wanted

RUNTIME = "python311"
"""The version that the tests run on."""
APIS = (
    "artifactregistry",
    "cloudbuild",
    "cloudfunctions",
    "cloudresourcemanager",
    "cloudscheduler",
    "compute",
    "firestore",
    "iam",
    "run",
    "secretmanager",
    "storage",
)
BUILDER_ROLE = "roles/cloudbuild.builds.builder"
EVERYBODY = "allUsers"


@dataclass(frozen=True)
class Target:
    """One deployment: where, and with which settings."""

    project: str
    region: str
    env: Mapping[str, str]
    """Settings that are no secrets, by their names in the environment."""
    secrets: Sequence[str]
    """Names of the secrets that the settings use: given now, or kept at Google from before."""
    storage: str = "S3"
    """The storage provider's prefix of settings."""
    functions: Sequence[Function] = FUNCTIONS
    schedules: Sequence[Schedule] = SCHEDULES
    bundle_sha256: str = ""
    webhooks: Sequence[str] = field(default=())
    """Marketplaces that announce by webhook."""

    @property
    def url(self) -> str:
        """Below it every function answers under its name."""
        return f"https://{self.region}-{self.project}.cloudfunctions.net"

    def secrets_of(self, function: Function) -> list[str]:
        """Those its rights name, of those there are."""
        named = {name.replace("{STORAGE}", self.storage) for right in function.rights for name in RIGHTS[right].secrets}
        return sorted(named & set(self.secrets))

    def settings_of(self, function: Function) -> dict[str, str]:
        """The plain ones that its rights name."""
        named = {name: value for right in function.rights for name, value in RIGHTS[right].settings.items()}
        return {name: value.replace("{PROJECT}", self.project) for name, value in named.items()}

    def account_of(self, function: Function) -> str:
        return email(self.project, f"{PREFIX}{function.service}")


def wanted(target: Target, archive: Archive, versions: Mapping[str, str]) -> list[Wanted]:
    """In the order in which they are made. `versions` = of the secrets, as far as they exist."""
    return [
        *(Wanted("api", name) for name in APIS),
        *_accounts(target),
        *(Wanted("secret", name, {"value": "current"}) for name in sorted({*target.secrets, *DRAWN})),
        Wanted("database", DATABASE, {"location": target.region, "type": "FIRESTORE_NATIVE", "protected": True}),
        Wanted(
            "bucket",
            f"{target.project}-dumont-source",
            {"location": target.region, "uniform": True, "public": "enforced"},
        ),
        *_roles(target),
        *_readers(target),
        Wanted("firewall", RULE, open_to_all()),
        *(Wanted("index", shape) for shape in composite_indexes()),
        *(Wanted("field", name, spec) for name, spec in field_settings().items()),
        Wanted("source", archive.id),
        *([Wanted("bundle", target.bundle_sha256)] if target.bundle_sha256 else []),
        Wanted("storage rule", UNFINISHED, {"abort_after_days": ABORT_AFTER_DAYS}),
        *(Wanted("function", row.service, _function(target, row, archive, versions)) for row in target.functions),
        *(Wanted("service", row.service, _service(target, row)) for row in target.functions),
        *(Wanted("schedule", f"{PREFIX}{_service_of(row)}", _schedule(target, row)) for row in target.schedules),
        *(Wanted("webhook", market, {"url": f"{target.url}/failover/{market}"}) for market in target.webhooks),
    ]


def _accounts(target: Target) -> list[Wanted]:
    """One per function, one that the scheduler calls as, one that builds."""
    titles = {f"{PREFIX}{row.service}": f"Dumont function {row.service}" for row in target.functions}
    titles |= {f"{PREFIX}scheduler": "Dumont's schedules", f"{PREFIX}build": "Dumont's builds"}
    return [Wanted("account", name, {"title": title}) for name, title in titles.items()]


def _roles(target: Target) -> list[Wanted]:
    members: dict[str, set[str]] = {BUILDER_ROLE: {_member(email(target.project, f"{PREFIX}build"))}}
    for row in target.functions:
        for right in row.rights:
            for role in RIGHTS[right].roles:
                members.setdefault(role, set()).add(_member(target.account_of(row)))
    return [Wanted("role", role, {"members": sorted(held)}) for role, held in members.items()]


def _readers(target: Target) -> list[Wanted]:
    readers: dict[str, list[str]] = {}
    for row in target.functions:
        for secret in target.secrets_of(row):
            readers.setdefault(secret, []).append(_member(target.account_of(row)))
    return [Wanted("reader", secret, {"members": sorted(members)}) for secret, members in readers.items()]


def _function(target: Target, row: Function, archive: Archive, versions: Mapping[str, str]) -> Spec:
    env = {**target.env, **target.settings_of(row), "WORKERS": "1", "THREADS": str(row.concurrency)}
    if not row.public:
        env |= {
            "DUMONT_SCHEDULER_ACCOUNT": email(target.project, f"{PREFIX}scheduler"),
            "DUMONT_SCHEDULER_AUDIENCE": f"{target.url}/{row.service}",
        }
    return {
        "runtime": RUNTIME,
        "entry_point": row.name,
        "source": archive.id,
        "build_account": email(target.project, f"{PREFIX}build"),
        "memory": f"{row.memory_mb}Mi",
        "cpu": row.cpu,
        "timeout_s": row.timeout_s,
        "concurrency": row.concurrency,
        "min_instances": row.min_instances,
        "max_instances": row.max_instances,
        "account": target.account_of(row),
        "env": env,
        "secrets": {name: versions.get(name, NEW_VERSION) for name in target.secrets_of(row)},
    }


def _service(target: Target, row: Function) -> Spec:
    caller = EVERYBODY if row.public else _member(email(target.project, f"{PREFIX}scheduler"))
    return {"callers": [caller], "cpu_boost": True}


def _schedule(target: Target, row: Schedule) -> Spec:
    return {
        "cron": row.cron,
        "url": f"{target.url}/{_service_of(row)}",
        "caller": email(target.project, f"{PREFIX}scheduler"),
        "deadline_s": row.deadline_s,
        "retries": row.retries,
        "paused": False,
    }


def _service_of(row: Schedule) -> str:
    return row.name.replace("_", "-")


def _member(email: str) -> str:
    return f"serviceAccount:{email}"

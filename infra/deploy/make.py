"""The deployer's composition root: from an environment and credentials to a deployer that can be run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from common.adapters.s3 import S3
from common.config import Settings
from common.ports import App
from common.topology import FUNCTIONS, RIGHTS, SCHEDULES, Function, Schedule
from infra.deploy.archive import Archive
from infra.deploy.code import Buckets, Functions, Schedules, Services, Sources
from infra.deploy.database import DATABASE, Databases, Fields, Indexes
from infra.deploy.deployer import Deployer
from infra.deploy.google import Google
from infra.deploy.network import Firewalls
from infra.deploy.product import Bundles, Snapshots, StorageRules, Webhooks
from infra.deploy.project import DRAWN, Accounts, Apis, Readers, Roles, Secrets
from infra.deploy.resource import Kind
from infra.deploy.wanted import APIS, Target
from infra.gpu_host.bundle import Bundle

PASSED_ON = ("DUMONT_", "STORAGE_PROVIDER", "VAST_URL", "TENSORDOCK_URL", "SLACK_URL", "SLACK_CHANNELS")
"""Settings of the deployer's own environment that the functions get; beside them the storage provider's."""
OURS = tuple(f"DUMONT_{name}" for name in ("STORE", "URL", "LOCAL_TICKER", "SCHEDULER_", "API_", "PORT", "GOOGLE_"))
"""What the deployer decides, or what is no setting of a function."""
PLACEHOLDER = "0" * 32
MARKET_KEYS, SLACK_SECRETS = RIGHTS["market"].secrets, RIGHTS["slack"].secrets


@dataclass(frozen=True)
class Parts:
    """What a deployment is made of; a test puts its own rows in."""

    archive: Archive
    bundle: Bundle
    env: Mapping[str, str] = field(repr=False)
    functions: Sequence[Function] = FUNCTIONS
    schedules: Sequence[Schedule] = SCHEDULES

    @property
    def storage(self) -> str:
        """The prefix of the storage provider's settings."""
        return self.env.get("STORAGE_PROVIDER", "s3").upper()

    @property
    def secret_names(self) -> list[str]:
        """Every secret that a right of the table names."""
        names = {name for right in RIGHTS.values() for name in right.secrets}
        return sorted(name.replace("{STORAGE}", self.storage) for name in names)

    @property
    def secret_values(self) -> dict[str, str]:
        return {name: self.env[name] for name in self.secret_names if self.env.get(name)}

    @property
    def plain_env(self) -> dict[str, str]:
        """Settings of the functions that are no secrets, without the store and the URL."""
        prefixes = (*PASSED_ON, f"{self.storage}_")
        kept = {name: value for name, value in self.env.items() if name.startswith(prefixes)}
        return {n: v for n, v in sorted(kept.items()) if not n.startswith(OURS) and n not in self.secret_names}


def target(parts: Parts, google: Google, kept: Sequence[str]) -> Target:
    """`kept` = secrets that Google has from before."""
    secrets = sorted({*parts.secret_values, *DRAWN, *kept} & set(parts.secret_names))
    made = Target(
        project=google.project,
        region=google.region,
        env={},
        secrets=secrets,
        storage=parts.storage,
        functions=parts.functions,
        schedules=parts.schedules,
        bundle_sha256=parts.bundle.sha256,
        webhooks=("vast",) if "VAST_API_KEY" in parts.secret_values else (),
    )
    env = {
        **parts.plain_env,
        "DUMONT_STORE": f"firestore://{google.project}/{DATABASE}",
        "DUMONT_URL": made.url,
        "DUMONT_BUNDLE_SHA256": parts.bundle.sha256,
        "DUMONT_BUNDLE_GLIBC": parts.bundle.glibc,
    }
    return Target(**{**vars(made), "env": env})


def checked(parts: Parts, google: Google) -> Settings:
    """The settings as the functions will read them; raises `SettingError` before anything is made.

    A secret that only Google has is not known here, and is not judged.
    """
    wish = target(parts, google, ())
    a_market = any(name in parts.secret_values for name in MARKET_KEYS)
    optional = (*SLACK_SECRETS, *(MARKET_KEYS if a_market else MARKET_KEYS[1:]))
    given = {name: PLACEHOLDER for name in parts.secret_names if name not in optional}
    return Settings.from_env({**given, **wish.env, **parts.secret_values})


def deployer(google: Google, parts: Parts, app: Callable[[], App], objects: Callable[[], S3]) -> Deployer:
    """`app` and `objects` are made only when they are needed: a plan of an empty project needs no store."""
    return Deployer(
        target=functools.partial(target, parts, google),
        archive=parts.archive,
        kinds=kinds(google, parts, app, objects),
        pause=google.pause,
    )


def kinds(google: Google, parts: Parts, app: Callable[[], App], objects: Callable[[], S3]) -> list[Kind]:
    """In the order in which they are made."""
    secrets, databases, accounts = Secrets(google, parts.secret_values), Databases(google), Accounts(google)
    return [
        Apis(google, APIS),
        accounts,
        secrets,
        databases,
        Buckets(google),
        Roles(google, accounts),
        Readers(google),
        Firewalls(google),
        Indexes(google),
        Fields(google),
        Sources(google, parts.archive),
        Bundles(objects, parts.bundle),
        StorageRules(objects),
        Snapshots(objects),
        Functions(google),
        Services(google, [row.service for row in parts.functions]),
        Schedules(google),
        Webhooks(app, lambda: bool(databases.present())),
    ]

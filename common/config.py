"""Settings: the one module that knows the environment's names. A wrong or missing one stops the start with its name."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from common.domain.model import Model
from common.domain.pool import PoolTerms
from common.domain.retention import Retention
from common.domain.slack import SLACK_ID
from common.errors import SettingError

EXAMPLES = {
    "DUMONT_STORE": "sqlite:///var/lib/dumont/store.db or firestore://my-project",
    "DUMONT_URL": "https://europe-west1-my-project.cloudfunctions.net",
    "JWT_SECRET": "the output of: openssl rand -hex 32",
    "VAST_API_KEY": "the key from your Vast.ai account page",
    "TENSORDOCK_API_KEY": "the token from your TensorDock organisation's developer page",
    "STORAGE_PROVIDER": "one of b2, r2, s3, wasabi",
    "SLACK_BOT_TOKEN": "the bot token (xoxb-...) from your Slack app's page OAuth & Permissions",
    "SLACK_SIGNING_SECRET": "the signing secret from your Slack app's page Basic Information",
    "SLACK_CHANNELS": "C0123456789,C0987654321",
    "GCP_CREDENTIALS": "a service account's key as JSON, the path of its file, or: default",
    "WASABI_ROLE_ARN": "arn:aws:iam::100000000000:role/dumont-hosts, which the key's sub-user may assume",
    "DUMONT_STORAGE_ACCESS": "scoped or shared",
}
STORAGE_ENDPOINTS = {
    "s3": "https://s3.amazonaws.com",
    "wasabi": "https://s3.wasabisys.com",
    "b2": None,  # per bucket region: https://s3.<region>.backblazeb2.com
    "r2": None,  # per account: https://<account>.r2.cloudflarestorage.com
}
STORAGE_REGIONS = {"r2": "auto"}
"""Where the vendor's own name of the region is not us-east-1."""
RETIRED = {
    "RESTIC_PASSWORD": "RESTIC_PASSWORD is no longer used: each instance's snapshots are authenticated with a "
    "key of its own, derived from the deployment's key in the store. Remove RESTIC_PASSWORD.",
}


POOL_PREFIX = "DUMONT_POOL_"
KEEP_PREFIX = "DUMONT_KEEP_"


class Timing(Model):
    """Every waiting time of a deployment, in seconds. The demo only sets them smaller."""

    model_config = ConfigDict(extra="forbid")

    idle_for_s: float = Field(default=180, gt=0)
    """A GPU quiet for so long is hibernated, unless the instance says otherwise."""
    snapshot_every_s: float = Field(default=900, gt=0)
    prune_every_s: float = Field(default=3600, gt=0)
    """Between two looks at what an instance keeps."""
    prune_grace_s: float = Field(default=86_400, gt=0)
    """A pack that no snapshot needs goes after so long, and a snapshot is given up that takes half of it."""
    drill_every_s: float = Field(default=7 * 86_400, gt=0)
    """Between two drills of an instance's newest snapshot."""
    reconcile_every_s: float = Field(default=60, gt=0)
    heartbeat_settled_s: float = Field(default=60, gt=0)
    heartbeat_busy_s: float = Field(default=3, gt=0)
    silent_after_s: float = Field(default=180, gt=0)
    """A host that has not reported for so long is silent."""
    ticker_period_s: float = Field(default=60, gt=0)
    market_every_s: float = Field(default=300, gt=0)
    """Between two looks at the market that are written down."""
    boot_timeout_s: float = Field(default=600, gt=0)
    """A rental that is not ready after its create is given up."""
    round_backoff_s: float = Field(default=30, gt=0)
    """Between two rounds of provisioning; doubles up to `round_backoff_max_s`."""
    round_backoff_max_s: float = Field(default=300, gt=0)
    hand_back_notice_s: float = Field(default=60, ge=0)
    """Who works on the standby is told so long before it goes back to a GPU."""
    hand_back_idle_s: float = Field(default=120, gt=0)
    """Nobody works on the standby for so long: it goes back without being asked."""
    dead_man_s: float = Field(default=1800, gt=0)
    late_create_s: float = Field(default=1800, gt=0)
    """A create whose answer was lost may still be applied for so long."""
    destroy_again_s: float = Field(default=15, gt=0)
    settle_after_s: float = Field(default=120, ge=0)
    """The provider's bill of a released machine is final after so long."""


class Settings(Model):
    model_config = ConfigDict(extra="forbid")

    store: str
    url: str
    """Where hosts reach the functions."""
    jwt_secret: str = Field(min_length=16, repr=False)
    jwt_secret_before: str | None = Field(default=None, min_length=16, repr=False)
    """The one before: what it signed for machines that run is taken for signed by the present one."""
    snapshot_secret: str | None = Field(default=None, min_length=16, repr=False)
    """Wraps the data keys of instances; None = the deployment's key in the store does."""
    snapshot_secret_before: str | None = Field(default=None, min_length=16, repr=False)
    """The one before, until every data key is wrapped anew."""
    vast_api_key: str | None = Field(default=None, repr=False)
    vast_url: str = "https://console.vast.ai"
    tensordock_api_key: str | None = Field(default=None, repr=False)
    tensordock_url: str = "https://dashboard.tensordock.com"
    gcp_credentials: str | None = Field(default=None, repr=False)
    """A service account's key as JSON or the path of its file; `default` = the account as which the functions run;
    `anonymous` = a simulated Google on this machine. None = instances have no standby: they are unprotected."""
    gcp_project: str | None = None
    """None = the key's own."""
    gcp_url: str = "https://compute.googleapis.com"
    storage_provider: Literal["b2", "r2", "s3", "wasabi"] = "s3"
    storage_endpoint: str
    host_storage_endpoint: str
    """Where hosts reach the object store."""
    storage_region: str = "us-east-1"
    bucket: str
    storage_key_id: str = Field(repr=False)
    storage_application_key: str = Field(repr=False)
    storage_access: Literal["scoped", "shared"] = "scoped"
    """What hosts get: credentials for their instance's prefix that end, or the deployment's own key to the bucket."""
    storage_role_arn: str | None = None
    """Of the role that hosts' credentials come from (Amazon, Wasabi); None = a federation token of Amazon's."""
    storage_sts_endpoint: str | None = None
    b2_api_url: str = "https://api.backblazeb2.com"
    scheduler_account: str | None = None
    """The service account as which Cloud Scheduler calls this function."""
    scheduler_audience: str | None = None
    """For whom Cloud Scheduler's token is: the URL that it calls."""
    local_ticker: bool = False
    """Scheduled calls are signed by the ticker of a local run instead."""
    google_keys_url: str = "https://www.googleapis.com/oauth2/v3/certs"
    """Where Google publishes the keys that sign its tokens."""
    drill_most_mb: int = Field(default=64, ge=1, le=1024)
    """MiB that one drill reads from the object store, at most (but for one pack); more is drilled in samples."""
    bundle_sha256: str | None = None
    """Of the host bundle in the bucket at releases/<sha256>."""
    bundle_glibc: str = "2.36"
    """The oldest glibc the bundle runs on, as its build measured it."""
    keep_after_terminate_days: int = Field(default=7, ge=0, le=3650)
    slack_bot_token: str | None = Field(default=None, repr=False)
    """With `slack_signing_secret`: Slack is set up."""
    slack_signing_secret: str | None = Field(default=None, min_length=16, repr=False)
    slack_url: str = "https://slack.com/api"
    slack_channels: frozenset[str] = frozenset()
    """Ids of the channels where commands and buttons are taken; empty = everywhere."""
    webhook_loopback: bool = False
    """Webhooks may be http on this machine itself: for a local run only."""
    credit_warn_below_h: float = Field(default=24, ge=0)
    """Hours that the credit on a marketplace account lasts at the present burn."""
    credit_hibernate_below_h: float = Field(default=1, ge=0)
    timing: Timing = Timing()
    pool: PoolTerms = PoolTerms()
    keep: Retention = Retention()
    """Of an instance that says nothing else."""

    @field_validator("slack_channels", mode="before")
    @classmethod
    def _comma_separated(cls, channels: Any) -> Any:
        if not isinstance(channels, str):
            return channels
        return frozenset(name.strip() for name in channels.split(",") if name.strip())

    @field_validator("slack_channels")
    @classmethod
    def _channel_ids(cls, channels: frozenset[str]) -> frozenset[str]:
        for channel in channels:
            if not SLACK_ID.fullmatch(channel):
                raise ValueError(f"{channel!r} is not the id of a channel")
        return channels

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self:
        """Settings under the customer's names; raises `SettingError` with the setting's name and an example."""
        for name, sentence in RETIRED.items():
            if name in env:
                raise SettingError(sentence)
        for name, other in ("SLACK_BOT_TOKEN", "SLACK_SIGNING_SECRET"), ("SLACK_SIGNING_SECRET", "SLACK_BOT_TOKEN"):
            if env.get(other):
                _required(env, name)  # half of Slack is none
        provider = env.get("STORAGE_PROVIDER", "s3")
        if provider not in STORAGE_ENDPOINTS:
            raise SettingError(f"STORAGE_PROVIDER is {provider!r}; set it to {EXAMPLES['STORAGE_PROVIDER']}")
        prefix = provider.upper()
        endpoint = env.get(f"{prefix}_ENDPOINT") or STORAGE_ENDPOINTS[provider]
        values: dict[str, Any] = {
            "store": _required(env, "DUMONT_STORE"),
            "url": _required(env, "DUMONT_URL"),
            "jwt_secret": _required(env, "JWT_SECRET"),
            "vast_api_key": env.get("VAST_API_KEY"),
            "tensordock_api_key": env.get("TENSORDOCK_API_KEY"),
            "storage_provider": provider,
            "storage_endpoint": endpoint or _required(env, f"{prefix}_ENDPOINT"),
            "bucket": _required(env, f"{prefix}_BUCKET"),
            "storage_key_id": _required(env, f"{prefix}_KEY_ID"),
            "storage_application_key": _required(env, f"{prefix}_APPLICATION_KEY"),
            "timing": _group(env, Timing, "DUMONT_"),
            "pool": _group(env, PoolTerms, POOL_PREFIX),
            "keep": _group(env, Retention, KEEP_PREFIX),
        }
        if provider == "wasabi" and env.get("DUMONT_STORAGE_ACCESS") != "shared":
            _required(env, "WASABI_ROLE_ARN")
        values["host_storage_endpoint"] = env.get("DUMONT_HOST_STORAGE_ENDPOINT") or values["storage_endpoint"]
        optional = {
            "jwt_secret_before": "JWT_SECRET_BEFORE",
            "vast_url": "VAST_URL",
            "snapshot_secret": "DUMONT_SNAPSHOT_SECRET",
            "snapshot_secret_before": "DUMONT_SNAPSHOT_SECRET_BEFORE",
            "tensordock_url": "TENSORDOCK_URL",
            "gcp_credentials": "GCP_CREDENTIALS",
            "gcp_project": "GCP_PROJECT",
            "gcp_url": "GCP_URL",
            "storage_region": f"{prefix}_REGION",
            "storage_access": "DUMONT_STORAGE_ACCESS",
            "storage_role_arn": f"{prefix}_ROLE_ARN",
            "storage_sts_endpoint": f"{prefix}_STS_ENDPOINT",
            "b2_api_url": "B2_API_URL",
            "scheduler_account": "DUMONT_SCHEDULER_ACCOUNT",
            "scheduler_audience": "DUMONT_SCHEDULER_AUDIENCE",
            "local_ticker": "DUMONT_LOCAL_TICKER",
            "google_keys_url": "DUMONT_GOOGLE_KEYS_URL",
            "bundle_sha256": "DUMONT_BUNDLE_SHA256",
            "bundle_glibc": "DUMONT_BUNDLE_GLIBC",
            "slack_bot_token": "SLACK_BOT_TOKEN",
            "slack_signing_secret": "SLACK_SIGNING_SECRET",
            "slack_url": "SLACK_URL",
            "slack_channels": "SLACK_CHANNELS",
            "webhook_loopback": "DUMONT_WEBHOOK_LOOPBACK",
            "drill_most_mb": "DUMONT_DRILL_MOST_MB",
            "keep_after_terminate_days": "DUMONT_KEEP_AFTER_TERMINATE_DAYS",
            "credit_warn_below_h": "DUMONT_CREDIT_WARN_BELOW_H",
            "credit_hibernate_below_h": "DUMONT_CREDIT_HIBERNATE_BELOW_H",
        }
        if provider in STORAGE_REGIONS:
            values["storage_region"] = STORAGE_REGIONS[provider]
        values.update({field: env[name] for field, name in optional.items() if name in env})
        values["gcp_credentials"] = values.get("gcp_credentials") or None
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SettingError(_sentence(error, {**_names(prefix), **optional})) from None


def _group(env: Mapping[str, str], model: type[BaseModel], prefix: str) -> dict[str, str]:
    """Those of a group's settings that the environment has."""
    names = {field: f"{prefix}{field.upper()}" for field in model.model_fields}
    return {field: env[name] for field, name in names.items() if name in env}


def _required(env: Mapping[str, str], name: str) -> str:
    if value := env.get(name):
        return value
    example = EXAMPLES.get(name, "the value from your storage provider's console")
    raise SettingError(f"{name} is not set. Example: {example}")


def _names(prefix: str) -> dict[str, str]:
    return {
        "store": "DUMONT_STORE",
        "url": "DUMONT_URL",
        "jwt_secret": "JWT_SECRET",
        "bucket": f"{prefix}_BUCKET",
    }


_GROUPS: dict[str, tuple[str, type[BaseModel]]] = {
    "pool": (POOL_PREFIX, PoolTerms),
    "keep": (KEEP_PREFIX, Retention),
}
"""Settings with a prefix of their own."""


def _sentence(error: ValidationError, names: Mapping[str, str]) -> str:
    first = error.errors()[0]
    group, field = str(first["loc"][0]), str(first["loc"][-1])
    prefix, model = _GROUPS.get(group, ("", Timing))
    name = f"{prefix}{str(first['loc'][1]).upper()}" if prefix else names.get(field, f"DUMONT_{field.upper()}")
    known = {**Settings.model_fields, **model.model_fields}
    example = EXAMPLES.get(name) or known.get(field)
    shown = getattr(example, "default", example)
    return f"{name} is wrong: {first['msg']}. Example: {shown}"

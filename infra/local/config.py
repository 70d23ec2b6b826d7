"""One state directory: its ports, secrets and settings of time. The demo sets times small; nothing else differs."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from common.config import Timing
from infra.gpu_host.bundle import Bundle
from infra.local.ports import free_ports

API_PORT = 8766
DEMO_TIMING: dict[str, float] = {
    "idle_for_s": 12,
    "snapshot_every_s": 20,
    "reconcile_every_s": 2,
    "ticker_period_s": 2,
    "heartbeat_settled_s": 1,
    "heartbeat_busy_s": 1,
    "silent_after_s": 5,
    "market_every_s": 30,
    "prune_every_s": 30,
    "drill_every_s": 30,
    "boot_timeout_s": 60,
    "round_backoff_s": 2,
    "round_backoff_max_s": 10,
    "hand_back_notice_s": 3,
    "hand_back_idle_s": 10,
    "late_create_s": 15,
    "destroy_again_s": 5,
    "settle_after_s": 2,
}
BUCKET = "dumont-demo"
GOOGLE_PROJECT = "demo-project"


@dataclass
class Local:
    """What `up` decided once for this state directory."""

    state: str
    api_port: int
    vast_port: int
    s3_port: int
    world_port: int
    host_api_port: int
    """The uplink to the functions, as rentals see it."""
    host_s3_port: int
    jwt_secret: str
    s3_access_key: str
    s3_secret_key: str
    vast_api_key: str
    tensordock_port: int
    tensordock_api_key: str
    user: str
    password: str
    seed: int
    timing: dict[str, float]
    slack_port: int
    slack_bot_token: str
    slack_signing_secret: str
    api_key: str | None = None
    bundle_sha256: str = ""
    bundle_glibc: str = ""
    store_url: str = ""
    """Empty = a file of this directory."""
    gcp_port: int = 0
    """Of the simulated Google; 0 = there is none, and instances have no standby."""
    as_deployed: bool = False
    """The functions run from the archive that a deploy uploads, a process each."""

    @classmethod
    def at(
        cls,
        state: Path,
        *,
        port: int,
        timing: dict[str, float],
        seed: int,
        store_url: str = "",
        as_deployed: bool = False,
        with_google: bool = True,
    ) -> Self:
        """The directory's own settings, or new ones."""
        path = state / "config.json"
        if path.exists():
            return cls(**json.loads(path.read_text()))
        free = free_ports(9)
        return cls(
            state=str(state),
            api_port=port or free[0],
            vast_port=free[1],
            s3_port=free[2],
            world_port=free[3],
            host_api_port=free[4],
            host_s3_port=free[5],
            jwt_secret=secrets.token_hex(32),
            s3_access_key=f"DEMO{secrets.token_hex(8)}",
            s3_secret_key=secrets.token_hex(20),
            vast_api_key=secrets.token_hex(32),
            tensordock_port=free[6],
            tensordock_api_key=secrets.token_hex(32),
            user="demo@dumont.local",
            password=secrets.token_urlsafe(12),
            seed=seed,
            timing=timing,
            slack_port=free[7],
            slack_bot_token=f"xoxb-{secrets.token_hex(24)}",
            slack_signing_secret=secrets.token_hex(16),
            store_url=store_url,
            gcp_port=free[8] if with_google else 0,
            as_deployed=as_deployed,
        )

    def save(self) -> None:
        path = Path(self.state) / "config.json"
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(self), indent=1))
        new.chmod(0o600)
        new.replace(path)

    @property
    def store(self) -> str:
        return self.store_url or f"sqlite://{Path(self.state).resolve() / 'store.db'}"

    def control_env(self) -> dict[str, str]:
        """The control plane's settings, under the customer's names."""
        times = {f"DUMONT_{name.upper()}": str(value) for name, value in self.timing.items()}
        return {
            "DUMONT_PORT": str(self.api_port),
            "DUMONT_STORE": self.store,
            "DUMONT_URL": f"http://127.0.0.1:{self.host_api_port}",
            "JWT_SECRET": self.jwt_secret,
            "VAST_API_KEY": self.vast_api_key,
            "VAST_URL": f"http://127.0.0.1:{self.vast_port}",
            "TENSORDOCK_API_KEY": self.tensordock_api_key,
            "TENSORDOCK_URL": f"http://127.0.0.1:{self.tensordock_port}",
            "STORAGE_PROVIDER": "s3",
            "S3_ENDPOINT": f"http://127.0.0.1:{self.s3_port}",
            "S3_BUCKET": BUCKET,
            "S3_KEY_ID": self.s3_access_key,
            "DUMONT_STORAGE_ACCESS": "shared",
            "S3_APPLICATION_KEY": self.s3_secret_key,
            "DUMONT_HOST_STORAGE_ENDPOINT": f"http://127.0.0.1:{self.host_s3_port}",
            "DUMONT_BUNDLE_SHA256": self.bundle_sha256,
            "DUMONT_BUNDLE_GLIBC": self.bundle_glibc,
            "DUMONT_WEBHOOK_LOOPBACK": "true",
            "SLACK_BOT_TOKEN": self.slack_bot_token,
            "SLACK_SIGNING_SECRET": self.slack_signing_secret,
            "SLACK_URL": f"http://127.0.0.1:{self.slack_port}/api",
            "DUMONT_LOCAL_TICKER": "true",
            **self._google_env(),
            **times,
        }

    def _google_env(self) -> dict[str, str]:
        if not self.gcp_port:
            return {}
        url = f"http://127.0.0.1:{self.gcp_port}"
        return {"GCP_CREDENTIALS": "anonymous", "GCP_PROJECT": GOOGLE_PROJECT, "GCP_URL": url}

    def with_bundle(self, bundle: Bundle) -> None:
        self.bundle_sha256, self.bundle_glibc = bundle.sha256, bundle.glibc

    def facts(self) -> dict[str, str | None]:
        """What `dumont up --json` prints: so that any program can drive and judge it."""
        return {
            "api": f"http://127.0.0.1:{self.api_port}",
            "vast": f"http://127.0.0.1:{self.vast_port}",
            "s3": f"http://127.0.0.1:{self.s3_port}",
            "s3_access_key": self.s3_access_key,
            "s3_secret_key": self.s3_secret_key,
            "bucket": BUCKET,
            "user": self.user,
            "password": self.password,
            "api_key": self.api_key,
            "vast_api_key": self.vast_api_key,
            "tensordock": f"http://127.0.0.1:{self.tensordock_port}",
            "tensordock_api_key": self.tensordock_api_key,
            "gcp": f"http://127.0.0.1:{self.gcp_port}" if self.gcp_port else None,
            "slack_url": f"http://127.0.0.1:{self.api_port}/slack",
            "slack_signing_secret": self.slack_signing_secret,
            # for programs that sign commands of their own; with /anything after it, it is a fresh one
            "slack_response_url": f"http://127.0.0.1:{self.slack_port}/response/program",
            "world": f"http://127.0.0.1:{self.world_port}",
        }


def timing_table(timing: dict[str, float]) -> list[tuple[str, float, float]]:
    """(setting, here, production default), for every setting of time."""
    production = Timing().model_dump()
    return [(name, timing.get(name, default), default) for name, default in production.items()]

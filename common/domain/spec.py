"""What the user asked for: the GPU, the limits, and how the work is kept."""

from collections.abc import Sequence

from pydantic import ConfigDict, Field, field_validator

from common.domain.model import Model
from common.domain.offer import Usd
from common.domain.policy import IdlePolicy
from common.domain.retention import Retention
from common.domain.strategy import Strategy

DEFAULT_IMAGE = "pytorch/pytorch:2.6.0-cuda12.4-cudnn9-runtime"
"""What who chose none gets in a container; any machine with a GPU will do for them, a virtual machine too."""
DEFAULT_IMAGE_GLIBC = (2, 35)
"""Its C library's version (Ubuntu 22.04): a host's bundle that needs a newer one does not run in it."""

MBIT_S_LEAST = 8.0
"""A slower line would not get one pack through within the transfer's patience."""

CAP_USD_MAX = 10**9
"""Per hour: no cap at all, and still a number that every marketplace can be told."""


class SnapshotTerms(Model):
    """How an instance is kept: what its owner may change at any time."""

    model_config = ConfigDict(extra="forbid")

    snapshot_every_s: float | None = Field(default=None, ge=5, le=86_400)
    """None = the deployment's setting."""
    keep: Retention | None = None
    """Which snapshots stay; None = the deployment's setting."""
    snapshot_max_cpus: int | None = Field(default=None, ge=1, le=256)
    """Processors that a snapshot may use; None = as many as it pays for, at low priority."""
    snapshot_max_mbit_s: float | None = Field(default=None, ge=MBIT_S_LEAST, le=400_000)
    """Of the line that a snapshot may use; None = all of it."""
    snapshot_freeze: bool = False
    """Hold the user's processes still while a snapshot is taken (a minute at most), so that it is of one moment."""


class Spec(SnapshotTerms):
    """What the user asked for."""

    gpu: str = Field(min_length=1, max_length=64, examples=["RTX 4090"])
    num_gpus: int = Field(default=1, ge=1, le=16)
    image: str = Field(default=DEFAULT_IMAGE, min_length=1, max_length=256)
    """Container image. Only who keeps the default is offered virtual machines too (TensorDock): those run no
    container, and bring Ubuntu, the GPU's driver and Python."""
    image_gb: float | None = Field(default=None, gt=0, le=500)
    """Compressed size of the image, for the expected time to ready; None = a usual one."""
    disk_gb: int = Field(default=32, ge=8, le=16_000)
    ssh_public_key: str | None = Field(default=None, max_length=4096)
    max_usd_per_hour: Usd | None = Field(default=None, gt=0, le=CAP_USD_MAX)
    regions: tuple[str, ...] = Field(default=(), max_length=64)
    strategy: Strategy = Strategy.COLDSTART
    idle_for_s: float | None = Field(default=None, ge=5, le=86_400)
    """None = the deployment's setting."""
    standby: bool = True
    """Mirrored to a small machine at Google that takes over when the GPU dies; False, or no credentials of Google's:
    `unprotected`."""
    idle_policy: IdlePolicy = IdlePolicy.DEFAULT
    """default: hibernated after `idle_for_s`; adaptive: not before as long as a wake has cost; shadow: only noted."""

    @field_validator("gpu")
    @classmethod
    def _spaces_for_underscores(cls, gpu: str) -> str:
        return gpu_name(gpu)

    @field_validator("regions")
    @classmethod
    def _country_codes(cls, regions: tuple[str, ...]) -> tuple[str, ...]:
        return country_codes(regions)

    @field_validator("ssh_public_key")
    @classmethod
    def _one_public_key(cls, key: str | None) -> str | None:
        if key is not None and ("\n" in key.strip() or not key.startswith(("ssh-", "ecdsa-", "sk-"))):
            raise ValueError("not an OpenSSH public key (one line that starts with ssh-ed25519, ssh-rsa, ...)")
        return key.strip() if key else None


def gpu_name(gpu: str) -> str:
    """As marketplaces write it; raises ValueError where nothing is left of it."""
    name = gpu.replace("_", " ").strip()
    if not name:
        raise ValueError("no GPU has that name")
    return name


def country_codes(regions: Sequence[str]) -> tuple[str, ...]:
    """ISO 3166 alpha-2 codes in upper case; raises ValueError for anything else."""
    for region in regions:
        if len(region) != 2 or not region.isalpha():
            raise ValueError(f"{region!r} is not a two-letter country code such as US")
    return tuple(region.upper() for region in regions)

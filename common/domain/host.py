"""Version 1 of the host protocol: what a host reports and what it is told. Level-triggered, idempotent by id."""

import hashlib
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from common.domain.model import Model
from common.domain.version import Version

DIGEST_LENGTH = 16
"""Hex digits: a host that found another report with the same digest would only lie about itself."""


class HostPhase(StrEnum):
    """What the host says it is doing."""

    READY = "ready"
    """Up and attested; owns nothing yet."""
    RESTORING = "restoring"
    SERVING = "serving"
    FROZEN = "frozen"
    """The writers are stopped; the last snapshot is being or has been taken."""
    HELD = "held"
    STOPPED = "stopped"


class Wanted(StrEnum):
    """What the record wants of the host."""

    WAIT = "wait"
    SERVE = "serve"
    FREEZE = "freeze"
    HOLD = "hold"
    STOP = "stop"


class Order(Model):
    """One thing to do; asked again with the same id until the host reports it done."""

    id: str
    kind: Literal["restore", "snapshot", "keep", "copy", "rewind", "save", "bring"]
    """keep: go on with what is there, in the reply's epoch. copy: restore, to become a candidate. rewind: of a standby
    whose content is older than the pointer: take from the pointer what is newer there. save: of a fenced machine: a
    snapshot of what it alone has. bring: a snapshot, or `paths` of it, into a folder beside the workspace's files."""
    args: dict[str, Any] = {}
    hurry: bool = True
    """Reported as soon as it is done; else, when it went well, with the next heartbeat in turn."""

    @property
    def version(self) -> Version:
        """Of the snapshot that a copy or a rewind is of."""
        return Version(epoch=int(self.args["epoch"]), seq=int(self.args["seq"]))


class OrderResult(Model):
    """How the last order ended; `error` names the engine's code (and the chunk of a damaged snapshot)."""

    id: str
    ok: bool
    error: str | None = None
    detail: str = ""
    chunk: str | None = None


SAVE_TRIES = 3
"""Of a machine that is to save what it alone has."""


def save_id(epoch: int, tries: int) -> str:
    """Of the order to save what a machine alone has of an epoch; a host tries an order only once."""
    return f"save-{epoch}-{tries}"


def epoch_of_save(result: OrderResult) -> int | None:
    """None = it is the result of another order."""
    word, _, rest = result.id.partition("-")
    epoch = rest.partition("-")[0]
    return int(epoch) if word == "save" and epoch.isdecimal() else None


def number_of_save(result: OrderResult) -> int:
    """Which of the tries it was; 0 = the first, or no save at all."""
    number = result.id.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


def is_last_save(result: OrderResult, epoch: int) -> bool:
    """It is done, or has failed for the last time."""
    tries = range(SAVE_TRIES) if result.ok else (SAVE_TRIES - 1,)
    return result.id in [save_id(epoch, number) for number in tries]


class SnapshotReport(Model):
    """A snapshot the host says is uploaded; nothing of it is believed before it is verified."""

    order: str
    manifest_key: str
    epoch: int
    seq: int
    fz: str | None = None
    files: int = 0
    bytes: int = 0
    stored_bytes: int = 0
    seconds: float = 0.0


class Sync(Model):
    """How a machine's copy stands: of a GPU, what it has sent; of a standby, what it has taken."""

    epoch: int = 0
    """Of the content's version."""
    seq: int = 0
    root: str | None = None
    """Hash over the whole tree, of the last pass that compared it."""
    lag_s: float | None = None
    """Age of the oldest change that the other side has not confirmed; None = not known."""
    backlog_bytes: int = 0
    backlog_files: int = 0
    is_whole: bool = False
    """The other side has confirmed everything once, and nothing was missed since."""
    peer: str | None = None
    """Label of the machine that the above is about."""
    rtt_ms: float | None = None
    """Measured by the heartbeats between the two."""
    hears: bool = False
    """Of a standby: the GPU's heartbeats arrive, so that its death would be seen."""


class ClaimReport(Model):
    """A standby that sealed: the GPU of this epoch is dead for it. In every report until the record answers."""

    epoch: int
    version_epoch: int
    version_seq: int


class Door(Model):
    """Where a GPU finds its standby."""

    host: str
    ssh_port: int
    udp_port: int
    user: str = "tunnel"
    host_key: str
    """The public key of the standby's own sshd, one line of OpenSSH."""
    user_port: int = 22
    """Where the user gets in, whichever machine answers."""
    inner_ports: dict[str, int] = {}
    """Service -> port of the standby's loopback at which the door looks for the GPU's."""
    sync_port: int = 7951
    """Of the standby's loopback, where the live sync is received."""
    status_port: int = 7950
    """Of the standby's loopback, where `/status` answers."""


class Pair(Model):
    """The record's words to a machine of a pair (`domain.role.View`), and what the two need to reach each other."""

    epoch: int
    writer: str | None = None
    mirror: str | None = None
    standby: str | None = None
    cand: str | None = None
    is_frozen: bool = False
    is_draining: bool = False
    is_called: bool = False
    """The standby is to take over although the GPU lives."""
    refusals_of: int = 0
    """The newest epoch of which is known what a standby alone had that sealed it in vain: that may be overwritten."""
    hand_back_in_s: float | None = None
    """To a standby: who works on it is told that it goes back to a GPU."""
    key: str = ""
    """Hex; of the heartbeats between the two, of this epoch only."""
    door: Door | None = None
    """To a GPU (the writer, or the candidate)."""
    tunnel_keys: dict[str, str] = {}
    """To a standby: label -> public key of each GPU that may dial in."""
    ssh_host_key: str = ""
    """Private key (PEM) that both sides show to the user, so that a switch changes no known host."""


class Signal(Model):
    """One signal since the last heartbeat."""

    min: float | None = None
    max: float | None = None
    mean: float | None = None
    n: int = 0
    missing: int = 0


class Progress(Model):
    order: str | None = None
    done_bytes: int = 0
    total_bytes: int = 0
    what: str = ""
    files: int = 0
    """Done so far."""
    stored_bytes: int = 0
    """Of what was read so far, what has to be uploaded: packed, and without what the store has."""
    seconds: float = 0.0
    """Since the order was begun."""
    uploaded_bytes: int = 0
    """By this host since it started, for metering."""
    downloaded_bytes: int = 0
    last: OrderResult | None = None
    snapshot: SnapshotReport | None = None

    @property
    def bytes_per_s(self) -> float | None:
        return self.done_bytes / self.seconds if self.seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """If it goes on like this."""
        rate = self.bytes_per_s
        return max(0, self.total_bytes - self.done_bytes) / rate if rate else None

    @property
    def ratio(self) -> float | None:
        """Bytes read for each byte stored."""
        return self.done_bytes / self.stored_bytes if self.stored_bytes else None


class Attest(Model):
    """What the host measured of its machine before it is used. None (or no models) = could not be measured."""

    PROBE_UPLOAD_BYTES: ClassVar[int] = 8 << 20
    """The probe's upload, which its URL is signed for."""

    gpu_models: list[Annotated[str, Field(max_length=128)]] = Field(default=[], max_length=64)
    gpu_count: int | None = Field(default=None, ge=0)
    gpu_ram_mb: int | None = Field(default=None, ge=0)
    """Of the smallest GPU, in MiB as drivers and marketplaces count."""
    driver: str | None = Field(default=None, max_length=64)
    cuda: float | None = None
    """The highest CUDA version that the driver runs."""
    disk_bytes: int | None = Field(default=None, ge=0)
    """Of the file system that holds the workspace."""
    cpu_cores: int | None = Field(default=None, ge=0)
    download_mbit_s: float | None = Field(default=None, ge=0)
    """From and to the object store, one stream."""
    upload_mbit_s: float | None = Field(default=None, ge=0)
    probe_s: float = Field(default=0.0, ge=0)
    """How long the probe of the line took."""


class Heartbeat(Model):
    """`POST /heartbeat`."""

    v: Literal[1] = 1
    label: str
    epoch: int = 0
    """The last epoch the host began to write in (0 = none)."""
    seq: int = 0
    """Of the content."""
    rev: int = 0
    """Of the newest reply it acted on."""
    beat: int = Field(default=0, ge=0)
    """Rises with every report, over restarts of the agent too: a late one is told from the newest. 0 = not numbered."""
    sent_at: datetime
    held_token_s: float | None = Field(default=None, ge=0)
    """For how long the host has had its token, as it counts: what the way here took is the rest of the token's age."""
    """The host's own clock: only differences of it are used."""
    phase: HostPhase
    fz: str | None = None
    """The freeze nonce it has seen and obeyed."""
    idle_since: datetime | None = None
    vetoes: list[str] = Field(default=[], max_length=32)
    disk: dict[str, int] = {}
    sync: Sync = Sync()
    progress: Progress = Progress()
    samples: dict[str, Signal] = {}
    attest: Attest | None = None
    """Optional in version 1: from the first report after the measurement on. None = not measured (yet)."""
    claim: ClaimReport | None = None
    """Of a standby that has sealed."""
    refused: int | None = None
    """Of a standby that sealed this epoch in vain: what was done on it since then is to be saved."""
    door: Door | None = None
    """Of a standby: where GPUs may dial in."""
    tunnel_key: str | None = Field(default=None, max_length=1024)
    """Of a GPU: the public key that it dials its standby with."""

    def idle_for(self) -> timedelta | None:
        """How long the host has been idle by its own clock; None = not idle."""
        return max(timedelta(0), self.sent_at - self.idle_since) if self.idle_since else None


class StorageCredentials(Model):
    endpoint: str
    region: str = "us-east-1"
    bucket: str
    prefix: str
    access_key: str
    secret_key: str
    session_token: str | None = None
    expires_at: datetime | None = None


class Reply(Model):
    """The answer to a heartbeat. A host ignores one whose rev is lower than the highest it has seen."""

    v: Literal[1] = 1
    rev: int
    phase_wanted: Wanted
    epoch: int
    fz: str | None = None
    orders: list[Order] = []
    pair: Pair | None = None
    """To a machine of an instance that has a standby."""
    token: str
    storage_credentials: StorageCredentials | None = None
    idle_for_s: float = 180.0
    dead_man_s: float = 1800.0
    """Rule R10: cut off for so long, the host tries a last snapshot and stops itself."""
    next_in_s: float


class Boot(Model):
    """The start-up script's first call: the bootstrap token for a host token. `up_for_s` is a duration by its clock."""

    v: Literal[1] = 1
    label: str
    boot_id: str = Field(min_length=8, max_length=64)
    up_for_s: float = Field(default=0.0, ge=0, le=86_400)
    failed: str | None = Field(default=None, max_length=500)


class Notice(Model):
    """A host's last word: its container is being stopped. Or a standby's claim, which its reports repeat."""

    v: Literal[1] = 1
    label: str
    reason: str = Field(default="", max_length=500)
    claim: ClaimReport | None = None


class Booted(Model):
    token: str


class HostRecord(Model):
    """The document `hosts/<label>`: the last report, apart from the instance so that guards do not move."""

    schema_version: int = 1
    label: str
    account: str
    instance_id: str | None
    instance_key: str | None
    first_seen_at: datetime | None = None
    last_seen_at: datetime
    """By this document; `seen/<process>` may know of a later report that said the same (`domain.liveness`)."""
    beat: int = 0
    phase: HostPhase | None = None
    epoch: int = 0
    seq: int = 0
    fz: str | None = None
    idle_since: datetime | None = None
    """By our clock: now less the duration that the host reported."""
    vetoes: list[str] = []
    disk: dict[str, int] = {}
    sync: Sync = Sync()
    progress: Progress = Progress()
    samples: dict[str, Signal] = {}
    attest: Attest | None = None
    claim: ClaimReport | None = None
    refused: int | None = None
    door: Door | None = None
    tunnel_key: str | None = None

    def silent_for_s(self, now: datetime) -> float:
        return (now - self.last_seen_at).total_seconds()


def facts_of(said: Heartbeat | HostRecord) -> tuple[object, ...]:
    """What decisions depend on. A sequence number, a lag or a sample is none; that a signal cannot be read is one."""
    progress, is_quiet = said.progress, said.idle_since is not None
    unread = sorted(name for name, signal in said.samples.items() if signal.missing and not signal.n)
    sync = said.sync
    is_through = sync.peer is not None and said.phase is HostPhase.FROZEN and sync.backlog_files == 0
    pair = (said.claim, said.refused, said.door, said.tunnel_key, sync.is_whole, sync.peer, sync.epoch, is_through)
    facts = (said.phase, said.epoch, said.fz, is_quiet, progress.last, progress.snapshot, said.attest, *pair)
    return *facts, tuple(said.vetoes), tuple(unread)


def digest_of(facts: tuple[object, ...]) -> str:
    """Of `facts_of`: short, the same in every process."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:DIGEST_LENGTH]

"""What the user owns: its record, its lifecycle and the state it shows."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, Self

from common.domain.host import Door
from common.domain.model import Model
from common.domain.policy import window_s
from common.domain.rental import Rental, RentalState
from common.domain.scores import quantile
from common.domain.spec import Spec
from common.domain.version import Version
from common.errors import IllegalMove


class Want(StrEnum):
    UP = "up"
    DOWN = "down"
    GONE = "gone"


class Phase(StrEnum):
    """Where the record stands. `down`, `boot` and `ended` have no writer."""

    DOWN = "down"
    BOOT = "boot"
    UP = "up"
    """A GPU writes."""
    FREEZING = "freezing"
    """The writer, a GPU or the standby, takes its last snapshot."""
    STANDBY = "standby"
    """The standby writes, and a replacement is sought."""
    HANDOVER = "handover"
    """The standby has stopped writing, so that the candidate becomes equal to it."""
    ENDED = "ended"


MOVES: Mapping[Phase, frozenset[Phase]] = {
    Phase.DOWN: frozenset({Phase.BOOT, Phase.ENDED}),
    Phase.BOOT: frozenset({Phase.UP, Phase.DOWN}),
    # up -> down: a terminate that discards, or a writer lost while the user wants it down
    Phase.UP: frozenset({Phase.FREEZING, Phase.STANDBY, Phase.BOOT, Phase.DOWN}),
    Phase.FREEZING: frozenset({Phase.DOWN, Phase.UP, Phase.STANDBY, Phase.BOOT}),
    # standby -> up, boot, down: the standby is lost
    Phase.STANDBY: frozenset({Phase.HANDOVER, Phase.FREEZING, Phase.UP, Phase.BOOT, Phase.DOWN}),
    Phase.HANDOVER: frozenset({Phase.UP, Phase.STANDBY, Phase.BOOT, Phase.DOWN}),
    # a terminated instance is restored
    Phase.ENDED: frozenset({Phase.DOWN}),
}


class State(StrEnum):
    """What the user sees; derived, never stored."""

    REQUESTED = "requested"
    PROVISIONING = "provisioning"
    RESTORING = "restoring"
    RUNNING = "running"
    FREEZING = "freezing"
    HIBERNATING = "hibernating"
    HIBERNATED = "hibernated"
    ON_STANDBY = "on_standby"
    HANDING_OVER = "handing_over"
    TERMINATING = "terminating"
    TERMINATED = "terminated"
    FAILED = "failed"


WAKES_KEPT = 9
"""Of an instance: their median is what the next one will probably take."""


class Failure(Model):
    """Why the last attempt ended; the user's next verb clears it."""

    code: str
    detail: str


class Pointer(Model):
    """The newest verified snapshot: what the next machine gets."""

    id: str
    manifest_key: str
    version: Version
    """Of the content."""
    taken_epoch: int
    at: datetime
    files: int = 0
    bytes: int = 0
    wants_repacking: bool = False
    """Its packs hold much that it does not need: the next snapshot sends the rest of those anew."""

    @property
    def order(self) -> tuple[int, Version]:
        return self.taken_epoch, self.version


class RaceResult(Model):
    """How the last machine was won."""

    winner: str
    losers: tuple[str, ...] = ()
    """Labels of the attempts that were released: what they cost is in their records."""
    ready_after_s: float
    """From the plan of the round to its first ready machine."""


class RestoredOlder(Model):
    """The user gets an older snapshot because the newest one is damaged, which is kept."""

    damaged: str
    restored: str | None
    chunk: str
    missing: dict[str, Any] = {}
    at: datetime


class Conflict(Model):
    """A snapshot of what only a fenced machine had, until one of the writer's holds it too."""

    epoch: int
    """The last one in which that machine wrote."""
    name: str = ""
    """Of its folder below `conflicts`: a GPU's is its epoch, and a standby may have one of the same."""
    manifest_key: str
    files: int = 0
    bytes: int = 0
    brought: int | None = None
    """It lies in the writer's workspace since this `snapshot_attempt`; None = not yet."""
    has_failed: bool = False
    """It could not be brought to the present writer."""
    tries: int = 0
    """Of bringing it to the present writer: so many failed."""

    @property
    def is_waiting(self) -> bool:
        return self.brought is None and not self.has_failed


class Copy(Model):
    """Files of an older snapshot that the user wants beside the workspace's own, until the writer has them there."""

    id: str
    """Of the operation that asked for it."""
    snapshot: str
    """<epoch>-<sequence>"""
    manifest_key: str
    paths: tuple[str, ...] = ()
    """Files and directories, relative to the workspace; none = everything."""
    tries: int = 0
    """So many failed."""

    @property
    def name(self) -> str:
        """No other thing that is to be brought has it: a snapshot may be asked for more than once."""
        return f"restored-{self.id}"

    @property
    def is_waiting(self) -> bool:
        return True

    @property
    def what(self) -> str:
        """In words."""
        names = "1 name" if len(self.paths) == 1 else f"{len(self.paths)} names"
        return f"{names if self.paths else 'everything'} of snapshot {self.snapshot}"


class Instance(Model):
    """The document `instances/<account>.<id>`."""

    schema_version: int = 1
    id: str
    account: str
    name: str = ""
    spec: Spec
    want: Want = Want.UP
    phase: Phase = Phase.DOWN
    at: datetime
    """Of the last change of phase."""
    created_at: datetime
    epoch: int = 0
    writer: str | None = None
    standby: str | None = None
    mirror: str | None = None
    cand: str | None = None
    held: str | None = None
    race: tuple[str, ...] = ()
    won: RaceResult | None = None
    n: int = 0
    """Label counter; only grows."""
    pointer: Pointer | None = None
    start: Literal["restore", "keep"] = "restore"
    started_epoch: int = 0
    """The last epoch whose writer reported that it serves."""
    fz: str | None = None
    drain: Literal["asked", "going"] | None = None
    """The standby is to go (asked), or is let go with the first snapshot of the present epoch (going)."""
    door: Door | None = None
    """Of the standby: where its GPU dials in, and the user."""
    tunnel_keys: dict[str, str] = {}
    """Label -> public key of each GPU that may dial in."""
    address_region: str | None = None
    """Google's region where an address of the instance's name is reserved: written before it is asked for."""
    address: str | None = None
    """The address itself, once it is known."""
    standby_tries: int = 0
    """Standbys in a row that never came up."""
    standby_not_before: datetime | None = None
    """The next one is rented then."""
    called: bool = False
    """The standby is to take over although it hears the GPU: the user wants it, or the GPU no longer reaches us."""
    hand_back: bool = False
    """The user agrees to go back to a GPU as soon as one is equal."""
    hand_back_at: datetime | None = None
    """Announced to who works on the standby."""
    snapshot_attempt: int = 0
    """Part of a snapshot order's id: rises with every report that was judged."""
    snapshot_judged: str | None = None
    """The manifest key of the last report that was judged."""
    snapshot_failures: int = 0
    """In a row, of orders that failed on the host or were refused here."""
    snapshot_not_before: datetime | None = None
    """After a failure the next order waits until then."""
    snapshot_due_from: datetime | None = None
    """The snapshot interval counts from here."""
    data_key: str | None = None
    """What its snapshots are encrypted with, wrapped; None = derived from the deployment's key (older instances)."""
    wrapped_by: str | None = None
    """Indexed: id of the key that wraps it."""
    prune_due_at: datetime | None = None
    """Indexed: its old snapshots are looked at then. None = nothing of it can have become old."""
    rounds: int = 0
    """Of provisioning since the writer was last up."""
    tried: tuple[str, ...] = ()
    """Machines tried since then."""
    hedges: int = 0
    """Second machines rented in this round because the first was slow."""
    without_credit: tuple[str, ...] = ()
    """Marketplaces that refused an attempt since then because the account is empty."""
    not_before: datetime | None = None
    recovering: bool = False
    """A writer was lost: provisioning goes on until it succeeds or the user says otherwise."""
    failure: Failure | None = None
    reason: str = ""
    """Why the last want was set: a user's verb, idle, lost."""
    restored_older: RestoredOlder | None = None
    fenced: int = 0
    """The epoch whose writer was held last."""
    is_taken_over: bool = False
    """By its standby, from the writer that was held last: what it had confirmed is not the held machine's alone."""
    save_tries: int = 0
    """Of the machine that is held: so many of its saves did not stand up to their verification, or failed before."""
    conflicts_of: int = 0
    """The newest fenced epoch of which is known what its machine alone had."""
    refusals_of: int = 0
    """The newest epoch of which is known what a standby alone had that sealed it in vain."""
    refusal_tries: int = 0
    """Of the standby that sealed in vain last: like `save_tries`."""
    conflicts: tuple[Conflict, ...] = ()
    """The oldest first."""
    copies: tuple[Copy, ...] = ()
    """In the order in which they were asked for."""
    awake_until: datetime | None = None
    """A lease that the user took: until then idleness hibernates nothing."""
    idle_warned_at: datetime | None = None
    """The user was told that it is about to hibernate."""
    would_hibernate_at: datetime | None = None
    """In the policy `shadow`: when it was last noted that this was the time."""
    wakes_s: tuple[float, ...] = ()
    """What the last WAKES_KEPT wakes took, from the first machine asked for until the workspace was there."""
    drill_due_at: datetime | None = None
    """Indexed: its newest snapshot is read back then."""
    discard: bool = False
    purge: bool = False
    ended_at: datetime | None = None
    keep_until: datetime | None = None
    """Snapshots of a terminated instance are kept until then."""
    purged_at: datetime | None = None
    active: bool = True
    """Indexed: something is under way or runs; set by `with_activity` whenever the record is written."""
    restless: bool = True
    """Indexed: something is under way. One that runs as it should rests until somebody says something new."""

    @property
    def key(self) -> str:
        return f"{self.account}.{self.id}"

    def to(self, phase: Phase, *, at: datetime) -> Self:
        """The same instance, one legal move later."""
        if phase not in MOVES[self.phase]:
            raise IllegalMove(f"{self.id} is {self.phase}; it cannot become {phase}")
        return self.model_copy(update={"phase": phase, "at": at})

    def taken_by(self, result: RaceResult, *, at: datetime) -> Self:
        """boot -> up: the winner becomes the writer of a new epoch and restores the pointer (rule W1).

        What was asked of the pair before it, to move there or back, is not asked of this one.
        """
        return self.to(Phase.UP, at=at).having(
            epoch=self.epoch + 1,
            writer=result.winner,
            race=(),
            won=result,
            mirror=None,
            start="restore",
            failure=None,
            fz=None,
            called=False,
            hand_back=False,
            hand_back_at=None,
            conflicts=self.conflicts_anew,
        )

    def having(self, **changes: Any) -> Self:
        return self.model_copy(update=changes)

    def with_activity(self) -> Self:
        resting = (
            (self.phase is Phase.DOWN and self.want is Want.DOWN and not self.is_leaving and self.held is None)
            or (self.phase is Phase.ENDED and not (self.purge and self.purged_at is None))
        )  # fmt: skip
        settled = self.held is None and not self.is_pairing
        rests = resting or (self.is_running and self.want is Want.UP and settled)
        return self.having(active=not resting, restless=not rests)

    def woken(self, now: datetime) -> Self:
        """A wake that has ended: what it took is kept."""
        took_s = (self.won.ready_after_s if self.won else 0.0) + (now - self.at).total_seconds()
        return self.having(wakes_s=(*self.wakes_s, round(took_s, 1))[-WAKES_KEPT:])

    @property
    def wake_cost_s(self) -> float | None:
        """The median; None = it was never woken."""
        return quantile(sorted(self.wakes_s), 0.5) if self.wakes_s else None

    def idle_window_s(self, default_s: float) -> float:
        """For how long it must be quiet. `default_s` = the deployment's setting."""
        fixed_s = self.spec.idle_for_s or default_s
        return window_s(self.spec.idle_policy, fixed_s=fixed_s, wake_cost_s=self.wake_cost_s)

    def serves(self, label: str) -> bool:
        return self.writer == label

    @property
    def is_running(self) -> bool:
        """On a GPU."""
        return self.phase is Phase.UP and self.started_epoch == self.epoch

    @property
    def is_served(self) -> bool:
        """On a GPU or on the standby, by a writer that knows that it is."""
        return self.phase in (Phase.UP, Phase.STANDBY) and self.started_epoch == self.epoch

    @property
    def is_on_standby(self) -> bool:
        """The standby is the writer."""
        return self.writer is not None and self.writer == self.standby

    @property
    def is_pairing(self) -> bool:
        """Something about its standby is under way."""
        is_waiting = self.standby is not None and self.mirror is None
        asked = self.called or self.standby_not_before is not None
        return is_waiting or asked or self.is_leaving

    @property
    def is_leaving(self) -> bool:
        """Its standby, or the address of one, is to go."""
        has_one = self.standby is not None or self.address_region is not None
        return self.drain is not None or (has_one and not self.spec.standby)

    @property
    def served_phase(self) -> Phase:
        """Where it goes on when a freeze is called off."""
        return Phase.STANDBY if self.is_on_standby else Phase.UP

    @property
    def conflicts_anew(self) -> tuple[Conflict, ...]:
        """For another copy of the workspace: what was brought to the one before may be in no snapshot, nor here."""
        anew = {"brought": None, "has_failed": False, "tries": 0}
        return tuple(conflict.model_copy(update=anew) for conflict in self.conflicts)

    @property
    def is_covered(self) -> bool:
        """The pointer was taken in the present epoch: no machine of an earlier one is needed (rule P3)."""
        return self.pointer is not None and self.pointer.taken_epoch >= self.epoch


def state_of(instance: Instance, rentals: Sequence[Rental], *, frozen: bool = False) -> State:
    """What the user sees. `rentals` = those not settled; `frozen` = the host has confirmed the freeze."""
    # an attempt that no listing ever showed is watched by the sweep; the user need not wait for that
    open_rentals = [r for r in rentals if r.state is not RentalState.RELEASED and r.provider_id]
    match instance.phase:
        case Phase.ENDED:
            return State.TERMINATED
        case _ if instance.want is Want.GONE:
            return State.TERMINATING
        case Phase.BOOT:
            return State.PROVISIONING if instance.race or instance.rounds else State.REQUESTED
        case Phase.UP:
            return State.RUNNING if instance.is_running else State.RESTORING
        case Phase.FREEZING:
            return State.HIBERNATING if frozen else State.FREEZING
        case Phase.STANDBY:
            return State.ON_STANDBY
        case Phase.HANDOVER:
            return State.HANDING_OVER
    if instance.want is Want.UP:
        return State.REQUESTED
    if instance.failure:
        return State.FAILED
    return State.HIBERNATING if open_rentals else State.HIBERNATED


class Protection(StrEnum):
    UNPROTECTED = "unprotected"
    """No standby: the loss is at most the snapshot interval."""
    SYNCING = "syncing"
    """There is a standby, and it is not equal yet: the loss is at most the snapshot interval."""
    MIRRORED = "mirrored"
    """The standby has everything up to its lag, and takes over when the GPU dies."""


def protection_of(instance: Instance) -> Protection:
    if instance.mirror and instance.drain is None:
        return Protection.MIRRORED
    return Protection.SYNCING if instance.standby and instance.drain is None else Protection.UNPROTECTED

"""The agent on a GPU host: report, obey the record's words, never act on time passing alone.

One loop. Engine work runs in a child process, so that the heartbeat never waits for a snapshot and a killed engine
is only a failed order. What must survive a restart of the agent stands in `state.json`, written atomically. Where the
user has filled the disk beyond the ballast, it waits in memory; only what is promised on the strength of it (that the
machine is frozen, or has begun to write in an epoch) is then not promised.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, auto
from pathlib import Path
from typing import Any

from common.domain.host import (
    Attest,
    Heartbeat,
    HostPhase,
    Order,
    OrderResult,
    Progress,
    Reply,
    SnapshotReport,
    StorageCredentials,
    Sync,
    Wanted,
)
from common.domain.idle import SAMPLE_EVERY_S
from common.domain.version import Version
from common.errors import is_full
from common.host import pair
from common.host.around import Control, Refused, Unanswered, Writers
from common.host.atomic import keep_ballast, write_atomically
from common.host.epoch import Epoch
from common.host.hearing import claim_of, hear, is_guest
from common.host.memory import Place, Remembered, remembered
from common.host.programs import Alone, Programs
from common.host.samples import Looks
from common.host.seen import Seen
from common.host.work import Work, end_of, not_done, start_work

log = logging.getLogger("dumont.agent")

BEATS_PER_START = 10**9
LAST_SNAPSHOT_S = 1800.0
"""How long the dead man waits for work under way."""
STOP_AGAIN_S = 300.0
"""Between two tries of the dead man to stop this machine."""
PAUSE_MAX_S = 60.0
"""The user's processes are held still no longer for a snapshot that is to be of one moment; then it may be torn."""
FILLS = ("copy", "rewind")
"""Orders that put a snapshot in place on a machine of a pair that is not the writer."""
APART = ("save", "bring")
"""Orders about a part of the workspace: they change nothing of what this machine is."""
SNAPSHOT_PLACE = ("instance_key", "prefix", "max_s")
"""What of an earlier order's arguments the dead man's snapshot needs."""
RETRY_AFTER_S = 5.0
"""Until the next heartbeat when one was not answered."""


class DeadMan(Enum):
    ARMED = auto()
    SAVING = auto()
    STOPPED = auto()


@dataclass
class Agent:
    """`now` is passed into every call; `step` says after how many seconds it wants the next one."""

    label: str
    home: Path
    workspace: Path
    control: Control
    writers: Writers
    looks: Looks
    stop_machine: Callable[[], None]
    """Stops this machine at its marketplace with the container's own key; best effort."""
    spawn: Callable[[dict[str, Any], Path], Work] = start_work
    authorize: Callable[[str], None] = lambda _key: None
    """Lets the user in by this public key; again with the same key changes nothing."""
    life: Callable[[datetime], tuple[str, ...]] = lambda _now: ()
    """Signs of the user's life besides the GPU, since the last call."""
    measure: Callable[[], Attest | None] = Attest
    """What the machine has: begun by the first call, None until it is complete, never waited for."""
    programs: Programs = field(default_factory=Alone)
    """What this machine runs for the other one of its pair."""
    role_kept_by: Callable[[Path, str], Epoch] = Epoch
    memory: Remembered = field(init=False)
    seen: Seen = field(init=False)
    phase: HostPhase = HostPhase.READY
    work: Work | None = None
    next_beat_at: datetime | None = None
    next_sample_at: datetime | None = None
    heard_at: datetime | None = None
    paused_at: datetime | None = None
    """The user's processes are held still since then, for a snapshot of one moment."""
    beats: int = 0
    told_of_pair: tuple[object, ...] = ()
    """What the last report said of its pair that was answered."""
    dead_man: DeadMan = DeadMan.ARMED
    stop_again_at: datetime | None = None
    is_written_down: bool = True
    """False: the disk was too full for what is remembered."""

    def __post_init__(self) -> None:
        self.memory = remembered(self.home)
        self.seen = Seen(self.looks, self.life)
        self.epoch = self.role_kept_by(self.home, self.label)
        self._keep(starts=self.memory.starts + 1)
        if self.epoch.read().is_filling:
            self._end_filling()  # what was under way ended with the agent before
        if kept := pair.read(self.home):
            self._follow(kept)
        if self.memory.frozen:
            self.writers.freeze()
            self.phase = HostPhase.FROZEN
            return
        self.writers.thaw()
        self.phase = self._phase_at_work()

    def step(self, now: datetime) -> bool:
        """Do what is due; False = told to stop and stopped."""
        self.heard_at = self.heard_at or now
        keep_ballast(self.home)
        if not self.is_written_down:
            self._keep()
        if self.next_sample_at is None or now >= self.next_sample_at:
            self._sample(now)
        if self.work and self.work.finished():
            if not self._take_in(self.work).ok or self.work.order.hurry:
                self.next_beat_at = None
            self.work = None
        self._end_of_pause(now)
        self.programs.tend()
        if self.memory.rev and self._said_of_pair() != self.told_of_pair:
            self.next_beat_at = None  # a claim, or that both are equal now
        if self.memory.attest is None:
            self._attest()
        if self.next_beat_at is None or now >= self.next_beat_at:
            self._beat(now)
        self._watch_the_silence(now)
        return self.phase is not HostPhase.STOPPED

    def wait_s(self, now: datetime) -> float:
        """Until the next thing is due; never long, so that a finished order is reported at once."""
        due = [at for at in (self.next_beat_at, self.next_sample_at) if at]
        soonest = min((at - now).total_seconds() for at in due) if due else 0.0
        measuring = self.memory.attest is None
        return max(0.02, min(soonest, 0.05 if measuring else 0.2 if self.work else 1.0))

    # --- reporting

    def _attest(self) -> None:
        """Measured once in the machine's life, and told at once: it is not ready before."""
        measured = self.measure()
        if measured is not None:
            self._keep(attest=measured)
            self.next_beat_at = None

    def _sample(self, now: datetime) -> None:
        self.seen.sample(now, is_frozen=self.memory.frozen)
        self.next_sample_at = now + timedelta(seconds=self.looks.every_s)
        if self.seen.has_turned(now, is_serving=self._is_serving):
            self.next_beat_at = None

    @property
    def _is_serving(self) -> bool:
        return self.phase is HostPhase.SERVING

    def _said_of_pair(self) -> tuple[object, ...]:
        """What the control plane should hear of at once: not a lag or a sequence number."""
        sync = self.programs.sync()
        if sync is None:
            return claim_of(self.epoch), False, None, 0
        is_through = self.phase is HostPhase.FROZEN and sync.backlog_files == 0
        return claim_of(self.epoch), sync.is_whole, sync.peer, sync.epoch, is_through

    def _beat(self, now: datetime) -> None:
        said_of_pair = self._said_of_pair()
        try:
            reply = self.control.beat(self._heartbeat(now), self.memory.token)
        except Unanswered:
            self.next_beat_at = now + timedelta(seconds=RETRY_AFTER_S if self.looks.every_s >= SAMPLE_EVERY_S else 1.0)
            return
        except Refused:
            self._stop()
            return
        self.heard_at, self.dead_man = now, DeadMan.ARMED
        self.seen.answered(now, is_serving=self._is_serving, idle_for_s=reply.idle_for_s)
        self.told_of_pair = said_of_pair
        self.next_beat_at = now + timedelta(seconds=reply.next_in_s)
        if reply.rev >= self.memory.rev:
            try:
                self._obey(reply, now)
            except OSError as error:  # what could not be written down is not done: the next reply asks for it again
                log.warning("not obeyed: %s", error)
                self.next_beat_at = now + timedelta(seconds=min(RETRY_AFTER_S, reply.next_in_s))

    def _heartbeat(self, now: datetime) -> Heartbeat:
        memory, self.beats = self.memory, self.beats + 1
        return Heartbeat(
            label=self.label,
            epoch=memory.started_epoch,
            seq=memory.seq,
            rev=memory.rev,
            beat=memory.starts * BEATS_PER_START + self.beats,
            sent_at=now,
            held_token_s=max(0.0, (now - self.heard_at).total_seconds()) if self.heard_at else None,
            phase=self.phase,
            fz=memory.fz,
            idle_since=self.seen.idle_since(now, is_serving=self._is_serving),
            vetoes=list(memory.vetoes if memory.frozen else self.seen.vetoes(now, is_serving=self._is_serving)),
            disk=self.looks.disk(self.workspace),
            sync=self.programs.sync() or Sync(seq=memory.seq),
            progress=self._progress(),
            samples=self.seen.summaries(),
            attest=memory.attest,
            claim=claim_of(self.epoch),
            refused=self.epoch.read().refused,
            door=self.programs.door(),
            tunnel_key=self.programs.tunnel_key(),
        )

    def _progress(self) -> Progress:
        memory, running = self.memory, self.work.progress() if self.work else {}
        return Progress(
            order=self.work.order.id if self.work else None,
            done_bytes=int(running.get("done_bytes", 0)),
            total_bytes=int(running.get("total_bytes", 0)),
            what=str(running.get("what", "")),
            files=int(running.get("files", 0)),
            stored_bytes=int(running.get("stored_bytes", 0)),
            seconds=float(running.get("seconds", 0.0)),
            uploaded_bytes=memory.uploaded_bytes,
            downloaded_bytes=memory.downloaded_bytes,
            last=memory.last,
            snapshot=memory.snapshot,
        )

    # --- obeying

    def _obey(self, reply: Reply, now: datetime) -> None:
        """Act on the record's words; the same words again change nothing. Raises OSError."""
        if reply.phase_wanted is Wanted.STOP:
            self._stop()
            return
        self._keep(token=reply.token, rev=reply.rev, dead_man_s=reply.dead_man_s)
        if kept := hear(self.epoch, self.home, self.label, reply):
            self._follow(kept)
        match reply.phase_wanted:
            case Wanted.HOLD:
                self._freeze(None)
                self.phase = HostPhase.HELD
            case Wanted.FREEZE:
                self._look_again(now)
                self._freeze(reply.fz)
            case Wanted.SERVE if self.memory.frozen:
                self._thaw()
            case Wanted.WAIT if is_guest(self.epoch) and self.phase in (HostPhase.FROZEN, HostPhase.SERVING):
                self._thaw()
        for order in reply.orders:
            if order.kind == "keep":
                self._go_on(reply.epoch)
                continue
            try:
                self._carry_out(order, reply, now)
            except OSError as error:
                self._give_up(order, error)

    def _carry_out(self, order: Order, reply: Reply, now: datetime) -> None:
        if self.work or (self.memory.last and self.memory.last.id == order.id):
            return
        if order.kind == "copy" and self._holds(order):
            self._keep(last=OrderResult(id=order.id, ok=True))
            return
        if order.kind == "restore":
            if self.memory.started_epoch == reply.epoch:
                return
            self.phase = HostPhase.RESTORING
            if key := order.args.get("ssh_public_key"):
                self.authorize(key)
        if order.args.get("freeze") and self.phase is HostPhase.SERVING:
            self.writers.freeze()
            self.paused_at = now
        if reply.storage_credentials and order.kind not in APART:
            self._keep(place=Place(epoch=reply.epoch, args=order.args, credentials=reply.storage_credentials))
        if order.kind in FILLS:
            self.epoch.fill(is_on=True)
        self._start(order, reply.epoch, reply.storage_credentials)

    def _holds(self, order: Order) -> bool:
        """The live sync was faster than the order: the snapshot would take back what is newer here."""
        role = self.epoch.read()
        return role.is_whole and not role.is_filling and role.version >= order.version

    def _go_on(self, epoch: int) -> None:
        """In a new epoch, with what is there: nothing is fetched and nothing dropped."""
        if self.memory.started_epoch == epoch:
            return
        seq = max(self.memory.seq, self.epoch.read().version.seq)
        self._keep(started_epoch=epoch, seq=seq, durably=True)
        self.epoch.wrote(Version(epoch=epoch, seq=0))
        if not self.memory.frozen:
            self.phase = HostPhase.SERVING
        self.next_beat_at = None

    def _end_of_pause(self, now: datetime) -> None:
        """With the snapshot, or when it takes too long; a freeze that came meanwhile stays."""
        if self.paused_at is None or (self.work and now - self.paused_at < timedelta(seconds=PAUSE_MAX_S)):
            return
        self.paused_at = None
        if not self.memory.frozen:
            self.writers.thaw()

    def _start(self, order: Order, epoch: int, credentials: StorageCredentials | None) -> None:
        task = {
            "kind": order.kind,
            "args": order.args,
            "epoch": epoch,
            "seq": self.programs.mark(self.memory.seq),
            "workspace": str(self.workspace),
            "home": str(self.home),
            "credentials": credentials.model_dump(mode="json") if credentials else None,
        }
        self.work = self.spawn({**task, "order": order.model_dump(mode="json")}, self.home)

    def _give_up(self, order: Order, error: OSError) -> OrderResult:
        """It could not be begun, or what came of it not be written down: it has failed."""
        failed = not_done(order, error)
        if order.kind in FILLS:
            self._end_filling()
        self._keep(last=failed)
        self.next_beat_at = None
        return failed

    def _end_filling(self) -> None:
        """Should it not be written down, the next order to fill this machine begins with it."""
        with suppress(OSError):
            self.epoch.fill(is_on=False)

    def _follow(self, kept: pair.Kept) -> None:
        """What it lacks the room for is done after the next reply."""
        try:
            self.programs.follow(kept)
        except OSError as error:
            log.warning("the programs of the pair wait: %s", error)

    def _take_in(self, work: Work) -> OrderResult:
        """An order ended: what it says is written down before it is reported."""
        try:
            return self._written_down(work)
        except OSError as error:
            return self._give_up(work.order, error)

    def _written_down(self, work: Work) -> OrderResult:
        result, order = work.result(), work.order
        ended = end_of(order, result)
        traffic: dict[str, Any] = {
            "uploaded_bytes": self.memory.uploaded_bytes + int(result.get("uploaded_bytes", 0)),
            "downloaded_bytes": self.memory.downloaded_bytes + int(result.get("downloaded_bytes", 0)),
        }
        if not ended.ok and order.kind in FILLS:
            self._end_filling()
        if ended.ok and order.kind == "snapshot":
            report = SnapshotReport.model_validate(result["snapshot"])
            self._keep(last=ended, snapshot=report, seq=report.seq, **traffic)
            if pair.read(self.home):
                self.epoch.wrote(Version(epoch=report.epoch, seq=report.seq))
        elif ended.ok and order.kind in FILLS:
            version = order.version
            self._keep(last=ended, seq=max(self.memory.seq, version.seq), **traffic)
            # a copy takes back whatever was newer here, and must not be taken for it; a rewind only adds
            stands = max(version, self.epoch.read().version) if order.kind == "rewind" else version
            self.epoch.restored(stands)
        elif ended.ok and order.kind in APART:
            apart = SnapshotReport.model_validate(result["snapshot"]) if result.get("snapshot") else None
            self._keep(last=ended, snapshot=apart or self.memory.snapshot, **traffic)
        elif ended.ok:
            seq = int(order.args.get("seq") or 0)
            if order.args.get("manifest_key") and pair.read(self.home):
                self.epoch.restored(Version(epoch=int(order.args.get("epoch") or work.epoch), seq=seq))
            self._keep(last=ended, started_epoch=work.epoch, seq=seq, durably=True, **traffic)
            self.phase = self._phase_at_work()
        else:
            self._keep(last=ended, **traffic)
        return ended

    def _look_again(self, now: datetime) -> None:
        """Before it freezes: who has begun to work since idleness was reported is told, and not put to sleep."""
        if not self.memory.frozen:
            self._keep(vetoes=self.seen.reasons_to_stay_up(now, is_serving=self._is_serving))

    def _freeze(self, nonce: str | None, *, is_promised: bool = True) -> None:
        """A promise outlives a restart of the agent. Raises OSError when it cannot be given: nothing is frozen then."""
        if self.memory.fz != nonce or self.phase is not HostPhase.FROZEN:
            self.writers.freeze()
            try:
                self._keep(frozen=True, fz=nonce, durably=is_promised)
            except OSError:
                if not self.memory.frozen:
                    self.writers.thaw()
                raise
            self.phase = HostPhase.FROZEN

    def _thaw(self) -> None:
        self.writers.thaw()
        self.seen.forget()  # who was held still was not idle
        self._keep(frozen=False, fz=None, vetoes=())
        self.phase = self._phase_at_work()

    def _phase_at_work(self) -> HostPhase:
        """A mirror or a candidate owns nothing, whatever it has restored or has been before."""
        has_started = self.memory.started_epoch and not is_guest(self.epoch)
        return HostPhase.SERVING if has_started else HostPhase.READY

    def _stop(self) -> None:
        if self.work:
            self.work.kill()
        self.programs.stop()
        self.phase = HostPhase.STOPPED

    def _watch_the_silence(self, now: datetime) -> None:
        """Rule R10: cut off for `dead_man_s`, it tries a last snapshot and then stops itself; it never destroys."""
        overdue_s = (now - (self.heard_at or now)).total_seconds() - self.memory.dead_man_s
        if overdue_s <= 0 or (self.work and overdue_s < LAST_SNAPSHOT_S):
            return
        match self.dead_man:
            case DeadMan.ARMED:
                self._freeze(self.memory.fz, is_promised=False)
                self.dead_man = DeadMan.SAVING
                self._save_what_there_is()
            case DeadMan.SAVING:
                self.dead_man, self.stop_again_at = DeadMan.STOPPED, now + timedelta(seconds=STOP_AGAIN_S)
                self.stop_machine()
            case DeadMan.STOPPED if now >= (self.stop_again_at or now):  # it runs on: nobody took its word
                self.stop_again_at = now + timedelta(seconds=STOP_AGAIN_S)
                self.stop_machine()

    def _save_what_there_is(self) -> None:
        """With the credentials it has, if it ever had any. Should somebody answer again, the report is there."""
        place, epoch = self.memory.place, self.memory.started_epoch
        if place and place.epoch == epoch and epoch and self.work is None:
            args = {name: place.args[name] for name in SNAPSHOT_PLACE if name in place.args}
            order = Order(
                id=f"dead-man-{epoch}-{self.memory.seq}", kind="snapshot", args={**args, "fz": self.memory.fz}
            )
            try:
                self._start(order, epoch, place.credentials)
            except OSError as error:
                self._give_up(order, error)

    def _keep(self, *, durably: bool = False, **changes: Any) -> None:
        """Remembered, and written down: at a later step when the disk is full, unless it is to be `durably`. That
        raises OSError, and nothing has changed.
        """
        updated = self.memory.model_copy(update=changes)
        if updated == self.memory and self.is_written_down:
            return
        try:
            write_atomically(self.home / "state.json", updated.model_dump_json().encode())
            self.is_written_down = True
        except OSError as error:
            if durably or not is_full(error):
                raise
            if self.is_written_down:
                log.warning("the disk is full: what the agent has to remember waits in memory")
            self.is_written_down = False
        self.memory = updated

"""Is the GPU dead? The standby's own judgement, from what reaches it, in seconds of its own steady clock. Pure.

Four ways to die, seen in four ways: processes killed (the tether breaks and nobody answers a probe), the line cut and
the machine frozen (silence for a lease), a notice (it says so itself). What is lost, late, doubled, forged or of
another epoch counts for nothing. Trials of seven designs led to these numbers; loss of 30 % and steps of 0.3 s of delay
stretched the silence between two beats to 0.352 s at most.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

from common.domain.role import Role

BEAT_EVERY_S = 0.05
LEASE_FLOOR_S = 1.0
LEASE_CAP_S = 5.0
"""A line with longer gaps than a third of it is too bad to be told from a dead one: it will be switched away from."""
LEASE_TIMES = 3.0
"""Of the longest gap remembered: a lease is never near what the line does anyway."""
GAPS_KEPT_S = 3600.0
GAPS_PART_S = 60.0
"""Of each such part of the time above, only the longest gap is kept."""
FIRST_BEAT_S = 180.0
"""The GPU may hear of an epoch later than its standby does, three settled reports at worst; until its first beat of
it, silence means nothing for so long."""
PROBE_AFTER_S = (0.0, 0.03, 0.1, 0.35)
"""After the tether broke. One probe is not enough: 9 of 20 killed machines still had an open port in the first."""
PROBE_TIMEOUT_S = 0.4
SILENT_BEFORE_REFUSED_S = 1.1 * BEAT_EVERY_S
"""A tunnel that breaks by itself refuses too, but then the beats go on."""
PROBES_AT_SILENCE = 0.5
"""Of the lease: then it is asked whether only the beats are missing."""
RUN_BITS = 32
"""Of a beat's number: which beat of this run of the sender; above them, which run. No gap is measured over two runs."""
LATE_S = 0.2
"""A look that comes so much later than it was due: this machine itself stood still, and heard nothing because of it."""


class State(StrEnum):
    """What a GPU says of itself with each beat."""

    UP = "up"
    STOPPING = "stopping"
    """The machine was told that it is being stopped; the user is better off on the standby from now on."""
    LEAVING = "leaving"
    """The record wants it no more, and its standby is about to hear so too: the silence that follows is no death."""


@dataclass(frozen=True, kw_only=True)
class Beat:
    """One heartbeat, proven to come from a holder of the epoch's key."""

    epoch: int
    label: str
    seq: int
    """Rises with every beat and tether of this label, over restarts too: what is not newer counts for nothing."""
    state: State = State.UP
    is_tether: bool = False
    """The first word on a tether; as good a sign of life as any."""


class Answer(StrEnum):
    """To a probe of the GPU's own ssh server through its tunnel."""

    ANSWERED = "answered"
    """It said something: a frozen machine accepts connections and is mute."""
    REFUSED = "refused"
    """Nobody listens, or whoever does closes without a word."""
    MUTE = "mute"


class Reason(StrEnum):
    SILENT = "silent"
    REFUSED = "refused"
    STOPPING = "stopping"
    CALLED = "called"
    """The record asks the standby to take over from a GPU that may well live."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The GPU is dead for this standby."""

    reason: Reason
    silent_for_s: float
    lease_s: float


class Side(StrEnum):
    """Where the front door leads."""

    GPU = "gpu"
    STANDBY = "standby"


def side_of(role: Role) -> Side:
    """By the record's word and the own seal alone: that a GPU can be reached again opens nothing."""
    return Side.STANDBY if role.sealed is not None or role.view.writer in (None, role.label) else Side.GPU


def listens(role: Role) -> bool:
    """To the GPU that writes, from before this standby is its mirror: then it knows at once when that one goes."""
    return role.sealed is None and role.view.writer not in (None, role.label)


def watches(role: Role) -> bool:
    """The watch begins when the standby hears that it is the mirror (rule D2), and ends with its seal."""
    return listens(role) and role.view.mirror == role.label


@dataclass
class Lease:
    """How long a GPU may be silent: adapted to the gaps of the last hour, within bounds."""

    fixed_s: float | None = None
    """For measurements."""
    _gaps: deque[tuple[float, float]] = field(default_factory=deque, init=False)
    """(begin of the part, its longest gap)."""

    @property
    def seconds(self) -> float:
        if self.fixed_s is not None:
            return self.fixed_s
        longest_s = max((gap_s for _, gap_s in self._gaps), default=0.0)
        return min(max(LEASE_FLOOR_S, LEASE_TIMES * longest_s), LEASE_CAP_S)

    def saw(self, gap_s: float, now_s: float) -> None:
        """Two beats in a row came `gap_s` apart."""
        while self._gaps and now_s - self._gaps[0][0] > GAPS_KEPT_S:
            self._gaps.popleft()
        if self._gaps and now_s - self._gaps[-1][0] < GAPS_PART_S:
            began_s, longest_s = self._gaps[-1]
            self._gaps[-1] = (began_s, max(longest_s, gap_s))
        else:
            self._gaps.append((now_s, gap_s))


@dataclass
class Watch:
    """Over one GPU in one epoch. Every call names its time; `look` is to be called again at `due_s` at the latest."""

    epoch: int
    label: str
    since_s: float
    lease: Lease = field(default_factory=Lease)
    is_called: bool = False
    """The record's word: take over."""
    _beat_s: float | None = field(default=None, init=False)
    """When the last beat came, moved on by the time for which this machine itself stood still."""
    _alive_s: float = field(default=0.0, init=False)
    """The last sign of life of any kind, likewise."""
    _seq: int = field(default=-1, init=False)
    _is_stopping: bool = field(default=False, init=False)
    _is_refused: bool = field(default=False, init=False)
    _broke_s: float | None = field(default=None, init=False)
    """When the tether broke last: only then is a refusal news. A tunnel that is dialled anew refuses for a while."""
    _probes_s: list[float] = field(default_factory=list, init=False)
    """When the next confirming probes are due."""
    _asked_s: float = field(default=0.0, init=False)
    _due_s: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._alive_s = self._asked_s = self.since_s
        self._due_s = self.since_s + BEAT_EVERY_S

    @property
    def is_armed(self) -> bool:
        """The GPU has beaten in this epoch: from here on its silence says something."""
        return self._beat_s is not None

    def begin(self, now_s: float) -> None:
        """This standby is the mirror from now on: a GPU that was never heard has its time to be heard from here."""
        self.since_s = now_s

    def heard(self, beat: Beat, now_s: float) -> bool:
        """False: it counts for nothing."""
        if (beat.epoch, beat.label) != (self.epoch, self.label) or beat.seq <= self._seq:
            return False
        self._forget_own_sleep(now_s)
        if self._beat_s is not None and beat.seq >> RUN_BITS == self._seq >> RUN_BITS:
            self.lease.saw(now_s - self._beat_s, now_s)
        self._seq, self._beat_s, self._alive_s = beat.seq, now_s, now_s
        self._is_refused = False
        self._is_stopping = self._is_stopping or beat.state is State.STOPPING
        if beat.state is State.LEAVING:
            self._beat_s, self.since_s, self._probes_s = None, now_s, []
        return True

    def tether_broke(self, now_s: float) -> None:
        """The GPU's end of it was closed or reset."""
        if self.is_armed:
            self._broke_s, self._probes_s = now_s, [now_s + after_s for after_s in PROBE_AFTER_S]

    def probe_due(self, now_s: float) -> bool:
        """Is the GPU to be asked now? True is said once for each probe."""
        if self._probes_s and now_s >= self._probes_s[0]:
            self._probes_s.pop(0)
            self._asked_s = now_s
            return True
        every_s = PROBES_AT_SILENCE * self.lease.seconds
        if self.is_armed and now_s - (self._beat_s or 0.0) >= every_s and now_s - self._asked_s >= every_s / 2:
            self._asked_s = now_s
            return True
        return False

    def probed(self, answer: Answer, asked_s: float, now_s: float) -> None:
        """What came of a probe that was sent at `asked_s`. An answer to an old question says nothing of now."""
        if asked_s < self._alive_s:
            return
        if answer is Answer.ANSWERED:
            self._alive_s, self._is_refused = now_s, False  # a machine that is being killed may still answer the first
        elif answer is Answer.REFUSED and self._broke_s is not None:
            self._is_refused = self._broke_s <= asked_s <= self._broke_s + PROBE_AFTER_S[-1] + BEAT_EVERY_S

    def look(self, now_s: float) -> Verdict | None:
        """The GPU is dead, or nothing can be said against it."""
        self._forget_own_sleep(now_s)
        if self.is_called:
            return self._verdict(Reason.CALLED, now_s)
        if not self.is_armed:
            is_over = now_s - self.since_s >= FIRST_BEAT_S
            return self._verdict(Reason.SILENT, now_s) if is_over else None
        silent_s = now_s - self._alive_s
        if self._is_stopping:
            return self._verdict(Reason.STOPPING, now_s)
        if self._is_refused and silent_s >= SILENT_BEFORE_REFUSED_S:
            return self._verdict(Reason.REFUSED, now_s)
        return self._verdict(Reason.SILENT, now_s) if silent_s >= self.lease.seconds else None

    def due_s(self, now_s: float) -> float:
        """When to look again: soon, and not later than something may have been decided."""
        ripe_s = [self._alive_s + self.lease.seconds, *self._probes_s[:1]]
        if self._is_refused:
            ripe_s.append(self._alive_s + SILENT_BEFORE_REFUSED_S)
        self._due_s = min([now_s + BEAT_EVERY_S, *(at_s for at_s in ripe_s if at_s > now_s)])
        return self._due_s

    def _forget_own_sleep(self, now_s: float) -> None:
        slept_s = now_s - self._due_s
        if slept_s > LATE_S:
            self._alive_s = min(now_s, self._alive_s + slept_s)
            self.since_s += slept_s
            if self._beat_s is not None:
                self._beat_s = min(now_s, self._beat_s + slept_s)
        self._due_s = max(self._due_s, now_s)

    def _verdict(self, reason: Reason, now_s: float) -> Verdict:
        return Verdict(reason=reason, silent_for_s=now_s - self._alive_s, lease_s=self.lease.seconds)

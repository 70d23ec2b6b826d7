"""What links a GPU and its standby in the world: frames that take their time, a watch, and a way that may be cut.

The roles, the fence and the seal are the product's own, on each machine's disk. A frame is the whole content as it was
when it was sent: what the other side takes is that version, whole. Before a stream's first frame everything is compared
(a pass), and until that is over the copy is no newer than it was before.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from common.domain.host import ClaimReport, Door, Notice, Sync
from common.domain.role import Role
from common.domain.version import Version
from common.domain.watch import FIRST_BEAT_S, listens
from common.host.epoch import Epoch, Fenced
from common.host.pair import Kept
from tests.simulation.objects import Content

if TYPE_CHECKING:
    from tests.simulation.hosts import Machine

TICK_S = 5.0
LEASE_S = 1.0
FRAME_S = (0.02, 1.5)
"""On its way."""
PASS_S = (1.0, 12.0)
"""Everything is compared, before the first frame of an epoch."""
CLAIM_AGAIN_S = 60.0
AGAIN_WITHIN = 3
"""Claims of one seal by webhook, at most; every report says it too."""


@dataclass(frozen=True)
class Frame:
    epoch: int
    label: str
    content: Content
    seq: int


class OnItsDisk(Epoch):
    """A machine's role: one process, so that nobody else writes what was read once, and no lock is needed."""

    _read: Role | None = None

    def read(self) -> Role:
        if self._read is None:
            self._read = super().read()
        return self._read

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def _write(self, role: Role) -> None:
        super()._write(role)
        self._read = role


@dataclass
class Link:
    """`host.programs.Programs` of one machine. The programs outlive the agent, not the machine's stop."""

    machine: Machine
    kept: Kept | None = None
    seq: int = 0
    """The last number given; on the disk."""
    equal: tuple[int, str] | None = None
    """(epoch, label of the other one) of the last frame that it took."""
    sent: Content | None = None
    """What was in it."""
    passed: tuple[int, str] | None = None
    """The stream whose first pass is over."""
    flying: Frame | None = None
    watched: tuple[int, str | None] | None = None
    """Of a standby: (epoch, label) of the GPU that it watches."""
    watched_from: float = 0.0
    heard_at: float | None = None
    """The first sign of life in this watch is waited for much longer than the next ones."""
    claims: int = 0
    _claimed: tuple[int, int, int] | None = field(default=None)

    @property
    def label(self) -> str:
        return self.machine.label

    @property
    def epoch(self) -> Epoch:
        return self.machine.role

    @property
    def role(self) -> Role:
        return self.epoch.read()

    # --- the machine

    def start(self) -> None:
        """With the machine, and until it stops."""
        container = self.machine.container
        self.machine.world.loop.after(self.machine.rng.uniform(0, TICK_S), lambda: self._tick(container))

    def end(self) -> None:
        """The machine stands: what is in memory is gone."""
        self.equal = self.passed = self.sent = None
        self.flying, self.watched, self.heard_at = None, None, None

    def _tick(self, _container: object) -> None:
        machine = self.machine
        if not machine.is_running or machine.link is not self:
            return
        machine.world.loop.after(TICK_S, lambda: self._tick(_container))
        if machine.is_standing:
            return
        self.send()
        if machine.is_standby:
            self._watch()

    # --- one side to the other

    def follow(self, kept: Kept) -> None:
        self.kept = kept

    def other(self) -> Link | None:
        """Who takes what this machine writes, if there is a way."""
        kept = self.kept
        if kept is None or kept.writer != self.label:
            return None
        machine = self.machine.world.machine_of(kept.cand if self.machine.is_standby else kept.standby)
        return machine.link if machine and machine.link and self._has_way(machine.link) else None

    def _has_way(self, other: Link) -> bool:
        """The GPU dials the standby's door, and is let in by its key."""
        gpu, standby = (other, self) if self.machine.is_standby else (self, other)
        if gpu.kept is None or standby.kept is None or gpu.kept.door is None:
            return False
        is_up = gpu.machine.is_running and standby.machine.is_running
        is_moving = not gpu.machine.is_standing and not standby.machine.is_standing
        lets_in = gpu.label in standby.kept.tunnel_keys
        return is_up and is_moving and lets_in and gpu.machine.reaches("pair") and standby.machine.reaches("pair")

    def send(self) -> None:
        """What is new, one frame at a time; nothing new is still a sign of life."""
        other, kept, content = self.other(), self.kept, self.machine.content
        if kept is not None and kept.writer == self.label and kept.mirror is None and content is not None:
            self._promise_alone(content)
        if other is None or kept is None:
            return
        other.hear(kept.epoch, self.label)
        stream = (kept.epoch, other.label)
        if self.flying or content is None or not self._owns(kept.epoch):
            return
        if self.passed != stream:
            self._begin_pass(other, stream)
        elif self.equal != stream or self.sent is not content:
            self.seq += 1
            self._fly(Frame(kept.epoch, self.label, content, self.seq), other, FRAME_S, is_whole=True)

    def _owns(self, epoch: int) -> bool:
        """It began to write in this epoch, so that what it holds is the content to send."""
        return self.machine.served_epoch == epoch

    def _begin_pass(self, other: Link, stream: tuple[int, str]) -> None:
        content = self.machine.content
        assert content is not None
        frame = Frame(stream[0], self.label, content, self.seq)
        if self._put(frame, other, is_whole=False):
            self.passed = stream
            self.seq += 1
            self._fly(Frame(stream[0], self.label, content, self.seq), other, PASS_S, is_whole=True)

    def _fly(self, frame: Frame, other: Link, takes_s: tuple[float, float], *, is_whole: bool) -> None:
        self.flying = frame
        slow = self.machine.world.struck("frames_slow", self.machine)
        after_s = self.machine.rng.uniform(*takes_s) + (slow.length_s() if slow else 0.0)
        self.machine.world.loop.after(after_s, lambda: self._arrive(frame, other, is_whole=is_whole))

    def _arrive(self, frame: Frame, other: Link, *, is_whole: bool) -> None:
        if self.flying is not frame:
            return
        self.flying = None
        stream = (frame.epoch, other.label)
        if not self._has_way(other) or not self._put(frame, other, is_whole=is_whole):
            self.equal = self.passed = None
            return
        self.equal, self.sent = stream, frame.content
        if not self.machine.is_standby and self.may_acknowledge(frame):
            self.machine.world.pairs.acknowledge(self.machine, frame.epoch, frame.content)
        if self.machine.content is not frame.content:
            self.send()

    def _promise_alone(self, content: Content) -> None:
        """Nobody mirrors it, so its role must not let it: what the pointer holds is all that is promised."""
        role = self.role
        if role.may_acknowledge and self._owns(role.view.epoch):
            self.machine.world.pairs.acknowledge(self.machine, role.view.epoch, content)

    def may_acknowledge(self, frame: Frame) -> bool:
        """The GPU promises what its mirror took, while its newest view of the record lets it."""
        role = self.role
        return role.may_acknowledge and role.view.epoch == frame.epoch

    def _put(self, frame: Frame, other: Link, *, is_whole: bool) -> bool:
        """The receiver's side of one commit; False: it refuses, or the connection ends over it."""
        if Version(epoch=frame.epoch, seq=frame.seq) < other.role.version:
            return False  # it was so long on its way that a snapshot came first
        try:
            with other.epoch.taking(frame.epoch, frame.label) as done:
                other.machine.world.conflicts.overwriting(other.machine)
                if is_whole:
                    other.machine.hold(frame.content)
                    done(frame.seq, True)
                else:
                    version = other.role.version
                    done(max(frame.seq, version.seq if version.epoch == frame.epoch else 0), False)
        except Fenced:
            return False
        return True

    # --- the watch

    def hear(self, epoch: int, label: str) -> None:
        if self.watched == (epoch, label):
            self.heard_at = self.machine.world.loop.now

    def _watch(self) -> None:
        role = self.role
        if role.claim is not None:
            self._claim()
            return
        self.claims = 0
        now, view = self.machine.world.loop.now, role.view
        if not listens(role):
            self.watched = None
            return
        if self.watched != (view.epoch, view.writer):
            self.watched, self.heard_at, self.watched_from = (view.epoch, view.writer), None, now
        self._listen()
        if not role.may_seal:
            self.watched_from = now
        elif view.is_called or self._is_silent(now):
            self.epoch.seal()
            self.machine.world.pairs.sealed(self.machine)
            self.machine.world.conflicts.sealed(self.machine)
            self._claim()

    def _listen(self) -> None:
        gpu = self.machine.world.machine_of(self.watched[1] if self.watched else None)
        if gpu and gpu.link and gpu.link.kept and self._has_way(gpu.link) and gpu.link.kept.writer == gpu.label:
            self.hear(gpu.link.kept.epoch, gpu.label)

    def _is_silent(self, now: float) -> bool:
        if self.machine.world.strike("false_alarm", self.machine):
            return True
        if self.heard_at is None:
            return now - self.watched_from >= FIRST_BEAT_S
        return now - self.heard_at >= LEASE_S

    def _claim(self) -> None:
        """The webhook: a copy of what every report says."""
        claim = self.said_claim()
        agent = self.machine.agent
        if claim is None or agent is None or self.claims >= AGAIN_WITHIN:
            return
        self.claims += 1
        body = Notice(label=self.label, reason="sealed", claim=claim).model_dump_json()
        self.machine.world.web.claim(self.machine, body, agent.memory.token)

    def said_claim(self) -> ClaimReport | None:
        claim = self.role.claim
        if claim is None:
            return None
        return ClaimReport(epoch=claim.epoch, version_epoch=claim.version.epoch, version_seq=claim.version.seq)

    # --- the agent's side

    def tend(self) -> None:
        """The programs run by themselves."""

    def pids(self) -> frozenset[int]:
        return frozenset()

    def sync(self) -> Sync | None:
        if self.kept is None:
            return None
        if self.kept.writer == self.label:
            epoch, peer = self.equal or (0, None)
            is_behind = self.flying is not None or self.sent is not self.machine.content
            backlog = {"lag_s": TICK_S if is_behind else 0.0, "backlog_files": int(is_behind)}
            return Sync(epoch=epoch, seq=self.seq, is_whole=self.equal is not None, peer=peer, **backlog)
        role = self.role
        version = {"epoch": role.version.epoch, "seq": role.version.seq, "is_whole": role.is_whole}
        return Sync(**version, peer=role.view.writer, lag_s=0.0, hears=self.heard_at is not None)

    def mark(self, above: int) -> int:
        """What changed before has a lower number, what changes later a higher one."""
        self.seq = max(self.seq, above, self.role.version.seq) + 1
        return self.seq

    def tunnel_key(self) -> str | None:
        return None if self.machine.is_standby else f"ssh-ed25519 key-of-{self.label}"

    def door(self) -> Door | None:
        if not self.machine.is_standby:
            return None
        return Door(host=str(self.machine.contract.ip), ssh_port=2200, udp_port=2201, host_key="ssh-ed25519 host")

    def farewell(self) -> None:
        """Who says a last word says it through `World.last_word`."""

    def stop(self) -> None:
        """It ends with the machine."""

"""The standby's watchdog: hears the GPU, and when it is dead, seals, turns the front door, tells the user, then claims.

    dumont-host watchdog        (its environment: see `host.standby`)

The order is the safety: the seal is on disk before anybody is let in here, and nothing waits for the control plane.
All state is on disk (`host.epoch`, written by the agent too): a watchdog that was killed goes on where it was, and a
sealed standby stays sealed. The door goes back to a GPU by the record's word alone. Everything is level-triggered:
what could not be done is tried again with every look.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import struct
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

from common.domain.role import Claim, Role
from common.domain.watch import PROBE_TIMEOUT_S, Answer, Beat, Lease, Side, Verdict, Watch, listens, side_of, watches
from common.host import beats, notice, pair
from common.host.epoch import FILE as ROLE_FILE
from common.host.epoch import Epoch
from common.host.haproxy import Door, Unavailable
from common.host.tunnel import address_of

DOOR_LOOK_S = 0.5
"""How often HAProxy is asked where it stands: one that was started anew stands nowhere."""
DOOR_AGAIN_S = 0.1
SEAL_AGAIN_S = 1.0
CLAIM_AGAIN_S, CLAIM_AGAIN_MAX_S = 1.0, 60.0
POST_S = 20.0
HELLO_S = 5.0
TETHERS_MAX = 16
"""Open at a time, those that have not yet shown the key included."""
TCPI_RTT = struct.Struct("68xI")
DATAGRAMS_PER_LOOK_MAX = 1000

log = logging.getLogger("dumont.watchdog")


@dataclass
class Watchdog:
    """`post` sends a claim to the control plane once; True = it was taken."""

    home: Path
    label: str
    door: Door
    post: Callable[[Claim], Awaitable[bool]]
    port: int
    """Of datagrams and tethers."""
    host: str = "0.0.0.0"
    probe_port: int = 0
    """Of the GPU's ssh server, at its address here."""
    fixed_lease_s: float | None = None
    tell: Callable[[str], object] = notice.tell_terminals
    role: Role = field(init=False)
    watch: Watch | None = field(default=None, init=False)
    verdict: Verdict | None = field(default=None, init=False)
    """The last one; its reason is what the user is told."""

    def __post_init__(self) -> None:
        self._epoch = Epoch(self.home, self.label)
        self._lease = Lease(fixed_s=self.fixed_lease_s)
        self._stamp: tuple[object, ...] = ()
        self._kept: pair.Kept | None = None
        self._stands: tuple[Side, str | None] | None = None
        self._door_due_s = 0.0
        self._claimed: Claim | None = None
        self._claiming: asyncio.Task[None] | None = None
        self._turning: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._tether: asyncio.StreamWriter | None = None
        self._open = 0
        self._turns = asyncio.Lock()
        self._trouble = ""
        """What was wrong with the door last; said once, for it is looked at ten times a second."""
        self._seal_due_s = 0.0
        self._is_mirror = False
        self._is_stuck = False
        """The GPU is dead, and cannot be given up: the copy here is not whole."""
        self._hand_back: tuple[float, str] | None = None
        self._rtt_ms: float | None = None
        self._status = notice.last(self.home)

    async def run(self) -> None:
        """For ever. Raises OSError when its port is taken."""
        self._clock = asyncio.get_running_loop().time
        self._line = _bound(self.host, self.port)
        self._wake = wake = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._line, wake.set)
        tethers = await asyncio.start_server(self._take_tether, self.host, self.port)
        self._learn()
        try:
            while True:
                await self._look()
                wake.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._wait_s()):  # wait_for of Python 3.11 may lose a cancellation
                        await wake.wait()
        finally:
            asyncio.get_running_loop().remove_reader(self._line)
            self._line.close()
            tethers.close()
            for task in (*self._tasks, *filter(None, (self._claiming, self._turning))):
                task.cancel()

    async def _look(self) -> None:
        """One round: what the record says, what the GPU says, what follows."""
        if (stamp := _stamp(self.home)) != self._stamp:
            self._learn()
            self._stamp = stamp
        self._drain()
        if self.watch and self._is_mirror:
            now_s = self._clock()
            if self.watch.probe_due(now_s):
                self._start(self._probe(self.watch, now_s))
            verdict = self.watch.look(now_s)
            if verdict is None and self._is_stuck:
                self._is_stuck = False
                self._show()
            if verdict and now_s >= self._seal_due_s:
                await self._give_up(verdict)
        self._stand_at_the_door()
        self._claim()

    def _wait_s(self) -> float:
        now_s = self._clock()
        due_s = self.watch.due_s(now_s) if self.watch else now_s + 0.05
        return max(0.0, due_s - now_s)

    # --- the record's words

    def _learn(self) -> None:
        """The agent has written down a newer word (or this program was just started)."""
        self.role, self._kept = self._epoch.read(), pair.read(self.home)
        view, before = self.role.view, self.watch
        has_key = self._kept is not None and self._kept.epoch == view.epoch and bool(self._kept.key)
        was_mirror, self._is_mirror = self._is_mirror, watches(self.role)
        if not (listens(self.role) and has_key):
            self.watch = None
        elif self.watch is None or (self.watch.epoch, self.watch.label) != (view.epoch, view.writer):
            assert view.writer is not None
            self.watch = Watch(view.epoch, view.writer, self._clock(), self._lease)
        if self.watch:
            self.watch.is_called = view.is_called
            if self._is_mirror and not was_mirror:
                self.watch.begin(self._clock())
        if self.watch is not before and self._tether:
            self._tether.close()
        if self._stands != self._wanted():
            self._door_due_s = 0.0
        back_in_s = self._kept.hand_back_in_s if self._kept else None
        if back_in_s is None:
            self._hand_back = None
        elif self._hand_back is None:  # said once, as heard first
            self._hand_back = (back_in_s, notice.now_iso(back_in_s))
        self._show()

    def _show(self) -> None:
        state, view = notice.state_of(self.role, is_stuck=self._is_stuck), self.role.view
        reason = self.verdict.reason if self.verdict else self._status.reason
        writer = view.writer if view.writer != self.label else None
        back_in_s, back_at = self._hand_back or (None, None)
        said = notice.Status(
            state=state,
            message=notice.message_of(state, self.role, reason, back_in_s),
            since=self._status.since if state == self._status.state else notice.now_iso(),
            epoch=view.epoch,
            label=writer,
            reason=reason if state in ("provisional", "incomplete") else None,
            lease_s=self._lease.seconds,
            is_watched=self.watch is not None and self.watch.is_armed,
            rtt_ms=self._rtt_ms,
            is_whole=self.role.is_whole,
            hand_back_at=back_at if state == "standby" else None,
        )
        if said == self._status:
            return
        is_news = self._status.message not in ("", said.message)
        self._status = said
        notice.write(self.home, said)
        if is_news:
            self.tell(said.message)

    # --- the GPU's life

    def _drain(self) -> None:
        """All datagrams that are there, before anything is decided: who slept finds the beats of meanwhile."""
        for _ in range(DATAGRAMS_PER_LOOK_MAX):
            try:
                datagram = self._line.recv(beats.BEAT_BYTES_MAX + 1)
            except OSError:
                return
            self._hear(datagram)

    def _hear(self, datagram: bytes) -> Beat | None:
        """None: it counts for nothing."""
        if self.watch is None or self._kept is None:
            return None
        try:
            beat = beats.unpack(datagram, bytes.fromhex(self._kept.key))
        except (beats.Forged, ValueError):
            return None
        was_armed = self.watch.is_armed
        if not self.watch.heard(beat, self._clock()):
            return None
        if was_armed != self.watch.is_armed:
            self._show()
        return beat

    async def _take_tether(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Held until it breaks; the newest of the GPU's counts, and of anybody else's none."""
        if self._open >= TETHERS_MAX:
            writer.close()
            return
        self._open += 1
        try:
            async with asyncio.timeout(HELLO_S):
                (length,) = beats.LENGTH.unpack(await reader.readexactly(beats.LENGTH.size))
                said = await reader.readexactly(min(length, beats.BEAT_BYTES_MAX))
            beat = self._hear(said)
            if beat is None or not beat.is_tether:
                return
            before, self._tether = self._tether, writer
            if before:
                before.close()
            self._rtt_ms = _rtt_ms(writer.get_extra_info("socket"))
            writer.write(b"\n")
            with contextlib.suppress(OSError):
                await reader.read(1)
            if self._tether is writer and self.watch and not writer.is_closing():
                self.watch.tether_broke(self._clock())
                self._wake.set()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return
        finally:
            self._open -= 1
            self._tether = None if self._tether is writer else self._tether
            writer.close()

    async def _probe(self, watch: Watch, asked_s: float) -> None:
        """Ask the GPU's ssh server through the tunnel for its first word."""
        watch.probed(await probe(address_of(watch.label), self.probe_port), asked_s, self._clock())
        self._wake.set()

    # --- what follows from its death

    async def _give_up(self, verdict: Verdict) -> None:
        """Seal; then the door and the user, in this order. Without a whole copy nothing is sealed, and nobody moved."""
        self.verdict = verdict
        try:
            claim = await asyncio.to_thread(self._epoch.seal)
        except (ValueError, OSError) as error:
            log.error("the GPU is dead (%s), and cannot be given up: %s", verdict.reason, error)
            self._seal_due_s = self._clock() + SEAL_AGAIN_S
            self._is_stuck = True
            self._show()
            return
        self._is_stuck = False
        log.warning("epoch %s is sealed: %s", claim.epoch, verdict)
        self.role = self._epoch.read()
        self._door_due_s = 0.0
        with contextlib.suppress(Unavailable):
            await self._turn()
        self._learn()

    def _stand_at_the_door(self) -> None:
        if self._clock() >= self._door_due_s and (self._turning is None or self._turning.done()):
            self._turning = asyncio.create_task(self._keep_the_door())

    async def _keep_the_door(self) -> None:
        """Where it stands is asked, not remembered: HAProxy may have been started anew."""
        self._door_due_s = self._clock() + DOOR_LOOK_S
        try:
            self._stands = await self.door.state()
            if self._stands != self._wanted():
                await self._turn()
            trouble = ""
        except Unavailable as error:
            self._door_due_s = self._clock() + DOOR_AGAIN_S
            trouble = str(error)
        if trouble != self._trouble:
            log.warning("the door: %s", trouble or "stands again")
        self._trouble = trouble

    async def _turn(self) -> None:
        """One at a time, and to where it is wanted when its turn comes: no older wish overtakes a newer one."""
        async with self._turns:
            wanted = self._wanted()
            await self.door.turn(*wanted)
            self._stands = wanted

    def _wanted(self) -> tuple[Side, str | None]:
        side, writer = side_of(self.role), self.role.view.writer
        return side, address_of(writer) if side is Side.GPU and writer else None

    def _claim(self) -> None:
        """A copy of what every heartbeat says, so that the record hears it now."""
        claim = self.role.claim
        if claim == self._claimed:
            return
        if self._claiming:
            self._claiming.cancel()
        self._claimed = claim
        self._claiming = asyncio.create_task(self._say_until_taken(claim)) if claim else None

    async def _say_until_taken(self, claim: Claim) -> None:
        """Until the record answers, which ends the claim: that it was taken in says nothing of that."""
        again_s = CLAIM_AGAIN_S
        while True:
            is_taken = await self.post(claim)
            await asyncio.sleep(CLAIM_AGAIN_MAX_S if is_taken else again_s)
            again_s = min(2 * again_s, CLAIM_AGAIN_MAX_S)

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def probe(host: str, port: int, timeout_s: float = PROBE_TIMEOUT_S) -> Answer:
    """Does an ssh server speak there? One that was cut off or frozen is mute; one that is gone refuses."""
    writer = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port)
            return Answer.ANSWERED if await reader.read(4) == b"SSH-" else Answer.REFUSED
    except TimeoutError:
        return Answer.MUTE
    except OSError:
        return Answer.REFUSED
    finally:
        if writer:
            writer.close()


def _rtt_ms(connection: socket.socket) -> float | None:
    """As the kernel measured it: `tcpi_rtt` of struct tcp_info (linux/tcp.h), in microseconds."""
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCPI_RTT.size)
        return float(round(TCPI_RTT.unpack(info)[0] / 1000, 1))
    except (OSError, struct.error):
        return None


def _bound(host: str, port: int) -> socket.socket:
    line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    line.setblocking(False)
    line.bind((host, port))
    return line


def _stamp(home: Path) -> tuple[object, ...]:
    """Changes with every word that the agent, the receiver or this program writes down."""
    found: list[object] = []
    for name in (ROLE_FILE, pair.FILE):
        try:
            stat = (home / name).stat()
            found.append((stat.st_mtime_ns, stat.st_ino))
        except FileNotFoundError:
            found.append(None)
    return tuple(found)


def poster(home: Path, url: str, label: str) -> Callable[[Claim], Awaitable[bool]]:
    """Posts a claim to the control plane, with the token that the agent holds now."""

    def post(claim: Claim) -> bool:
        version = {"version_epoch": claim.version.epoch, "version_seq": claim.version.seq}
        body = {"label": label, "reason": "sealed", "claim": {"epoch": claim.epoch, **version}}
        try:
            token = json.loads((home / "state.json").read_bytes())["token"]
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            asked = urllib.request.Request(f"{url}/failover", json.dumps(body).encode(), headers)
            with urllib.request.urlopen(asked, timeout=POST_S) as answer:
                return bool(200 <= answer.status < 300)
        except (OSError, ValueError, TypeError, KeyError, HTTPException) as error:
            log.warning("the claim was not taken: %s", error)
            return False

    return lambda claim: asyncio.to_thread(post, claim)

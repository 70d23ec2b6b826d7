"""The ways into the control plane: hosts' calls, the scheduler's, users'. Each invocation is a program of its own."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from flask import Response

from common import bootstrap
from common.domain.liveness import Heard
from common.errors import DumontError
from common.ports import App
from common.web import slack_outbox
from common.workflows import lifecycle, outbox
from functions import failover, heartbeat, provision
from tests.simulation.clock import Killed, Task
from tests.simulation.hosts import ANSWER_WITHIN_S, Machine

if TYPE_CHECKING:
    from tests.simulation.world import World

HANDLERS: dict[str, Callable[[Any], Any]] = {
    "boot": provision.provision,
    "heartbeat": heartbeat.heartbeat,
    "notice": failover.failover,
}
FUNCTION_TIMEOUT_S = 60.0
SCHEDULE_DEADLINE_S = 120.0


@dataclass(frozen=True)
class Posted:
    """What the functions look at of a request."""

    body: bytes
    headers: dict[str, str]
    path: str

    @property
    def content_length(self) -> int:
        return len(self.body)

    def get_data(self, cache: bool = True) -> bytes:
        return self.body


PROCESSES = 3
"""Of the heartbeat function at once, at most."""
COMPANY_MINS = (0, 0, 1, 3)
"""Few hosts live in this world: at 0 a process waits for company that may never come."""
LOOKS_ELSEWHERE = 0.1
"""How often a host's call goes to another process than the first."""


class Processes:
    """The instances of the heartbeat function: each has a memory, and whoever kills an invocation kills its memory."""

    def __init__(self, world: World) -> None:
        self._world, self._rng, self._names = world, random.Random(f"processes:{world.seed}"), itertools.count(1)
        self._running: list[tuple[App, list[Task]]] = []

    def app(self) -> tuple[App, list[Task]]:
        """The one that serves the next call, and the invocations in it."""
        self._running = [(app, tasks) for app, tasks in self._running if not any(map(_is_killed, tasks))]
        if self._running and self._world.strike("process_ends", ""):
            del self._running[self._rng.randrange(len(self._running))]
        number = self._rng.randrange(PROCESSES) if self._rng.random() < LOOKS_ELSEWHERE else 0
        while len(self._running) <= number:
            silent_after_s, company_min = self._world.plan.timing.silent_after_s, self._rng.choice(COMPANY_MINS)
            heard = Heard(f"process{next(self._names)}", silent_after_s, company_min)
            self._running.append((replace(self._world.app, heard=heard), []))
        app, tasks = self._running[number]
        tasks[:] = [task for task in tasks if not task.is_over]
        return app, tasks


def _is_killed(task: Task) -> bool:
    return isinstance(task.error, Killed)


class Web:
    def __init__(self, world: World) -> None:
        self._world = world
        self._processes = Processes(world)
        self.crashed: Callable[[Task, BaseException], None] = lambda _task, _error: None

    def post(self, machine: Machine, kind: str, body: str, token: str) -> bytes | None:
        """Called by a host's program: the answer's body, b"404", or None when there is no usable answer in time."""
        world, loop = self._world, self._world.loop
        if not machine.reaches("control") or world.strike("beat_lost", machine):
            loop.sleep(ANSWER_WITHIN_S)
            return None
        if late := world.struck("beat_late", machine):
            world.at_or_when_quiet(loop.now + late.length_s(), lambda: self._handled(machine, kind, body, token))
            loop.sleep(ANSWER_WITHIN_S)
            return None
        task = self._handled(machine, kind, body, token)
        if world.strike("boot_twice" if kind == "boot" else "beat_twice", machine):
            self._handled(machine, kind, body, token)
        if not loop.join(task, ANSWER_WITHIN_S):
            return None
        if not machine.reaches("replies") or world.strike("beat_reply_lost", machine):
            loop.sleep(ANSWER_WITHIN_S)
            return None
        if task.error is not None:
            return None
        status, answer = task.result
        return b"404" if status == 404 and kind == "heartbeat" else answer if status == 200 else None

    def last_word(self, machine: Machine) -> None:
        """A dying host's webhook; it may arrive again, much later."""
        world = self._world
        if machine.agent is None or not machine.reaches("control") or not world.strike("notice", machine):
            return
        token = machine.agent.memory.token
        body = f'{{"label": "{machine.label}", "reason": "the container is being stopped"}}'
        self._handled(machine, "notice", body, token)
        if again := world.struck("notice_replayed", machine):
            world.at_or_when_quiet(
                world.loop.now + again.length_s(), lambda: self._handled(machine, "notice", body, token)
            )

    def claim(self, machine: Machine, body: str, token: str) -> None:
        """A standby's webhook: a copy of what it says in every report."""
        world = self._world
        if not machine.reaches("control") or world.strike("claim_lost", machine):
            return
        late = world.struck("claim_late", machine)
        after_s = late.length_s() if late else 0.0
        world.at_or_when_quiet(world.loop.now + after_s, lambda: self._handled(machine, "notice", body, token))
        if again := world.struck("claim_twice", machine):
            at = world.loop.now + again.length_s()
            world.at_or_when_quiet(at, lambda: self._handled(machine, "notice", body, token))

    def announce(self, market: str, body: bytes, headers: dict[str, str]) -> Task:
        """A marketplace's event; whose signature it bears is looked at by us."""
        request = Posted(body, headers, f"/failover/{market}")
        return self.invoke("announced", lambda: status_and_body(failover.failover(request)))

    def _handled(self, machine: Machine, kind: str, body: str, token: str) -> Task:
        request = Posted(body.encode(), {"Authorization": f"Bearer {token}"}, f"/{kind}")
        # a notice makes the whole market looked at: it is nobody's own
        account = (machine.key or "").partition(".")[0] if kind != "notice" else ""
        app, tasks = self._processes.app() if kind == "heartbeat" else (self._world.app, [])

        def handle() -> Any:
            bootstrap.use(app)  # a handler asks for it before it calls anybody
            return status_and_body(HANDLERS[kind](request))

        task = self.invoke(kind, handle, account=account, key=machine.key, label=machine.label)
        tasks.append(task)
        return task

    def nudge(self, key: str) -> None:
        """`App.nudge`: another invocation follows the instance; nobody waits for it."""
        world = self._world
        if not world.strike("nudge_lost", key):
            account = key.partition(".")[0]
            self.invoke("follow", lambda: lifecycle.follow(world.app, key, world.loop.sleep), account=account, key=key)

    def nudge_outbox(self) -> None:
        """`App.nudge_outbox`: another invocation delivers what is due in the next seconds."""
        world = self._world
        if not world.strike("nudge_lost", ""):
            self.invoke("outbox", lambda: outbox.follow(world.app, world.loop.sleep, slack_outbox.ATTEMPTS))

    def invoke(self, name: str, run: Callable[[], Any], **facts: Any) -> Task:
        """One invocation of the control plane. What it should never raise is reported."""

        def program() -> Any:
            try:
                return run()
            except DumontError:
                raise
            except Exception as error:
                self.crashed(task, error)
                raise

        task = self._world.loop.spawn(program, name, control=True, **facts)
        return task


def status_and_body(given: Any) -> tuple[int, bytes]:
    """What a handler returns, as status and body."""
    if isinstance(given, Response):
        return given.status_code, given.get_data()
    body, status, *_ = given
    return status, body.encode()

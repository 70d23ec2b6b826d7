"""The people in Slack: they link themselves, type, press, read what comes back, and try again when nothing does."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from common.domain.account import Caller, Role, User
from common.domain.slack import Person
from common.records import dump
from common.web import slack as rest
from common.web.routes import Call, Nothing
from common.web.slack_outbox import PLAN_HOLDS_FOR
from common.workflows import slack
from infra.demo.slack import TEAM, Message, buttons
from tests.simulation.market import GPU
from tests.simulation.slack import Sent, Workspace
from tests.simulation.slack_judge import TROUBLE

if TYPE_CHECKING:
    from tests.simulation.users import Owned
    from tests.simulation.world import World

USER_ID = "someone"
"""Of every account's one user."""
NOBODY, EVE, EVA, THEIRS = "U0NOBODY01", "U0EVE00001", "U0EVA00001", "evil"
"""Who is linked to nobody, and two who are linked to an account that owns nothing here: one knows ids, one guesses."""
TYPED = {"hibernate": "stop", "wake": "wake", "terminate": "destroy"}
"""A user's verb -> what is typed for it."""
PRESSED = {"hibernate": "hibernate", "wake": "wake"}
ALSO = ("show {id}", "list", "why {id}", "savings 1d", "snooze {id} 45m", "keep-alive {id} 1h", "keep-alive {id} off")
IN_SLACK_WITH, PRESSES_WITH = 0.7, 0.4
CHATS_S = (40.0, 300.0)
LOOKS_AFTER_S = (1.0, 3.0, 6.0, 10.0, 20.0, 20.0)
PATIENCE_S = sum(LOOKS_AFTER_S)
AGAIN_S = (5.0, 40.0)
TRIES = 3
RENTED_WITHIN_S = 60.0
CODE = re.compile(r"dumont slack link ([a-z0-9]+)")


class People:
    """One per account, and two who have no business here."""

    def __init__(self, world: World, workspace: Workspace) -> None:
        self._world, self._slack, self._rng = world, workspace, world.rng("people")
        accounts = sorted({owned.account for owned in world.plan.owned})
        self._user_of = {account: f"U0{account.upper()}" for account in accounts}
        workspace.judge.people |= {user: account for account, user in self._user_of.items()}
        workspace.judge.people |= {EVE: THEIRS, EVA: THEIRS}

    def begin(self) -> None:
        """By hand, before anything breaks: users of ours, and who is linked from the start."""
        app, now = self._world.app, self._world.loop.clock()
        for account in (*self._user_of, THEIRS):
            email = f"{USER_ID}@{account}.example"
            made = User(
                id=USER_ID, account=account, email=email, role=Role.MEMBER, password_hash="", created_at=now
            )  # fmt: skip
            app.store.create("users", f"{account}.{USER_ID}", dump(made))
        for user in (EVE, EVA):
            code = slack.new_code(app, Person(team=TEAM, user=user), now)
            slack.link(app, _caller(THEIRS), code, now)

    # --- who is who

    def link(self, account: str) -> None:
        """By the way a person goes: a code in Slack, given to the API by who is signed in there."""
        while not self._link_of(account):
            sent = self._slack.type(self._user_of[account], "link")
            if self._until(lambda sent=sent: bool(sent.told)) and (code := CODE.search(sent.told)):
                body = rest.LinkIn(code=code[1])
                self._call(account, lambda call: rest.link_slack(call), body, {})
            self._pause()

    def _unlink(self, account: str) -> None:
        if link := self._link_of(account):
            self._call(account, lambda call: rest.unlink_slack(call), Nothing(), {"link_id": link})

    def _link_of(self, account: str) -> str | None:
        id = f"{TEAM}.{self._user_of[account]}"
        return id if id in self._world.store.docs.get("slack_links", {}) else None

    def _call(self, account: str, handle: Callable[[Call], Any], body: Any, ids: dict[str, str]) -> None:
        world = self._world

        def run() -> Any:
            return handle(Call(world.app, _caller(account), world.loop.clock(), ids, body, None, None))

        world.loop.join(world.web.invoke("link", run, account=account), PATIENCE_S)

    # --- what they want

    def would_ask(self, owned: Owned, verb: str) -> bool:
        """Rather than by the API."""
        return verb in TYPED and owned.account in self._user_of and self._rng.random() < IN_SLACK_WITH

    def ask(self, owned: Owned, verb: str) -> bool:
        """Typed, or pressed where a button for it is at hand; False = it was not taken."""
        for _ in range(TRIES):
            if self._ask_once(owned, verb):
                return True
            self._pause()
        return False

    def _ask_once(self, owned: Owned, verb: str) -> bool:
        id = owned.key.partition(".")[2]
        if verb in PRESSED and self._rng.random() < PRESSES_WITH:
            found = [m for m in self._reads(owned) if _button(m, PRESSED[verb], id)]
            if found:
                return self._press(owned, found[-1:], PRESSED[verb])
        sent = self._type(owned, f"{TYPED[verb]} {id}")
        if verb != "terminate":
            return self._is_taken(sent)
        questions = self._shown(owned, sent, "destroy")
        return bool(questions) and self._press(owned, questions, "destroy")

    def deploy(self, owned: Owned) -> str:
        """A plan, its approval, and the key of what was rented by it."""
        idle = f" idle {owned.idle_for_s / 60:.0f}m" if owned.idle_for_s else ""
        name = f"{owned.account}-box"
        text = f"deploy {GPU} by {owned.strategy} disk 32 max 2.00{idle} as {name}"
        while not (key := self._rented(owned)):
            self.link(owned.account)  # an unlinking that was asked for long ago may be carried out only now
            plans = self._shown(owned, self._type(owned, text), "deploy")
            if plans and (late := self._world.struck("slack_stale_button", "")):
                self._world.loop.sleep(PLAN_HOLDS_FOR.total_seconds() + 1 + late.length_s())
            if plans and self._press(owned, plans, "deploy"):
                self._until(lambda: bool(self._rented(owned)), RENTED_WITHIN_S)
            else:
                self._pause()
        return key

    def _rented(self, owned: Owned) -> str:
        """What was approved by them and is nobody's yet."""
        users, made = self._world.users, self._slack.judge.rented[owned.account]
        return next((key for key in made if not users.of(key)), "")

    # --- typing, pressing, reading

    def _type(self, owned: Owned, text: str) -> Sent:
        world = self._world
        sent = self._slack.type(self._user_of[owned.account], text, about=owned.key)
        if world.strike("slack_pressed_twice", owned.key):
            self._slack.type(self._user_of[owned.account], text, about=owned.key)
        if away := world.struck("slack_unlinked", owned.key):
            self._unlink(owned.account)
            world.loop.sleep(away.length_s())
            self.link(owned.account)
        return sent

    def _press(self, owned: Owned, messages: list[Message], verb: str) -> bool:
        """The button of the first message; hasty people press all copies, and twice."""
        user, id = self._user_of[owned.account], owned.key.partition(".")[2]
        hasty = bool(self._world.strike("slack_pressed_twice", owned.key))
        sent = [
            self._slack.press(user, message.ts, action, about=owned.key)
            for message in ((messages * 2) if hasty else messages[:1])
            if (action := _button(message, verb, id))
        ]
        return bool(sent) and self._is_taken(sent[0])

    def _is_taken(self, sent: Sent) -> bool:
        self._until(lambda: bool(sent.told))
        return bool(sent.told) and TROUBLE not in sent.told

    def _shown(self, owned: Owned, sent: Sent, verb: str) -> list[Message]:
        """The messages with that button which came for what was sent; all copies."""
        id = owned.key.partition(".")[2]

        def found() -> list[Message]:
            return [m for m in self._reads(owned) if self._came_for(m, sent) and _button(m, verb, id)]

        self._until(lambda: bool(found()))
        return found()

    def _came_for(self, message: Message, sent: Sent) -> bool:
        return message.response_url == sent.url or (not message.response_url and message.ts > sent.ts)

    def _reads(self, owned: Owned) -> list[Message]:
        user = self._user_of[owned.account]
        direct = f"D{user[1:]}"
        return [m for m in self._slack.sim.messages if m.user == user or m.channel == direct]

    def _until(self, there: Callable[[], bool], within_s: float = PATIENCE_S) -> bool:
        waited_s = 0.0
        for look_s in LOOKS_AFTER_S:
            if there() or waited_s >= within_s:
                break
            self._world.loop.sleep(look_s)
            waited_s += look_s
        return there()

    def _pause(self) -> None:
        self._world.loop.sleep(self._rng.uniform(*AGAIN_S))

    # --- what else they do

    def chat(self, owned: Owned) -> None:
        """A program of its own: they look, and do what they should not."""
        loop = self._world.loop
        while loop.now < self._world.faults_end:
            loop.sleep(self._rng.uniform(*CHATS_S))
            if owned.key:
                self._around(owned)

    def _around(self, owned: Owned) -> None:
        """A look, a lease; a button of long ago; and somebody whom it does not concern."""
        world, leases = (
            self._world,
            [m for m in self._reads(owned) if _button(m, "snooze", owned.key.partition(".")[2])],
        )
        if leases and self._rng.random() < PRESSES_WITH:
            self._press(owned, leases[-1:], "snooze")
        else:
            self._type(owned, self._rng.choice(ALSO).format(id=owned.key.partition(".")[2]))
        if late := world.struck("slack_stale_button", owned.key):
            world.loop.spawn(lambda: self._press_stale(owned), "Slack", delay=60.0 + late.length_s())
        if world.strike("slack_stranger", owned.key):
            self._ask_as_stranger(owned)

    def _press_stale(self, owned: Owned) -> None:
        """Any button of any message that is there."""
        found = [(m, action) for m in self._reads(owned) for action in buttons(m.content)]
        if found:
            message, action = self._rng.choice(found)
            self._slack.press(self._user_of[owned.account], message.ts, action, about=owned.key)

    def _ask_as_stranger(self, owned: Owned) -> None:
        """An id that is right, one that is nearly right, and somebody else's button."""
        id = owned.key.partition(".")[2]
        who = self._rng.choice((NOBODY, EVE))
        self._slack.type(who, self._rng.choice(("stop {}", "destroy {}", "show {}", "wake {}")).format(id), owned.key)
        self._slack.type(EVA, self._rng.choice((f"show {id[:-1]}", f"stop {id[1:]}", "list")), owned.key)
        found = [(m, action) for m in self._reads(owned) for action in buttons(m.content)]
        if found:
            message, action = self._rng.choice(found)
            self._slack.press(who, message.ts, action, about=owned.key)


def _caller(account: str) -> Caller:
    return Caller(account=account, user_id=USER_ID, role=Role.MEMBER)


def _button(message: Message, verb: str, id: str) -> str:
    """The action of a message's button; empty = it has none for that instance."""
    found = buttons(message.content).items()
    return next((action for action, b in found if action.startswith(f"{verb}.") and id in b["value"]), "")

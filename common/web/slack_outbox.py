"""What Slack gets: errands carried out through the REST handlers and followed in place, and what happens by itself."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_UP, Decimal
from typing import Any, TypeAlias

from pydantic import BaseModel, ValidationError

from common.chatops import render
from common.chatops.grammar import Ask, Verb
from common.domain.account import Caller, Right
from common.domain.instance import Instance, Phase
from common.domain.outbox import SLACK_ERRAND, Message
from common.domain.slack import TARGET, Errand, Person, Reply
from common.errors import (
    BadRequest,
    DeliveryFailed,
    DeliveryRefused,
    DumontError,
    Forbidden,
    NotFound,
    StoreUnavailable,
    UnknownGpu,
)
from common.ports import App, Chat, every
from common.records import dump, record_of
from common.views import instances as view
from common.views.instances import OperationOut
from common.web import instances, market, savings, standby
from common.web.problem import invalid
from common.web.routes import Call, Nothing
from common.workflows import operations, outbox, slack

LOOK_AGAIN_S = 3.0
"""While long work is under way; its message is edited when its state has changed."""
FOLLOWED_FOR = timedelta(hours=2)
PLAN_HOLDS_FOR = timedelta(minutes=10)
BEGUN_WITHIN = timedelta(minutes=10)
"""What could not be begun by then is never begun: whoever asked for it has gone on, and does not expect it any more."""
GIVEN_UP = render.problem("this could not be done in time, and is not done now; ask again if you still want it")
CENT = Decimal("0.0001")
LISTED_MAX = 50
Answer = dict[str, Any]
Done: TypeAlias = tuple[Answer, OperationOut | None]


def attempt(app: App, message: Message) -> Message:
    """One attempt of a message to a person in Slack; what the message is after it."""
    now = app.clock()
    try:
        if app.chat is None:
            return message.failed("Slack is not set up", now)
        if message.kind == SLACK_ERRAND:
            return _run(app, app.chat, message, now)
        return _notify(app, app.chat, message, now)
    except DeliveryRefused as error:
        return message.dead(str(error), app.clock())
    except DeliveryFailed as error:
        return message.failed(str(error), app.clock(), retry_after_s=error.retry_after_s)
    except StoreUnavailable as error:
        return message.failed(f"the store did not answer: {error}", app.clock())
    except Exception as error:  # noqa: BLE001 - one message must not keep the others from being delivered
        app.log("internal_error", error=repr(error), trace="".join(traceback.format_exception(error))[-4000:])
        return message.failed("something went wrong on our side", app.clock())


ATTEMPTS: Mapping[str, outbox.Attempt] = {**outbox.WEBHOOKS, TARGET: attempt}


# --- what happens by itself


def _notify(app: App, chat: Chat, message: Message, now: datetime) -> Message:
    team, _, user = message.target.removeprefix(f"{TARGET}:").partition(".")
    caller = slack.who(app, Person(team=team, user=user))
    if caller is None or caller.account != message.account:
        return message.dead("this person in Slack was unlinked", now)
    chat.post(user, render.notification(message.kind, message.body, message.id))
    return message.delivered(app.clock())


# --- errands


def _run(app: App, chat: Chat, message: Message, now: datetime) -> Message:
    """Do it, or look how what it began is going, and tell. Done again after a crash it acts no second time."""
    errand = Errand.model_validate(message.body)
    caller = slack.who(app, errand.person)
    if caller is None or caller.account != message.account:
        _deliver(app, chat, errand, render.unlinked(), now)
        return message.delivered(app.clock())
    if errand.operation_id:
        return _look(app, chat, message, errand, caller)
    told, operation = _too_late(app, caller, errand, message, now) or _done(app, caller, errand, message)
    reply = _deliver(app, chat, errand, told, now)
    if operation is None:
        return message.delivered(app.clock())
    shown = _state(operation.status, operation.detail)
    begun = errand.model_copy(update={"operation_id": operation.id, "reply": reply, "shown": shown})
    return message.going_on(dump(begun), app.clock(), next_in_s=0.0)


def _look(app: App, chat: Chat, message: Message, errand: Errand, caller: Caller) -> Message:
    """Long work: its message is edited when the state has changed, until it is settled."""
    now = app.clock()
    operation = view.operation(app, caller.account, errand.operation_id)
    item = view.show(app, caller.account, operation.instance_id, now)
    # read one after the other: what succeeded a moment ago may be on its way elsewhere by now
    is_as_told = operation.status == "failed" or item.state == operation.detail
    is_settled, is_late = operation.status != "running" and is_as_told, now - message.created_at > FOLLOWED_FOR
    shown = _state(operation.status, item.state)
    if shown == errand.shown and not is_late:
        return message.going_on(message.body, now, next_in_s=LOOK_AGAIN_S)
    facts = _plain(operation), _plain(item)
    told = render.too_long(*facts) if is_late and not is_settled else render.progress(*facts, seed=message.id)
    reply = _deliver(app, chat, errand, told, now)
    if is_settled or is_late:
        return message.delivered(app.clock())
    seen = errand.model_copy(update={"reply": reply, "shown": shown})
    return message.going_on(dump(seen), app.clock(), next_in_s=LOOK_AGAIN_S)


def _state(status: str, detail: str) -> str:
    return f"{status} {detail}"


def _deliver(app: App, chat: Chat, errand: Errand, told: Answer, now: datetime) -> Reply:
    """In the place of what was said before: by the response_url while it lasts, then as a direct message."""
    reply = errand.reply
    if reply.ts:
        chat.update(reply.channel, reply.ts, told)
        return reply
    if reply.may_respond(now):
        try:
            chat.respond(reply.response_url, {**told, "response_type": "ephemeral", "replace_original": reply.replaces})
            return reply.responded()
        except DeliveryRefused as error:
            app.log("response_url_refused", error=str(error))
    channel, ts = chat.post(errand.person.user, told)
    return reply.without_url().posted(channel, ts)


def _too_late(app: App, caller: Caller, errand: Errand, message: Message, now: datetime) -> Done | None:
    """None = it may still be begun, or was, by an attempt of which nothing else is known."""
    verb = Ask.model_validate(errand.ask).verb
    if VERBS[verb][0] is not Right.WRITE or now - message.created_at <= BEGUN_WITHIN:
        return None
    return (GIVEN_UP, None) if operations.give_up(app, caller.account, _key(errand), now) else None


def _key(errand: Errand) -> str:
    """The Idempotency-Key of its effect."""
    return f"slack-{errand.op}"


def _done(app: App, caller: Caller, errand: Errand, message: Message) -> Done:
    """What to tell, and the operation that was begun, if one was."""
    ask = Ask.model_validate(errand.ask)
    work = Work(app, caller, ask, errand, seed=message.id, asked_at=message.created_at)
    try:
        right, do = VERBS[ask.verb]
        if not caller.may(right):
            raise Forbidden(f"the role {caller.role} may not do this; ask an admin of your account")
        return do(work)
    except (StoreUnavailable, DeliveryFailed):
        raise
    except UnknownGpu as error:
        return render.problem(str(error), gpu=str(ask.spec.get("gpu", ""))), None
    except DumontError as error:
        return render.problem(str(error)), None


@dataclass(frozen=True)
class Work:
    """One errand, authenticated: what its verb needs to know."""

    app: App
    caller: Caller
    ask: Ask
    errand: Errand
    seed: str
    asked_at: datetime

    def call(self, *, id: str = "", body: BaseModel | None = None, query: BaseModel | None = None) -> Call:
        """The same call that the REST API would make of it."""
        return Call(
            app=self.app,
            caller=self.caller,
            now=self.app.clock(),
            ids={"id": id},
            body=body or Nothing(),
            query=query,
            idempotency_key=_key(self.errand),
        )


def _list(work: Work) -> Done:
    found = view.living(work.app, work.caller.account, limit=LISTED_MAX, now=work.app.clock())
    return render.instances([_plain(item) for item in found], work.seed), None


def _show(work: Work) -> Done:
    return render.instance(_plain(instances.show_instance(work.call(id=_one(work)))), work.seed), None


def _market(work: Work) -> Done:
    asked = {name: value for name, value in work.ask.spec.items() if name in market.OffersQuery.model_fields}
    query = _parsed(market.OffersQuery, asked)
    found = market.list_offers(work.call(query=query))
    told = render.offers([_plain(item) for item in found.items], str(asked["gpu"]), outlook=_outlook(work, query.gpu))
    return told, None


def _outlook(work: Work, gpu: str) -> list[dict[str, Any]]:
    """Of the regions asked for; none where the model's market is not recorded."""
    regions = work.ask.spec.get("regions") or []
    try:
        found = market.show_spot_market(work.call(query=market.SpotQuery(gpu=gpu)))
    except UnknownGpu:
        return []
    return [_plain(row) for row in found.items if row.now and (not regions or row.region in regions)]


def _savings(work: Work) -> Done:
    found = savings.show_savings(work.call(query=savings.SavingsQuery(days=work.ask.days)))
    return render.savings(_plain(found)), None


def _deploy(work: Work) -> Done:
    """A plan first; it is rented when its button is pressed in time."""
    wish = _parsed(instances.Provision, work.ask.spec)
    if not work.errand.is_approved:
        plan = instances.plan_instance(work.call(body=wish))
        cap = plan.dearest_usd_per_hour.quantize(CENT, rounding=ROUND_UP)
        until = work.app.clock() + PLAN_HOLDS_FOR
        return render.plan(_plain(plan), work.ask, cap_usd_per_hour=str(cap), until=until, seed=work.seed), None
    if work.errand.until is None or work.asked_at > work.errand.until:
        raise BadRequest("this offer has expired: prices move; ask for a new plan")
    return _begun(instances.provision_instance(work.call(body=wish)))


def _wake(work: Work) -> Done:
    return _begun(instances.wake_instance(work.call(id=_one(work))))


def _hibernate(work: Work) -> Done:
    return _begun(instances.hibernate_instance(work.call(id=_one(work))))


def _failover(work: Work) -> Done:
    return _begun(standby.fail_over(work.call(body=standby.Which(instance_id=_one(work)))))


def _back(work: Work) -> Done:
    return _begun(standby.hand_back(work.call(body=standby.Which(instance_id=_one(work)))))


def _snooze(work: Work) -> Done:
    wish = instances.Snooze(minutes=work.ask.minutes)
    return render.snoozed(_plain(instances.snooze_instance(work.call(id=_one(work), body=wish)))), None


def _keep_alive(work: Work) -> Done:
    wish = instances.KeepAlive(minutes=work.ask.minutes)
    return render.snoozed(_plain(instances.keep_instance_alive(work.call(id=_one(work), body=wish)))), None


def _why(work: Work) -> Done:
    call = work.call(id=_one(work))
    found, item = instances.explain_instance(call), instances.show_instance(call)
    return render.why(_plain(found), _plain(item), work.seed), None


def _destroy(work: Work) -> Done:
    """Asks first; the button that answers has a confirmation of its own."""
    id = _one(work)
    if not work.errand.is_approved:
        return render.confirm_destroy(_plain(instances.show_instance(work.call(id=id))), work.seed), None
    return _begun(instances.terminate_instance(work.call(id=id, body=instances.Terminate())))


VERBS: Mapping[Verb, tuple[Right, Callable[[Work], Done]]] = {
    Verb.LIST: (Right.READ, _list),
    Verb.SHOW: (Right.READ, _show),
    Verb.MARKET: (Right.READ, _market),
    Verb.SAVINGS: (Right.READ, _savings),
    Verb.DEPLOY: (Right.WRITE, _deploy),
    Verb.WAKE: (Right.WRITE, _wake),
    Verb.HIBERNATE: (Right.WRITE, _hibernate),
    Verb.FAILOVER: (Right.WRITE, _failover),
    Verb.BACK: (Right.WRITE, _back),
    Verb.SNOOZE: (Right.WRITE, _snooze),
    Verb.KEEP_ALIVE: (Right.WRITE, _keep_alive),
    Verb.WHY: (Right.READ, _why),
    Verb.DESTROY: (Right.WRITE, _destroy),
}
"""Help and link are answered at once, and are no errands."""


def _begun(accepted: instances.Accepted) -> Done:
    operation = accepted.operation
    item = {"id": operation.instance_id, "name": "", "state": operation.detail or "requested"}
    told = render.progress({**_plain(operation), "status": "running"}, item, seed="")
    return told, operation


def _one(work: Work) -> str:
    """The id of the instance that is meant: by its id, by its name (of one that lives, if one does), or because there
    is only one. Raises `BadRequest`.

    Only the caller's own account is looked at: another tenant's names and ids are as if they did not exist.
    """
    docs = every(work.app.store, "instances", [("account", "==", work.caller.account)])
    owned = [record_of(doc, Instance) for doc in docs]
    wanted = work.ask.instance
    if not wanted:
        owned = [instance for instance in owned if instance.phase is not Phase.ENDED]
        if len(owned) == 1:
            return owned[0].id
        raise BadRequest("say which instance; `list` shows them" if owned else "you have no instances")
    named = [i for i in owned if i.name.lower() == wanted.lower()]
    found = [i for i in owned if i.id == wanted] or [i for i in named if i.phase is not Phase.ENDED] or named
    if len(found) > 1:
        raise BadRequest(f"{len(found)} instances have that name; use an id: {', '.join(i.id for i in found[:5])}")
    if not found:
        known = [name for instance in owned for name in (instance.id, instance.name) if name]
        close = difflib.get_close_matches(wanted, known, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else "; `list` shows them"
        raise NotFound(f"you have no instance {wanted[:64]!r}{hint}")
    return found[0].id


def _parsed(model: type[Any], fields: Mapping[str, Any]) -> Any:
    try:
        return model.model_validate(dict(fields))
    except ValidationError as error:
        raise invalid(error) from None


def _plain(answer: BaseModel) -> dict[str, Any]:
    """As JSON, which is what the renderers read."""
    return answer.model_dump(mode="json")

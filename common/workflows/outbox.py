"""The one outbox: messages are written with what they tell, drained at a hint and by the reconcile job."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from common.domain.instance import Instance
from common.domain.outbox import Kind, Message, MessageState, Webhook, refusal_of_url, signature
from common.domain.slack import Link
from common.errors import (
    BadRequest,
    DeliveryFailed,
    DeliveryRefused,
    IllegalMove,
    Missing,
    NotFound,
    Stale,
    StoreUnavailable,
)
from common.ports import App, Create, Data, Doc, Where, Write, every, expiring
from common.records import dump, event, read, record_of

WEBHOOKS_MAX = 10
"""Per account."""
DRAIN_MAX = 50
"""Messages per run."""
DRAIN_S = 20.0
"""Seconds per run: no further message is begun after that."""
HANGS_S = 2.0
"""A target that took longer to fail hangs."""
FOLLOW_S = 45.0
"""Of one invocation that follows the outbox; the reconcile comes by each minute."""
SAID_AGAIN_TRIES = 3
FOLLOWED_MAX = 60
"""Drains of one such invocation."""


class WebhookRefused(BadRequest):
    """The URL may not be called."""

    code = "webhook_refused"
    status = 422


# --- telling


def announce(
    app: App,
    instance: Instance,
    kind: Kind,
    line: str,
    text: str,
    now: datetime,
    *,
    line_id: str | None = None,
    **more: Any,
) -> list[Write]:
    """A line (`line` = its kind) of the instance's story, and the messages that tell it to who wants to know."""
    body = {"instance_id": instance.id, "name": instance.name, "text": text, **more}
    return [event(app, instance, line, text, now, id=line_id), *tell(app, instance.account, kind, body, now)]


def tell(app: App, account: str, kind: Kind, body: dict[str, Any], now: datetime) -> list[Write]:
    """One message per webhook of the account that wants this kind, and per person who is linked to it in Slack.

    For the commit that makes it true.
    """
    targets = [f"webhook:{hook.id}" for hook in webhooks(app, account) if hook.wants(kind)]
    targets += [link.person.target for link in links(app, account)]
    messages = [
        Message(
            id=app.ids(),
            account=account,
            kind=kind,
            target=target,
            body={"account": account, **body},
            next_at=now,
            created_at=now,
        )
        for target in targets
    ]
    return [Create("outbox", message.id, dump(message)) for message in messages]


def links(app: App, account: str) -> list[Link]:
    """Everybody in Slack who is linked to a user of the account. Asked in every function: most that have something to
    tell hold none of Slack's secrets, and leave the telling to the few that do."""
    docs = every(app.store, "slack_links", [("account", "==", account)])
    return [record_of(doc, Link) for doc in docs]


# --- delivering


def to_webhook(app: App, message: Message) -> Message:
    """One attempt of a message to a webhook; what the message is after it."""
    hook = read(app, "webhooks", f"{message.account}.{message.target.removeprefix('webhook:')}", Webhook)
    if hook is None:
        return message.dead("the webhook was removed", app.clock())
    if app.courier is None:
        return message.failed("this process delivers nothing", app.clock())
    payload, now = message.payload(), app.clock()
    headers = {
        "Content-Type": "application/json",
        "Dumont-Id": message.id,
        "Dumont-Signature": signature(payload, secret=secret_of(app, hook.value), at=now),
    }
    try:
        app.courier.post(hook.value.url, payload, headers)
    except DeliveryRefused as error:
        return message.dead(str(error), app.clock())
    except DeliveryFailed as error:
        return message.failed(str(error), app.clock())
    return message.delivered(app.clock())


Attempt: TypeAlias = Callable[[App, Message], Message]
WEBHOOKS: Mapping[str, Attempt] = {"webhook": to_webhook}
"""Who attempts a message, by the word before the colon of its target."""


def drain(app: App, now: datetime, attempts: Mapping[str, Attempt] = WEBHOOKS) -> dict[str, int]:
    """Try what is due, oldest first, each once. A message is done only when its target said so.

    What else waits for a target that hangs is left for CLAIM_S: it would keep everybody behind it waiting.
    """
    counts = {"delivered": 0, "retried": 0, "dead": 0, "going_on": 0}
    if app.courier is None and app.chat is None:
        return counts
    due: list[Where] = [("next_at", "<=", now)]
    hanging: set[str] = set()
    for doc in app.store.query("outbox", due, limit=DRAIN_MAX):
        if (app.clock() - now).total_seconds() > DRAIN_S:
            break
        message = record_of(doc, Message)
        attempt = attempts.get(message.target.partition(":")[0])
        if attempt is None:
            continue
        try:
            claimed = app.store.cas(doc, dump(message.claimed(app.clock())))
        except (Stale, Missing):
            continue  # another run tries it too, or has: at least once is what is promised
        if message.target in hanging:
            continue
        began = app.clock()
        after = attempt(app, message)
        if after.error and (app.clock() - began).total_seconds() > HANGS_S:
            hanging.add(message.target)
        if _is_noted(app, claimed, after):
            counts[_outcome(after)] += 1
    return counts


def _is_noted(app: App, claimed: Doc, after: Message) -> bool:
    try:
        app.store.cas(claimed, _document(after))
    except (Stale, Missing, StoreUnavailable):
        _say_again(app, after.id)
        return False
    return True


def _say_again(app: App, id: str) -> None:
    """Another run attempted it meanwhile, or may have: what this one said may stand in the place of newer words.

    Only an errand that goes on has its message edited in place; everything else is said once, or twice.
    """
    for _ in range(SAID_AGAIN_TRIES):
        try:
            kept = read(app, "outbox", id, Message)
            if kept is None or kept.value.state is MessageState.DEAD or not kept.value.body.get("operation_id"):
                return
            app.store.cas(kept.doc, dump(kept.value.unsaid(app.clock())))
        except (Stale, Missing, StoreUnavailable):
            continue  # nobody else knows of it
        return


def _document(message: Message) -> Data:
    """What has ended is kept for a while; what waits is kept until it has ended."""
    return expiring("outbox", dump(message), message.ended_at) if message.ended_at else dump(message)


def _outcome(after: Message) -> str:
    if after.state is MessageState.WAITING:
        return "retried" if after.error else "going_on"
    return "delivered" if after.state is MessageState.DONE else "dead"


def follow(app: App, wait: Callable[[float], None], attempts: Mapping[str, Attempt]) -> None:
    """Drain what is due now and in the next FOLLOW_S, each when it is due, waiting in between."""
    until = app.clock() + timedelta(seconds=FOLLOW_S)
    for _ in range(FOLLOWED_MAX):
        drain(app, app.clock(), attempts)
        due_at = next_due(app, until)
        if due_at is None:
            return
        wait(max(0.0, (due_at - app.clock()).total_seconds()))


def next_due(app: App, until: datetime) -> datetime | None:
    """When the next message is due, when that is no later than `until`."""
    soon: list[Where] = [("next_at", "<=", until)]
    first = app.store.query("outbox", soon, limit=1)
    return first[0].data["next_at"] if first else None


# --- webhooks


def add_webhook(
    app: App,
    *,
    account: str,
    url: str,
    kinds: tuple[Kind, ...],
    now: datetime,
    also: Callable[[str], Sequence[Write]] = lambda _key: (),
) -> Webhook:
    """`also` = what else the commit writes, from the new webhook's key.

    Raises `WebhookRefused` for a URL that may not be called, or for one too many.
    """
    refusal = refusal_of_url(url, loopback_allowed=app.settings.webhook_loopback)
    if refusal:
        raise WebhookRefused(f"{url[:200]!r} cannot be a webhook: {refusal}")
    if len(webhooks(app, account)) >= WEBHOOKS_MAX:
        raise WebhookRefused(f"an account has at most {WEBHOOKS_MAX} webhooks; remove one first")
    hook = Webhook(id=app.ids(), account=account, url=url, kinds=kinds, created_at=now)
    key = f"{account}.{hook.id}"
    app.store.commit([Create("webhooks", key, dump(hook)), *also(key)])
    return hook


def remove_webhook(app: App, account: str, id: str) -> None:
    """What still waits for it becomes a dead letter. Raises `NotFound`."""
    doc = app.store.get("webhooks", f"{account}.{id}")
    if doc is None:
        raise NotFound(f"there is no webhook {id}")
    app.store.delete(doc)


def webhooks(app: App, account: str) -> list[Webhook]:
    docs = every(app.store, "webhooks", [("account", "==", account)])
    return [record_of(doc, Webhook) for doc in docs]


def secret_of(app: App, hook: Webhook) -> str:
    """What signs its messages: derived anew each time."""
    return "whsec_" + app.deployment().derive("webhook", f"{hook.account}.{hook.id}").hex()


# --- dead letters


def messages(
    app: App, account: str, state: MessageState, *, limit: int, cursor: str | None
) -> tuple[list[Message], str | None]:
    where: list[Where] = [("account", "==", account), ("state", "==", state.value)]
    docs = app.store.query("outbox", where, limit=limit + 1, start_after=cursor)
    shown = [record_of(doc, Message) for doc in docs[:limit]]
    return shown, shown[-1].id if len(docs) > limit else None


def retry(app: App, account: str, id: str, now: datetime) -> Message:
    """A dead letter is tried again. Raises `NotFound`, and `IllegalMove` for one that is not dead."""
    kept = read(app, "outbox", id, Message)
    if kept is None or kept.value.account != account:
        raise NotFound(f"there is no message {id}")
    if kept.value.state is not MessageState.DEAD:
        raise IllegalMove(f"message {id} is {kept.value.state}; only a dead letter is tried again")
    again = kept.value.again(now)
    app.store.cas(kept.doc, dump(again))
    return again

"""Webhooks, and the messages that did not reach them."""

from datetime import datetime
from typing import Literal

from pydantic import ConfigDict, Field

from common.domain.account import Right
from common.domain.model import Model
from common.domain.outbox import URL_LENGTH_MAX, Kind, Message, MessageState, Webhook
from common.records import read
from common.web.routes import PAGE_LIMIT_MAX, Call, Nothing, Page, Route
from common.workflows import operations, outbox


class WebhookIn(Model):
    model_config = ConfigDict(extra="forbid")

    url: str = Field(min_length=1, max_length=URL_LENGTH_MAX, examples=["https://hooks.example.com/dumont"])
    """https, on a public address."""
    kinds: tuple[Kind, ...] = Field(default=(), max_length=len(Kind))
    """Empty = all."""


class WebhookOut(Model):
    id: str
    url: str
    kinds: tuple[Kind, ...]
    created_at: datetime
    secret: str | None = None
    """Shown once. `Dumont-Signature: t=<unix>,v1=<hex HMAC-SHA256(secret, "<t>.<body>")>`; `Dumont-Id` tells doubles."""


class MessageOut(Model):
    id: str
    kind: Kind | Literal["slack.errand"]
    """slack.errand: not told but asked, by somebody in Slack."""
    target: str
    state: MessageState
    attempts: int
    next_at: datetime | None
    created_at: datetime
    error: str


class MessagesQuery(Model):
    model_config = ConfigDict(extra="forbid")

    state: MessageState = MessageState.DEAD
    limit: int = Field(default=50, ge=1, le=PAGE_LIMIT_MAX)
    cursor: str | None = Field(default=None, max_length=64, pattern=r"^[a-z0-9]+$")


def add_webhook(call: Call) -> WebhookOut:
    body: WebhookIn = call.body
    account = call.caller.account
    mark = operations.fingerprint("add_webhook", body.url, *body.kinds)
    made = operations.known(call.app, account, call.idempotency_key, mark)
    known = read(call.app, "webhooks", made, Webhook) if made else None
    hook = known.value if known else _made(call, body, mark)
    return _webhook(hook).model_copy(update={"secret": outbox.secret_of(call.app, hook)})


def _made(call: Call, body: WebhookIn, mark: str) -> Webhook:
    account = call.caller.account
    return outbox.add_webhook(
        call.app,
        account=account,
        url=body.url,
        kinds=body.kinds,
        now=call.now,
        also=lambda key: operations.remember(account, call.idempotency_key, mark, key, call.now),
    )


def list_webhooks(call: Call) -> Page[WebhookOut]:
    return Page(items=[_webhook(hook) for hook in outbox.webhooks(call.app, call.caller.account)])


def remove_webhook(call: Call) -> None:
    outbox.remove_webhook(call.app, call.caller.account, call.ids["webhook_id"])


def list_messages(call: Call) -> Page[MessageOut]:
    query: MessagesQuery = call.query
    found, cursor = outbox.messages(
        call.app, call.caller.account, query.state, limit=query.limit, cursor=query.cursor
    )  # fmt: skip
    return Page(items=[_message(message) for message in found], next_cursor=cursor)


def retry_message(call: Call) -> MessageOut:
    return _message(outbox.retry(call.app, call.caller.account, call.ids["message_id"], call.now))


def _webhook(hook: Webhook) -> WebhookOut:
    return WebhookOut(id=hook.id, url=hook.url, kinds=hook.kinds, created_at=hook.created_at)


def _message(message: Message) -> MessageOut:
    return MessageOut.model_validate(message.model_dump(include=set(MessageOut.model_fields)))


ROUTES = (
    Route("POST", "/webhooks", add_webhook, "Have messages posted to a URL", WebhookOut, body=WebhookIn, right=Right.WRITE, status=201, tag="webhooks"),
    Route("GET", "/webhooks", list_webhooks, "Your webhooks", Page[WebhookOut], tag="webhooks"),
    Route("DELETE", "/webhooks/{webhook_id}", remove_webhook, "Remove one", None, right=Right.WRITE, tag="webhooks", errors=(404,)),
    Route("GET", "/messages", list_messages, "Messages by state; the dead letters when none is named", Page[MessageOut], query=MessagesQuery, tag="webhooks"),
    Route("POST", "/messages/{message_id}/retry", retry_message, "Try a dead letter again", MessageOut, body=Nothing, right=Right.WRITE, tag="webhooks", errors=(404, 409)),
)  # fmt: skip

"""Slack's side of a user: who is linked to whom, what was asked for there, and how its answer finds back."""

import re
from datetime import datetime, timedelta
from typing import Any, Self

from common.domain.model import Model

SLACK_ID = re.compile(r"[A-Z0-9]{1,32}")
"""Workspaces, users and channels."""
CODE_FOR = timedelta(minutes=10)
RESPONSE_URL_FOR = timedelta(minutes=30)
RESPONSE_URL_USES = 5
"""Slack's own limits on a response_url."""
TARGET = "slack"
"""Of messages to a person in Slack: `slack:<workspace>.<user>`."""


class Person(Model):
    """Somebody in a Slack workspace; its key is `<team>.<user>`."""

    team: str
    user: str
    name: str = ""
    """As Slack shows it; never an identity."""

    @property
    def key(self) -> str:
        return f"{self.team}.{self.user}"

    @property
    def target(self) -> str:
        return f"{TARGET}:{self.key}"


class Link(Model):
    """The document `slack_links/<team>.<user>`: this person in Slack is that user of ours."""

    schema_version: int = 1
    person: Person
    account: str
    user_id: str
    linked_at: datetime


class LinkCode(Model):
    """The document `slack_codes/<hash of the code>`: whoever signs in to us and shows the code is this person."""

    schema_version: int = 1
    person: Person
    expires_at: datetime


class Reply(Model):
    """The way back to the person who asked: Slack's response_url while it lasts, then a direct message."""

    response_url: str = ""
    until: datetime
    uses_left: int = RESPONSE_URL_USES
    replaces: bool = False
    """The next answer takes the place of the message that is there: a pressed button's, or our own before it."""
    channel: str = ""
    ts: str = ""
    """Of the direct message that is edited from now on."""

    @classmethod
    def to(cls, response_url: str, *, replaces: bool, now: datetime) -> Self:
        return cls(response_url=response_url, until=now + RESPONSE_URL_FOR, replaces=replaces)

    def may_respond(self, now: datetime) -> bool:
        return bool(self.response_url) and self.uses_left > 0 and now < self.until

    def responded(self) -> Self:
        return self.model_copy(update={"uses_left": self.uses_left - 1, "replaces": True})

    def without_url(self) -> Self:
        return self.model_copy(update={"response_url": ""})

    def posted(self, channel: str, ts: str) -> Self:
        return self.model_copy(update={"channel": channel, "ts": ts})


class Errand(Model):
    """The body of a message that somebody sent us: done once by its operation id, then followed until it is settled."""

    person: Person
    ask: dict[str, Any]
    """A request of the grammar, `chatops.grammar.Ask`."""
    op: str
    """The idempotency key of its effect."""
    is_approved: bool = False
    """A button was pressed that showed what it would do: a deploy rents, a destroy ends."""
    until: datetime | None = None
    """What the button offered holds no longer than this."""
    reply: Reply
    operation_id: str = ""
    """Of the long work that it began."""
    shown: str = ""
    """The state that the person was last shown."""

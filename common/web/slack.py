"""Who in Slack is which user of ours."""

from __future__ import annotations

from datetime import datetime

from pydantic import ConfigDict, Field

from common.domain.account import Right
from common.domain.model import Model
from common.domain.slack import Link
from common.errors import Forbidden, NotFound
from common.web.routes import Call, Page, Route
from common.workflows import outbox, users
from common.workflows import slack as workflow


class LinkIn(Model):
    model_config = ConfigDict(extra="forbid")

    code: str = Field(min_length=1, max_length=64, examples=["k3v9x2m4q7ab"])
    """From `/gpu link`, within 10 minutes, once."""


class LinkOut(Model):
    id: str
    slack_name: str
    """As Slack showed it; compare it with your own."""
    slack_team: str
    slack_user: str
    user_id: str
    linked_at: datetime


def link_slack(call: Call) -> LinkOut:
    """Who is linked may do in Slack what the user may: a key that may do less would give away more than it has."""
    if users.present(call.app, call.caller).value.role is not call.caller.role:
        raise Forbidden("this API key has another role than its user; link with one of the same, or sign in")
    return _link(workflow.link(call.app, call.caller, call.body.code, call.now))


def list_slack_links(call: Call) -> Page[LinkOut]:
    return Page(items=[_link(link) for link in outbox.links(call.app, call.caller.account) if _is_visible(call, link)])


def unlink_slack(call: Call) -> None:
    kept = workflow.link_of(call.app, call.caller.account, call.ids["link_id"])
    if not _is_visible(call, kept.value):
        raise NotFound(f"there is no link {call.ids['link_id']}")
    workflow.unlink(call.app, kept)


def _is_visible(call: Call, link: Link) -> bool:
    return link.user_id == call.caller.user_id or call.caller.may(Right.MANAGE_USERS)


def _link(link: Link) -> LinkOut:
    return LinkOut(
        id=link.person.key,
        slack_name=link.person.name,
        slack_team=link.person.team,
        slack_user=link.person.user,
        user_id=link.user_id,
        linked_at=link.linked_at,
    )


ROUTES = (
    Route("POST", "/slack/link", link_slack, "Be in Slack who was shown the code", LinkOut, body=LinkIn, status=201, tag="slack"),
    Route("GET", "/slack/links", list_slack_links, "Your users in Slack", Page[LinkOut], tag="slack"),
    Route("DELETE", "/slack/links/{link_id}", unlink_slack, "Unlink one", None, tag="slack", errors=(404,)),
)  # fmt: skip

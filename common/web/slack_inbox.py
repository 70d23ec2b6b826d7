"""What Slack sends: a signed form with a command or a pressed button. Answered at once; the work waits in the outbox."""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs

from pydantic import Field, ValidationError

from common import auth
from common.chatops import grammar, render
from common.chatops.grammar import Ask, Confused, Verb
from common.chatops.press import Press
from common.domain.account import Right
from common.domain.model import Model
from common.domain.slack import CODE_FOR, SLACK_ID, Errand, Person, Reply
from common.errors import BadRequest, DumontError, NotFound
from common.ports import App
from common.web.problem import BODY_LIMIT_BYTES
from common.workflows import slack

FORM_FIELDS_MAX = 50
NAME_MAX = 80
DIRECT = "D"
"""First letter of direct messages' ids: what we tell a person there has buttons, wherever commands are taken."""
WRITES = frozenset({Verb.DEPLOY, Verb.WAKE, Verb.HIBERNATE, Verb.SNOOZE, Verb.KEEP_ALIVE, Verb.DESTROY})
Answer = dict[str, Any]
FAILED = render.problem("something went wrong on our side; nothing was lost, please try again")


class Named(Model):
    id: str = Field(max_length=64)
    name: str = Field(default="", max_length=256)


class User(Named):
    username: str = Field(default="", max_length=256)


class Action(Model):
    value: str = Field(default="", max_length=2000)


class Interaction(Model):
    """A pressed button (`block_actions`); what else Slack may send here is acknowledged and nothing more."""

    type: str = Field(max_length=64)
    team: Named | None = None
    user: User | None = None
    channel: Named | None = None
    response_url: str = Field(default="", max_length=2048)
    actions: list[Action] = Field(default=[], max_length=25)


def answer(app: App, headers: Mapping[str, str], body: bytes) -> Answer:
    """The content of the HTTP answer, which only the person who asked sees; {} = an empty one.

    `headers` = names in lower case. Raises `NotFound`, `Unauthenticated`, `Repeated` and `BadRequest`; every other
    trouble is told in words.
    """
    told = _told(app, headers, body)
    return {**told, "response_type": "ephemeral"} if told else {}


def _told(app: App, headers: Mapping[str, str], body: bytes) -> Answer:
    try:
        return _answer(app, headers, body)
    except DumontError as error:
        if error.status < 500:
            raise
        app.log("slack_refused", error=str(error))
        return render.problem(str(error))
    except Exception as error:  # noqa: BLE001 - the outermost edge: the operator reads the log, the person a sentence
        app.log("internal_error", error=repr(error), trace="".join(traceback.format_exception(error))[-4000:])
        return FAILED


def _answer(app: App, headers: Mapping[str, str], body: bytes) -> Answer:
    secret, now = app.settings.slack_signing_secret, app.clock()
    if secret is None:
        raise NotFound("Slack is not set up; see SLACK_SIGNING_SECRET and SLACK_BOT_TOKEN")
    if len(body) > BODY_LIMIT_BYTES:
        raise BadRequest(f"the body is larger than {BODY_LIMIT_BYTES} bytes")
    signature = headers.get("x-slack-signature", "")
    timestamp = headers.get("x-slack-request-timestamp", "")
    auth.check_slack(body, timestamp=timestamp, signature=signature, secret=secret, now=now)
    slack.see(app, signature, now)
    form = _form(body)
    if "ssl_check" in form:
        return {}
    if "payload" in form:
        return _pressed(app, form["payload"], now)
    return _commanded(app, form, signature, body, now)


def _form(body: bytes) -> dict[str, str]:
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=FORM_FIELDS_MAX)
    except ValueError:
        raise BadRequest("the body is not a form in UTF-8") from None
    return {name: values[0].replace("\0", "") for name, values in fields.items()}


# --- a command


def _commanded(app: App, form: Mapping[str, str], signature: str, body: bytes, now: datetime) -> Answer:
    person = _person(form.get("team_id", ""), form.get("user_id", ""), form.get("user_name", ""))
    found = grammar.parse(form.get("text", ""))
    if isinstance(found, Ask) and found.verb is Verb.HELP:
        return render.help_()
    if not _is_allowed(app, form.get("channel_id", "")):
        return render.not_here()
    if isinstance(found, Confused):
        return render.confused(found)
    if found.verb is Verb.LINK:
        return render.link_code(slack.new_code(app, person, now), minutes=int(CODE_FOR.total_seconds() // 60))
    # Slack gives each command a trigger of its own, so the same body is the same command, however often it is signed
    is_told_apart = bool(form.get("trigger_id")) and found.verb in WRITES
    op = slack.errand_id("command", hashlib.sha256(body).hexdigest() if is_told_apart else signature)
    reply = Reply.to(form.get("response_url", ""), replaces=False, now=now)
    return _taken(app, Errand(person=person, ask=found.model_dump(mode="json"), op=op, reply=reply), now)


# --- a button


def _pressed(app: App, payload: str, now: datetime) -> Answer:
    try:
        interaction = Interaction.model_validate_json(payload)
    except ValidationError:
        raise BadRequest("this payload is not an interaction") from None
    if interaction.type != "block_actions" or not interaction.actions:
        return {}
    team, user = interaction.team or Named(id=""), interaction.user or User(id="")
    person = _person(team.id, user.id, user.username or user.name)
    channel = interaction.channel.id if interaction.channel else ""
    if not channel.startswith(DIRECT) and not _is_allowed(app, channel):
        return render.not_here()
    try:
        press = Press.model_validate_json(interaction.actions[0].value)
    except ValidationError:
        return render.problem("this button is of another time; type the command again")
    errand = Errand(
        person=person,
        ask=press.ask.model_dump(mode="json"),
        op=slack.errand_id("press", press.op),
        is_approved=True,
        until=press.until,
        reply=Reply.to(interaction.response_url, replaces=True, now=now),
    )
    return _taken(app, errand, now)


# --- both


def _taken(app: App, errand: Errand, now: datetime) -> Answer:
    """Once per operation id and account: whoever presses another account's button takes nothing from its owner."""
    ask = Ask.model_validate(errand.ask)
    caller = slack.who(app, errand.person)
    if caller is None:
        return render.unlinked()
    if ask.verb in WRITES and not caller.may(Right.WRITE):
        return render.problem(f"the role {caller.role} may not do this; ask an admin of your account")
    if not slack.take(app, caller, errand, slack.errand_id(caller.account, errand.op), now):
        return render.done_before()
    app.nudge_outbox()
    return render.under_way(ask)


def _person(team: str, user: str, name: str) -> Person:
    if not SLACK_ID.fullmatch(team) or not SLACK_ID.fullmatch(user):
        raise BadRequest("team and user must be ids of Slack")
    shown = "".join(letter for letter in name if letter.isprintable())
    return Person(team=team, user=user, name=shown[:NAME_MAX])


def _is_allowed(app: App, channel: str) -> bool:
    return not app.settings.slack_channels or channel in app.settings.slack_channels

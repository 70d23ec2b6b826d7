"""People in Slack: linked to our users by a one-time code, and what they ask for, taken exactly once."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from typing import Any

from common.domain.account import Caller, User
from common.domain.outbox import SLACK_ERRAND, Message
from common.domain.slack import CODE_FOR, Errand, Link, LinkCode, Person
from common.errors import BadRequest, Exists, Missing, NotFound, Repeated, Stale
from common.ports import App, Create, Delete, Write
from common.records import Kept, dump, read
from common.workflows import outbox

SEEN_FOR = timedelta(minutes=10)
"""Longer than a signature is accepted (5 minutes both ways)."""
LINKS_MAX = 20
"""People in Slack per account: each is told what happens to its instances."""


class BadCode(BadRequest):
    """There is no such code, or no longer."""

    code = "bad_code"
    status = 422


# --- requests


def see(app: App, signature: str, now: datetime) -> None:
    """Every signed request is taken once: Slack signs anew whatever it sends again. Raises `Repeated`."""
    seen = {"at": now, "expires_at": now + SEEN_FOR}
    try:
        app.store.create("slack_seen", hashlib.sha256(signature.encode()).hexdigest(), seen)
    except Exists:
        raise Repeated("exactly this request came before; nothing was done again") from None


def take(app: App, caller: Caller, errand: Errand, id: str, now: datetime) -> bool:
    """Put an errand into the outbox, once per `id`; False = it is there already."""
    message = Message(
        id=id,
        account=caller.account,
        kind=SLACK_ERRAND,
        target=errand.person.target,
        body=dump(errand),
        next_at=now,
        created_at=now,
    )
    try:
        app.store.create("outbox", id, dump(message))
    except Exists:
        return False
    return True


def who(app: App, person: Person) -> Caller | None:
    """The linked user with the role that user has now; None = nobody (never linked, unlinked, or removed)."""
    kept = read(app, "slack_links", person.key, Link)
    if kept is None:
        return None
    user = read(app, "users", f"{kept.value.account}.{kept.value.user_id}", User)
    if user is None:
        return None
    return Caller(account=kept.value.account, user_id=kept.value.user_id, role=user.value.role)


# --- links


def new_code(app: App, person: Person, now: datetime) -> str:
    """A one-time code, shown to that person alone; only a hash of it is kept."""
    code = app.ids()
    record = LinkCode(person=person, expires_at=now + CODE_FOR)
    app.store.create("slack_codes", _code_id(code), dump(record))
    return code


def link(app: App, caller: Caller, code: str, now: datetime) -> Link:
    """The person who was shown the code is this caller from now on. Raises `BadCode`, also for a used or old one."""
    used = BadCode("this code is wrong, was used, or is older than 10 minutes; type /gpu link for a new one")
    kept = read(app, "slack_codes", _code_id(code.strip().lower()), LinkCode)
    if kept is None or now >= kept.value.expires_at:
        raise used
    person = kept.value.person
    made = Link(person=person, account=caller.account, user_id=caller.user_id, linked_at=now)
    before = read(app, "slack_links", person.key, Link)
    if before is None and len(outbox.links(app, caller.account)) >= LINKS_MAX:
        raise BadRequest(f"an account has at most {LINKS_MAX} people in Slack; unlink one first")
    record: Write = before.becomes(made) if before else Create("slack_links", person.key, dump(made))
    try:
        app.store.commit([Delete(kept.doc), record])
    except (Stale, Missing, Exists):
        raise used from None
    return made


def unlink(app: App, link: Kept[Link]) -> None:
    app.store.delete(link.doc)


def link_of(app: App, account: str, id: str) -> Kept[Link]:
    """Raises `NotFound`, also for another account's."""
    kept = read(app, "slack_links", id, Link)
    if kept is None or kept.value.account != account:
        raise NotFound(f"there is no link {id}")
    return kept


def _code_id(code: str) -> str:
    return hashlib.sha256(f"slack-code:{code}".encode()).hexdigest()


def errand_id(*parts: Any) -> str:
    """An outbox id that the same parts always give."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]

"""The broken replacements of what stands between Slack and the instances: original in, broken out."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from common.errors import BadRequest, DeliveryFailed, NotFound

FAR = datetime(2100, 1, 1, tzinfo=UTC)


def acts_at_every_attempt(original: Any) -> Any:
    """Without the operation id, an errand that is carried out again acts again."""
    return lambda self, **more: replace(original(self, **more), idempotency_key=None)


def each_delivery_is_another(original: Any) -> Any:
    count = itertools.count()
    return lambda *parts: original(*parts, next(count))


def as_if(**changes: Any) -> Callable[[Any], Any]:
    """Every errand is carried out with these fields."""

    def broken(original: Any) -> Any:
        return lambda app, caller, errand, message: original(app, caller, errand.model_copy(update=changes), message)

    return broken


def ends_unasked(original: Any) -> Any:
    """What is typed ends an instance, without the button."""

    def done(app: Any, caller: Any, errand: Any, message: Any) -> Any:
        is_end = errand.ask["verb"] == "destroy"
        return original(app, caller, errand.model_copy(update={"is_approved": is_end or errand.is_approved}), message)

    return done


def linked_for_ever(original: Any) -> Any:
    known: dict[Any, Any] = {}

    def who(app: Any, person: Any) -> Any:
        found = known.get((id(app), person.key)) or original(app, person)
        known[id(app), person.key] = found
        return found

    return who


def looks_everywhere(_original: Any) -> Any:
    """The accounts are told apart when it acts, and not when it suggests."""

    def one(work: Any) -> str:
        docs = [
            doc for active in (True, False) for doc in work.app.store.query("instances", [("active", "==", active)])
        ]
        ids = [doc.data["id"] for doc in docs]
        wanted = work.ask.instance
        if wanted in ids:
            return str(wanted)
        if not wanted:
            raise BadRequest("say which instance")
        close = difflib.get_close_matches(wanted, ids, n=3)
        raise NotFound(f"you have no instance {wanted!r}; did you mean {' or '.join(close)}?")

    return one


def told_whatever_comes(original: Any) -> Any:
    def deliver(app: Any, chat: Any, errand: Any, told: Any, now: Any) -> Any:
        try:
            return original(app, chat, errand, told, now)
        except DeliveryFailed:
            return errand.reply

    return deliver

"""Long work: an operation's record is written in the commit that starts it, and found again by its Idempotency-Key."""

from __future__ import annotations

import hashlib
from datetime import datetime

from common.domain.operation import Operation
from common.errors import Exists, IdempotencyMismatch
from common.ports import App, Create, Write, expiring
from common.records import dump

GIVEN_UP = "given up"
"""In the place of a fingerprint."""


def find(app: App, account: str, idempotency_key: str | None, fingerprint: str) -> Operation | None:
    """The operation that this key started before; raises `IdempotencyMismatch` when it was another request."""
    made = known(app, account, idempotency_key, fingerprint)
    doc = app.store.get("operations", made) if made else None
    return Operation.model_validate(doc.data) if doc else None


def known(app: App, account: str, idempotency_key: str | None, fingerprint: str) -> str | None:
    """The id of what this key made before; raises `IdempotencyMismatch` when it was another request."""
    doc = app.store.get("idempotency", _key_id(account, idempotency_key)) if idempotency_key else None
    if doc is None:
        return None
    if doc.data["fingerprint"] != fingerprint:
        raise IdempotencyMismatch("this Idempotency-Key was used before with another request; take a new one")
    return str(doc.data["made"])


def remember(account: str, idempotency_key: str | None, fingerprint: str, made: str, now: datetime) -> list[Write]:
    """For the commit that makes it: who comes second with the same key fails with `Exists`, and finds it."""
    if idempotency_key is None:
        return []
    data = {"fingerprint": fingerprint, "made": made, "at": now}
    return [Create("idempotency", _key_id(account, idempotency_key), expiring("idempotency", data, now))]


def give_up(app: App, account: str, idempotency_key: str, now: datetime) -> bool:
    """Nothing was begun by this key, and nothing ever will be, however late a write arrives; False = something was."""
    id = _key_id(account, idempotency_key)
    data = {"fingerprint": GIVEN_UP, "made": "", "at": now}
    try:
        app.store.create("idempotency", id, expiring("idempotency", data, now))
    except Exists:
        doc = app.store.get("idempotency", id)
        return doc is not None and doc.data["fingerprint"] == GIVEN_UP
    return True


def begin(
    app: App,
    *,
    account: str,
    instance_id: str,
    kind: str,
    idempotency_key: str | None,
    fingerprint: str,
    now: datetime,
) -> tuple[Operation, list[Write]]:
    """The operation and the writes that record it, for the commit that does the work."""
    operation = Operation(
        id=app.ids(),
        account=account,
        instance_id=instance_id,
        instance_key=f"{account}.{instance_id}",
        kind=kind,
        created_at=now,
    )
    doc_id = f"{account}.{operation.id}"
    record = Create("operations", doc_id, expiring("operations", dump(operation), now))
    return operation, [record, *remember(account, idempotency_key, fingerprint, doc_id, now)]


def fingerprint(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _key_id(account: str, key: str) -> str:
    return f"{account}.{hashlib.sha256(key.encode()).hexdigest()}"

"""Long work: an operation's record is written in the commit that starts it, and found again by its Idempotency-Key."""

from __future__ import annotations

import hashlib
from datetime import datetime

from common.domain.operation import Operation
from common.errors import IdempotencyMismatch
from common.ports import App, Create, Write
from common.records import dump


def find(app: App, account: str, idempotency_key: str | None, fingerprint: str) -> Operation | None:
    """The operation that this key started before; raises `IdempotencyMismatch` when it was another request."""
    if idempotency_key is None:
        return None
    doc = app.store.get("idempotency", _key_id(account, idempotency_key))
    if doc is None:
        return None
    if doc.data["fingerprint"] != fingerprint:
        raise IdempotencyMismatch("this Idempotency-Key was used before with another request; take a new one")
    known = app.store.get("operations", doc.data["operation"])
    return Operation.model_validate(known.data) if known else None


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
    writes: list[Write] = [Create("operations", doc_id, dump(operation))]
    if idempotency_key is not None:
        data = {"fingerprint": fingerprint, "operation": doc_id, "at": now}
        writes.append(Create("idempotency", _key_id(account, idempotency_key), data))
    return operation, writes


def fingerprint(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _key_id(account: str, key: str) -> str:
    return f"{account}.{hashlib.sha256(key.encode()).hexdigest()}"

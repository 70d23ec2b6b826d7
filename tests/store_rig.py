"""What the contract tests of the store share."""

from __future__ import annotations

from datetime import UTC, datetime

from common.ports import Doc, Store

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def present(store: Store, collection: str, id: str) -> Doc:
    doc = store.get(collection, id)
    assert doc is not None
    return doc


def ids(docs: list[Doc]) -> list[str]:
    return [doc.id for doc in docs]

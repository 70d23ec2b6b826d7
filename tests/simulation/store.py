"""The store in memory, with the semantics of the real ones (the contract suite runs over it): fast, and watched."""

from __future__ import annotations

import functools
import itertools
import math
import operator as operators
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from common.adapters.sqlite import (
    MAX_DOCUMENT_BYTES,
    MAX_INT,
    MIN_INT,
    OVERHEAD_BYTES,
    _checked_id,
    _equal_value,
    _is_text,
    _refuse_crowd,
)
from common.errors import Exists, InvalidInput, Missing, Stale, StoreError
from common.ports import (
    MAX_QUERY_LIMIT,
    Cas,
    Check,
    Create,
    Data,
    Delete,
    Doc,
    Increment,
    Where,
    Write,
    refuse_unindexed,
)

RANGES: Mapping[str, Callable[[Any, Any], Any]] = {
    "<": operators.lt,
    "<=": operators.le,
    ">": operators.gt,
    ">=": operators.ge,
}
Watcher = Callable[[list[tuple[str, str, Data | None, Data | None]]], None]
"""(collection, id, before, after) of every document that one commit changed."""


def _nobody(_changes: list[tuple[str, str, Data | None, Data | None]]) -> None:
    pass


class MemoryStore:
    """`ports.Store`. Documents are copied when written; readers share what they read and must not change it."""

    def __init__(self, watcher: Watcher = _nobody) -> None:
        self.docs: dict[str, dict[str, Doc]] = {}
        self.watcher = watcher
        self._tokens = itertools.count(1)
        self._names = itertools.count(1)

    def get(self, collection: str, id: str) -> Doc | None:
        return self.docs.get(collection, {}).get(_checked_id(id))

    def create(self, collection: str, id: str, data: Data) -> Doc:
        return self._written([Create(collection, id, data)])[0]

    def cas(self, doc: Doc, data: Data) -> Doc:
        return self._written([Cas(doc, data)])[0]

    def delete(self, doc: Doc) -> None:
        self._written([Delete(doc)])

    def commit(self, writes: Sequence[Write]) -> None:
        _refuse_crowd(writes)
        self._written(writes)

    def put(self, collection: str, id: str, data: Data) -> None:
        old = self.get(collection, id)
        self._take_in([(collection, id, old, self._doc(collection, id, data, old.rev + 1 if old else 1))])

    def increment(self, collection: str, id: str, amounts: Mapping[str, int]) -> None:
        old = self.get(collection, id)
        data = _added(old.data if old else {}, amounts)
        self._take_in([(collection, id, old, self._doc(collection, id, data, old.rev + 1 if old else 1))])

    def append(self, collection: str, data: Data) -> Doc:
        name = (next(self._names) * 0x9E3779B97F4A7C15) % 2**64
        return self.create(collection, f"{name:016x}", data)

    def query(
        self,
        collection: str,
        where: Sequence[Where] = (),
        *,
        order_by: str | None = None,
        newest_first: bool = False,
        limit: int = MAX_QUERY_LIMIT,
        start_after: str | None = None,
    ) -> list[Doc]:
        order = refuse_unindexed(collection, where, order_by, newest_first)
        if not 0 < limit <= MAX_QUERY_LIMIT:
            raise ValueError(f"limit is 1 to {MAX_QUERY_LIMIT}, not {limit}")
        found = list(self.docs.get(collection, {}).values())
        for name, operator, value in where:
            found = _those_that_hold(found, name, operator, value)
        if order:
            found = [doc for doc in found if order in doc.data]
        found.sort(key=lambda doc: _place(doc, order), reverse=newest_first)
        if start_after is not None:
            after = self._cursor(collection, start_after, order)
            found = [
                doc for doc in found if (_place(doc, order) < after if newest_first else _place(doc, order) > after)
            ]
        return found[:limit]

    def _cursor(self, collection: str, id: str, order: str | None) -> tuple[Any, ...]:
        if order is None:
            return (id.encode(),)
        doc = self.get(collection, id)
        if doc is None or order not in doc.data:
            raise Missing(f"the page cannot go on after {collection}/{id}: it is gone")
        return _place(doc, order)

    def _written(self, writes: Sequence[Write]) -> list[Doc]:
        """Every write is checked before the first one is done."""
        changes = [self._change(write) for write in writes]
        real = [change for change in changes if change is not None]
        self._take_in(real)
        return [doc for _, _, _, doc in real if doc is not None]

    def _change(self, write: Write) -> tuple[str, str, Doc | None, Doc | None] | None:
        match write:
            case Create(collection, id, data):
                if self.get(collection, id):
                    raise Exists(f"{collection}/{id} exists already")
                return collection, id, None, self._doc(collection, id, data, 1)
            case Cas(doc, data):
                old = self._as_read(doc)
                return doc.collection, doc.id, old, self._doc(doc.collection, doc.id, data, old.rev + 1)
            case Delete(doc):
                return doc.collection, doc.id, self._as_read(doc), None
            case Check(doc):
                self._as_read(doc)
                return None
            case Increment(collection, id, amounts):
                found = self.get(collection, id)
                if found is None:
                    raise Missing(f"{collection}/{id} does not exist")
                return collection, id, found, self._doc(collection, id, _added(found.data, amounts), found.rev + 1)

    def _as_read(self, doc: Doc) -> Doc:
        now = self.get(doc.collection, doc.id)
        if now is None:
            raise Missing(f"{doc.collection}/{doc.id} is gone")
        if now.token != doc.token:
            raise Stale(f"{doc.collection}/{doc.id} was written since revision {doc.rev}")
        return now

    def _doc(self, collection: str, id: str, data: Data, rev: int) -> Doc:
        copied, size = _copied(data)
        size += OVERHEAD_BYTES + len(collection.encode()) + len(_checked_id(id).encode())
        if size > MAX_DOCUMENT_BYTES:
            raise InvalidInput(f"{collection}/{id} has {size} bytes, more than {MAX_DOCUMENT_BYTES}")
        return Doc(collection, id, copied, rev, next(self._tokens))

    def _take_in(self, changes: Sequence[tuple[str, str, Doc | None, Doc | None]]) -> None:
        for collection, id, _, doc in changes:
            if doc is None:
                del self.docs[collection][id]
            else:
                self.docs.setdefault(collection, {})[id] = doc
        self.watcher([(c, id, old.data if old else None, new.data if new else None) for c, id, old, new in changes])


def _copied(value: Any) -> tuple[Any, int]:
    """A copy of what a document may hold, and its size as Firestore counts it; raises `InvalidInput`."""
    kind = type(value)
    if kind is str or isinstance(value, str):
        if not value.isascii() and not _is_text(value):
            raise InvalidInput("half a surrogate pair is no text")
        return str(value), (len(value) if value.isascii() else len(value.encode())) + 1
    if value is None or kind is bool:
        return value, 1
    if kind is int and MIN_INT <= value <= MAX_INT:
        return value, 8
    if kind is float and math.isfinite(value):
        return value, 8
    if kind is datetime and value.tzinfo is not None:
        return value if value.tzinfo is UTC else value.astimezone(UTC), 8
    if kind is dict:
        items, size = {}, 0
        for name, item in value.items():
            size += _name_bytes(name)
            if type(item) is str and item.isascii():  # as below, without a call: most of a document
                items[name], more = item, len(item) + 1
            elif item is None or item is True or item is False:
                items[name], more = item, 1
            else:
                items[name], more = _copied(item)
            size += more
        return items, size
    if kind is list and not any(isinstance(item, list) for item in value):
        pairs = [_copied(item) for item in value]
        return [item for item, _ in pairs], sum(size for _, size in pairs)
    raise InvalidInput(f"a document cannot hold {value!r:.80}")


@functools.lru_cache(4096)
def _name_bytes(name: Any) -> int:
    """Of a field's name in a document; raises `InvalidInput`."""
    reserved = isinstance(name, str) and name.startswith("__") and name.endswith("__")
    if not isinstance(name, str) or not name or reserved or not _is_text(name):
        raise InvalidInput(f"{name!r} cannot be a field's name")
    return len(name.encode()) + 1


def _added(data: Data, amounts: Mapping[str, int]) -> Data:
    numbers = {name: old for name, old in data.items() if isinstance(old, int | float) and not isinstance(old, bool)}
    return data | {name: numbers.get(name, 0) + amount for name, amount in amounts.items()}


def _those_that_hold(docs: list[Doc], name: str, operator: str, value: Any) -> list[Doc]:
    """A document without the field is in no answer, and None is before every value in none but `==`."""
    if operator == "==":
        _equal_value(value)  # refuses what no backend compares
        kind, nowhere = type(value), object()
        return [doc for doc in docs if type(mine := doc.data.get(name, nowhere)) is kind and mine == value]
    if value is None:
        raise ValueError("a range needs a value: None is only compared with ==")
    holds = RANGES[operator]
    return [doc for doc in docs if (mine := doc.data.get(name)) is not None and holds(mine, value)]


def _place(doc: Doc, order: str | None) -> tuple[Any, ...]:
    """None comes before everything."""
    if order is None:
        return (doc.id.encode(),)
    value = doc.data.get(order)
    return (0, doc.id.encode()) if value is None else (1, value, doc.id.encode())


__all__ = ["MemoryStore", "StoreError"]

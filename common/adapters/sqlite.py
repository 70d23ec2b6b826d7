"""The store in one local SQLite file: what `dumont up`, the demo and the tests stand on."""

from __future__ import annotations

import json
import math
import re
import secrets
import sqlite3
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.errors import Exists, InvalidInput, Missing, Stale, StoreError, StoreUnavailable
from common.ports import (
    INDEXES,
    MAX_QUERY_LIMIT,
    MAX_WRITES_PER_COMMIT,
    Cas,
    Check,
    Create,
    Data,
    Delete,
    Doc,
    Increment,
    Index,
    Where,
    Write,
    refuse_unindexed,
)

BUSY_TIMEOUT_S = 5.0
"""How long a call waits for another process's write before it raises `StoreUnavailable`."""
MAX_DOCUMENT_BYTES = 1_048_576
"""Firestore's limit, counted as Firestore counts: what works here works there."""
OVERHEAD_BYTES = 64
"""What Firestore adds to names and values: 16 + 32, two separators, and the stored revision."""
MAX_ID_BYTES = 1_500
MIN_INT, MAX_INT = -(2**63), 2**63 - 1

_TABLE = """CREATE TABLE IF NOT EXISTS docs (
    collection TEXT NOT NULL, id TEXT NOT NULL, rev INTEGER NOT NULL, token TEXT NOT NULL, json TEXT NOT NULL,
    PRIMARY KEY (id, collection)) WITHOUT ROWID"""
"""The id leads the key: with the collection in front the planner would scan it instead of using its indexes."""
_RESERVED = re.compile(r"__.*__|\.{0,2}|.*/.*", re.DOTALL)


class SqliteStore:
    """`ports.Store` in one file, for any number of threads and processes of one machine.

    Each write draws a new `token`, so that a document deleted and created anew is never taken for its former self.
    """

    def __init__(self, path: str | Path) -> None:
        """Open or create the file; its directory must exist, else `StoreUnavailable`."""
        self._path = str(path)
        self._idle: deque[sqlite3.Connection] = deque()
        with self._connection() as db:
            db.execute("PRAGMA journal_mode = WAL")
        with self._transaction() as db:
            db.execute(_TABLE)
            for index in INDEXES:
                db.execute(_create_index(index))

    def close(self) -> None:
        """Close the file; calls under way keep their connection until they end."""
        while self._idle:
            self._idle.pop().close()

    def get(self, collection: str, id: str) -> Doc | None:
        with self._connection() as db:
            return _get(db, collection, _checked_id(id))

    def create(self, collection: str, id: str, data: Data) -> Doc:
        with self._transaction() as db:
            return _create(db, collection, id, data)

    def cas(self, doc: Doc, data: Data) -> Doc:
        with self._transaction() as db:
            return _replace(db, doc, data)

    def delete(self, doc: Doc) -> None:
        with self._transaction() as db:
            _delete(db, doc)

    def commit(self, writes: Sequence[Write]) -> None:
        _refuse_crowd(writes)
        with self._transaction() as db:
            for write in writes:
                _apply(db, write)

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
        with self._connection() as db:
            terms, values = _conditions(collection, where, order)
            beyond, turn = ("<", "DESC") if newest_first else (">", "ASC")
            if start_after is not None:
                terms.append(f"({_order_key(order)}, id) {beyond} (?, ?)" if order else f"id {beyond} ?")
                values += [_cursor(db, collection, start_after, order), start_after] if order else [start_after]
            by = f"{_order_key(order)} {turn}, id {turn}" if order else f"id {turn}"
            sql = f"SELECT id, rev, token, json FROM docs WHERE {' AND '.join(terms)} ORDER BY {by} LIMIT ?"
            return [_doc(collection, *row) for row in db.execute(sql, [*values, limit])]

    def put(self, collection: str, id: str, data: Data) -> None:
        with self._transaction() as db:
            _put(db, collection, id, data)

    def increment(self, collection: str, id: str, amounts: Mapping[str, int]) -> None:
        with self._transaction() as db:
            old = _get(db, collection, _checked_id(id))
            _put(db, collection, id, _added(old.data if old else {}, amounts))

    def append(self, collection: str, data: Data) -> Doc:
        return self.create(collection, uuid.uuid4().hex, data)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything inside is written, or nothing is; one writer at a time, of all processes."""
        with self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection nobody else uses meanwhile; there are never more than calls at once."""
        try:
            with self._borrowed() as db:
                yield db
        except sqlite3.Error as error:
            raise StoreUnavailable(f"the store's file {self._path} did not answer: {error}") from error

    @contextmanager
    def _borrowed(self) -> Iterator[sqlite3.Connection]:
        """A connection that failed is closed, any other goes back."""
        db = self._take()
        try:
            yield db
        except sqlite3.Error:
            db.close()
            raise
        except BaseException:
            self._idle.append(db)
            raise
        self._idle.append(db)

    def _take(self) -> sqlite3.Connection:
        try:
            return self._idle.pop()
        except IndexError:
            return self._open()

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        # FULL: a commit we reported is on the disk, not only in the system's memory. A killed process loses nothing
        # under NORMAL either, but a power cut would, and a lost label is a machine that nobody ends.
        try:
            db.execute("PRAGMA synchronous = FULL")
        except sqlite3.Error:
            db.close()
            raise
        return db


# --- writes, inside a transaction --------------------------------------------------------------------------------


def _refuse_crowd(writes: Sequence[Write]) -> None:
    targets = {_target(write) for write in writes}
    if len(writes) > MAX_WRITES_PER_COMMIT or len(targets) < len(writes):
        raise ValueError(f"a commit takes at most {MAX_WRITES_PER_COMMIT} writes and one per document")


def _target(write: Write) -> tuple[str, str]:
    named = write.doc if isinstance(write, Cas | Delete | Check) else write
    return named.collection, named.id


def _apply(db: sqlite3.Connection, write: Write) -> None:
    match write:
        case Create(collection, id, data):
            _create(db, collection, id, data)
        case Cas(doc, data):
            _replace(db, doc, data)
        case Delete(doc):
            _delete(db, doc)
        case Check(doc):
            _check(db, doc)
        case Increment(collection, id, amounts):
            _increment(db, collection, id, amounts)


def _create(db: sqlite3.Connection, collection: str, id: str, data: Data) -> Doc:
    text, token = _dump(collection, _checked_id(id), data), secrets.token_hex(8)
    if not db.execute("INSERT OR IGNORE INTO docs VALUES (?, ?, 1, ?, ?)", (collection, id, token, text)).rowcount:
        raise Exists(f"{collection}/{id} exists already")
    return Doc(collection, id, data, rev=1, token=token)


def _replace(db: sqlite3.Connection, doc: Doc, data: Data) -> Doc:
    text, token = _dump(doc.collection, doc.id, data), secrets.token_hex(8)
    sql = "UPDATE docs SET rev = rev + 1, token = ?, json = ? WHERE collection = ? AND id = ? AND token = ?"
    if not db.execute(sql, (token, text, doc.collection, doc.id, doc.token)).rowcount:
        raise _lost(db, doc)
    return Doc(doc.collection, doc.id, data, rev=doc.rev + 1, token=token)


def _delete(db: sqlite3.Connection, doc: Doc) -> None:
    sql = "DELETE FROM docs WHERE collection = ? AND id = ? AND token = ?"
    if not db.execute(sql, (doc.collection, doc.id, doc.token)).rowcount:
        raise _lost(db, doc)


def _check(db: sqlite3.Connection, doc: Doc) -> None:
    now = _get(db, doc.collection, doc.id)
    if now is None or now.token != doc.token:
        raise _lost(db, doc)


def _increment(db: sqlite3.Connection, collection: str, id: str, amounts: Mapping[str, int]) -> None:
    old = _get(db, collection, _checked_id(id))
    if old is None:
        raise Missing(f"{collection}/{id} does not exist")
    _put(db, collection, id, _added(old.data, amounts))


def _put(db: sqlite3.Connection, collection: str, id: str, data: Data) -> None:
    text = _dump(collection, _checked_id(id), data)
    sql = """INSERT INTO docs VALUES (?, ?, 1, ?, ?) ON CONFLICT (id, collection)
             DO UPDATE SET rev = rev + 1, token = excluded.token, json = excluded.json"""
    db.execute(sql, (collection, id, secrets.token_hex(8), text))


def _lost(db: sqlite3.Connection, doc: Doc) -> StoreError:
    if _get(db, doc.collection, doc.id) is None:
        return Missing(f"{doc.collection}/{doc.id} is gone")
    return Stale(f"{doc.collection}/{doc.id} was written since revision {doc.rev}")


def _added(data: Data, amounts: Mapping[str, int]) -> Data:
    """As Firestore adds: what is not a number counts as 0."""
    numbers = {name: old for name, old in data.items() if isinstance(old, int | float) and not isinstance(old, bool)}
    return data | {name: numbers.get(name, 0) + amount for name, amount in amounts.items()}


# --- reads and their SQL -----------------------------------------------------------------------------------------


def _get(db: sqlite3.Connection, collection: str, id: str) -> Doc | None:
    sql = "SELECT id, rev, token, json FROM docs WHERE collection = ? AND id = ?"
    row = db.execute(sql, (collection, id)).fetchone()
    return _doc(collection, *row) if row else None


def _doc(collection: str, id: str, rev: int, token: str, text: str) -> Doc:
    return Doc(collection, id, json.loads(text, object_hook=_decoded), rev, token)


def _conditions(collection: str, where: Sequence[Where], order: str | None) -> tuple[list[str], list[Any]]:
    """SQL terms and their values. The collection is a literal (INDEXES has it): partial indexes need to see it."""
    terms, values = [f"collection = '{collection}'"], []
    for name, operator, value in where:
        if operator == "==":
            terms.append(f"{_equal_key(name)} = ?")
            values.append(_equal_value(value))
        else:
            terms.append(f"{_order_key(name)} {operator} ? AND {_type(name)} != 'null'")
            values.append(_order_value(value))
    if order:
        terms.append(f"{_type(order)} IS NOT NULL")
    return terms, values


def _cursor(db: sqlite3.Connection, collection: str, id: str, order: str) -> Any:
    sql = f"SELECT {_order_key(order)} FROM docs WHERE collection = ? AND id = ? AND {_type(order)} IS NOT NULL"
    row = db.execute(sql, (collection, id)).fetchone()
    if row is None:
        raise Missing(f"the page cannot go on after {collection}/{id}: it is gone")
    return row[0]


def _create_index(index: Index) -> str:
    keys = [_equal_key(name) for name in index.equal] + ([_order_key(index.order)] if index.order else [])
    name = "_".join(("by", index.collection, *index.equal, index.order or "id"))
    columns = ", ".join([*keys, "id"])
    return f"CREATE INDEX IF NOT EXISTS {name} ON docs ({columns}) WHERE collection = '{index.collection}'"


def _type(name: str) -> str:
    """The field's JSON type, NULL when the document lacks it."""
    return f"json_type(json, '$.{name}')"


def _equal_key(name: str) -> str:
    """Type and value in one text, so that true is not 1 and None is not a missing field."""
    return f"{_type(name)} || ':' || ifnull(json_extract(json, '$.{name}'), '')"


def _equal_value(value: Any) -> str:
    match value:
        case None:
            return "null:"
        case bool():
            return "true:1" if value else "false:0"
        case str():
            return f"text:{value}"
        case int():
            return f"integer:{value}"
        case datetime():
            return "object:" + json.dumps(_encoded(value), separators=(",", ":"))
    raise InvalidInput(f"equality on {type(value).__name__} is not supported")


def _order_key(name: str) -> str:
    """A datetime's text or the value itself; None comes before everything (an ordered field holds one type or None)."""
    return f"coalesce(json_extract(json, '$.{name}.\"$t\"'), json_extract(json, '$.{name}'), -9e999)"


def _order_value(value: Any) -> Any:
    if value is None:
        raise ValueError("a range needs a value: None is only compared with ==")
    return _time_text(value) if isinstance(value, datetime) else value


# --- documents as text -------------------------------------------------------------------------------------------


def _checked_id(id: str) -> str:
    if not _is_text(id) or _RESERVED.fullmatch(id) or len(id.encode()) > MAX_ID_BYTES:
        raise InvalidInput(f"{id[:80]!r} cannot be a document's id", {"id": "empty, too long or reserved"})
    return id


def _dump(collection: str, id: str, data: Data) -> str:
    """The document as JSON; raises `InvalidInput` for what Firestore would refuse."""
    content = _encoded(data)
    size = OVERHEAD_BYTES + len(collection.encode()) + len(id.encode()) + _size(data)
    if size > MAX_DOCUMENT_BYTES:
        raise InvalidInput(f"{collection}/{id} has {size} bytes, more than {MAX_DOCUMENT_BYTES}")
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def _encoded(value: Any) -> Any:
    """JSON types as they are, an aware datetime as {"$t": text}; a key that starts with $ gets a second one."""
    match value:
        case None | bool():
            return value
        case str() if _is_text(value):
            return value
        case int() if MIN_INT <= value <= MAX_INT:
            return value
        case float() if math.isfinite(value):
            return value
        case datetime() if value.tzinfo is not None:
            return {"$t": _time_text(value)}
        case list() if not any(isinstance(item, list) for item in value):
            return [_encoded(item) for item in value]
        case dict():
            return {_encoded_key(key): _encoded(item) for key, item in value.items()}
    raise InvalidInput(f"a document cannot hold {value!r:.80}: JSON, aware datetimes and no list of lists")


def _encoded_key(key: Any) -> str:
    if not isinstance(key, str) or not key or not _is_text(key) or re.fullmatch("__.*__", key):
        raise InvalidInput(f"{key!r:.80} cannot be a field's name")
    return f"${key}" if key.startswith("$") else key


def _is_text(text: str) -> bool:
    """False for half a surrogate pair, which JSON can name but no UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _decoded(item: dict[str, Any]) -> Any:
    """The object hook that undoes `_encoded`."""
    if item.keys() == {"$t"}:
        return datetime.fromisoformat(item["$t"])
    return {key.removeprefix("$") if key.startswith("$") else key: value for key, value in item.items()}


def _time_text(time: datetime) -> str:
    """Always UTC and of one width, so that texts sort as times do."""
    return time.astimezone(UTC).isoformat(timespec="microseconds")


def _size(value: Any) -> int:
    match value:
        case None | bool():
            return 1
        case str():
            return len(value.encode()) + 1
        case list():
            return sum(map(_size, value))
        case dict():
            return sum(_size(key) + _size(item) for key, item in value.items())
    return 8

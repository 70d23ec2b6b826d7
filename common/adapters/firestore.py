"""The store in Firestore: compare-and-set on the document's update time, one batch per commit, no transactions.

A stored document is `{"rev": n, "data": {...}}`. With the content in one map, a write replaces it wholly, whatever
fields it had, while `rev` is raised by the server itself; so every write changes the document and with it the update
time, even one that writes the same content again. Fields are therefore indexed and expire as `data.<name>`.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from common.errors import Exists, InvalidInput, Missing, Stale, StoreUnavailable
from common.ports import (
    MAX_QUERY_LIMIT,
    MAX_WRITES_PER_COMMIT,
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

if TYPE_CHECKING:
    from google.api_core.retry import Retry
    from google.cloud.firestore import Client, DocumentReference, DocumentSnapshot, WriteBatch

CALL_TIMEOUT_S = 10.0
READ_PATIENCE_S = 4.0
"""How long a read is repeated while the service is unavailable."""
WRITE_PATIENCE_S = 4.0
"""How long a write is repeated while the service answers Aborted: a definite refusal, nothing was written."""
MAX_ID_BYTES = 1_500
MIN_INT, MAX_INT = -(2**63), 2**63 - 1
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0

KEY = "__name__"
"""Firestore's word for the document's id as a field."""


def field_path(name: str) -> str:
    """Where Firestore finds a document's field: for queries, composite indexes and expiry policies."""
    return f"data.{name}"


class FirestoreStore:
    """`ports.Store` in one Firestore database. FIRESTORE_EMULATOR_HOST is honoured by Google's client itself."""

    def __init__(self, project: str, database: str = "(default)", client: Client | None = None) -> None:
        self._client = client or _connect(project, database)
        self._read_retry, self._write_retry = _retries()

    def get(self, collection: str, id: str) -> Doc | None:
        with _unconditional():
            found = self._reference(collection, id).get(retry=self._read_retry, timeout=CALL_TIMEOUT_S)
        return _doc(found) if found.exists else None

    def create(self, collection: str, id: str, data: Data) -> Doc:
        token = self._write([Create(collection, id, data)])
        return Doc(collection, id, data, rev=1, token=token)

    def cas(self, doc: Doc, data: Data) -> Doc:
        token = self._write([Cas(doc, data)])
        return Doc(doc.collection, doc.id, data, rev=doc.rev + 1, token=token)

    def delete(self, doc: Doc) -> None:
        self._write([Delete(doc)])

    def commit(self, writes: Sequence[Write]) -> None:
        targets = {_target(write) for write in writes}
        if len(writes) > MAX_WRITES_PER_COMMIT or len(targets) < len(writes):
            raise ValueError(f"a commit takes at most {MAX_WRITES_PER_COMMIT} writes and one per document")
        if writes:
            self._write(writes)

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
        query: Any = self._client.collection(collection)
        for condition in where:
            query = query.where(filter=_filter(*condition))
        turn = "DESCENDING" if newest_first else "ASCENDING"
        query = query.order_by(field_path(order), direction=turn) if order else query
        query = query.order_by(KEY, direction=turn)
        if start_after is not None:
            query = query.start_after(self._cursor(collection, start_after, order))
        with _unconditional():
            return [_doc(item) for item in query.limit(limit).stream(retry=self._read_retry, timeout=CALL_TIMEOUT_S)]

    def put(self, collection: str, id: str, data: Data) -> None:
        from google.cloud.firestore import Increment as Raise

        batch, content = self._client.batch(), {"data": _checked(data), "rev": Raise(1)}
        batch.set(self._reference(collection, id), content, merge=["data", "rev"])
        with _unconditional():
            self._commit(batch)

    def increment(self, collection: str, id: str, amounts: Mapping[str, int]) -> None:
        from google.cloud.firestore import Increment as Raise

        batch, raised = self._client.batch(), {name: Raise(amount) for name, amount in amounts.items()}
        batch.set(self._reference(collection, id), {"data": raised, "rev": Raise(1)}, merge=True)
        with _unconditional():
            self._commit(batch)

    def append(self, collection: str, data: Data) -> Doc:
        return self.create(collection, uuid.uuid4().hex, data)

    def _write(self, writes: Sequence[Write]) -> Any:
        """Everything or nothing; returns the first write's token. Raises what `ports.Store.commit` names."""
        from google.api_core import exceptions

        batch = self._client.batch()
        for write in writes:
            self._add(batch, write)
        try:
            with _translated():
                return self._commit(batch)[0].update_time
        except exceptions.AlreadyExists as error:
            raise Exists(f"a document exists already: {error.message}") from error
        except (exceptions.FailedPrecondition, exceptions.NotFound) as error:
            raise self._refusal(writes) from error

    def _add(self, batch: WriteBatch, write: Write) -> None:
        """One write with its precondition.

        `Check` writes the revision that is there already: Firestore then tests the precondition and changes nothing,
        not even the update time. (The protocol's `verify` operation is not in Google's Python client.)
        """
        from google.cloud.firestore import Increment as Raise

        reference = self._reference(*_target(write))
        match write:
            case Create(_, _, data):
                batch.create(reference, {"data": _checked(data), "rev": 1})
            case Cas(doc, data):
                batch.update(reference, {"data": _checked(data), "rev": doc.rev + 1}, option=self._unchanged(doc))
            case Delete(doc):
                batch.delete(reference, option=self._unchanged(doc))
            case Check(doc):
                batch.update(reference, {"rev": doc.rev}, option=self._unchanged(doc))
            case Increment(_, _, amounts):
                raised = {self._client.field_path("data", name): Raise(amount) for name, amount in amounts.items()}
                batch.update(reference, {**raised, "rev": Raise(1)})

    def _commit(self, batch: WriteBatch) -> Any:
        return batch.commit(retry=self._write_retry, timeout=CALL_TIMEOUT_S)

    def _unchanged(self, doc: Doc) -> Any:
        return self._client.write_option(last_update_time=doc.token)

    def _refusal(self, writes: Sequence[Write]) -> Stale | Missing:
        """Firestore says only that a precondition failed: look which documents are gone."""
        for write in writes:
            collection, id = _target(write)
            if not isinstance(write, Create) and self.get(collection, id) is None:
                return Missing(f"{collection}/{id} is gone")
        return Stale("a document of the commit was written since it was read")

    def _cursor(self, collection: str, id: str, order: str | None) -> list[Any]:
        """The position after one document, in the order of the query."""
        reference = self._reference(collection, id)
        if order is None:
            return [reference]
        last = self.get(collection, id)
        if last is None or order not in last.data:
            raise Missing(f"the page cannot go on after {collection}/{id}: it is gone")
        return [last.data[order], reference]

    def _reference(self, collection: str, id: str) -> DocumentReference:
        if not id or "/" in id or not _is_text(id) or len(id.encode()) > MAX_ID_BYTES:
            raise InvalidInput(f"{id[:80]!r} cannot be a document's id", {"id": "empty, too long or reserved"})
        return self._client.collection(collection).document(id)


# --- the connection and its answers ------------------------------------------------------------------------------


def _connect(project: str, database: str) -> Client:
    from google.cloud.firestore import Client

    return Client(project=project, database=database)


def _retries() -> tuple[Retry, Retry]:
    """For reads and for writes; both pause with jitter. A write is only repeated when it definitely did nothing."""
    from google.api_core import exceptions
    from google.api_core.retry import Retry, if_exception_type

    def retry(predicate: Callable[[Exception], bool], patience_s: float) -> Retry:
        return Retry(predicate, initial=FIRST_PAUSE_S, maximum=LONGEST_PAUSE_S, multiplier=2, timeout=patience_s)

    passing = if_exception_type(exceptions.Aborted, exceptions.ServiceUnavailable, exceptions.InternalServerError)
    return retry(passing, READ_PATIENCE_S), retry(if_exception_type(exceptions.Aborted), WRITE_PATIENCE_S)


@contextmanager
def _unconditional() -> Iterator[None]:
    """For calls without preconditions: a refusal can only mean that the database cannot be used."""
    from google.api_core import exceptions

    try:
        with _translated():
            yield
    except exceptions.ClientError as error:
        raise StoreUnavailable(f"Firestore refused: {error.message}") from error


@contextmanager
def _translated() -> Iterator[None]:
    """Lets a failed precondition through; whatever is neither that nor a wrong input is an unknown outcome."""
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError

    try:
        yield
    except (exceptions.AlreadyExists, exceptions.FailedPrecondition, exceptions.NotFound):
        raise
    except exceptions.InvalidArgument as error:
        raise InvalidInput(f"Firestore cannot hold this document: {error.message}") from error
    except (exceptions.GoogleAPIError, GoogleAuthError) as error:
        raise StoreUnavailable(f"Firestore did not answer: {error}") from error


# --- documents ---------------------------------------------------------------------------------------------------


def _target(write: Write) -> tuple[str, str]:
    named = write.doc if isinstance(write, Cas | Delete | Check) else write
    return named.collection, named.id


def _doc(found: DocumentSnapshot[Any]) -> Doc:
    stored = found.to_dict() or {}
    data, rev = _plain(stored.get("data", {})), stored.get("rev", 0)
    return Doc(found.reference.parent.id, found.id, data, rev, token=found.update_time)


def _plain(value: Any) -> Any:
    """Google's own datetime type becomes Python's."""
    match value:
        case datetime():
            at = value.astimezone(UTC)
            return datetime(at.year, at.month, at.day, at.hour, at.minute, at.second, at.microsecond, UTC)
        case list():
            return [_plain(item) for item in value]
        case dict():
            return {key: _plain(item) for key, item in value.items()}
    return value


def _checked(value: Any) -> Any:
    """The same value; raises `InvalidInput` for what Google's client would take but no other backend does."""
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
            return value.astimezone(UTC)
        case list():
            return [_checked(item) for item in value]
        case dict() if all(isinstance(key, str) and key and _is_text(key) for key in value):
            return {key: _checked(item) for key, item in value.items()}
    raise InvalidInput(f"a document cannot hold {value!r:.80}: JSON, aware datetimes and no list of lists")


def _is_text(text: str) -> bool:
    """False for half a surrogate pair, which JSON can name but no UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _filter(name: str, operator: str, value: Any) -> Any:
    from google.cloud.firestore_v1.base_query import FieldFilter

    if value is None and operator != "==":
        raise ValueError("a range needs a value: None is only compared with ==")
    return FieldFilter(field_path(name), operator, value)

"""What every store promises, told once and proven on each backend."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from common.adapters.firestore import FirestoreStore
from common.adapters.sqlite import SqliteStore
from common.errors import Exists, InvalidInput, Missing, Stale, StoreUnavailable
from common.ports import (
    Create,
    Delete,
    Doc,
    Store,
)
from tests.store_rig import NOON, ids, present

# --- one document ------------------------------------------------------------------------------------------------


def test_what_does_not_exist_is_none(store: Store) -> None:
    assert store.get("instances", "nobody.none") is None


def test_a_created_document_reads_back_as_it_was_written(store: Store) -> None:
    data = {
        "text": "Größe 日本 🙂 \"quoted\" '$' \n",
        "empty": "",
        "none": None,
        "yes": True,
        "no": False,
        "whole": -(2**62),
        "half": 0.5,
        "at": NOON.replace(microsecond=123456),
        "list": [1, "two", None, {"at": NOON}],
        "map": {"deep": {"deeper": {"at": NOON, "list": []}}, "nothing": {}},
        "$t": "not a time",
        "dotted.name": {"$t": "nor this", "$$t": 1},
    }

    made = store.create("instances", "a.1", data)

    read = present(store, "instances", "a.1")
    assert read == made == Doc("instances", "a.1", data, rev=1)


def test_an_empty_document_is_a_document(store: Store) -> None:
    store.create("instances", "a.1", {})

    assert present(store, "instances", "a.1").data == {}


def test_a_time_comes_back_in_utc_as_a_plain_datetime(store: Store) -> None:
    store.create("hosts", "a", {"at": NOON.astimezone(timezone(timedelta(hours=5)))})

    at = present(store, "hosts", "a").data["at"]
    assert (at, at.tzinfo, type(at)) == (NOON, UTC, datetime)


@pytest.mark.parametrize("id", ["日本.größe", "with space", "a.b-c_d~e", "x" * 1500, "🙂", "'; --", "%", "`"])
def test_an_id_may_be_any_text(store: Store, id: str) -> None:
    store.create("instances", id, {"n": 1})

    assert present(store, "instances", id).id == id


@pytest.mark.parametrize("id", ["", "a/b", ".", "..", "__x__", "x" * 1501, "\ud800"])
def test_a_reserved_id_is_refused(store: Store, id: str) -> None:
    with pytest.raises(InvalidInput):
        store.create("instances", id, {})
    with pytest.raises(InvalidInput):
        store.put("instances", id, {})
    with pytest.raises(InvalidInput):
        store.get("instances", id)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(NOON.replace(tzinfo=None), id="naive time"),
        pytest.param(Decimal("1.5"), id="decimal"),
        pytest.param(b"bytes", id="bytes"),
        pytest.param({1}, id="set"),
        pytest.param((1, 2), id="tuple"),
        pytest.param(float("nan"), id="not a number"),
        pytest.param(2**63, id="more than 64 bits"),
        pytest.param("\ud800", id="half a character"),
        pytest.param([[1]], id="list in a list"),
        pytest.param({"": 1}, id="field without a name"),
        pytest.param({"__x__": 1}, id="reserved field"),
        pytest.param({1: 1}, id="field that is no text"),
    ],
)
def test_what_a_document_cannot_hold_is_refused(store: Store, value: Any) -> None:
    with pytest.raises(InvalidInput):
        store.create("instances", "a.1", {"value": value})

    assert store.get("instances", "a.1") is None


@pytest.mark.parametrize("data", [{"blob": "x" * 1_100_000}, {f"f{n}": "x" * 1000 for n in range(1100)}])
def test_a_document_above_one_mebibyte_is_refused(store: Store, data: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        store.create("instances", "a.1", data)

    assert store.get("instances", "a.1") is None


def test_a_document_just_below_one_mebibyte_is_taken(store: Store) -> None:
    store.create("instances", "a.1", {f"f{n:04}": "x" * 1000 for n in range(1030)})

    assert len(present(store, "instances", "a.1").data) == 1030


def test_collections_are_apart(store: Store) -> None:
    store.create("instances", "a.1", {"in": "instances"})
    store.create("rentals", "a.1", {"in": "rentals"})

    store.delete(present(store, "instances", "a.1"))

    assert present(store, "rentals", "a.1").data == {"in": "rentals"}


def test_a_second_create_is_refused_and_changes_nothing(store: Store) -> None:
    store.create("instances", "a.1", {"n": 1})

    with pytest.raises(Exists):
        store.create("instances", "a.1", {"n": 2})

    assert present(store, "instances", "a.1").data == {"n": 1}


def test_cas_replaces_the_content_wholly(store: Store) -> None:
    made = store.create("instances", "a.1", {"old": 1, "map": {"a": 1, "b": 2}})

    written = store.cas(made, {"map": {"c": 3}})

    read = present(store, "instances", "a.1")
    assert read == written == Doc("instances", "a.1", {"map": {"c": 3}}, rev=2)


def test_what_cas_returns_can_be_written_again(store: Store) -> None:
    doc = store.create("instances", "a.1", {"n": 0})

    for n in range(1, 4):
        doc = store.cas(doc, {"n": n})

    assert (doc.rev, present(store, "instances", "a.1")) == (4, doc)


def test_cas_on_what_somebody_else_wrote_is_stale(store: Store) -> None:
    made = store.create("instances", "a.1", {"n": 0})
    store.cas(made, {"n": 1})

    with pytest.raises(Stale):
        store.cas(made, {"n": 2})

    assert present(store, "instances", "a.1").data == {"n": 1}


def test_writing_the_same_content_again_makes_older_reads_stale(store: Store) -> None:
    made = store.create("instances", "a.1", {"n": 0})

    again = store.cas(made, {"n": 0})

    assert again.rev == 2
    with pytest.raises(Stale):
        store.cas(made, {"n": 0})


def test_a_document_made_anew_is_not_its_former_self(store: Store) -> None:
    former = store.create("instances", "a.1", {"n": 0})
    store.delete(former)
    store.create("instances", "a.1", {"n": 0})

    for act in (lambda: store.cas(former, {"n": 1}), lambda: store.delete(former)):
        with pytest.raises(Stale):
            act()


def test_delete_removes_exactly_what_was_read(store: Store) -> None:
    made = store.create("instances", "a.1", {"n": 0})
    newer = store.cas(made, {"n": 1})

    with pytest.raises(Stale):
        store.delete(made)
    store.delete(newer)

    assert store.get("instances", "a.1") is None


def test_what_is_gone_is_missing_not_stale(store: Store) -> None:
    made = store.create("instances", "a.1", {"n": 0})
    store.delete(made)

    with pytest.raises(Missing):
        store.delete(made)
    with pytest.raises(Missing):
        store.cas(made, {"n": 1})


def test_put_replaces_blindly_and_makes_older_reads_stale(store: Store) -> None:
    store.put("hosts", "a", {"old": 1, "map": {"a": 1}})
    first = present(store, "hosts", "a")
    store.put("hosts", "a", {"map": {"b": 2}})
    store.put("hosts", "a", {"map": {"b": 2}})

    assert present(store, "hosts", "a") == Doc("hosts", "a", {"map": {"b": 2}}, rev=3)
    with pytest.raises(Stale):
        store.cas(first, {})


def test_increment_adds_and_creates_when_missing(store: Store) -> None:
    store.increment("hosts", "a", {"n": 2, "dotted.name": 1})
    store.increment("hosts", "a", {"n": 3, "m": -1})

    assert present(store, "hosts", "a") == Doc("hosts", "a", {"n": 5, "dotted.name": 1, "m": -1}, rev=2)


def test_an_increment_makes_older_reads_stale(store: Store) -> None:
    made = store.create("hosts", "a", {"n": 1, "other": "kept"})
    store.increment("hosts", "a", {"n": 0})

    with pytest.raises(Stale):
        store.cas(made, {})

    assert present(store, "hosts", "a").data == {"n": 1, "other": "kept"}


def test_append_draws_ids_that_do_not_follow_each_other(store: Store) -> None:
    made = [store.append("events", {"n": n}) for n in range(10)]

    assert len({doc.id for doc in made}) == 10
    assert sorted(ids(made)) != ids(made)
    assert [present(store, "events", doc.id) for doc in made] == made


# --- no answer ---------------------------------------------------------------------------------------------------


def all_calls_are_unavailable(store: Store) -> None:
    doc = Doc("instances", "a.1", {}, rev=1, token=NOON)
    calls: list[Callable[[], Any]] = [
        lambda: store.create("instances", "a.1", {}),
        lambda: store.cas(doc, {}),
        lambda: store.commit([Delete(doc), Create("events", "e", {})]),
        lambda: store.put("instances", "a.1", {}),
        lambda: store.increment("instances", "a.1", {"n": 1}),
        lambda: store.get("instances", "a.1"),
        lambda: store.query("instances", [("active", "==", True)]),
    ]
    with ThreadPoolExecutor(len(calls)) as threads:
        answers = [threads.submit(call) for call in calls]
    assert [type(answer.exception()) for answer in answers] == [StoreUnavailable] * len(calls)


@pytest.mark.firestore
def test_without_an_answer_firestore_is_unavailable(closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", f"127.0.0.1:{closed_port}")

    all_calls_are_unavailable(FirestoreStore("test-nobody-there"))


def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = SqliteStore(path)
    store.close()
    for leftover in tmp_path.iterdir():
        leftover.unlink()
    path.write_bytes(b"something else " * 1000)

    all_calls_are_unavailable(store)
    store.close()


def test_a_missing_directory_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        SqliteStore(tmp_path / "nowhere" / "store.db")


def test_a_locked_file_is_unavailable_for_writes_only(sqlite_store: SqliteStore, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreUnavailable):
        sqlite_store.create("instances", "a.1", {})

    assert sqlite_store.get("instances", "a.1") is None
    other.close()
    sqlite_store.create("instances", "a.1", {})

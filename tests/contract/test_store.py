"""What every store promises, told once and proven on each backend."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from common.adapters.firestore import FirestoreStore
from common.adapters.sqlite import SqliteStore
from common.errors import Exists, InvalidInput, Missing, QueryRefused, Stale, StoreError, StoreUnavailable
from common.ports import (
    MAX_QUERY_LIMIT,
    MAX_WRITES_PER_COMMIT,
    Cas,
    Check,
    Create,
    Delete,
    Doc,
    Increment,
    Store,
    Write,
    every,
)

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
MAX_ATTEMPTS = 500


def ids(docs: list[Doc]) -> list[str]:
    return [doc.id for doc in docs]


def present(store: Store, collection: str, id: str) -> Doc:
    doc = store.get(collection, id)
    assert doc is not None
    return doc


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


# --- races -------------------------------------------------------------------------------------------------------


def test_of_twenty_creates_exactly_one_wins(store: Store) -> None:
    def create(n: int) -> bool:
        try:
            store.create("instances", "a.1", {"winner": n})
        except Exists:
            return False
        return True

    with ThreadPoolExecutor(20) as threads:
        won = list(threads.map(create, range(20)))

    assert won.count(True) == 1
    assert present(store, "instances", "a.1").data == {"winner": won.index(True)}


def test_four_hundred_guarded_writes_by_eight_writers_all_arrive(store: Store) -> None:
    store.create("instances", "a.1", {"n": 0})

    def add_one() -> None:
        for attempt in range(MAX_ATTEMPTS):
            doc = present(store, "instances", "a.1")
            try:
                store.cas(doc, {"n": doc.data["n"] + 1})
            except Stale:
                time.sleep(random.uniform(0, min(0.1, 0.002 * 2**attempt)))
            else:
                return
        raise AssertionError("never got through")

    def work(_: int) -> None:
        for _ in range(50):
            add_one()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))

    assert present(store, "instances", "a.1") == Doc("instances", "a.1", {"n": 400}, rev=401)


def test_increments_of_many_writers_all_arrive(store: Store) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: store.increment("hosts", "a", {"n": 1}), range(80)))

    assert present(store, "hosts", "a").data == {"n": 80}


# --- commits -----------------------------------------------------------------------------------------------------


def test_a_commit_writes_everything(store: Store) -> None:
    kept, changed, deleted, counted = (store.create("rentals", name, {"n": 1}) for name in ("a", "b", "c", "d"))

    store.commit(
        [
            Check(kept),
            Cas(changed, {"n": 2}),
            Delete(deleted),
            Increment("rentals", counted.id, {"n": 5, "m": 1}),
            Create("events", "e", {"at": NOON}),
        ]
    )

    assert present(store, "rentals", "a") == kept
    assert present(store, "rentals", "b") == Doc("rentals", "b", {"n": 2}, rev=2)
    assert store.get("rentals", "c") is None
    assert present(store, "rentals", "d") == Doc("rentals", "d", {"n": 6, "m": 1}, rev=2)
    assert present(store, "events", "e").data == {"at": NOON}


def test_a_check_leaves_the_document_as_it_was(store: Store) -> None:
    made = store.create("rentals", "a", {"n": 1})

    store.commit([Check(made)])

    assert store.cas(made, {"n": 2}).rev == 2


@pytest.mark.parametrize(
    ("refused", "error"),
    [
        (lambda stale, gone: Create(stale.collection, stale.id, {}), Exists),
        (lambda stale, gone: Cas(stale, {"n": 9}), Stale),
        (lambda stale, gone: Cas(gone, {"n": 9}), Missing),
        (lambda stale, gone: Delete(stale), Stale),
        (lambda stale, gone: Delete(gone), Missing),
        (lambda stale, gone: Check(stale), Stale),
        (lambda stale, gone: Check(gone), Missing),
        (lambda stale, gone: Increment(gone.collection, gone.id, {"n": 1}), Missing),
    ],
    ids=["create", "cas", "cas-gone", "delete", "delete-gone", "check", "check-gone", "increment-gone"],
)
@pytest.mark.parametrize("place", [0, 2], ids=["first", "last"])
def test_one_refused_write_refuses_the_whole_commit(
    store: Store, refused: Callable[[Doc, Doc], Write], error: type[StoreError], place: int
) -> None:
    stale, gone, other = (store.create("rentals", name, {"n": 1}) for name in ("stale", "gone", "other"))
    store.cas(stale, {"n": 2})
    store.delete(gone)
    writes: list[Write] = [Create("events", "e", {}), Cas(other, {"n": 3})]
    writes.insert(place, refused(stale, gone))

    with pytest.raises(error):
        store.commit(writes)

    assert store.get("events", "e") is None
    assert store.get("rentals", "gone") is None
    assert present(store, "rentals", "stale") == Doc("rentals", "stale", {"n": 2}, rev=2)
    assert present(store, "rentals", "other") == other


def test_a_commit_has_a_bound_and_one_write_per_document(store: Store) -> None:
    full: list[Write] = [Create("events", f"e{n}", {}) for n in range(MAX_WRITES_PER_COMMIT)]
    store.commit([])
    store.commit(full)

    with pytest.raises(ValueError, match="at most 100"):
        store.commit([*full, Create("events", "more", {})])
    with pytest.raises(ValueError, match="one per document"):
        store.commit([Create("events", "x", {}), Increment("events", "x", {"n": 1})])


# --- queries -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("collection", "where", "order_by"),
    [
        ("instances", [], None),
        ("instances", [("name", "==", "x")], None),
        ("instances", [("account", "==", "a"), ("active", "==", True)], None),
        ("hosts", [("idle_since", "<=", NOON), ("seen_at", "<=", NOON)], None),
        ("hosts", [("idle_since", "<=", NOON)], "seen_at"),
        ("snapshots", [("instance_key", "==", "a")], None),
        ("unheard_of", [], None),
    ],
)
def test_a_query_without_its_index_is_refused(store: Store, collection: str, where: Any, order_by: str | None) -> None:
    with pytest.raises(QueryRefused):
        store.query(collection, where, order_by=order_by)


@pytest.mark.parametrize("limit", [0, -1, MAX_QUERY_LIMIT + 1])
def test_a_query_has_a_bound(store: Store, limit: int) -> None:
    with pytest.raises(ValueError, match="limit"):
        store.query("instances", [("active", "==", True)], limit=limit)


def test_equality_is_exact_in_value_and_type(store: Store) -> None:
    values = {"true": True, "one": 1, "text": "true", "none": None, "time": NOON, "quote": "a'b\"c"}
    for id, value in values.items():
        store.create("instances", id, {"active": value})
    store.create("instances", "lacks", {"other": True})

    for id, value in values.items():
        assert ids(store.query("instances", [("active", "==", value)])) == [id]
    assert store.query("instances", [("active", "==", False)]) == []


def test_two_equalities_must_both_hold(store: Store) -> None:
    for id, key, settled in (("a", "i1", True), ("b", "i1", False), ("c", "i2", True)):
        store.create("rentals", id, {"instance_key": key, "settled": settled})

    assert ids(store.query("rentals", [("settled", "==", True), ("instance_key", "==", "i1")])) == ["a"]


def test_without_an_order_the_id_orders_by_its_bytes(store: Store) -> None:
    names = ["b", "a", "B", "ä", "10", "9", "a.b", "日"]
    for name in names:
        store.create("instances", name, {"account": "x"})

    found = store.query("instances", [("account", "==", "x")])

    assert ids(found) == sorted(names, key=str.encode)
    assert found[0] == present(store, "instances", found[0].id)


def test_times_are_ordered_as_times_then_by_id(store: Store) -> None:
    east = timezone(timedelta(hours=9))
    times = {
        "d": NOON,
        "b": NOON,
        "c": NOON.astimezone(east),
        "early": (NOON - timedelta(microseconds=1)).astimezone(east),
        "a": NOON + timedelta(microseconds=500_000),
    }
    for id, at in times.items():
        store.create("events", id, {"instance_key": "i", "at": at})
    store.create("events", "other", {"instance_key": "j", "at": NOON})

    found = store.query("events", [("instance_key", "==", "i")], order_by="at", newest_first=True)

    assert ids(found) == ["a", "d", "c", "b", "early"]


def test_ranges_on_times_keep_their_borders(store: Store) -> None:
    for minute in range(5):
        store.create("hosts", f"h{minute}", {"idle_since": NOON + timedelta(minutes=minute)})
    second, fourth = NOON + timedelta(minutes=1), NOON + timedelta(minutes=3)

    def between(*where: Any) -> list[str]:
        return ids(store.query("hosts", [("idle_since", *condition) for condition in where]))

    assert between(("<", second)) == ["h0"]
    assert between(("<=", second)) == ["h0", "h1"]
    assert between((">", fourth)) == ["h4"]
    assert between((">=", second), ("<", fourth)) == ["h1", "h2"]


def test_a_document_without_the_ordered_field_is_not_found_and_none_comes_first(store: Store) -> None:
    store.create("hosts", "idle", {"idle_since": NOON})
    store.create("hosts", "busy", {"idle_since": None})
    store.create("hosts", "lacks", {"seen_at": NOON})

    assert ids(store.query("hosts", order_by="idle_since")) == ["busy", "idle"]
    assert ids(store.query("hosts", [("idle_since", "<=", NOON)])) == ["idle"]
    assert ids(store.query("hosts", [("idle_since", ">=", NOON)])) == ["idle"]
    with pytest.raises(ValueError, match="None"):
        store.query("hosts", [("idle_since", "<=", None)])


def test_pages_neither_repeat_nor_lose_ties(store: Store) -> None:
    for n in range(11):
        store.create("hosts", f"h{n:02}", {"idle_since": None if n < 2 else NOON + timedelta(minutes=n // 4)})

    pages, last = [], None
    while page := store.query("hosts", order_by="idle_since", limit=3, start_after=last):
        pages.append(ids(page))
        last = page[-1].id

    assert [len(page) for page in pages] == [3, 3, 3, 2]
    assert [id for page in pages for id in page] == [f"h{n:02}" for n in range(11)]


def test_pages_from_the_newest_back_neither_repeat_nor_lose_ties(store: Store) -> None:
    for n in range(8):
        store.create("events", f"e{n}", {"instance_key": "i", "at": NOON + timedelta(minutes=n // 3)})
    where = [("instance_key", "==", "i")]

    pages, last = [], None
    while page := store.query("events", where, order_by="at", newest_first=True, limit=3, start_after=last):
        pages.append(ids(page))
        last = page[-1].id

    assert [id for page in pages for id in page] == [f"e{n}" for n in reversed(range(8))]


def test_every_reads_all_pages(store: Store) -> None:
    total = MAX_QUERY_LIMIT + 3
    for start in range(0, total, 100):
        creates = [Create("rentals", f"r{n:04}", {"settled": False}) for n in range(start, min(start + 100, total))]
        store.commit(creates)

    found = [doc.id for doc in every(store, "rentals", [("settled", "==", False)])]

    assert found == [f"r{n:04}" for n in range(total)]


def test_pages_by_id_go_on_even_after_a_deleted_document(store: Store) -> None:
    for n in range(4):
        store.create("instances", f"a{n}", {"account": "x"})
    store.delete(present(store, "instances", "a1"))

    assert ids(store.query("instances", [("account", "==", "x")], start_after="a1", limit=1)) == ["a2"]


def test_a_page_after_a_vanished_document_is_missing_not_empty(store: Store) -> None:
    store.create("hosts", "h", {"idle_since": NOON})

    with pytest.raises(Missing):
        store.query("hosts", order_by="idle_since", start_after="vanished")


def test_expiry_is_judged_by_the_callers_clock(store: Store) -> None:
    """A backend may keep expired documents for days: whoever reads compares `expires_at` with `now`."""
    for id, expires_at in (("old", NOON - timedelta(days=400)), ("due", NOON), ("valid", NOON + timedelta(seconds=1))):
        store.create("hosts", id, {"expires_at": expires_at, "idle_since": NOON})

    found = store.query("hosts", [("idle_since", "<=", NOON)])

    assert ids(found) == ["due", "old", "valid"]
    assert [doc.id for doc in found if doc.data["expires_at"] > NOON] == ["valid"]


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

"""What every store finds, in which order, and which queries it refuses."""

from __future__ import annotations

from datetime import timedelta, timezone
from typing import Any

import pytest

from common.errors import Missing, QueryRefused
from common.ports import (
    MAX_QUERY_LIMIT,
    Create,
    Store,
    every,
)
from tests.store_rig import NOON, ids, present


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

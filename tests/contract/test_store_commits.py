"""Several writers, and several writes at once, on each backend of the store."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from common.errors import Exists, Missing, Stale, StoreError
from common.ports import (
    MAX_WRITES_PER_COMMIT,
    Cas,
    Check,
    Create,
    Delete,
    Doc,
    Increment,
    Store,
    Write,
)
from tests.store_rig import NOON, present

MAX_ATTEMPTS = 500


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

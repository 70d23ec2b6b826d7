"""What the file itself must stand: a killed writer, several processes, thousands of documents."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from common.adapters.sqlite import SqliteStore
from common.ports import INDEXES, Cas, Create, Index, Where, Write

ROOT = Path(__file__).parents[3]
NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
CHILD_TIMEOUT_S = 60

ENDLESS_WRITER = """
import sys
from common.adapters.sqlite import SqliteStore
from common.ports import Create

store = SqliteStore(sys.argv[1])
for n in range(1_000_000):
    store.commit([Create("left", str(n), {"n": n}), Create("right", str(n), {"n": n})])
    print(n, flush=True)
"""

COUNTING_WRITER = """
import sys
from common.adapters.sqlite import SqliteStore
from common.errors import Stale

store = SqliteStore(sys.argv[1])
for _ in range(100):
    store.increment("counters", "blind", {"n": 1})
    while True:
        doc = store.get("counters", "guarded")
        try:
            store.cas(doc, {"n": doc.data["n"] + 1})
            break
        except Stale:
            continue
"""


def start(script: str, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_killed_writer_loses_no_commit_it_reported(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    for _ in range(3):
        path.unlink(missing_ok=True)
        with start(ENDLESS_WRITER, path) as writer:
            assert writer.stdout
            first = [int(writer.stdout.readline()) for _ in range(50)]
            writer.kill()
            reported = first + [int(line) for line in writer.stdout.read().split("\n")[:-1]]

        store = SqliteStore(path)
        kept = [store.get(side, str(n)) for n in reported for side in ("left", "right")]
        after = [store.get(side, str(reported[-1] + 1)) for side in ("left", "right")]
        store.close()

        assert all(kept)
        assert after[0] is None or after[1] is not None
        for leftover in tmp_path.glob("store.db-*"):
            leftover.unlink()


def test_processes_share_the_file(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = SqliteStore(path)
    store.create("counters", "guarded", {"n": 0})

    writers = [start(COUNTING_WRITER, path) for _ in range(3)]
    codes = [writer.wait(CHILD_TIMEOUT_S) for writer in writers]
    for writer in writers:
        assert writer.stdout
        writer.stdout.close()

    counts = [store.get("counters", id) for id in ("blind", "guarded")]
    store.close()
    assert codes == [0, 0, 0]
    assert [doc.data if doc else None for doc in counts] == [{"n": 300}, {"n": 300}]


def test_processes_may_create_the_file_at_the_same_time(tmp_path: Path) -> None:
    script = "import sys; from common.adapters.sqlite import SqliteStore; SqliteStore(sys.argv[1]).put('a', 'b', {})"
    openers = [start(script, tmp_path / "store.db") for _ in range(8)]

    codes = []
    for opener in openers:
        with opener:
            codes.append(opener.wait(CHILD_TIMEOUT_S))

    assert codes == [0] * 8


def test_a_store_opened_again_has_what_was_written(tmp_path: Path) -> None:
    first = SqliteStore(tmp_path / "store.db")
    made = first.create("instances", "a.1", {"at": NOON})
    first.close()

    second = SqliteStore(tmp_path / "store.db")
    again = second.cas(made, {"at": None})
    second.close()

    assert again.rev == 2


@pytest.mark.parametrize(
    "index", INDEXES, ids=lambda index: "-".join((index.collection, *index.equal, index.order or "id"))
)
def test_every_permitted_query_is_answered_from_an_index(tmp_path: Path, index: Index) -> None:
    """The plan is asked of SQLite itself: no scan of the table and no sorting."""
    store = SqliteStore(tmp_path / "store.db")
    statements: list[str] = []
    with store._connection() as db:
        db.set_trace_callback(statements.append)
    where = [(name, "==", "x") for name in index.equal]
    store.query(index.collection, where, order_by=index.order, newest_first=index.newest_first)
    plan = _plan(tmp_path / "store.db", statements[-1])
    store.close()

    assert re.search(rf"USING INDEX by_{index.collection}_", plan), plan
    assert "TEMP B-TREE" not in plan


def _plan(path: Path, sql: str) -> str:
    db = sqlite3.connect(path)
    rows = db.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall()
    db.close()
    return "; ".join(row[3] for row in rows)


def test_thousands_of_documents_are_paged_through_in_order(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    for start_n in range(0, 3000, 100):
        numbers = range(start_n, start_n + 100)
        writes: list[Write] = [
            Create("events", f"e{n:04}", {"instance_key": f"i{n % 2}", "at": NOON - timedelta(seconds=n)})
            for n in numbers
        ]
        store.commit(writes)

    found, last = [], None
    where: list[Where] = [("instance_key", "==", "i1")]
    while page := store.query("events", where, order_by="at", newest_first=True, start_after=last):
        found += page
        last = page[-1].id
    store.commit([Cas(found[0], {"at": NOON})])
    store.close()

    assert [doc.id for doc in found] == [f"e{n:04}" for n in range(1, 3000, 2)]

"""Worker processes: what they raise and how they end reaches the engine, and none outlives it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from common.errors import SnapshotDamaged, SnapshotError
from common.snapshots.scan import scan
from common.snapshots.workers import Crew, Pipe, apart, crew, telling, worth


def answers(pipe: Pipe) -> None:
    """Ends at once when it is told to, while others still work."""
    while (message := pipe.recv()) != "end":
        match message:
            case "damage":
                raise SnapshotDamaged("a chunk is bad", "c" * 64)
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "trip":
                raise KeyError("a bug")
            case _:
                pipe.send(message)


def hear(workers: Crew) -> list[tuple[int, object]]:
    reader, writer = os.pipe()
    try:
        return list(workers.messages(reader, 5.0))
    finally:
        os.close(reader)
        os.close(writer)


def test_a_worker_that_is_done_first_disturbs_nobody() -> None:
    with crew(2, answers) as workers:
        workers.send(0, "end")
        for number in range(20):
            workers.send(1, number)
            assert hear(workers) == [(1, number)]


@pytest.mark.parametrize(
    ("message", "raised"), [("damage", SnapshotDamaged), ("die", SnapshotError), ("trip", SnapshotError)]
)
def test_what_goes_wrong_in_a_worker_is_raised_in_the_engine(message: str, raised: type[SnapshotError]) -> None:
    with crew(1, answers) as workers:
        workers.send(0, message)

        with pytest.raises(raised) as failure:
            hear(workers)

    if isinstance(failure.value, SnapshotDamaged):
        assert (failure.value.chunk, str(failure.value)) == ("c" * 64, "a chunk is bad")


def test_silence_has_an_end() -> None:
    reader, writer = os.pipe()
    with crew(1, answers) as workers, pytest.raises(SnapshotError):
        list(workers.messages(reader, 0.01))
    os.close(reader)
    os.close(writer)


def test_work_apart_gives_or_raises_what_came_of_it() -> None:
    with apart(lambda: ("done", b"x" * (1 << 20))) as result:
        assert result() == ("done", b"x" * (1 << 20))
    with apart(lambda: 1 // 0) as result, pytest.raises((SnapshotError, ZeroDivisionError)):
        result()
    with apart(lambda: scan(b"/nowhere")) as result, pytest.raises(SnapshotError, match="no directory"):
        result()


def test_each_thing_that_is_told_is_had_when_it_is_there() -> None:
    reader, writer = os.pipe()

    def work() -> Iterator[object]:
        yield "begun"
        os.read(reader, 1)
        yield 1 // 0

    with telling(work) as told:
        assert next(told) == "begun"  # nothing waits for the rest
        os.write(writer, b"x")
        with pytest.raises((SnapshotError, ZeroDivisionError)):
            next(told)
    os.close(reader)
    os.close(writer)


def test_small_work_pays_for_one_worker_and_none_for_none() -> None:
    assert (worth(0, 0), worth(1, 1)) == (0, 1)
    assert 1 <= worth(10 << 30, 10) <= 4

"""The book of changes: each path once, numbers that say what has been sent, and nothing forgotten in a move."""

from __future__ import annotations

import random

from common.host.livesync.book import OPEN_MOST_S, OPEN_QUIET_S, Book, Change


def sent(book: Book, now_s: float) -> list[Change]:
    """Everything that is ready, put into the stream."""
    found = []
    while change := book.next_ready(now_s):
        found.append(change)
        book.release(change.seq)
    return found


def test_ten_saves_of_a_path_are_one_change_with_the_first_ones_number() -> None:
    book = Book(100)
    for second in range(10):
        book.touch(b"a", float(second))

    [change] = sent(book, 10.0)

    assert (change.path, change.seq, change.since_s) == (b"a", 101, 0.0)
    assert book.floor == book.seq == 101


def test_the_floor_is_below_everything_that_is_not_in_the_stream() -> None:
    book = Book(0)
    for name in (b"a", b"b", b"c"):
        book.touch(name, 0.0)
    first = book.next_ready(0.0)
    assert first and book.floor == 0
    assert [change.path for change in sent(book, 0.0)] == [b"b", b"c"]
    assert book.floor == 0

    book.release(first.seq)

    assert book.floor == 3


def test_a_file_that_somebody_writes_waits_until_it_is_left_alone_but_not_for_ever() -> None:
    book = Book(0)
    book.touch(b"log", 0.0, is_closed=False)
    assert sent(book, OPEN_QUIET_S / 2) == []
    assert len(sent(book, OPEN_QUIET_S)) == 1

    at_s = 10.0
    while not sent(book, at_s):
        book.touch(b"busy", at_s, is_closed=False)
        at_s += OPEN_QUIET_S / 2
    assert at_s <= 10.0 + OPEN_MOST_S + OPEN_QUIET_S


def test_a_barrier_hurries_what_would_wait() -> None:
    book = Book(0)
    book.touch(b"log", 0.0, is_closed=False)
    book.hurry(0.0)

    [change] = sent(book, 0.0)

    assert change.is_closed


def test_open_changes_move_with_their_directory_and_keep_the_older_number() -> None:
    book = Book(0)
    book.touch(b"new/f", 0.0)
    book.touch(b"old/f", 0.0)
    book.touch(b"older", 0.0)

    assert not book.move(b"old", b"new", 1.0)
    assert book.move(b"older", b"newer", 1.0)

    assert {change.path: change.seq for change in sent(book, 1.0)} == {b"new/f": 1, b"newer": 3}
    assert book.floor == book.seq


def test_what_was_not_sent_after_all_becomes_part_of_what_happened_since() -> None:
    book = Book(0)
    book.touch(b"a", 0.0)
    change = book.next_ready(0.0)
    assert change
    book.touch(b"a", 5.0, has_content=False)
    book.put_back(change, 9.0)

    [merged] = sent(book, 9.0)

    assert (merged.seq, merged.since_s, merged.has_content) == (1, 0.0, True)
    assert book.floor == 2


def test_what_was_found_equal_is_not_equal_any_more_when_its_content_changes() -> None:
    book = Book(0)
    change = book.touch(b"a", 0.0)
    change.proof = (1, 2, 3)

    assert book.touch(b"a", 1.0, has_content=False).proof
    assert not book.touch(b"a", 2.0).proof


def test_after_giving_up_one_number_stands_for_all_that_was_open() -> None:
    book = Book(0)
    for name in (b"a", b"b"):
        book.touch(name, 0.0)

    first = book.give_up()

    assert (first, book.floor, sent(book, 1.0)) == (1, 0, [])
    book.release(first)
    assert book.floor == 2


def test_the_floor_never_passes_an_open_change_whatever_happens() -> None:
    chance, book, taken = random.Random(1), Book(0), list[Change]()
    for step in range(20_000):
        path = b"%d/%d" % (chance.randrange(4), chance.randrange(6))
        match chance.randrange(6):
            case 0 | 1:
                book.touch(path, float(step), is_closed=chance.random() < 0.7)
            case 2:
                book.move(path[:1], b"%d" % chance.randrange(4), float(step))
            case 3 if change := book.next_ready(float(step)):
                taken.append(change)
            case 4 if taken:
                book.release(taken.pop(chance.randrange(len(taken))).seq)
            case 5 if taken:
                book.put_back(taken.pop(), float(step))
        open_seqs = [change.seq for change in (*book.changes.values(), *taken)]
        assert book.floor == (min(open_seqs) - 1 if open_seqs else book.seq)

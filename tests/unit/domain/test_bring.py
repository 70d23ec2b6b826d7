"""What is brought beside the workspace's files: conflicts first, one after the other, and each try has its own id."""

from __future__ import annotations

import pytest

from common.domain.bring import (
    BRING_TRIES,
    PATHS_BYTES_MAX,
    bring_order,
    brought,
    folder_of,
    names_of,
    noted,
    waiting,
    waiting_for,
)
from common.domain.conflict import name_of
from common.domain.host import HostPhase, OrderResult
from common.domain.instance import Conflict, Copy, Instance, Phase, Want
from common.domain.orders import is_settled
from tests.serving import RUNNING, host

OF_GPU = Conflict(epoch=7, name=name_of(7, of_standby=False), manifest_key="gpu's", files=1)
OF_STANDBY = Conflict(epoch=7, name=name_of(7, of_standby=True), manifest_key="standby's", files=2)
COPY = Copy(id="abc", snapshot="1-3", manifest_key="older", paths=("notes.txt",))
SAME_AGAIN = Copy(id="def", snapshot="1-3", manifest_key="older")
INSTANCE = RUNNING.having(snapshot_attempt=4, conflicts=(OF_GPU, OF_STANDBY))
OLDER = INSTANCE.having(conflicts=(), copies=(COPY, SAME_AGAIN))


def ended(instance: Instance, *, ok: bool) -> Instance:
    """The order that stands was carried out like that, and the record knows it."""
    order = bring_order(instance)
    assert order is not None
    found = brought(instance, host(OrderResult(id=order.id, ok=ok, error=None if ok else "disk_full")))
    assert found is not None
    return noted(instance, *found)


def test_a_gpu_and_its_standby_that_both_had_something_of_one_epoch_are_two_folders_and_two_orders() -> None:
    first = bring_order(INSTANCE)
    assert first is not None
    done = OrderResult(id=first.id, ok=True)
    assert brought(INSTANCE, host(done)) == (OF_GPU, done)

    later = ended(INSTANCE, ok=True)

    assert [each.brought for each in later.conflicts] == [4, None]
    assert brought(later, host(done)) is None, "what was brought first is not taken for the other one"
    second = bring_order(later)
    assert second is not None
    assert second.id != first.id
    assert (first.args["into"], second.args["into"]) == ("conflicts/7", "conflicts/7-standby")
    assert folder_of(OF_STANDBY) == second.args["into"]


def test_what_fails_is_tried_again_under_another_id_and_given_up_after_the_last_try() -> None:
    instance, ids = INSTANCE, set()
    for _ in range(BRING_TRIES):
        order = bring_order(instance)
        assert order is not None
        ids.add(order.id)
        instance = ended(instance, ok=False)

    assert len(ids) == BRING_TRIES
    assert [each.has_failed for each in instance.conflicts] == [True, False]
    assert waiting(instance) == (OF_STANDBY,)
    anew = instance.having(conflicts=instance.conflicts_anew)
    assert waiting(anew) == (OF_GPU, OF_STANDBY), "another machine tries it from the beginning"


def test_conflicts_come_first_and_then_copies_in_the_order_in_which_they_were_asked_for() -> None:
    instance, folders = INSTANCE.having(copies=(COPY, SAME_AGAIN)), []
    while order := bring_order(instance):
        folders.append((order.args["into"], order.args.get("paths")))
        instance = ended(instance, ok=True)

    assert folders == [
        ("conflicts/7", None),
        ("conflicts/7-standby", None),
        ("restored/1-3", ["notes.txt"]),
        ("restored/1-3", None),
    ]
    assert instance.copies == ()


def test_a_copy_that_comes_to_an_end_leaves_and_the_other_of_that_snapshot_is_not_taken_for_it() -> None:
    order = bring_order(OLDER)
    assert order is not None

    left = ended(OLDER, ok=True)

    assert left.copies == (SAME_AGAIN,)
    assert brought(left, host(OrderResult(id=order.id, ok=True))) is None


def test_a_copy_that_cannot_be_brought_leaves_after_its_last_try() -> None:
    instance = OLDER
    for tries in range(1, BRING_TRIES):
        instance = ended(instance, ok=False)
        assert instance.copies[0] == COPY.model_copy(update={"tries": tries})

    assert ended(instance, ok=False).copies == (SAME_AGAIN,)


def test_a_copy_waits_where_no_gpu_runs_and_a_conflict_that_came_meanwhile_does_not_hide_it() -> None:
    assert bring_order(OLDER.having(phase=Phase.STANDBY)) is None
    assert bring_order(OLDER.having(phase=Phase.DOWN)) is None
    order = bring_order(OLDER)
    assert order is not None
    overtaken = OLDER.having(conflicts=(OF_GPU,))

    found = brought(overtaken, host(OrderResult(id=order.id, ok=True)))

    assert found is not None
    assert found[0] == COPY


def test_a_host_that_something_waits_for_is_not_settled() -> None:
    idle = INSTANCE.having(conflicts=(), want=Want.UP)

    assert is_settled(idle, "w", HostPhase.SERVING)
    assert not is_settled(idle.having(copies=(COPY,)), "w", HostPhase.SERVING)
    assert not is_settled(INSTANCE, "w", HostPhase.SERVING)


def test_the_same_wish_is_known_by_its_snapshot_and_its_names() -> None:
    assert waiting_for(OLDER, "1-3", ("notes.txt",)) == COPY
    assert waiting_for(OLDER, "1-3", ()) == SAME_AGAIN
    assert waiting_for(OLDER, "1-3", ("other.txt",)) is None
    assert waiting_for(OLDER, "1-4", ()) is None


def test_a_record_of_before_has_no_copies() -> None:
    old = INSTANCE.model_dump()
    del old["copies"]
    for conflict in old["conflicts"]:
        del conflict["tries"]

    assert Instance.model_validate(old) == INSTANCE


def test_names_are_kept_once_in_order_without_what_a_shell_adds() -> None:
    assert names_of(["data/", "./a.txt", "data", "b//c"]) == ("a.txt", "b/c", "data")
    assert names_of([]) == ()
    assert names_of(["...", "a..b/.c"]) == ("...", "a..b/.c")


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "names nothing"),
        (".", "names nothing"),
        ("/etc/passwd", "absolute"),
        ("a/../b", "no name within"),
        ("..", "no name within"),
        ("a\0b", "no name within"),
        ("ä" * 2049, "longer than 4096 bytes"),
        ("\ud800", "surrogates"),
    ],
)
def test_what_is_no_name_within_a_workspace_is_refused(path: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        names_of(["fine.txt", path])


def test_many_long_names_are_refused_together() -> None:
    fits = [f"{number:04}".ljust(4096, "x") for number in range(PATHS_BYTES_MAX // 4096)]

    assert len(names_of(fits)) == 16
    with pytest.raises(ValueError, match="together"):
        names_of([*fits, "y"])

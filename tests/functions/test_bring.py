"""`dumont snapshots restore`: files of an older snapshot, beside what is there; asked of a real engine's children."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from common.cli import fleet, session
from common.cli import snapshots as cli
from common.domain.account import Role
from common.domain.bring import BRING_TRIES, COPIES_MAX
from common.domain.instance import Copy, Phase, State
from common.domain.snapshot import SnapshotRecord
from common.errors import StoreError
from common.records import read
from common.views import instances as view
from common.views import snapshots as kept
from common.workflows import prune
from tests.functions.conftest import Api, key_for
from tests.functions.test_cli import signed_in
from tests.functions.test_drill import rot
from tests.functions.test_rest import problem
from tests.functions.test_snapshots import with_two_snapshots
from tests.functions.test_story_by_hand import ask, running, write
from tests.hand_cranked import ACCOUNT, World
from tests.snapshots_fixtures import tree

__all__ = ["signed_in"]
run = CliRunner()


def asked(world: World, id: str, snapshot: str, *paths: str) -> dict[str, Any]:
    """Its operation."""
    words = ["restore", id, snapshot, *paths, "--no-wait", "--json"]
    result = run.invoke(cli.snapshots, words)
    assert result.exit_code == session.OK, result.output
    operation: dict[str, Any] = json.loads(result.stdout)["operation"]
    assert operation["kind"] == "copy"
    return operation


def member(world: World) -> Api:
    return Api(world, key_for(world, ACCOUNT, Role.MEMBER))


def operation(world: World, id: str) -> view.OperationOut:
    return view.operation(world.app, ACCOUNT, id)


def story(world: World, id: str, kind: str) -> list[str]:
    return [row.text for row in view.events(world.app, ACCOUNT, id) if row.kind == kind]


def copies(world: World, id: str) -> tuple[Copy, ...]:
    return world.record(id).copies


def snapshots_of(world: World, id: str) -> list[str]:
    return [row.id for row in kept.listed(world.app, ACCOUNT, id)]


def hibernated(world: World, count: int, files: int = 0) -> tuple[str, list[str]]:
    """An instance that sleeps, and its snapshots, the oldest first; notes.txt says which is which."""
    id = running(world, snapshot_every_s=5)
    for number in range(files):
        (world.workspace(id) / f"{number}.txt").write_text(f"{number}\n")
    for number in range(count):
        write(world, id, f"number {number}\n")
        if number < count - 1:
            world.until(lambda number=number: len(snapshots_of(world, id)) > number, within_s=3600)
    ask(world, id, "hibernate")
    world.until(lambda: world.show(id).state is State.HIBERNATED)
    return id, snapshots_of(world, id)[::-1]


def woken(world: World, id: str) -> None:
    ask(world, id, "wake")
    world.until(lambda: world.show(id).state is State.RUNNING)


def test_older_files_come_beside_what_is_there_and_nothing_else_changes(signed_in: World) -> None:
    id, older, _ = with_two_snapshots(signed_in)
    before, pointer = tree(signed_in.workspace(id)), signed_in.record(id).pointer

    wish = asked(signed_in, id, older)
    way = f"on its way, into restored/{older} of the workspace: everything of snapshot {older}"
    assert (wish["status"], wish["detail"]) == ("running", way)
    folder = signed_in.workspace(id) / "restored" / older
    signed_in.until(lambda: copies(signed_in, id) == ())

    assert (folder / "notes.txt").read_text() == "first\n"
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt"]
    now = tree(signed_in.workspace(id))
    assert {name: now[name] for name in now if not name.startswith(b"restored")} | {b"": before[b""]} == before
    assert signed_in.record(id).pointer == pointer
    said = f"restored/{older} of the workspace has everything of snapshot {older}"
    assert story(signed_in, id, "copied") == [said]
    done = operation(signed_in, wish["id"])
    assert (done.status, done.progress, done.detail) == ("succeeded", 1.0, said)


def test_named_files_come_alone_with_what_lies_below_them_and_hard_links_with_their_content(signed_in: World) -> None:
    id = running(signed_in)
    root = signed_in.workspace(id)
    (root / "runs" / "7").mkdir(parents=True)
    (root / "runs" / "7" / "model.bin").write_bytes(os.urandom(100_000))
    (root / "runs" / "8").mkdir()
    (root / "runs" / "8" / "model.bin").write_bytes(os.urandom(100_000))
    (root / "a first name").write_text("of two\n")
    os.link(root / "a first name", root / "runs" / "second name")
    write(signed_in, id)
    signed_in.until(lambda: snapshots_of(signed_in, id), within_s=3600)
    (name,) = snapshots_of(signed_in, id)
    model = (root / "runs" / "7" / "model.bin").read_bytes()

    asked(signed_in, id, name, "runs/7/", "runs/second name")
    signed_in.until(lambda: copies(signed_in, id) == ())

    folder = root / "restored" / name
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    assert found == ["runs", "runs/7", "runs/7/model.bin", "runs/second name"]
    assert (folder / "runs" / "7" / "model.bin").read_bytes() == model
    assert (folder / "runs" / "second name").read_text() == "of two\n"
    assert story(signed_in, id, "copied") == [f"restored/{name} of the workspace has 2 names of snapshot {name}"]


def test_the_same_wish_is_one_and_another_of_that_snapshot_adds_to_its_folder(signed_in: World) -> None:
    id, _, newer = with_two_snapshots(signed_in)
    folder = signed_in.workspace(id) / "restored" / newer

    first, again = (asked(signed_in, id, newer, "notes.txt")["id"] for _ in range(2))
    other = asked(signed_in, id, newer, "new.txt")["id"]
    assert first == again != other
    assert [copy.id for copy in copies(signed_in, id)] == [first, other]
    signed_in.until(lambda: copies(signed_in, id) == ())
    assert sorted(path.name for path in folder.iterdir()) == ["new.txt", "notes.txt"]

    (folder / "notes.txt").unlink()
    (folder / "new.txt").write_text("worked on since\n")
    once_more = asked(signed_in, id, newer)["id"]
    signed_in.until(lambda: copies(signed_in, id) == ())

    assert once_more not in (first, other)
    assert (folder / "notes.txt").read_text() == "second\n", "what was brought once is brought again when asked for"
    assert (folder / "new.txt").read_text() == "worked on since\n"


def test_who_repeats_a_request_is_answered_as_before_whatever_has_become_of_it(signed_in: World) -> None:
    id, older, _ = with_two_snapshots(signed_in)
    api, path = member(signed_in), f"/instances/{id}/snapshots/{older}/restore"
    first = api.post(path, {"paths": ["notes.txt"]}, Idempotency_Key="one")
    joined = api.post(path, {"paths": ["notes.txt"]}, Idempotency_Key="two")
    assert first.json["operation"]["id"] == joined.json["operation"]["id"]
    signed_in.until(lambda: copies(signed_in, id) == ())
    ask(signed_in, id, "terminate")
    signed_in.until(lambda: signed_in.show(id).state is State.TERMINATED)

    again = [api.post(path, {"paths": ["notes.txt"]}, Idempotency_Key=key) for key in ("one", "two")]

    assert {answer.json["operation"]["id"] for answer in again} == {first.json["operation"]["id"]}
    assert [answer.json["operation"]["status"] for answer in again] == ["succeeded"] * 2
    problem(api.post(path, {"paths": []}, Idempotency_Key="one"), 409, "idempotency_mismatch")


@pytest.mark.parametrize(
    ("paths", "why"),
    [
        (["/etc/passwd"], "absolute"),
        (["notes.txt", "../notes.txt"], "no name within"),
        ([""], "names nothing"),
        (["a\0b"], "no name within"),
        (["x" * 4097], "longer than 4096"),
        (["x"] * 51, "50"),
        ("notes.txt", "array"),
    ],
)
def test_names_that_make_no_sense_are_refused(world: World, paths: object, why: str) -> None:
    id = world.provision()

    answer = member(world).post(f"/instances/{id}/snapshots/1-1/restore", {"paths": paths})

    problem(answer, 422, "invalid_input")
    assert why in answer.json["detail"]


def test_what_cannot_be_had_is_refused_before_anything_is_written(signed_in: World) -> None:
    id, older, newer = with_two_snapshots(signed_in)
    api, stranger = member(signed_in), Api(signed_in, key_for(signed_in, "other", Role.ADMIN))
    viewer = Api(signed_in, key_for(signed_in, ACCOUNT, Role.VIEWER))
    path = f"/instances/{id}/snapshots/{older}/restore"

    problem(stranger.post(path), 404, "not_found")
    problem(viewer.post(path), 403, "forbidden")
    problem(api.post(f"/instances/{id}/snapshots/9-9/restore"), 404, "not_found")
    problem(api.post(f"/instances/nobody/snapshots/{older}/restore"), 404, "not_found")
    lacking = api.post(path, {"paths": ["notes.txt", "new.txt", "notes.txt/x"]})
    problem(lacking, 404, "not_found")
    assert lacking.json["detail"] == f"snapshot {older} has no new.txt, notes.txt/x"
    problem(api.post(path, {"path": "notes.txt"}), 422, "invalid_input")
    spoilt(signed_in, id, older, damaged="chunk")
    damaged = api.post(path)
    problem(damaged, 409, "illegal_move")
    assert "is damaged" in damaged.json["detail"]
    spoilt(signed_in, id, older, damaged=None, given_up_at=signed_in.now)
    gone = api.post(path)
    problem(gone, 409, "illegal_move")
    assert "was given up" in gone.json["detail"]

    assert copies(signed_in, id) == ()
    said = run.invoke(cli.snapshots, ["restore", id, newer, "not there"])
    assert said.exit_code == session.NOT_FOUND
    assert f"snapshot {newer} has no not there" in said.stderr


def spoilt(world: World, id: str, name: str, **changes: Any) -> None:
    record = read(world.app, "snapshots", f"{ACCOUNT}.{id}.{name}", SnapshotRecord)
    assert record
    world.store.commit([record.becomes(record.value.model_copy(update=changes))])


def test_only_so_many_wait_at_a_time(signed_in: World) -> None:
    id, (name,) = hibernated(signed_in, 1, files=COPIES_MAX + 1)
    api, path = member(signed_in), f"/instances/{id}/snapshots/{name}/restore"
    for number in range(COPIES_MAX):
        asked(signed_in, id, name, f"{number}.txt")

    refused = api.post(path, {"paths": [f"{COPIES_MAX}.txt"]})

    problem(refused, 409, "illegal_move")
    assert f"waits for {COPIES_MAX} copies already" in refused.json["detail"]
    assert api.post(path, {"paths": ["0.txt"]}).status_code == 202, "that one waits already"
    woken(signed_in, id)
    signed_in.until(lambda: copies(signed_in, id) == ())
    folder = signed_in.workspace(id) / "restored" / name
    assert len(list(folder.iterdir())) == COPIES_MAX
    assert api.post(path, {"paths": [f"{COPIES_MAX}.txt"]}).status_code == 202


def test_where_no_gpu_runs_they_come_with_the_next_one(signed_in: World) -> None:
    id, (first, _) = hibernated(signed_in, 2)

    said = run.invoke(cli.snapshots, ["restore", id, first, "notes.txt"])

    assert said.exit_code == session.OK, "it does not wait for a GPU that nobody asked for"
    way = f"comes with the next GPU, into restored/{first} of the workspace: 1 name of snapshot {first}"
    assert said.stdout == f"{way}\n"
    signed_in.pass_time(300, step_s=10)
    assert signed_in.record(id).phase is Phase.DOWN
    shown = run.invoke(fleet.instances, ["show", id]).stdout
    assert f"restored/{first}: notes.txt, comes with the next GPU" in shown
    woken(signed_in, id)
    signed_in.until(lambda: copies(signed_in, id) == ())
    assert (signed_in.workspace(id) / "restored" / first / "notes.txt").read_text() == "number 0\n"
    assert (signed_in.workspace(id) / "notes.txt").read_text() == "number 1\n"


def test_who_waits_is_told_where_the_files_are(signed_in: World, monkeypatch: pytest.MonkeyPatch) -> None:
    id, older, _ = with_two_snapshots(signed_in)
    monkeypatch.setattr(cli, "time", Waits(signed_in.pass_time))

    said = run.invoke(cli.snapshots, ["restore", id, older])

    assert said.exit_code == session.OK, said.output
    assert f"restored/{older} of the workspace has everything of snapshot {older}\n" in said.stdout
    assert (signed_in.workspace(id) / "restored" / older / "notes.txt").exists()


def test_who_waits_in_vain_hears_so_in_time(signed_in: World, monkeypatch: pytest.MonkeyPatch) -> None:
    id, older, _ = with_two_snapshots(signed_in)
    waits = Waits(lambda _seconds: None)
    monkeypatch.setattr(cli, "time", waits)

    said = run.invoke(cli.snapshots, ["restore", id, older, "--timeout-s", "7"])

    assert said.exit_code == session.SERVER
    assert "still runs" in said.stderr
    assert waits.seconds == 7


class Waits:
    """The clock of a shell: it turns the world's while somebody waits."""

    def __init__(self, turn: Callable[[float], None]) -> None:
        self._turn, self.seconds = turn, 0.0

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self._turn(seconds)


def test_a_snapshot_that_is_rotten_is_given_up_after_some_tries_and_everybody_hears_it(signed_in: World) -> None:
    id, names = hibernated(signed_in, 1)
    woken(signed_in, id)
    rot(signed_in, id)
    spawned = orders_of_kind(signed_in, id, "bring")

    wish = asked(signed_in, id, names[0])
    signed_in.until(lambda: copies(signed_in, id) == ())

    assert [order.rpartition("-")[2] for order in spawned] == [str(number) for number in range(BRING_TRIES)]
    (told,) = story(signed_in, id, "not_copied")
    assert told.startswith(f"restored/{names[0]} of the workspace could not be given everything of snapshot")
    done = operation(signed_in, wish["id"])
    assert (done.status, done.detail) == ("failed", told)
    assert list((signed_in.workspace(id) / "restored" / names[0]).iterdir()) == []


def orders_of_kind(world: World, id: str, kind: str) -> list[str]:
    """Ids of those that the writer begins from now on."""
    agent, found = world.writer(id).agent, list[str]()
    spawn = agent.spawn

    def noted(task: dict[str, Any], home: Path) -> Any:
        if task["kind"] == kind:
            found.append(task["order"]["id"])
        return spawn(task, home)

    agent.spawn = noted
    return found


def test_a_hibernation_does_not_wait_for_it(signed_in: World) -> None:
    id, older, _ = with_two_snapshots(signed_in)
    asked(signed_in, id, older)
    ask(signed_in, id, "hibernate")

    signed_in.until(lambda: signed_in.show(id).state is State.HIBERNATED)

    assert [copy.snapshot for copy in copies(signed_in, id)] == [older]
    woken(signed_in, id)
    signed_in.until(lambda: copies(signed_in, id) == ())
    assert (signed_in.workspace(id) / "restored" / older / "notes.txt").exists()


def test_a_termination_drops_it_and_the_story_says_so(signed_in: World) -> None:
    id, names = hibernated(signed_in, 2)
    wish = asked(signed_in, id, names[0])
    ask(signed_in, id, "terminate")
    signed_in.until(lambda: signed_in.show(id).state is State.TERMINATED)

    assert copies(signed_in, id) == ()
    (told,) = story(signed_in, id, "not_copied")
    assert told == f"never brought, for it is terminated: everything of snapshot {names[0]}"
    assert operation(signed_in, wish["id"]).status == "failed"
    refused = member(signed_in).post(f"/instances/{id}/snapshots/{names[0]}/restore")
    problem(refused, 409, "illegal_move")
    assert "is terminated" in refused.json["detail"]


def test_a_prune_leaves_what_somebody_waits_for_and_takes_it_afterwards(signed_in: World) -> None:
    id, names = hibernated(signed_in, 3)
    asked(signed_in, id, names[0])
    run.invoke(cli.snapshots, ["terms", id, "--keep", "1,0,0,0", "--json"])

    prune.prune_instance(signed_in.app, f"{ACCOUNT}.{id}", signed_in.now)

    assert snapshots_of(signed_in, id) == [names[2], names[0]]
    woken(signed_in, id)
    signed_in.until(lambda: copies(signed_in, id) == ())
    assert (signed_in.workspace(id) / "restored" / names[0] / "notes.txt").read_text() == "number 0\n"
    signed_in.until(lambda: names[0] not in snapshots_of(signed_in, id), within_s=120)


class Meanwhile:
    """A store at whose first commit of some kind somebody else comes first."""

    def __init__(self, world: World, kind: str, act: Callable[[], None]) -> None:
        self._store, self._kind, self._act = world.app.store, kind, act
        self._has_acted = False

    def __getattr__(self, name: str) -> Any:
        if name != "commit":
            return getattr(self._store, name)

        def commit(writes: Any) -> Any:
            docs = [write.doc for write in writes if hasattr(write, "doc")]
            if not self._has_acted and any(doc.collection == self._kind for doc in docs):
                self._has_acted = True
                self._act()
            return self._store.commit(writes)

        return commit


def test_who_asks_while_a_prune_gives_it_up_stops_the_prune(signed_in: World) -> None:
    id, names = hibernated(signed_in, 3)
    run.invoke(cli.snapshots, ["terms", id, "--keep", "1,0,0,0", "--json"])
    store = Meanwhile(signed_in, "snapshots", lambda: asked(signed_in, id, names[0]) and None)

    with pytest.raises(StoreError):
        prune.prune_instance(dataclasses.replace(signed_in.app, store=store), f"{ACCOUNT}.{id}", signed_in.now)

    assert snapshots_of(signed_in, id) == names[::-1]
    prune.prune_instance(signed_in.app, f"{ACCOUNT}.{id}", signed_in.now)
    assert snapshots_of(signed_in, id) == [names[2], names[0]]


def test_what_a_prune_gives_up_while_somebody_asks_is_refused(signed_in: World) -> None:
    id, names = hibernated(signed_in, 2)
    key = member(signed_in).headers["Authorization"].removeprefix("Bearer ")
    given_up = {"given_up_at": signed_in.now}
    store = Meanwhile(signed_in, "snapshots", lambda: spoilt(signed_in, id, names[0], **given_up))
    before, signed_in.app = signed_in.app, dataclasses.replace(signed_in.app, store=store)
    api = Api(signed_in, key)
    signed_in.app = before

    refused = api.post(f"/instances/{id}/snapshots/{names[0]}/restore")

    problem(refused, 409, "illegal_move")
    assert "was given up" in refused.json["detail"]
    assert copies(signed_in, id) == ()

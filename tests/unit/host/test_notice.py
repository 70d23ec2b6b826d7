"""What the user is told: sentences, the status file, the same over HTTP, terminals that do not take it."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import asdict
from pathlib import Path

from common.domain.role import Role, View
from common.domain.version import Version
from common.domain.watch import Reason
from common.host import notice
from common.host.notice import Status

GPU, ME = "dumont-d-i-1-aaaaaaaa", "dumont-d-i-2-bbbbbbbb"
STATUS = Status(state="gpu", message="You are on the GPU machine.", since="2026-03-01T12:00:00.000+00:00", epoch=3)


def role(**view: object) -> Role:
    return Role(label=ME, version=Version(epoch=1, seq=1), is_whole=True).heard(View(rev=1, epoch=1, **view))  # type: ignore[arg-type]


def test_each_state_is_told_in_a_sentence_of_its_own() -> None:
    mirror = role(writer=GPU, mirror=ME)
    roles = {"gpu": mirror, "provisional": mirror.seal(), "standby": role(writer=ME), "none": role()}
    assert {name: notice.state_of(each) for name, each in roles.items()} == {name: name for name in roles}

    said = {notice.message_of(name, each, None) for name, each in roles.items()}
    said |= {notice.message_of("provisional", roles["provisional"], reason) for reason in Reason}
    said.add(notice.message_of("standby", role(writer=ME, is_frozen=True), None))
    assert len(said) == len(roles) + len(Reason) + 1
    assert all(each[0].isupper() and each.endswith(".") for each in said)


def test_what_was_written_is_read_again_by_the_next_watchdog(tmp_path: Path) -> None:
    assert notice.last(tmp_path).state == ""
    notice.write(tmp_path, STATUS)

    assert notice.last(tmp_path) == STATUS
    assert (tmp_path / notice.MOTD).read_text() == "dumont: You are on the GPU machine.\n"
    for torn in ("", "{", '{"of": "another version"}'):
        (tmp_path / notice.STATUS).write_text(torn)
        assert notice.last(tmp_path).state == ""


async def asked(home: Path, *requests: bytes) -> list[bytes]:
    server = await notice.serve(home, 0)
    port = server.sockets[0].getsockname()[1]
    answers = []
    async with server:
        for request in requests:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            writer.write_eof()
            answers.append(await reader.read())
            writer.close()
    return answers


def test_the_status_is_served_at_a_socket_too_and_one_that_a_watchdog_before_left_is_no_hindrance(
    tmp_path: Path,
) -> None:
    notice.write(tmp_path, STATUS)
    place = tmp_path / "status.sock"

    async def story() -> bytes:
        left = await notice.serve_socket(tmp_path, place)
        left.close()
        assert place.exists()
        async with await notice.serve_socket(tmp_path, place):
            reader, writer = await asyncio.open_unix_connection(place)
            writer.write(b"GET /status HTTP/1.1\r\n\r\n")
            answer = await reader.read()
            writer.close()
        return answer

    assert b'"state": "gpu"' in asyncio.run(story())


def test_the_status_is_served_to_any_origin_and_nothing_else_is(tmp_path: Path) -> None:
    notice.write(tmp_path, STATUS)
    (tmp_path / "state.json").write_text('{"token": "secret"}')

    found, preflight, other, above, posted, broken, long = asyncio.run(
        asked(
            tmp_path,
            b"GET /status?t=1 HTTP/1.1\r\n\r\n",
            b"OPTIONS /status HTTP/1.1\r\n\r\n",
            b"GET /state.json HTTP/1.1\r\n\r\n",
            b"GET /../state.json HTTP/1.1\r\n\r\n",
            b"POST /status HTTP/1.1\r\n\r\n",
            b"\xff\xfe",
            b"GET /status HTTP/1.1\r\nx: " + b"y" * 20_000 + b"\r\n\r\n",
        )
    )

    head, _, body = found.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Access-Control-Allow-Origin: *" in head
    assert json.loads(body) == asdict(STATUS)
    assert preflight.startswith(b"HTTP/1.1 204 ")
    for refused in (other, above, posted):
        assert refused.startswith(b"HTTP/1.1 404 ")
        assert b"secret" not in refused
    assert (broken, long) == (b"", b"")


def test_before_anything_was_said_there_is_no_status(tmp_path: Path) -> None:
    (answer,) = asyncio.run(asked(tmp_path, b"GET /status HTTP/1.1\r\n\r\n"))

    assert answer.startswith(b"HTTP/1.1 404 ")


def test_a_terminal_that_takes_nothing_is_passed_over(tmp_path: Path) -> None:
    open_end, name = os.openpty()
    try:
        (tmp_path / "0").symlink_to(os.ttyname(name))
        os.mkfifo(tmp_path / "1")  # nobody reads: opening it would wait for ever
        (tmp_path / "2").mkdir()
        (tmp_path / "ptmx").write_text("")

        assert notice.tell_terminals("The machine is gone.", tmp_path) == 1
        assert b"*** dumont: The machine is gone. ***" in os.read(open_end, 1000)
    finally:
        os.close(open_end)
        os.close(name)
    assert notice.tell_terminals("x", tmp_path / "nosuch") == 0
    assert (tmp_path / "ptmx").read_text() == ""


def test_a_full_terminal_is_not_waited_for(tmp_path: Path) -> None:
    open_end, name = os.openpty()
    try:
        (tmp_path / "0").symlink_to(os.ttyname(name))
        told = [notice.tell_terminals("x" * 1000, tmp_path) for _ in range(200)]
    finally:
        os.close(open_end)
        os.close(name)

    assert told[0] == 1
    assert told[-1] == 0

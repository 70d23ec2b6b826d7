"""`dumont` against the API: JSON, sentences, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta

import httpx
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from common.cli import account, fleet, main, session
from common.client import TURNS_MAX
from common.domain.account import Role
from common.web import rest
from tests.functions.conftest import PASSWORD, key_for
from tests.hand_cranked import World

run = CliRunner()


@pytest.fixture
def signed_in(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("DUMONT_API_URL", "http://api.test")
    monkeypatch.setenv("DUMONT_API_KEY", key_for(world, "acme", Role.ADMIN))
    session.transport = httpx.WSGITransport(app=rest.application(world.app))
    yield world
    session.transport = None


def command(verb: Callable[..., None]) -> typer.Typer:
    alone = typer.Typer()
    alone.command()(verb)
    return alone


def test_deploy_shows_its_price_and_then_the_operation_as_one_json_document(signed_in: World) -> None:
    result = run.invoke(fleet.gpus, ["deploy", "H100 SXM", "--yes", "--no-wait", "--json"])

    assert result.exit_code == session.OK, result.output
    assert json.loads(result.stdout)["operation"]["kind"] == "provision"
    assert "USD/h" in result.stderr


def test_a_plan_rents_nothing(signed_in: World) -> None:
    result = run.invoke(fleet.gpus, ["deploy", "H100 SXM", "--plan", "--json"])

    assert json.loads(result.stdout)["rentals"] == 5
    assert signed_in.sim.contracts() == []


def test_a_question_answered_with_no_rents_nothing(signed_in: World) -> None:
    result = run.invoke(fleet.gpus, ["deploy", "H100 SXM"], input="n\n")

    assert result.exit_code == session.OK
    assert json.loads(run.invoke(fleet.instances, ["list", "--json"]).stdout)["items"] == []


@pytest.mark.parametrize(
    ("app", "words", "code"),
    [
        (fleet.instances, ["show", "nobody"], session.NOT_FOUND),
        (fleet.instances, ["wake", "nobody"], session.NOT_FOUND),
        (fleet.gpus, ["deploy", "H900", "--yes"], session.MARKET),
        (fleet.gpus, ["list", "--gpu", "H100 SXM", "--max-usd-per-hour", "0.01"], session.MARKET),
        (fleet.gpus, ["deploy", "H100 SXM", "--disk-gb", "1"], session.USAGE),
        (fleet.gpus, ["deploy"], session.USAGE),
    ],
)
def test_an_error_is_a_sentence_and_its_exit_code(signed_in: World, app: typer.Typer, words: list, code: int) -> None:
    result = run.invoke(app, words)

    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output


def looks_at_the_market(times: int) -> list[Result]:
    """Each another look, so that none is answered by the one before."""
    return [run.invoke(fleet.gpus, ["list", "--gpu", "H100 SXM", "--disk-gb", str(40 + n)]) for n in range(times)]


def test_a_verb_waits_for_its_turn_at_the_market_and_says_so(signed_in: World, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    def sleep(wait_s: float) -> None:
        waited.append(wait_s)
        signed_in.now += timedelta(seconds=wait_s)

    monkeypatch.setattr(session, "sleep", sleep)
    found = looks_at_the_market(6)

    assert [result.exit_code for result in found] == [session.OK] * 6
    assert waited
    assert f"made again in {waited[-1]:.0f} s" in found[-1].stderr


def test_a_verb_does_not_wait_for_ever_for_a_turn(signed_in: World, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(session, "sleep", waited.append)  # and the time stands still
    found = looks_at_the_market(6)[-1]

    assert found.exit_code == session.MARKET
    assert len(waited) == 2 * TURNS_MAX, "of the fifth look and of the sixth"


def test_a_long_wait_for_a_turn_is_the_users_decision(signed_in: World, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(session, "sleep", waited.append)
    assert looks_at_the_market(1)[0].exit_code == session.OK
    bucket = signed_in.store.get("pacing", "vast.search")
    assert bucket
    signed_in.store.put("pacing", "vast.search", bucket.data | {"tokens": -1000.0})
    (found,) = looks_at_the_market(2)[1:]

    assert (found.exit_code, waited) == (session.MARKET, [])
    assert "waits for its turn, about" in found.stderr


def test_without_credentials_it_says_how_to_sign_in(signed_in: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DUMONT_API_KEY")

    result = run.invoke(fleet.instances, ["list"])

    assert result.exit_code == session.NOT_ALLOWED
    assert "dumont login" in result.stderr


def test_login_keeps_a_token_that_only_the_user_can_read(signed_in: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DUMONT_API_KEY")
    words = ["--url", "http://api.test", "--email", "admin@acme.example", "--password", PASSWORD]
    assert run.invoke(command(account.login), words).exit_code == session.OK

    assert session.path().stat().st_mode & 0o777 == 0o600
    assert run.invoke(fleet.instances, ["list", "--json"]).exit_code == session.OK


def test_an_api_key_that_is_none_is_not_kept_in_place_of_one_that_works(signed_in: World) -> None:
    words = ["--url", "http://api.test", "--api-key"]
    assert run.invoke(command(account.login), [*words, os.environ["DUMONT_API_KEY"]]).exit_code == session.OK
    before = session.path().read_text()

    for wrong in ("nonsense", "dk_é_x"):
        assert run.invoke(command(account.login), [*words, wrong]).exit_code == session.NOT_ALLOWED

    assert session.path().read_text() == before


def test_a_damaged_credentials_file_is_named_and_a_login_replaces_it(
    signed_in: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = os.environ["DUMONT_API_KEY"]
    monkeypatch.delenv("DUMONT_API_KEY")
    session.path().parent.mkdir(parents=True, exist_ok=True)
    session.path().write_text("{")

    result = run.invoke(fleet.instances, ["list"])
    assert (result.exit_code, str(session.path()) in result.stderr) == (session.NOT_ALLOWED, True)

    words = ["--url", "http://api.test", "--api-key", key]
    assert run.invoke(command(account.login), words).exit_code == session.OK
    assert run.invoke(fleet.instances, ["list", "--json"]).exit_code == session.OK


def test_a_name_is_shown_as_it_is_whatever_it_looks_like(signed_in: World) -> None:
    for name in ("[/x] [red]a", "[nlp] bert"):
        words = ["deploy", "H100 SXM", "--yes", "--no-wait", "--name", name]
        assert run.invoke(fleet.gpus, words).exit_code == session.OK

    result = run.invoke(fleet.instances, ["list"])

    assert result.exit_code == session.OK
    assert "[/x] [red]a" in result.stdout
    assert "[nlp] bert" in result.stdout


def test_no_cell_is_cut_where_no_terminal_is(signed_in: World) -> None:
    run.invoke(fleet.gpus, ["deploy", "H100 SXM", "--yes", "--no-wait", "--name", "x" * 60])
    (item,) = json.loads(run.invoke(fleet.instances, ["list", "--json"]).stdout)["items"]

    shown = run.invoke(fleet.instances, ["list"]).stdout

    assert item["id"] in shown
    assert "x" * 60 in shown
    assert "…" not in shown


def test_one_cap_is_changed_and_the_other_stays(signed_in: World) -> None:
    def caps(*words: str) -> tuple[object, object]:
        shown = json.loads(run.invoke(fleet.budget, ["set", *words, "--json"]).stdout)
        return tuple(float(cap) if cap else None for cap in (shown["usd_per_hour"], shown["usd_per_day"]))

    assert caps("--usd-per-hour", "5") == (5, None)
    assert caps("--usd-per-day", "10") == (5, 10)
    assert caps("--usd-per-hour", "none") == (None, 10)
    for nothing in ([], ["--usd-per-day", "much"], ["--usd-per-day", "-1"]):
        assert run.invoke(fleet.budget, ["set", *nothing]).exit_code == session.USAGE
    assert float(json.loads(run.invoke(fleet.budget, ["show", "--json"]).stdout)["usd_per_day"]) == 10


@pytest.mark.parametrize("id", ["../users", "a b", "a?b", "a#b", "é"])
def test_an_id_leads_to_no_other_path(signed_in: World, id: str) -> None:
    assert run.invoke(fleet.instances, ["show", id]).exit_code == session.NOT_FOUND


def test_an_address_that_is_none_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("http://x:foo", "nonsense"):
        monkeypatch.setenv("DUMONT_API_URL", url)
        result = run.invoke(fleet.instances, ["list"])
        assert (result.exit_code, url in result.stderr) == (session.SERVER, True)


def test_nobody_answering_is_exit_code_seven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUMONT_API_URL", "http://127.0.0.1:1")

    result = run.invoke(fleet.instances, ["list"])

    assert result.exit_code == session.SERVER
    assert "nobody answers" in result.stderr


def test_ssh_to_an_instance_without_an_address_says_why(signed_in: World) -> None:
    made = json.loads(run.invoke(fleet.gpus, ["deploy", "H100 SXM", "--yes", "--no-wait", "--json"]).stdout)

    result = run.invoke(command(fleet.ssh), [made["operation"]["instance_id"]])

    assert result.exit_code == session.CONFLICT
    assert "has no address" in result.stderr


def test_the_first_admin_is_written_into_the_store(world: World) -> None:
    place = f"sqlite://{world.folder}/fresh.db"

    result = run.invoke(account.users, ["add", "a@b.cc", "--password", "12345678", "--store", place, "--json"])

    assert json.loads(result.stdout)["role"] == "admin"


def test_a_store_takes_an_admin_with_an_address_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    place = f"sqlite://{world.folder}/fresh.db"
    for words in (["a@b.cc", "--role", "member"], ["nomail"]):
        result = run.invoke(account.users, ["add", *words, "--password", "12345678", "--store", place])
        assert result.exit_code == session.USAGE, result.output


def test_help_loads_no_verb() -> None:
    text = "import sys; sys.argv = ['dumont', '--help']\nfrom common.cli.main import main\n"
    text += "try: main()\nexcept SystemExit: pass\n"
    heavy = "print(sorted({'flask', 'boto3', 'google.cloud.firestore'} & set(sys.modules)))"

    result = subprocess.run([sys.executable, "-c", text + heavy], capture_output=True, text=True, check=True)

    assert result.stdout.splitlines()[-1] == "[]"
    for verb in main.SUMMARIES:
        assert verb in result.stdout

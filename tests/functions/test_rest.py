"""The REST API: who may do what, errors with stable codes, idempotence, tenancy, and its own description."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import get_ident
from time import sleep
from types import SimpleNamespace
from typing import Any

import pytest
from argon2 import PasswordHasher
from openapi_spec_validator import validate

from common import auth
from common.domain.account import Role
from common.domain.instance import Instance, Phase, State
from common.domain.outbox import Kind
from common.domain.slack import Person
from common.domain.spec import Spec
from common.ports import Store, Write
from common.records import dump
from common.topology import function
from common.web import rest
from common.web.rest import PARTS, application, part_of, routes, specification
from common.workflows import outbox, slack, users
from tests.bench.bench_cost import Counting
from tests.functions.conftest import PASSWORD, Api, key_for
from tests.hand_cranked import World

WISH = {"gpu": "H100 SXM"}


def problem(answer, status: int, code: str) -> None:
    assert (answer.status_code, answer.json["code"]) == (status, code), answer.text
    assert answer.mimetype == "application/problem+json"
    assert answer.json["status"] == status
    assert answer.json["detail"]


def test_signing_in_gives_a_token_that_works(world: World, admin: Api) -> None:
    nobody = Api(world, None)
    session = nobody.post("/auth/login", {"email": "admin@acme.example", "password": PASSWORD})

    assert Api(world, session.json["access_token"]).get("/instances").json == {"items": [], "next_cursor": None}


def test_a_wrong_password_and_an_unknown_address_look_the_same(world: World, admin: Api) -> None:
    nobody = Api(world, None)
    wrong = nobody.post("/auth/login", {"email": "admin@acme.example", "password": "wrong"})
    unknown = nobody.post("/auth/login", {"email": "who@acme.example", "password": "wrong"})

    problem(wrong, 401, "unauthenticated")
    assert wrong.json == unknown.json


def test_passwords_are_compared_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    running, most, right = set[int](), [0], auth.hash_password(PASSWORD)

    def slow(_hasher: PasswordHasher, _hash: str, _password: str) -> bool:
        running.add(get_ident())
        most[0] = max(most[0], len(running))
        sleep(0.01)
        running.discard(get_ident())
        return True

    monkeypatch.setattr(PasswordHasher, "verify", slow)
    with ThreadPoolExecutor(function("api").concurrency) as pool:
        assert all(pool.map(lambda _: auth.password_is_right(right, PASSWORD), range(function("api").concurrency)))

    assert most == [1]


def test_every_route_but_the_login_needs_credentials(world: World) -> None:
    nobody, forged = Api(world, None), Api(world, "dk_abc_def")
    for route in routes():
        if route.right:
            path = "/api/v1" + route.path.replace("{", "").replace("}", "")
            problem(nobody.call(route.method, path, {}), 401, "unauthenticated")
            problem(forged.call(route.method, path, {}), 401, "unauthenticated")


def test_a_viewer_may_look_and_not_touch_and_a_member_may_not_manage_users(world: World) -> None:
    viewer, member = (Api(world, key_for(world, "acme", role)) for role in (Role.VIEWER, Role.MEMBER))

    assert viewer.get("/instances").status_code == 200
    problem(viewer.post("/instances/provision", WISH), 403, "forbidden")
    problem(viewer.post("/api-keys", {"name": "k", "role": "admin"}), 403, "forbidden")
    problem(member.post("/users", {"email": "x@y.zz", "password": "12345678"}), 403, "forbidden")


def test_an_admin_adds_and_removes_users_and_an_address_is_taken_once(admin: Api) -> None:
    wish = {"email": "New@acme.example", "password": "12345678", "role": "member"}
    added = admin.post("/users", wish)

    assert added.status_code == 201
    problem(admin.post("/users", wish), 409, "email_taken")
    assert len(admin.get("/users").json["items"]) == 2
    assert admin.call("DELETE", f"/api/v1/users/{added.json['id']}").status_code == 204
    assert len(admin.get("/users").json["items"]) == 1


def test_an_api_key_works_until_it_is_revoked_and_is_shown_once(world: World, admin: Api) -> None:
    made = admin.post("/api-keys", {"name": "ci", "role": "viewer"}).json
    user = Api(world, made["key"])

    assert user.get("/instances").status_code == 200
    assert all(key["key"] is None for key in admin.get("/api-keys").json["items"])
    admin.call("DELETE", f"/api/v1/api-keys/{made['id']}")
    problem(user.get("/instances"), 401, "unauthenticated")


def signed_in(world: World, admin: Api) -> tuple[Api, str]:
    """A member's session, and the member's id."""
    person = {"email": "eve@acme.example", "password": "12345678"}
    id = admin.post("/users", person | {"role": "member"}).json["id"]
    return Api(world, Api(world, None).post("/auth/login", person).json["access_token"]), id


def test_a_key_revokes_none_that_may_do_more(world: World, admin: Api) -> None:
    made = {role: admin.post("/api-keys", {"name": role, "role": role}).json for role in ("admin", "viewer")}
    leaked = Api(world, made["viewer"]["key"])

    problem(leaked.call("DELETE", f"/api/v1/api-keys/{made['admin']['id']}"), 403, "forbidden")

    assert Api(world, made["admin"]["key"]).get("/instances").status_code == 200
    assert leaked.call("DELETE", f"/api/v1/api-keys/{made['viewer']['id']}").status_code == 204


def test_whoever_was_removed_has_neither_a_session_nor_a_new_key(world: World, admin: Api) -> None:
    eve, id = signed_in(world, admin)
    assert eve.get("/instances").status_code == 200

    admin.call("DELETE", f"/api/v1/users/{id}")

    problem(eve.get("/instances"), 401, "unauthenticated")
    problem(eve.post("/api-keys", {"name": "for later"}), 401, "unauthenticated")
    assert len(admin.get("/api-keys").json["items"]) == 1


def test_a_key_that_is_made_while_its_user_is_removed_is_none(world: World, admin: Api) -> None:
    eve, id = signed_in(world, admin)
    late = interrupted(world, eve, lambda: admin.call("DELETE", f"/api/v1/users/{id}"))

    assert late.post("/api-keys", {"name": "for later"}).status_code == 409
    assert len(admin.get("/api-keys").json["items"]) == 1


def test_a_user_with_as_many_keys_as_there_may_be_can_be_removed(world: World, admin: Api) -> None:
    eve, id = signed_in(world, admin)
    for number in range(users.API_KEYS_MAX):
        assert eve.post("/api-keys", {"name": f"{number}"}).status_code == 201

    problem(eve.post("/api-keys", {"name": "one more"}), 409, "too_many_api_keys")
    assert admin.call("DELETE", f"/api/v1/users/{id}").status_code == 204
    assert len(admin.get("/api-keys").json["items"]) == 1


def test_a_plan_spends_nothing(world: World, admin: Api) -> None:
    plan = admin.post("/instances/plan", WISH | {"strategy": "race"}).json

    assert plan["rentals"] == 5
    assert plan["offers"][0]["usd_per_hour"] == plan["usd_per_hour"]
    assert world.sim.contracts() == []


def test_the_same_idempotency_key_starts_one_operation_only(world: World, admin: Api) -> None:
    first = admin.post("/instances/provision", WISH, Idempotency_Key="once")
    again = admin.post("/instances/provision", WISH, Idempotency_Key="once")

    assert first.status_code == again.status_code == 202
    assert again.json["operation"]["id"] == first.json["operation"]["id"]
    assert len(admin.get("/instances").json["items"]) == 1
    other = admin.post("/instances/provision", WISH | {"disk_gb": 64}, Idempotency_Key="once")
    problem(other, 409, "idempotency_mismatch")
    problem(admin.post("/instances/provision", WISH, Idempotency_Key="no spaces"), 400, "bad_request")


def test_the_same_idempotency_key_adds_one_user_and_one_api_key_only(world: World, admin: Api) -> None:
    person = {"email": "new@acme.example", "password": "12345678"}
    users = [admin.post("/users", person, Idempotency_Key="u") for _ in range(2)]
    keys = [admin.post("/api-keys", {"name": "ci"}, Idempotency_Key="k") for _ in range(2)]

    assert [answer.status_code for answer in (*users, *keys)] == [201] * 4
    assert users[0].json == users[1].json
    assert keys[0].json == keys[1].json
    assert Api(world, keys[1].json["key"]).get("/instances").status_code == 200
    problem(admin.post("/api-keys", {"name": "other"}, Idempotency_Key="k"), 409, "idempotency_mismatch")


def test_an_api_key_that_was_revoked_is_not_shown_again(admin: Api) -> None:
    made = admin.post("/api-keys", {"name": "laptop"}, Idempotency_Key="k-1").json
    assert admin.call("DELETE", f"/api/v1/api-keys/{made['id']}").status_code == 204

    problem(admin.post("/api-keys", {"name": "laptop"}, Idempotency_Key="k-1"), 409, "idempotency_mismatch")


def test_a_colleague_with_the_same_idempotency_key_is_shown_no_key_that_opens_nothing(world: World) -> None:
    one, other = (Api(world, key_for(world, "acme", role)) for role in (Role.ADMIN, Role.MEMBER))
    wish = {"name": "ci", "role": "viewer"}
    assert one.post("/api-keys", wish, Idempotency_Key="ci-1").status_code == 201

    problem(other.post("/api-keys", wish, Idempotency_Key="ci-1"), 409, "idempotency_mismatch")


class Interrupted:
    """The store, with one thing that happens just before the next commit."""

    def __init__(self, store: Store, first: Callable[[], object]) -> None:
        self._store, self._first = store, [first]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def commit(self, writes: Sequence[Write]) -> None:
        while self._first:
            self._first.pop()()
        self._store.commit(writes)


def interrupted(world: World, admin: Api, first: Callable[[], object]) -> Api:
    shadow = SimpleNamespace(app=dataclasses.replace(world.app, store=Interrupted(world.store, first)))
    return Api(shadow, admin.headers["Authorization"].removeprefix("Bearer "))


def test_a_verb_that_meets_another_writer_is_decided_again(world: World, admin: Api) -> None:
    made = admin.post("/instances/provision", WISH).json["operation"]
    id = made["instance_id"]
    world.until(lambda: world.show(id).state is State.RUNNING)

    def another_writer() -> None:
        doc = world.store.get("instances", f"acme.{id}")
        assert doc
        world.store.cas(doc, doc.data)

    answer = interrupted(world, admin, another_writer).post(f"/instances/{id}/hibernate")

    assert answer.status_code == 202
    world.until(lambda: world.show(id).state is State.HIBERNATED)


def test_two_requests_with_one_idempotency_key_at_the_same_time_are_one(world: World, admin: Api) -> None:
    answers = []
    racing = interrupted(
        world, admin, lambda: answers.append(admin.post("/instances/provision", WISH, Idempotency_Key="once"))
    )

    answers.append(racing.post("/instances/provision", WISH, Idempotency_Key="once"))

    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json["operation"]["id"] == answers[1].json["operation"]["id"]
    assert len(admin.get("/instances").json["items"]) == 1


def test_an_operation_goes_from_running_to_succeeded(world: World, admin: Api) -> None:
    operation = admin.post("/instances/provision", WISH).json["operation"]
    assert operation["status"] == "running"

    world.until(lambda: admin.get(f"/operations/{operation['id']}").json["status"] == "succeeded")

    shown = admin.get(f"/instances/{operation['instance_id']}").json
    assert (shown["state"], shown["protection"]) == ("running", "unprotected")
    assert admin.get(f"/instances/{operation['instance_id']}/events").json["items"]


def test_another_tenants_ids_are_not_found_by_any_route(world: World, admin: Api) -> None:
    made = admin.post("/instances/provision", WISH).json["operation"]
    key = admin.post("/api-keys", {"name": "k"}).json["id"]
    users = admin.get("/users").json["items"]
    hook = admin.post("/webhooks", {"url": "https://hooks.example.com/"}).json["id"]
    world.store.commit(outbox.tell(world.app, "acme", Kind.LOST, {}, world.now))
    message = admin.get("/messages?state=waiting").json["items"][0]["id"]
    code = slack.new_code(world.app, Person(team="T1", user="U1"), world.now)
    link = admin.post("/slack/link", {"code": code}).json["id"]
    ids = {"link_id": link, "key_id": key, "user_id": users[0]["id"], "webhook_id": hook, "message_id": message}
    ids |= dict.fromkeys(("snapshot", "older", "newer"), "1-1")
    stranger = Api(world, key_for(world, "others", Role.ADMIN))
    walked = 0
    for route in routes():
        if "{" in route.path and "{market}" not in route.path:
            own = made["id"] if route.path.startswith("/operations") else made["instance_id"]
            path = "/api/v1" + route.path.format(**ids, id=own)
            problem(stranger.call(route.method, path, {}), 404, "not_found")
            walked += 1
    assert walked >= 9


def test_what_the_market_refuses_is_a_typed_problem(world: World, admin: Api) -> None:
    problem(admin.post("/instances/provision", {"gpu": "H900"}), 422, "unknown_gpu")
    problem(admin.post("/instances/plan", WISH | {"max_usd_per_hour": "0.01"}), 409, "no_offer")
    world.sim.set_credit("0")
    problem(admin.post("/instances/provision", WISH), 402, "no_credit")
    assert admin.get("/instances").json["items"] == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"gpu": "H100 SXM", "disk_gb": 1}, "disk_gb"),
        ({"gpu": "H100 SXM", "disk_gb": "much"}, "disk_gb"),
        ({"gpu": "H100 SXM", "regions": ["Europe"]}, "regions"),
        ({"gpu": "H100 SXM", "strategy": "luck"}, "strategy"),
        ({"gpu": "H100 SXM", "max_usd_per_hour": "NaN"}, "max_usd_per_hour"),
        ({"gpu": "H100 SXM", "max_usd_per_hour": -1}, "max_usd_per_hour"),
        ({"gpu": "H100 SXM", "ssh_public_key": "rm -rf /"}, "ssh_public_key"),
        ({"gpu": "H100 SXM", "surprise": 1}, "surprise"),
        ({}, "gpu"),
        ({"gpu": "_ "}, "gpu"),
    ],
)
def test_a_wrong_field_is_named_and_nothing_is_made(admin: Api, body: dict, field: str) -> None:
    answer = admin.post("/instances/provision", body)

    problem(answer, 422, "invalid_input")
    assert any(field in name for name in answer.json["errors"])
    assert admin.get("/instances").json["items"] == []


def test_a_look_for_a_gpu_without_a_name_says_so(admin: Api) -> None:
    problem(admin.get("/offers?gpu=_"), 422, "invalid_input")


def test_a_cap_that_no_marketplace_can_be_told_says_so(admin: Api) -> None:
    body = {"gpu": "H100 SXM", "max_usd_per_hour": "1e999999"}
    for path in ("/instances/plan", "/instances/provision"):
        problem(admin.post(path, body), 422, "invalid_input")
    problem(admin.get("/offers?gpu=H100%20SXM&max_usd_per_hour=1e999999"), 422, "invalid_input")


def test_a_body_that_is_not_json_or_too_large_is_refused(world: World, admin: Api) -> None:
    client = admin._client
    for data in (b"{", b"\xff\xfe", b'{"gpu": ' + b'"' + b"x" * (1 << 20) + b'"}'):
        answer = client.post("/api/v1/instances/provision", data=data, headers=admin.headers)
        assert answer.status_code == 400, answer.text


def test_unknown_paths_and_methods_are_problems_too(admin: Api) -> None:
    problem(admin.call("GET", "/api/v1/nothing"), 404, "not_found")
    problem(admin.call("PUT", "/api/v1/instances"), 405, "method_not_allowed")
    problem(admin.get("/instances/../../etc/passwd"), 404, "not_found")


def test_lists_come_in_pages(world: World, admin: Api) -> None:
    for _ in range(3):
        admin.post("/instances/provision", WISH)
    first = admin.get("/instances?limit=2").json
    second = admin.get(f"/instances?limit=2&cursor={first['next_cursor']}").json

    ids = [item["id"] for item in first["items"] + second["items"]]
    assert len(set(ids)) == 3
    assert second["next_cursor"] is None
    problem(admin.get("/instances?limit=0"), 422, "invalid_input")


@pytest.mark.parametrize("path", ["/savings", "/standby"])
def test_what_ended_long_ago_is_passed_over_with_one_read(world: World, admin: Api, path: str) -> None:
    world.provision()
    store = Counting(world.store)
    looking = Api(SimpleNamespace(app=dataclasses.replace(world.app, store=store)), None)  # type: ignore[arg-type]
    looking.headers = admin.headers

    def reads() -> int:
        before = store.counts["reads"]
        assert looking.get(path).status_code == 200
        return store.counts["reads"] - before

    alone, spec, long_ago = reads(), Spec(gpu="H100 SXM"), world.now - timedelta(days=40)
    for n in range(20):
        made = Instance(id=f"0{n}", account="acme", spec=spec, at=long_ago, created_at=long_ago)
        world.store.create("instances", made.key, dump(made.to(Phase.ENDED, at=long_ago).having(ended_at=long_ago)))

    assert reads() == alone + 20


def test_a_verb_that_does_not_fit_the_state_is_a_conflict(world: World, admin: Api) -> None:
    id = admin.post("/instances/provision", WISH).json["operation"]["instance_id"]

    problem(admin.post(f"/instances/{id}/restore"), 409, "illegal_move")
    problem(admin.post(f"/instances/{id}/purge"), 409, "illegal_move")


def test_the_description_is_valid_openapi_and_names_every_route(admin: Api) -> None:
    spec = admin.call("GET", "/openapi.json").json

    validate(spec)
    assert spec["openapi"] == "3.1.0"
    assert sum(len(operations) for operations in spec["paths"].values()) == len(routes())
    assert spec == specification()
    assert b"/api/v1/instances/{id}/wake" in admin.call("GET", "/docs").data


def test_every_route_is_served_by_the_one_part_that_its_path_names() -> None:
    served = [(part, route) for part in PARTS for route in routes(part)]

    assert all(part_of("/api/v1" + route.path) == part for part, route in served)
    assert sorted((route.method, route.path) for _, route in served) == sorted((r.method, r.path) for r in routes())
    web = Path(rest.__file__).parent
    with_routes = {file.stem for file in web.glob("*.py") if "\nROUTES = " in file.read_text()}
    assert with_routes == {name for names in PARTS.values() for name in names}


def test_a_part_answers_for_what_it_does_not_have_as_the_whole_does(world: World) -> None:
    asked = [("GET", "/api/v1/instances/none/nothing"), ("PATCH", "/api/v1/instances"), ("GET", "/api/v1/instances")]
    whole, part = (application(world.app, name).test_client() for name in (None, part_of("/api/v1/instances/x")))

    for method, path in asked:
        one, other = whole.open(path, method=method), part.open(path, method=method)
        assert (one.status_code, one.json["code"]) == (other.status_code, other.json["code"])
    assert part_of("/api/v1/nothing") is part_of("/openapi.json") is part_of("/api/v1") is None


def test_a_look_at_the_market_without_a_turn_says_when_to_come_back(admin: Api) -> None:
    answers = [admin.get(f"/offers?gpu=H100%20SXM&disk_gb={40 + n}") for n in range(6)]

    assert [answer.status_code for answer in answers] == [200] * 4 + [503] * 2
    assert answers[-1].json["code"] == "throttled"
    assert int(answers[-1].headers["Retry-After"]) > 0

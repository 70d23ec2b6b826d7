"""A REST route is a row: method, path, models, right. Flask and OpenAPI are both made from the rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from flask import Flask, Request, Response, request
from flask.typing import ResponseReturnValue
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.json_schema import models_json_schema

from common import auth
from common.domain.account import ApiKey, Caller, Right, Role
from common.domain.model import Model
from common.errors import BadRequest, Forbidden, Unauthenticated
from common.ports import App
from common.records import read
from common.web import problem
from common.workflows import users

Item = TypeVar("Item")

PAGE_LIMIT_MAX = 200


class Nothing(Model):
    """An empty body."""

    model_config = ConfigDict(extra="forbid")


class Page(BaseModel, Generic[Item]):
    """Every list: the items and where the next page starts (null = that was all)."""

    items: list[Item]
    next_cursor: str | None = None


@dataclass(frozen=True)
class Call:
    """One request, authenticated and parsed."""

    app: App
    caller: Caller
    now: datetime
    ids: dict[str, str]
    body: Any
    query: Any
    idempotency_key: str | None


@dataclass(frozen=True)
class Route:
    method: str
    path: str
    """Below /api/v1, with {names} in braces."""
    handle: Callable[[Call], BaseModel | None]
    summary: str
    answer: type[BaseModel] | None
    body: type[BaseModel] = Nothing
    query: type[BaseModel] = Nothing
    right: Right | None = Right.READ
    """None = no authentication."""
    status: int = 200
    tag: str = ""
    errors: tuple[int, ...] = ()


BASE = "/api/v1"
NOBODY = Caller(account="", user_id="", role=Role.VIEWER)


def mount(flask: Flask, app: App, routes: Sequence[Route]) -> None:
    for route in routes:
        rule = BASE + re.sub(r"{(\w+)}", r"<\1>", route.path)
        name = f"{route.method} {route.path}"
        flask.add_url_rule(rule, name, _view(app, route), methods=[route.method])


def _view(app: App, route: Route) -> Callable[..., ResponseReturnValue]:
    def view(**ids: str) -> ResponseReturnValue:
        return problem.answered(app, lambda: _answer(app, route, ids))

    return view


def _answer(app: App, route: Route, ids: dict[str, str]) -> ResponseReturnValue:
    now = app.clock()
    caller = caller_of(app, request, now) if route.right else NOBODY
    if route.right and not caller.may(route.right):
        raise Forbidden(f"the role {caller.role} may not do this; ask an admin of your account")
    call = Call(
        app=app,
        caller=caller,
        now=now,
        ids=ids,
        body=problem.parsed(route.body, request) if route.method in ("POST", "PUT", "PATCH") else None,
        query=_query(route.query),
        idempotency_key=_idempotency_key(request),
    )
    answer = route.handle(call)
    if answer is None:
        return Response(status=204)
    return Response(answer.model_dump_json(), route.status, mimetype="application/json")


def _query(model: type[BaseModel]) -> BaseModel:
    try:
        return model.model_validate(request.args.to_dict())
    except ValidationError as error:
        raise problem.invalid(error) from None


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is not None and not re.fullmatch(r"[A-Za-z0-9_.:-]{1,128}", key):
        raise BadRequest("Idempotency-Key must be 1 to 128 of the characters A-Z a-z 0-9 _ . : -")
    return key


def caller_of(app: App, request: Request, now: datetime) -> Caller:
    """A session token or an API key; raises `Unauthenticated`."""
    token = auth.bearer(request.headers.get("Authorization"))
    id = auth.api_key_id(token)
    if id is None:
        session = auth.caller_of_session(token, secret=app.settings.jwt_secret, now=now)
        return session.model_copy(update={"role": users.present(app, session).value.role})
    kept = read(app, "api_keys", id, ApiKey)
    if kept is None or not auth.api_key_is_right(kept.value, token):
        raise Unauthenticated("this API key is not valid")
    key = kept.value
    return Caller(account=key.account, user_id=key.user_id, role=key.role)


# --- OpenAPI ------------------------------------------------------------------------------------------------------


class Problem(Model):
    """application/problem+json (RFC 9457); `code` is stable."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    errors: dict[str, str] | None = None


REFERENCE = "#/components/schemas/{model}"


def openapi(routes: Sequence[Route]) -> dict[str, Any]:
    """OpenAPI 3.1 of the rows."""
    bodies = {route.body for route in routes if route.body is not Nothing}
    answers = {route.answer for route in routes if route.answer}
    models = [(model, "validation") for model in bodies] + [(model, "serialization") for model in answers | {Problem}]
    names, schema = models_json_schema(models, ref_template=REFERENCE)  # type: ignore[arg-type]
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(BASE + route.path, {})[route.method.lower()] = _operation(route, names)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Dumont Cloud", "version": "1", "description": "Dependable GPUs from spot markets."},
        "paths": paths,
        "components": {
            "schemas": schema.get("$defs", {}) | _query_schemas(routes),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route, names: Any) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.handle.__name__,
        "summary": route.summary,
        "tags": [route.tag],
        "parameters": _parameters(route),
        "responses": _responses(route, names),
    }
    if route.body is not Nothing:
        content = {"application/json": {"schema": names[route.body, "validation"]}}
        operation["requestBody"] = {"required": True, "content": content}
    if route.right:
        operation["security"] = [{"bearer": []}]
    return operation


def _parameters(route: Route) -> list[dict[str, Any]]:
    path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    properties = route.query.model_json_schema(ref_template=REFERENCE).get("properties", {})
    query = [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]
    key = {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "maxLength": 128}}
    return [*path, *query, *([key] if route.method == "POST" and route.right else [])]


def _query_schemas(routes: Sequence[Route]) -> dict[str, Any]:
    """What the parameters of a query refer to (enumerations)."""
    schemas: dict[str, Any] = {}
    for route in routes:
        schemas |= route.query.model_json_schema(ref_template=REFERENCE).get("$defs", {})
    return schemas


def _responses(route: Route, names: Any) -> dict[str, Any]:
    done: dict[str, Any] = {"description": route.summary}
    if route.answer:
        done["content"] = {"application/json": {"schema": names[route.answer, "serialization"]}}
    wrong = {"application/problem+json": {"schema": names[Problem, "serialization"]}}
    codes = {401, 403, *route.errors} if route.right else set(route.errors)
    codes |= {400, 422} if route.body is not Nothing else set()
    problems = {str(code): {"description": "a problem", "content": wrong} for code in sorted(codes)}
    return {
        str(route.status if route.answer else 204): done,
        **problems,
        "default": {"description": "a problem", "content": wrong},
    }

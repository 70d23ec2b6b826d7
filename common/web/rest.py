"""The API's Flask app: REST below /api/v1, OpenAPI at /openapi.json, docs at /docs.

Its routes stand in parts, and a request loads only the part that its path names: all of them are a tenth of a cold
start. OpenAPI and docs are made from the whole.
"""

from __future__ import annotations

import functools
import html
import importlib
import json
from typing import Any

from flask import Flask, Response
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from common.errors import DumontError, NotFound
from common.ports import App
from common.web import problem
from common.web.routes import BASE, Route, mount, openapi

PARTS = {
    "auth": ("auth",),
    "users": ("auth",),
    "api-keys": ("auth",),
    "instances": ("instances", "snapshots"),
    "operations": ("instances",),
    "standby": ("standby",),
    "markets": ("market",),
    "offers": ("market",),
    "spot": ("market",),
    "machines": ("machines",),
    "pool": ("machines",),
    "budget": ("budget",),
    "webhooks": ("webhooks",),
    "messages": ("webhooks",),
    "savings": ("savings",),
    "slack": ("slack",),
    "doctor": ("health",),
}
"""First word of a path below /api/v1 -> the modules of `common.web` that have its routes, in the docs' order."""


def part_of(path: str) -> str | None:
    """The part that serves this path; None = what belongs to the whole, or to nothing."""
    word = path.removeprefix(BASE + "/").partition("/")[0] if path.startswith(BASE + "/") else ""
    return word if word in PARTS else None


def routes(part: str | None = None) -> tuple[Route, ...]:
    """Of one part, or all."""
    names = PARTS[part] if part else dict.fromkeys(name for names in PARTS.values() for name in names)
    found = [route for name in names for route in importlib.import_module(f"common.web.{name}").ROUTES]
    return tuple(route for route in found if part is None or part_of(BASE + route.path) == part)


class MethodNotAllowed(DumontError):
    """The path exists, this method on it does not."""

    code = "method_not_allowed"
    status = 405


def application(app: App, part: str | None = None) -> Flask:
    """With the routes of one part, or with all."""
    flask = Flask("dumont")
    mount(flask, app, routes(part))
    flask.add_url_rule("/openapi.json", "openapi", specification)
    flask.add_url_rule("/docs", "docs", lambda: Response(docs_page(), mimetype="text/html"))
    flask.add_url_rule("/healthz", "healthz", lambda: {"ok": True})
    flask.register_error_handler(HTTPException, _http_error)
    return flask


@functools.cache
def specification() -> dict[str, Any]:
    return openapi(routes())


def _http_error(error: HTTPException) -> ResponseReturnValue:
    if error.code == 405:
        return problem.answer(MethodNotAllowed("this path does not take that method; see /docs"))
    if error.code == 404:
        return problem.answer(NotFound("there is nothing at this path; the API is described at /docs"))
    other = DumontError(error.description or error.name)
    other.status, other.code = error.code or 500, (error.name or "error").lower().replace(" ", "_")
    return problem.answer(other)


@functools.cache
def docs_page() -> str:
    """One static page made from the specification: no script, nothing fetched from elsewhere."""
    rows = []
    for path, operations in specification()["paths"].items():
        for method, operation in operations.items():
            schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            name = str(schema.get("$ref", "")).rpartition("/")[2]
            cells = (method.upper(), path, operation["summary"], name)
            rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    models = json.dumps(specification()["components"]["schemas"], indent=2)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Dumont Cloud API</title>"
        "<style>body{font:15px system-ui;max-width:70rem;margin:2rem auto;padding:0 1rem}"
        "td,th{padding:.3rem .8rem;text-align:left;border-bottom:1px solid #ddd}pre{background:#f6f6f6;padding:1rem}</style>"
        "<h1>Dumont Cloud API</h1><p>Authenticate with <code>Authorization: Bearer &lt;token or API key&gt;</code>. "
        "Errors are <code>application/problem+json</code> with a stable <code>code</code>. "
        'The machine-readable description is <a href="openapi.json">openapi.json</a>.</p>'
        f"<table><tr><th>Method<th>Path<th>What<th>Body</tr>{''.join(rows)}</table>"
        f"<h2>Models</h2><pre>{html.escape(models)}</pre></html>"
    )

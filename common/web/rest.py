"""The API's Flask app: REST below /api/v1, OpenAPI at /openapi.json, docs at /docs."""

from __future__ import annotations

import functools
import html
import json
from typing import Any

from flask import Flask, Response
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from common.errors import DumontError, NotFound
from common.ports import App
from common.web import (
    auth,
    budget,
    health,
    instances,
    machines,
    market,
    problem,
    savings,
    slack,
    snapshots,
    standby,
    webhooks,
)
from common.web.routes import mount, openapi

ROUTES = (
    *auth.ROUTES,
    *instances.ROUTES,
    *snapshots.ROUTES,
    *standby.ROUTES,
    *market.ROUTES,
    *machines.ROUTES,
    *budget.ROUTES,
    *webhooks.ROUTES,
    *savings.ROUTES,
    *slack.ROUTES,
    *health.ROUTES,
)


class MethodNotAllowed(DumontError):
    """The path exists, this method on it does not."""

    code = "method_not_allowed"
    status = 405


def application(app: App) -> Flask:
    flask = Flask("dumont")
    mount(flask, app, ROUTES)
    flask.add_url_rule("/openapi.json", "openapi", specification)
    flask.add_url_rule("/docs", "docs", lambda: Response(docs_page(), mimetype="text/html"))
    flask.add_url_rule("/healthz", "healthz", lambda: {"ok": True})
    flask.register_error_handler(HTTPException, _http_error)
    return flask


@functools.cache
def specification() -> dict[str, Any]:
    return openapi(ROUTES)


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

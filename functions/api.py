"""The REST API, its OpenAPI description and the console's data."""

from __future__ import annotations

import functools

import functions_framework
from flask import Flask, Request, Response

from common import bootstrap
from common.web import rest


@functions_framework.http
def api(request: Request) -> Response:
    return Response.from_app(_application(rest.part_of(request.path)).wsgi_app, request.environ)


@functools.cache
def _application(part: str | None) -> Flask:
    return rest.application(bootstrap.app(), part)

"""The edge: bodies become models, errors become problem+json (RFC 9457) with stable codes, once for all functions."""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Callable
from typing import TypeVar

from flask import Request, Response
from flask.typing import ResponseReturnValue
from pydantic import BaseModel, ValidationError

from common import auth
from common.errors import BadRequest, DumontError, InvalidInput, Throttled, Unauthenticated
from common.ports import App

BODY_LIMIT_BYTES = 1 << 20

Model = TypeVar("Model", bound=BaseModel)


def answered(app: App, handle: Callable[[], ResponseReturnValue]) -> ResponseReturnValue:
    """Run a handler; whatever it raises becomes an answer. An unexpected error tells the user nothing but its code."""
    try:
        return handle()
    except DumontError as error:
        return answer(error)
    except Exception as error:  # noqa: BLE001 - the outermost edge: the operator reads the log, the user the code
        app.log("internal_error", error=repr(error), trace=_trace(error))
        return answer(DumontError("something went wrong on our side; nothing was lost, please try again"))


def answer(error: DumontError) -> Response:
    fields = error.fields if isinstance(error, InvalidInput) else {}
    body = {
        "type": f"https://dumont.cloud/problems/{error.code}",
        "title": error.code.replace("_", " "),
        "status": error.status,
        "code": error.code,
        "detail": str(error),
        **({"errors": fields} if fields else {}),
    }
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    if isinstance(error, Throttled):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    return Response(json.dumps(body), error.status, headers, mimetype="application/problem+json")


def parsed(model: type[Model], request: Request) -> Model:
    """The JSON body as a model; raises `BadRequest` and `InvalidInput` with the reason per field."""
    if (request.content_length or 0) > BODY_LIMIT_BYTES:
        raise BadRequest(f"the body is larger than {BODY_LIMIT_BYTES} bytes")
    body = request.get_data(cache=True)
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as error:
        raise invalid(error) from None


def invalid(error: ValidationError) -> DumontError:
    if any(item["type"] == "json_invalid" for item in error.errors()):
        return BadRequest("the body is not valid JSON")
    fields = {".".join(str(part) for part in item["loc"]) or "body": item["msg"] for item in error.errors()}
    return InvalidInput("; ".join(f"{name}: {reason}" for name, reason in fields.items()), fields)


def token_of_host(app: App, header: str | None) -> str:
    """Of an Authorization header, as if the present secret had signed it; raises `Unauthenticated`.

    A machine holds what was signed before the deployment's secret changed, and is given another only in a reply.
    """
    secret, before = app.settings.jwt_secret, app.settings.jwt_secret_before
    return auth.signed_anew(auth.bearer(header), secret=secret, before=before) if before else auth.bearer(header)


def only_the_scheduler(app: App, request: Request) -> None:
    """Raises `Unauthenticated` unless Cloud Scheduler signed the call, or, where a setting says so, the local ticker."""
    token, settings = auth.bearer(request.headers.get("Authorization")), app.settings
    if settings.local_ticker:
        auth.check_scheduler(token, secret=settings.jwt_secret, now=app.clock())
        return
    if not settings.scheduler_account or not settings.scheduler_audience:
        raise Unauthenticated("this deployment has no scheduler: set DUMONT_SCHEDULER_ACCOUNT and _AUDIENCE")
    auth.check_google(
        token,
        key=app.google_key(auth.google_key_id(token)),
        account=settings.scheduler_account,
        audience=settings.scheduler_audience,
        now=app.clock(),
    )


def _trace(error: Exception) -> str:
    return "".join(traceback.format_exception(error))[-4000:]

"""Signing in, users and API keys."""

import itertools
from collections.abc import Callable
from datetime import datetime

from pydantic import ConfigDict, Field

from common import auth
from common.domain.account import EMAIL, RIGHTS, ApiKey, Caller, Right, Role, User
from common.domain.model import Model
from common.errors import BadRequest, Forbidden, IdempotencyMismatch, NotFound, Unauthenticated
from common.ports import App, every
from common.records import Kept, read
from common.web.routes import Call, Page, Route
from common.workflows import operations, users

REPEATABLE_LENGTH = 24
"""Hexadecimal digits: 96 bits for an id, three times as many for a secret."""


class Login(Model):
    model_config = ConfigDict(extra="forbid")

    email: str = Field(max_length=254, examples=["ada@example.com"])
    password: str = Field(max_length=1024)


class Session(Model):
    access_token: str
    token_type: str = "bearer"
    expires_in_s: int = int(auth.SESSION_FOR.total_seconds())


class UserIn(Model):
    model_config = ConfigDict(extra="forbid")

    email: str = Field(pattern=EMAIL, max_length=254)
    password: str = Field(min_length=8, max_length=1024)
    role: Role = Role.MEMBER


class UserOut(Model):
    id: str
    email: str
    role: Role
    created_at: datetime


class ApiKeyIn(Model):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=64)
    role: Role | None = None
    """None = your own role; never more than it."""


class ApiKeyOut(Model):
    id: str
    name: str
    role: Role
    created_at: datetime
    key: str | None = None
    """Shown once, when it is made."""


def login(call: Call) -> Session:
    user = users.find(call.app, call.body.email)
    # an unknown address takes as long as a wrong password, so that neither can be told from the other
    nobody = users.nobodys_hash()  # in either case, so that both answers take as long
    password_hash = user.password_hash if user else nobody
    right = auth.password_is_right(password_hash, call.body.password)
    if user is None or not right:
        raise Unauthenticated("the e-mail address or the password is wrong")
    return Session(access_token=auth.session_token(user, secret=call.app.settings.jwt_secret, now=call.now))


def list_users(call: Call) -> Page[UserOut]:
    return Page(items=[_user(kept.value) for kept in users.of_account(call.app, call.caller.account)])


def add_user(call: Call) -> UserOut:
    body: UserIn = call.body
    account = call.caller.account
    mark = operations.fingerprint("add_user", body.email, body.role)
    made = operations.known(call.app, account, call.idempotency_key, mark)
    if made and (known := read(call.app, "users", made, User)):
        return _user(known.value)
    user = users.add(
        call.app,
        account=account,
        email=body.email,
        password=body.password,
        role=body.role,
        now=call.now,
        also=lambda key: operations.remember(account, call.idempotency_key, mark, key, call.now),
    )
    return _user(user)


def remove_user(call: Call) -> None:
    if call.ids["user_id"] == call.caller.user_id:
        raise BadRequest("you cannot remove yourself")
    users.remove(call.app, call.caller.account, call.ids["user_id"])


def list_api_keys(call: Call) -> Page[ApiKeyOut]:
    docs = every(call.app.store, "api_keys", [("account", "==", call.caller.account)])
    keys = [ApiKey.model_validate(doc.data) for doc in docs]
    return Page(items=[_key(key) for key in keys if _is_visible(key, call.caller)])


def add_api_key(call: Call) -> ApiKeyOut:
    body: ApiKeyIn = call.body
    role = body.role or call.caller.role
    if not RIGHTS[role] <= RIGHTS[call.caller.role]:
        raise Forbidden(f"you may not make a key with the role {role}")
    ids = _repeatable_ids(call) if call.idempotency_key else call.app.ids
    key, text = auth.new_api_key(ids=ids, caller=call.caller, name=body.name, role=role, now=call.now)
    mark = operations.fingerprint("add_api_key", body.name, role)
    made = operations.known(call.app, call.caller.account, call.idempotency_key, mark)
    if made is None:
        remembered = operations.remember(call.caller.account, call.idempotency_key, mark, key.id, call.now)
        users.add_api_key(call.app, users.present(call.app, call.caller), key, remembered)
    elif read(call.app, "api_keys", key.id, ApiKey) is None:
        raise IdempotencyMismatch("this Idempotency-Key made a key that was revoked, or another user's; take a new one")
    return _key(key).model_copy(update={"key": text})


def _repeatable_ids(call: Call) -> Callable[[], str]:
    """The same request gets the same key again, although only a hash of its secret is kept."""
    subject = f"{call.caller.account}.{call.caller.user_id}.{call.idempotency_key}"
    numbers = itertools.count()
    return lambda: call.app.deployment().derive("api-key", f"{subject}.{next(numbers)}").hex()[:REPEATABLE_LENGTH]


def remove_api_key(call: Call) -> None:
    kept = _api_key(call.app, call.caller, call.ids["key_id"])
    if not RIGHTS[kept.value.role] <= RIGHTS[call.caller.role]:
        raise Forbidden(f"you may not revoke a key with the role {kept.value.role}")
    call.app.store.delete(kept.doc)


def _api_key(app: App, caller: Caller, id: str) -> Kept[ApiKey]:
    doc = app.store.get("api_keys", id)
    key = ApiKey.model_validate(doc.data) if doc else None
    if doc is None or key is None or not _is_visible(key, caller):
        raise NotFound(f"there is no API key {id}")
    return Kept(doc, key)


def _is_visible(key: ApiKey, caller: Caller) -> bool:
    return key.account == caller.account and (key.user_id == caller.user_id or caller.may(Right.MANAGE_USERS))


def _user(user: User) -> UserOut:
    return UserOut(id=user.id, email=user.email, role=user.role, created_at=user.created_at)


def _key(key: ApiKey) -> ApiKeyOut:
    return ApiKeyOut(id=key.id, name=key.name, role=key.role, created_at=key.created_at)


ROUTES = (
    Route("POST", "/auth/login", login, "Sign in", Session, body=Login, right=None, tag="auth", errors=(401,)),
    Route("GET", "/users", list_users, "The users of your account", Page[UserOut], right=Right.MANAGE_USERS, tag="users"),
    Route("POST", "/users", add_user, "Add a user", UserOut, body=UserIn, right=Right.MANAGE_USERS, status=201, tag="users", errors=(409,)),
    Route("DELETE", "/users/{user_id}", remove_user, "Remove a user", None, right=Right.MANAGE_USERS, tag="users", errors=(404,)),
    Route("GET", "/api-keys", list_api_keys, "Your API keys", Page[ApiKeyOut], tag="api-keys"),
    Route("POST", "/api-keys", add_api_key, "Make an API key", ApiKeyOut, body=ApiKeyIn, status=201, tag="api-keys"),
    Route("DELETE", "/api-keys/{key_id}", remove_api_key, "Revoke an API key", None, tag="api-keys", errors=(404,)),
)  # fmt: skip

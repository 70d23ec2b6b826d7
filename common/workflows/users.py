"""Users of an account; the e-mail address is unique over all accounts."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime

from common import auth
from common.domain.account import ApiKey, Caller, Role, User
from common.errors import BadRequest, Exists, NotFound, Stale, Unauthenticated
from common.ports import MAX_WRITES_PER_COMMIT, App, Check, Create, Delete, Doc, Store, Write, every
from common.records import Kept, dump, operator_of, read

API_KEYS_MAX = 20
"""Of one user. All of them go in the commit that removes the user."""

assert API_KEYS_MAX + 2 < MAX_WRITES_PER_COMMIT


@functools.cache
def nobodys_hash() -> str:
    """What a password is compared with when there is no such user. Made when somebody first signs in: it takes long."""
    return auth.hash_password("nobody's password")


class EmailTaken(BadRequest):
    """The address already belongs to a user."""

    code = "email_taken"
    status = 409


class TooManyApiKeys(BadRequest):
    """One has to be removed before the next is made."""

    code = "too_many_api_keys"
    status = 409


def first_admin(store: Store, *, ids: Callable[[], str], email: str, password: str, now: datetime) -> User:
    """The first user of a new account, which is its admin. The first account of all runs the deployment.

    Raises `EmailTaken`.
    """
    user = _save(store, _user(ids(), ids(), email, password, Role.ADMIN, now))
    appoint_operator(store, user.account)
    return user


def appoint_operator(store: Store, account: str) -> None:
    """The account whose admins run the deployment, unless there is one already."""
    doc = store.get("deployment", "self")
    if doc is not None and "operator" not in doc.data:
        with contextlib.suppress(Stale):  # somebody else's account came first
            store.cas(doc, {**doc.data, "operator": account})


def is_operator(store: Store, account: str) -> bool:
    return operator_of(store) == account


def add(
    app: App,
    *,
    account: str,
    email: str,
    password: str,
    role: Role,
    now: datetime,
    also: Callable[[str], Sequence[Write]] = lambda _key: (),
) -> User:
    """`also` = what else the commit writes, from the new user's key. Raises `EmailTaken`."""
    return _save(app.store, _user(app.ids(), account, email, password, role, now), also)


def present(app: App, caller: Caller) -> Kept[User]:
    """The record of who is asking; raises `Unauthenticated`, for a session outlives the removal of its user."""
    kept = read(app, "users", f"{caller.account}.{caller.user_id}", User)
    if kept is None:
        raise Unauthenticated("this user was removed")
    return kept


def add_api_key(app: App, user: Kept[User], key: ApiKey, also: Sequence[Write]) -> None:
    """Not for a user who is removed meanwhile: the key would be theirs for ever. Raises `TooManyApiKeys`, `Stale`."""
    if len(_api_keys(app, key.account, key.user_id)) >= API_KEYS_MAX:
        raise TooManyApiKeys(f"a user has at most {API_KEYS_MAX} API keys: remove one first")
    app.store.commit([Check(user.doc), Create("api_keys", key.id, dump(key)), *also])


def save_api_key(store: Store, key: ApiKey) -> None:
    store.create("api_keys", key.id, dump(key))


def _user(id: str, account: str, email: str, password: str, role: Role, now: datetime) -> User:
    return User(
        id=id,
        account=account,
        email=email.strip().lower(),
        role=role,
        password_hash=auth.hash_password(password),
        created_at=now,
    )


def _save(store: Store, user: User, also: Callable[[str], Sequence[Write]] = lambda _key: ()) -> User:
    key = f"{user.account}.{user.id}"
    claim = Create("emails", _email_id(user.email), {"user": key})
    try:
        store.commit([claim, Create("users", key, dump(user)), *also(key)])
    except Exists:
        raise EmailTaken(f"{user.email} is already a user") from None
    return user


def find(app: App, email: str) -> User | None:
    claim = app.store.get("emails", _email_id(email.strip().lower()))
    doc = app.store.get("users", claim.data["user"]) if claim else None
    return User.model_validate(doc.data) if doc else None


def of_account(app: App, account: str) -> list[Kept[User]]:
    docs = every(app.store, "users", [("account", "==", account)])
    return [Kept(doc, User.model_validate(doc.data)) for doc in docs]


def remove(app: App, account: str, id: str) -> None:
    """With the user's API keys; raises `NotFound`."""
    doc = app.store.get("users", f"{account}.{id}")
    if doc is None:
        raise NotFound(f"there is no user {id}")
    claim = app.store.get("emails", _email_id(doc.data["email"]))
    keys = _api_keys(app, account, id)
    app.store.commit([Delete(doc), *([Delete(claim)] if claim else []), *map(Delete, keys)])


def _api_keys(app: App, account: str, user_id: str) -> list[Doc]:
    keys = every(app.store, "api_keys", [("account", "==", account)])
    return [key for key in keys if key.data["user_id"] == user_id]


def _email_id(email: str) -> str:
    """Addresses hold characters that document ids may not."""
    return hashlib.sha256(email.encode()).hexdigest()

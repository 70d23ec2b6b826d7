"""login, users."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from common.cli import session
from common.domain.account import EMAIL, Role

users = typer.Typer(add_completion=False, no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def login(
    url: Annotated[str, typer.Option(help="Of the API.")] = session.DEFAULT_URL,
    email: Annotated[str | None, typer.Option()] = None,
    password: Annotated[str | None, typer.Option(help="Asked for when left out.")] = None,
    api_key: Annotated[str | None, typer.Option(help="Instead of e-mail and password.")] = None,
    json_: Json = False,
) -> None:
    """Sign in; the token is kept in your configuration directory, readable by you only."""
    with session.client(session.Signed(url, api_key)) as api:
        if api_key is None:
            body = {
                "email": email or typer.prompt("e-mail", err=True),
                "password": password or typer.prompt("password", hide_input=True, err=True),
            }
            api_key = str(api.post("/auth/login", body)["access_token"])
        else:
            api.get("/budget")  # whoever may do anything may read that
        session.keep(url, api_key)
    session.out({"url": url}) if json_ else print(f"signed in at {url}")


@users.command("add")
def add(
    email: str,
    role: Annotated[Role | None, typer.Option(help="Left out: member; with a store always admin.")] = None,
    password: Annotated[str | None, typer.Option(help="Asked for when left out.")] = None,
    store: Annotated[str | None, typer.Option(help="For the first admin: the store itself, sqlite:///path.")] = None,
    json_: Json = False,
) -> None:
    """Add a user. With --store a new account begins there, and this is its admin."""
    if store and role not in (None, Role.ADMIN):
        session.fail("the first user of an account is its admin", session.USAGE)
    secret = password or typer.prompt("password", hide_input=True, confirmation_prompt=True, err=True)
    if store:
        with session.problems_said():
            user = _first_admin(store, email, secret)
    else:
        with session.client() as api:
            user = api.post("/users", {"email": email, "password": secret, "role": (role or Role.MEMBER).value})
    session.out(user) if json_ else print(f"added {user['email']} as {user['role']}")


def _first_admin(place: str, email: str, password: str) -> dict[str, Any]:
    from common import bootstrap
    from common.workflows import users as workflow

    if len(password) < 8:
        session.fail("the password needs at least 8 characters", session.USAGE)
    if not re.fullmatch(EMAIL, email):
        session.fail(f"{email} is no e-mail address", session.USAGE)
    opened = bootstrap.store_of(place)
    bootstrap.deployment_of(opened, bootstrap.now())
    user = workflow.first_admin(opened, ids=bootstrap.random_id, email=email, password=password, now=bootstrap.now())
    return {"id": user.id, "email": user.email, "role": user.role.value}


@users.command("list")
def list_(json_: Json = False) -> None:
    """The users of your account."""
    with session.client() as api:
        found = api.get("/users")
    if json_:
        session.out(found)
        return
    for user in found["items"]:
        print(f"{user['id']}  {user['role']:7} {user['email']}")


@users.command("remove")
def remove(user_id: str, json_: Json = False) -> None:
    """Remove a user and the user's API keys."""
    with session.client() as api:
        api.delete(f"/users/{user_id}")
    session.out({"removed": user_id}) if json_ else print(f"removed {user_id}")

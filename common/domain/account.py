"""Users, roles and keys."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Role(StrEnum):
    ADMIN = "admin"
    MEMBER = "member"
    VIEWER = "viewer"


class Right(StrEnum):
    READ = "read"
    WRITE = "write"
    MANAGE_USERS = "manage_users"


RIGHTS: dict[Role, frozenset[Right]] = {
    Role.ADMIN: frozenset(Right),
    Role.MEMBER: frozenset({Right.READ, Right.WRITE}),
    Role.VIEWER: frozenset({Right.READ}),
}


class User(BaseModel):
    """The document `users/<account>.<id>`."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    id: str
    account: str
    """The tenant: users of one account see the same instances."""
    email: str
    role: Role
    password_hash: str
    created_at: datetime


class ApiKey(BaseModel):
    """The document `api_keys/<id>`; only a hash of the secret is kept."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    id: str
    account: str
    user_id: str
    name: str
    role: Role
    secret_hash: str
    created_at: datetime


class Caller(BaseModel):
    """Who is asking."""

    model_config = ConfigDict(frozen=True)

    account: str
    user_id: str
    role: Role

    def may(self, right: Right) -> bool:
        return right in RIGHTS[self.role]

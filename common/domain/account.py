"""Users, roles and keys."""

from datetime import datetime
from enum import StrEnum

from common.domain.model import Model

EMAIL = r"^[^@\s]+@[^@\s]+$"


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


class User(Model):
    """The document `users/<account>.<id>`."""

    schema_version: int = 1
    id: str
    account: str
    """The tenant: users of one account see the same instances."""
    email: str
    role: Role
    password_hash: str
    created_at: datetime


class ApiKey(Model):
    """The document `api_keys/<id>`; only a hash of the secret is kept."""

    schema_version: int = 1
    id: str
    account: str
    user_id: str
    name: str
    role: Role
    secret_hash: str
    created_at: datetime


class Caller(Model):
    """Who is asking."""

    account: str
    user_id: str
    role: Role

    def may(self, right: Right) -> bool:
        return right in RIGHTS[self.role]

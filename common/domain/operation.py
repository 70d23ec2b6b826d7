"""Long work that a user asked for."""

from __future__ import annotations

from datetime import datetime

from common.domain.model import Model


class Operation(Model):
    """The document `operations/<account>.<id>`; its status is derived from the instance."""

    schema_version: int = 1
    id: str
    account: str
    instance_id: str
    instance_key: str
    kind: str
    created_at: datetime

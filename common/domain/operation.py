"""Long work that a user asked for."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict


class Operation(BaseModel):
    """The document `operations/<account>.<id>`; its status is derived from the instance."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    id: str
    account: str
    instance_id: str
    instance_key: str
    kind: str
    created_at: datetime

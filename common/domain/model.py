"""What every record, report and answer is made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """A value: it never changes, and what checks it is built when it is first needed.

    A function's process uses a third of the models that it loads, and their building is a tenth of its cold start.
    pydantic builds under a lock of its own, so that threads may meet there.

    Modules that are mostly models do without `from __future__ import annotations`: each annotation would be compiled
    again from its text, a third of the time that a class takes.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

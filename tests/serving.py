"""An instance that runs, and what its host last said: for the rules that go from one to the other."""

from __future__ import annotations

from datetime import UTC, datetime

from common.domain.host import HostPhase, HostRecord, OrderResult, Progress
from common.domain.instance import Instance, Phase
from common.domain.spec import Spec

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
WRITER = "w"
RUNNING = Instance(
    id="i",
    account="acme",
    spec=Spec(gpu="H100 SXM"),
    phase=Phase.UP,
    at=AT,
    created_at=AT,
    epoch=9,
    started_epoch=9,
    writer=WRITER,
)


def host(last: OrderResult | None, *, label: str = WRITER) -> HostRecord:
    """It serves, and ended this order last."""
    return HostRecord(
        label=label,
        account="acme",
        instance_id="i",
        instance_key="acme.i",
        last_seen_at=AT,
        phase=HostPhase.SERVING,
        progress=Progress(last=last),
    )

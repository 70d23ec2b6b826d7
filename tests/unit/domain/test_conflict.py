"""What only fenced machines had: saved until it is known, and no more often than that."""

from __future__ import annotations

from datetime import UTC, datetime

from common.domain.conflict import save_order
from common.domain.host import HostPhase, HostRecord, OrderResult, Progress
from common.domain.instance import Instance, Phase, Spec

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
INSTANCE = Instance(
    id="i",
    account="acme",
    spec=Spec(gpu="H100 SXM"),
    phase=Phase.UP,
    at=AT,
    created_at=AT,
    epoch=9,
)


def host(last: OrderResult | None) -> HostRecord:
    return HostRecord(
        label="dumont-d-i-1-aaaaaaaa",
        account="acme",
        instance_id="i",
        instance_key="acme.i",
        last_seen_at=AT,
        phase=HostPhase.SERVING,
        progress=Progress(last=last),
    )


def test_a_save_is_ordered_again_when_it_failed_or_did_not_stand_up_and_not_while_it_is_judged() -> None:
    sealed_in_vain = INSTANCE.having(standby="s")

    def ordered(instance: Instance, last: OrderResult | None) -> str | None:
        order = save_order(instance, "s", host(last).model_copy(update={"label": "s", "refused": 2}))
        return order.id if order else None

    assert ordered(sealed_in_vain, None) == "save-2-0"
    assert ordered(sealed_in_vain, OrderResult(id="save-2-0", ok=False)) == "save-2-1"
    assert ordered(sealed_in_vain, OrderResult(id="save-2-1", ok=True)) == "save-2-1", "a host does an order once"
    unsound = sealed_in_vain.having(refusal_tries=2)
    assert ordered(unsound, OrderResult(id="save-2-1", ok=True)) == "save-2-2"
    assert ordered(unsound, OrderResult(id="save-2-2", ok=False)) is None
    assert ordered(sealed_in_vain.having(refusals_of=2), OrderResult(id="save-2-1", ok=True)) is None

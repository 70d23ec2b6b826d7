"""What only fenced machines had: saved until it is known, and no more often than that."""

from __future__ import annotations

from common.domain.conflict import save_order
from common.domain.host import OrderResult
from common.domain.instance import Instance
from tests.serving import RUNNING, host


def test_a_save_is_ordered_again_when_it_failed_or_did_not_stand_up_and_not_while_it_is_judged() -> None:
    sealed_in_vain = RUNNING.having(standby="s")

    def ordered(instance: Instance, last: OrderResult | None) -> str | None:
        order = save_order(instance, "s", host(last, label="s").model_copy(update={"refused": 2}))
        return order.id if order else None

    assert ordered(sealed_in_vain, None) == "save-2-0"
    assert ordered(sealed_in_vain, OrderResult(id="save-2-0", ok=False)) == "save-2-1"
    assert ordered(sealed_in_vain, OrderResult(id="save-2-1", ok=True)) == "save-2-1", "a host does an order once"
    unsound = sealed_in_vain.having(refusal_tries=2)
    assert ordered(unsound, OrderResult(id="save-2-1", ok=True)) == "save-2-2"
    assert ordered(unsound, OrderResult(id="save-2-2", ok=False)) is None
    assert ordered(sealed_in_vain.having(refusals_of=2), OrderResult(id="save-2-1", ok=True)) is None

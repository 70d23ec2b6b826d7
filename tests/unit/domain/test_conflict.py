"""What only fenced machines had: each kept apart under a name of its own, and brought one after the other."""

from __future__ import annotations

from datetime import UTC, datetime

from common.domain.conflict import bring_order, brought, folder_of, name_of, save_order
from common.domain.host import HostPhase, HostRecord, OrderResult, Progress
from common.domain.instance import Conflict, Instance, Phase, Spec

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
OF_GPU = Conflict(epoch=7, name=name_of(7, of_standby=False), manifest_key="gpu's", files=1)
OF_STANDBY = Conflict(epoch=7, name=name_of(7, of_standby=True), manifest_key="standby's", files=2)
INSTANCE = Instance(
    id="i",
    account="acme",
    spec=Spec(gpu="H100 SXM"),
    phase=Phase.UP,
    at=AT,
    created_at=AT,
    epoch=9,
    conflicts=(OF_GPU, OF_STANDBY),
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


def test_a_gpu_and_its_standby_that_both_had_something_of_one_epoch_are_two_folders_and_two_orders() -> None:
    first = bring_order(INSTANCE, None)
    assert first is not None
    done = OrderResult(id=first.id, ok=True)
    assert brought(INSTANCE, host(done)) == OF_GPU

    later = INSTANCE.having(conflicts=(OF_GPU.model_copy(update={"brought": 3}), OF_STANDBY))

    assert brought(later, host(done)) is None, "what was brought first is not taken for the other one"
    second = bring_order(later, done)
    assert second is not None
    assert second.id != first.id
    assert (first.args["into"], second.args["into"]) == ("conflicts/7", "conflicts/7-standby")
    assert folder_of(OF_STANDBY) == second.args["into"]


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


def test_an_order_to_bring_fails_three_times_and_is_then_given_up() -> None:
    order, failures = bring_order(INSTANCE, None), []
    while order is not None:
        assert brought(INSTANCE, host(failures[-1] if failures else None)) is None
        failures.append(OrderResult(id=order.id, ok=False, error="disk_full"))
        order = bring_order(INSTANCE, failures[-1])

    assert len({failure.id for failure in failures}) == 3
    assert brought(INSTANCE, host(failures[-1])) == OF_GPU

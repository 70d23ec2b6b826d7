"""The marketplace's signed events on their way to us: lost, late, twice, out of order, and forged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.workflows import announcements
from infra.demo.vast_webhooks import RETRY_AFTER_S, Delivery
from tests.simulation.market import Account

if TYPE_CHECKING:
    from tests.simulation.world import World

ANSWER_WITHIN_S = 10.0
"""The vendor's patience with us."""


class Webhooks:
    """Of one account; what it has to say waits in its simulator."""

    def __init__(self, world: World, account: Account) -> None:
        self._world, self._account = world, account

    def subscribe(self) -> None:
        """By the product's own command, before anything happens."""
        announcements.subscribe(self._world.app, self._account.name, self._world.loop.clock())

    def send_due(self) -> None:
        for delivery in self._account.sim.webhooks.take_due(self._world.loop.clock()):
            self._world.loop.spawn(lambda delivery=delivery: self._attempt(delivery), "the marketplace's event")

    def _attempt(self, delivery: Delivery) -> None:
        world, webhooks = self._world, self._account.sim.webhooks
        _, headers = webhooks.signed(delivery, world.loop.clock())
        if world.strike("webhook_forged", ""):
            self._forge(delivery, headers)
        if world.strike("webhook_lost", ""):
            status = self._no_answer()
        elif late := world.struck("webhook_late", ""):
            world.at_or_when_quiet(world.loop.now + late.length_s(), lambda: self._post(delivery.body, headers))
            status = self._no_answer()
        else:
            status = self._answer(delivery.body, headers)
            if again := world.struck("webhook_twice", ""):
                world.at_or_when_quiet(world.loop.now + again.length_s(), lambda: self._post(delivery.body, headers))
        webhooks.answered(delivery, status, world.loop.clock())
        if delivery.attempt <= len(RETRY_AFTER_S):
            world.loop.after(RETRY_AFTER_S[delivery.attempt - 1] + 0.01, self.send_due)

    def _post(self, body: bytes, headers: dict[str, str]) -> object:
        return self._world.web.announce(self._account.name, body, headers)

    def _answer(self, body: bytes, headers: dict[str, str]) -> int | None:
        task = self._world.web.announce(self._account.name, body, headers)
        heard = self._world.loop.join(task, ANSWER_WITHIN_S)
        return task.result[0] if heard and task.error is None else None

    def _no_answer(self) -> None:
        self._world.loop.sleep(ANSWER_WITHIN_S)

    def _forge(self, delivery: Delivery, headers: dict[str, str]) -> None:
        """Its words are another's: the signature is right for the body that it was taken from."""
        status = self._answer(delivery.body.replace(b'"', b" "), headers)
        if status is not None and status < 400:
            self._world.oracle.violate("I9", f"a forged event of {self._account.name} was answered {status}")

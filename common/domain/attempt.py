"""One attempt to get a machine, for an instance or for the pool: is it ready, or how did it end? Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from common.domain.attestation import Judgement, verdict
from common.domain.boot import BootProblem, boot_problem
from common.domain.host import HostRecord
from common.domain.reliability import FROM_LOSS, Outcome
from common.domain.rental import Rental, RentalState

FROM_BOOT: Mapping[BootProblem, Outcome] = {
    BootProblem.HOST: Outcome.BOOT_FAILED,
    BootProblem.DEADLINE: Outcome.BOOT_TIMEOUT,
    BootProblem.IMAGE: Outcome.IMAGE_REFUSED,
}


def attested(rental: Rental, host: HostRecord | None, now: datetime) -> Judgement | None:
    """None while the host does not report or has not measured."""
    return verdict(rental.offer, rental.disk_gb, host, now) if host and host.phase else None


def is_ready(rental: Rental, host: HostRecord | None, now: datetime) -> bool:
    """It reports, its market told its price, and what it measured of itself does not contradict its offer."""
    judged = attested(rental, host, now)
    waiting = rental.state is RentalState.CREATING and not rental.loss
    priced = rental.looked_at is not None and not rental.is_overpriced
    return waiting and priced and judged is not None and not judged.is_liar


def failure(
    rental: Rental, host: HostRecord | None, *, boot_timeout_s: float, now: datetime
) -> tuple[Outcome, str] | None:
    """How an attempt ended that will never be ready, with a sentence; None = wait on."""
    if rental.loss:
        return FROM_LOSS[rental.loss], f"{rental.loss}: {rental.message}"
    if rental.state is not RentalState.CREATING:
        return Outcome.REFUSED, rental.message or f"it is {rental.state}"
    if rental.is_overpriced:
        stated, cap = rental.stated_usd_per_hour, rental.cap_usd_per_hour
        return Outcome.OVERPRICED, f"price_above_cap: it costs {stated} USD/h, at most {cap} was meant"
    judged = attested(rental, host, now)
    if judged and judged.is_liar:
        return Outcome.LIED, f"not what its offer said: {'; '.join(judged.lies)}"
    if rental.create_called_at is None:
        return None
    problem = boot_problem(
        provider=rental.provider,
        message=rental.message,
        called_at=rental.create_called_at,
        boot_timeout_s=boot_timeout_s,
        now=now,
    )
    return (FROM_BOOT[problem[0]], problem[1]) if problem else None

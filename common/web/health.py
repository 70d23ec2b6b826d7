"""`dumont doctor`, the part that only the deployment itself can know."""

from __future__ import annotations

from datetime import datetime

from common.domain.account import Right
from common.domain.health import Finding, Probe, failed, ok, warning
from common.domain.model import Model
from common.domain.shape import AnswerShape
from common.errors import Forbidden
from common.web.routes import Call, Route
from common.workflows import answers, doctor, sweep, users


class HealthOut(Model):
    at: datetime
    findings: list[Finding]
    probes: list[Probe]
    """For whoever asks: requests to make from outside."""
    answers: list[AnswerShape]
    """What the marketplaces' answers have looked like so far."""


def examine(call: Call) -> HealthOut:
    if not users.is_operator(call.app.store, call.caller.account):
        raise Forbidden("only an admin of the account that runs this deployment may do this")
    findings = [*doctor.examine(call.app, call.now), _machines(call)]
    probes, seen = doctor.probes(call.app, call.now), answers.noted(call.app.store)
    return HealthOut(at=call.now, findings=findings, probes=probes, answers=seen)


def _machines(call: Call) -> Finding:
    """Machines that bill without a live record, as the next sweep would find them."""
    seen = sweep.look(call.app)
    if seen.alarms:
        mend = "look at them by hand: nothing of ours destroys what it has no record of"
        return failed("machines", f"labels of ours without a record: {', '.join(seen.alarms)}", mend)
    if seen.unknown:
        return warning("machines", f"{', '.join(seen.unknown)} cannot be listed now", "ask again in a minute")
    if seen.orphans:
        return warning(
            "machines", f"{len(seen.orphans)} without a live record", "the next sweep destroys them; ask again"
        )
    return ok("machines", f"{seen.listed} listed, {seen.foreign} of them not ours, each of ours has its record")


ROUTES = (
    Route("GET", "/doctor", examine, "Is the deployment well? Each failure with its mend; nothing is rented", HealthOut, right=Right.MANAGE_USERS, tag="market"),
)  # fmt: skip

"""`dumont doctor`, the part that only the deployment itself can know."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from common.domain.account import Right
from common.domain.health import Finding, Probe, failed, ok, warning
from common.domain.model import Model
from common.domain.shape import AnswerShape
from common.errors import Forbidden, MarketError, MarketKeyRefused
from common.ports import App
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
    findings = [*doctor.examine(call.app, call.now), _machines(call), *_standbys(call.app)]
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


def _standbys(app: App) -> Iterator[Finding]:
    """Does Google take our credentials, with the settings of the functions? One listing, and nothing is made."""
    if app.standbys is None:
        return
    check = "standbys at google"
    try:
        found = app.standbys.addresses()
    except MarketKeyRefused as error:
        mend = "dumont deploy apply switches Compute Engine on and gives the functions its roles; elsewhere see that "
        yield failed(check, str(error), f"{mend}GCP_CREDENTIALS and GCP_PROJECT name an account that may rent machines")
    except MarketError as error:
        yield warning(check, f"it cannot be asked now: {error}", "ask again in a minute")
    else:
        used = sum(address.used_by is not None for address in found)
        yield ok(check, f"Compute Engine answers: {len(found)} addresses of ours, {used} of them in use")


ROUTES = (
    Route("GET", "/doctor", examine, "Is the deployment well? Each failure with its mend; nothing is rented", HealthOut, right=Right.MANAGE_USERS, tag="market"),
)  # fmt: skip

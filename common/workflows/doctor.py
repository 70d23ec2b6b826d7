"""What a deployment can find out about itself: store, bucket, marketplaces, schedules; each failure with its mend."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal

from common import auth
from common.domain.health import Finding, Probe, Run, failed, of_schedule, ok, warning
from common.domain.pacing import Priority
from common.errors import DumontError, MarketError, MarketKeyRefused, NotFound, ObjectStoreError, StoreError, Throttled
from common.ports import Announcing, App
from common.records import dump, read
from common.topology import FUNCTIONS, SCHEDULES
from common.workflows import pacing

PROBE_BYTES = b"written by dumont doctor, and deleted by it"
LOW_CREDIT_USD = Decimal(5)
PROBE_GRANT_S = 900.0


def ran(app: App, job: str, began: datetime, failure: str | None = None) -> None:
    """Note a job's run. That it cannot be noted is no reason for the job to fail."""
    now = app.clock()
    run = Run(at=now, seconds=(now - began).total_seconds(), failed=failure)
    try:
        app.store.put("runs", job, dump(run))
    except StoreError as error:
        app.log("run_not_noted", job=job, error=str(error))


def examine(app: App, now: datetime) -> list[Finding]:
    """Every check once; one that fails does not keep the others from being made. Nothing is rented."""
    return [
        _store(app, now),
        _bucket(app),
        _storage_access(app, now),
        *(finding for name in sorted(app.markets) for finding in _market(app, name)),
        *_schedules(app, now),
    ]


def probes(app: App, now: datetime) -> list[Probe]:
    """Requests for whoever asks to make: the way to each function leads through the network that hosts use.

    One is signed and names an instance that does not exist: its 404 proves that the functions share their secret.
    """
    url, made = app.settings.url, []
    for row in FUNCTIONS:
        if row.path == "/" or (row.name == "slack" and app.chat is None):
            continue
        mend = f"deploy the function again (dumont deploy apply), and see that {row.name} may be called by " + (
            "everybody" if row.public else "Cloud Scheduler's account alone"
        )
        # our own code refuses: nobody's token, or a body that says nothing; Google refuses whoever may not call at all
        expected = (401, 422) if row.public else (401, 403)
        made.append(Probe(check=f"way to {row.name}", url=url + row.path, token=None, expected=expected, mend=mend))
    token = auth.advance_token("doctor.nobody", secret=app.settings.jwt_secret, now=now)
    mend = "the functions do not share one JWT_SECRET: add it once (dumont deploy apply) and deploy all of them again"
    signed = Probe(
        check="webhook round trip", url=f"{url}/provision/advance", token=token, expected=(404,), mend=mend
    )  # fmt: skip
    return [*made, signed]


def _store(app: App, now: datetime) -> Finding:
    mend = "see that DUMONT_STORE names the database and that the functions' accounts have roles/datastore.user"
    try:
        app.store.put("runs", "doctor", dump(Run(at=now, seconds=0)))
        if read(app, "runs", "doctor", Run) is None:
            return failed("store", "what was written cannot be read", mend)
    except StoreError as error:
        return failed("store", str(error), mend)
    return ok("store", "a document was written and read")


def _bucket(app: App) -> Finding:
    """Write, list, read and delete one object."""
    settings = app.settings
    key = f"doctor/{app.ids()}"
    check, name = "bucket", f"{settings.bucket} at {settings.storage_endpoint}"
    try:
        app.objects.put(key, PROBE_BYTES)
        listed = [stored for stored in app.objects.list(key) if stored.key == key]
        same = app.objects.get(key) == PROBE_BYTES
        app.objects.delete([key])
    except ObjectStoreError as error:
        provider = settings.storage_provider.upper()
        return failed(check, f"{name}: {error}", f"see that the key in {provider}_KEY_ID may read, write, list, delete")
    if not same or not listed or listed[0].size != len(PROBE_BYTES):
        return failed(check, f"{name} does not show what was written", "use a store that is consistent after a write")
    proof = "gives a checksum" if listed[0].md5 else "gives no checksum: snapshots are proven by reading them back"
    return ok(check, f"{name} takes, lists, reads and deletes an object, and {proof}")


def _storage_access(app: App, now: datetime) -> Finding:
    """Can hosts be given less than everything?"""
    check, provider = "storage access", app.settings.storage_provider.upper()
    if app.storage_access is None:
        mend = "set DUMONT_STORAGE_ACCESS=scoped where the store can make credentials for one prefix"
        return warning(check, "every host is given the deployment's own key to the whole bucket", mend)
    try:
        grant = app.storage_access.grant("doctor/", for_s=PROBE_GRANT_S, now=now)
    except ObjectStoreError as error:
        mend = {
            "B2": "give the key in B2_KEY_ID the capabilities writeKeys and listBuckets",
            "WASABI": "see that the sub-user of WASABI_KEY_ID may assume the role in WASABI_ROLE_ARN, for 12 hours",
        }.get(provider, "allow sts:GetFederationToken to S3_KEY_ID's user, or name a role for 12 hours in S3_ROLE_ARN")
        return failed(check, str(error), mend)
    minutes = (grant.expires_at - now).total_seconds() / 60
    return ok(check, f"hosts get credentials for their own prefix, tried for {minutes:.0f} minutes")


def _market(app: App, name: str) -> Iterator[Finding]:
    setting = f"{name.upper()}_API_KEY"
    market = pacing.market(app, name, Priority.POLL, who="doctor")
    check = f"market {name}"
    try:
        credit = market.credit_usd()
    except MarketKeyRefused as error:
        yield failed(check, f"the key is refused: {error}", f"make a new key there and set {setting}")
        return
    except Throttled as error:
        yield warning(check, f"its calls are used up for now: {error}", "ask again in a minute")
        return
    except MarketError as error:
        yield failed(check, str(error), "ask again in a minute; if it stays, look at the marketplace's status page")
        return
    said = "it does not tell its credit" if credit is None else f"{credit} USD left"
    if credit is not None and Decimal(credit) < LOW_CREDIT_USD:
        yield warning(check, f"{said}", "add credit: at zero every machine stops")
    else:
        yield ok(check, f"the key is good, {said}")
    try:
        announcing = pacing.announcing(app, name)
    except NotFound:
        return  # this marketplace announces nothing
    yield _announcements(app, name, announcing)


def _announcements(app: App, name: str, announcing: Announcing) -> Finding:
    """Is our webhook there, at the URL where we answer, with the secret that we keep?"""
    check, mend = f"webhook of {name}", f"subscribe again with: dumont markets subscribe {name}"
    kept = app.store.get("subscriptions", name)
    if kept is None:
        return warning(check, "nothing is subscribed: losses are noticed with the minute", mend)
    try:
        there = {subscription.id: subscription.url for subscription in announcing.subscriptions()}
    except DumontError as error:
        return failed(check, str(error), "ask again in a minute")
    expected = f"{app.settings.url}/failover/{name}"
    if there.get(kept.data["id"]) != expected:
        return failed(check, f"the marketplace has none of ours to {expected}", mend)
    return ok(check, f"announces to {expected}")


def _schedules(app: App, now: datetime) -> Iterator[Finding]:
    for schedule in SCHEDULES:
        every_s = schedule.every_s
        if app.settings.local_ticker:
            every_s = getattr(app.settings.timing, schedule.period)
        kept = read(app, "runs", schedule.name, Run)
        yield of_schedule(schedule.name, kept.value if kept else None, every_s=max(every_s, 1.0), now=now)

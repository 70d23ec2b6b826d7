"""`dumont deploy plan|apply|status|destroy`: the control plane on Google Cloud."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from common.domain.region import regions
from common.errors import DumontError, SettingError
from common.ports import Store, every
from infra.deploy import cost
from infra.deploy.resource import Failed, Found, Step

deploy = typer.Typer(add_completion=False, no_args_is_help=True, help="The control plane on Google Cloud.")
out, err = Console(), Console(stderr=True)

Project = Annotated[str, typer.Option("--project", help="The Google Cloud project.")]
Region = Annotated[str, typer.Option("--region", help="Of the functions, the database and the schedules.")]
SIGNS = {"create": "+", "change": "~", "delete": "-", "keep": "=", "wait": "…"}
COLOURS = {"create": "green", "change": "yellow", "delete": "red", "keep": "dim", "wait": "cyan"}
HOSTS_SHOWN = (0, 10, 100, 1000)


@deploy.command()
def plan(project: Project, region: Region, all_: Annotated[bool, typer.Option("--all")] = False) -> None:
    """What an apply would do, and what the deployment costs a month; nothing is changed."""
    with _session(project, region) as session:
        steps = session.deployer.plan()
        for step in steps:
            if all_ or step.act != "keep":
                _show(step)
        counts = {act: sum(step.act == act for step in steps) for act in SIGNS}
        out.print(", ".join(f"{count} to {act}" for act, count in counts.items() if count))
        _show_cost(region)


@deploy.command()
def apply(project: Project, region: Region) -> None:
    """Bring Google to what the table wants. May be killed and run again at any time."""
    with _session(project, region) as session:
        changes = session.deployer.apply(_show)
        out.print(f"{changes} changes" if changes else "nothing to change")
        out.print(f"the API answers at {session.url}/api   (export DUMONT_API_URL={session.url}/api)")
        out.print(f"the first admin: dumont users add EMAIL --store {session.store}")


@deploy.command()
def status(project: Project, region: Region) -> None:
    """Each resource as it is, beside what is wanted."""
    with _session(project, region) as session:
        steps = session.deployer.plan()
        for step in steps:
            _show(step)
        wrong = [step for step in steps if step.act not in ("keep", "wait")]
        raise SystemExit(1 if wrong else 0)


@deploy.command()
def destroy(
    project: Project,
    region: Region,
    with_data: Annotated[
        bool, typer.Option("--with-data", help="Also the database, secrets and stored objects.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete the deployment; the data stays unless it is asked for. Refused while a machine or address may bill."""
    with _session(project, region) as session:
        session.refuse_to_destroy()
        what = f"everything of Dumont in {project}, WITH ALL DATA," if with_data else f"Dumont's functions in {project}"
        if not yes and typer.prompt(f"This deletes {what} type the project's name to go on") != project:
            raise SystemExit(2)
        deleted = session.deployer.destroy(_show, with_data=with_data)
        out.print(f"{deleted} deleted; " + ("nothing is left" if with_data else "the data is kept"))


class Session:
    """One project, reached with the credentials of this machine and the settings of this environment."""

    def __init__(self, project: str, region: str, env: dict[str, str], pause: Callable[[float], None]) -> None:
        from infra.deploy import archive, make
        from infra.deploy.google import Google
        from infra.gpu_host import bundle

        self.google = Google(project, region, credentials(), pause, hosts(env))
        self._parts = make.Parts(archive.build(), bundle.build(), env)
        self._settings = make.checked(self._parts, self.google)
        self.url, self.store = self._settings.url, self._settings.store
        self.deployer = make.deployer(
            self.google, self._parts, functools.cache(self._app), functools.cache(self._objects)
        )

    def refuse_to_destroy(self) -> None:
        """What was never made cannot bill. Google is asked too: an address bills on when no machine has it."""
        from infra.deploy import standing

        found = self.deployer.look()
        refuse_another_region(found["database"].values(), self.google.region)
        store: Store | None = self._app().store if found["database"] else None
        if store:
            refuse_while_machines_bill(store)
        if "compute" in found["api"]:
            others = standing.refuse_while_ours_stand(self.google, deployment_of(store) if store else None)
            out.print(others, soft_wrap=True, highlight=False, end="\n" if others else "")

    def _app(self) -> Any:
        """Our own store is reached with the same credentials as everything else at Google."""
        from google.cloud.firestore import Client

        from common import bootstrap
        from common.adapters.firestore import FirestoreStore
        from infra.deploy.database import DATABASE

        project = self.google.project
        client = Client(project=project, database=DATABASE, credentials=self.google.credentials)
        return bootstrap.build(self._settings, FirestoreStore(project, DATABASE, client))

    def _objects(self) -> Any:
        from common import bootstrap

        objects = bootstrap.objects_of(self._settings)
        self.google.at_close(objects.close)
        return objects


def refuse_another_region(databases: Iterable[Found], region: str) -> None:
    """What is the project's would go, and the functions and schedules stay where they are: raises `Failed`."""
    for location in {database.spec["location"] for database in databases} - {region}:
        raise Failed(f"the deployment is in {location}, and in {region} there is none: say --region {location}")


def refuse_while_machines_bill(store: Store) -> None:
    """Without the control plane nobody would ever let them go: raises `Failed`.

    A store that cannot be read raises too: what cannot be read is not believed absent.
    """
    open_ = [doc.id for doc in every(store, "rentals", [("settled", "==", False)])]
    if open_:
        shown = ", ".join(open_[:5]) + (" ..." if len(open_) > 5 else "")
        raise Failed(
            f"{len(open_)} machines are not settled yet ({shown}): hibernate or terminate their instances first "
            "(dumont instances list), empty the warm pool, and wait for their bills"
        )


def deployment_of(store: Store) -> str | None:
    """Its id, without drawing one; None = no control plane ever ran on this store."""
    doc = store.get("deployment", "self")
    return doc.data["id"] if doc else None


def hosts(env: Mapping[str, str]) -> Mapping[str, str]:
    """Where Google's interfaces answer; a simulated Google answers at one address."""
    from infra.deploy.google import HOSTS

    elsewhere = env.get("DUMONT_GOOGLE_URL")
    return dict.fromkeys(HOSTS, elsewhere) if elsewhere else HOSTS


def credentials() -> Any:
    """The service account's key that GCP_CREDENTIALS is or names, else what gcloud left; raises `SettingError`."""
    import google.auth
    from google.auth.exceptions import GoogleAuthError
    from google.oauth2.service_account import Credentials

    from common.adapters.gcp.keys import DEFAULT_CREDENTIALS, key_of
    from infra.deploy.google import HOSTS

    scopes = ["https://www.googleapis.com/auth/cloud-platform"]
    try:
        key = key_of(os.environ.get("GCP_CREDENTIALS") or DEFAULT_CREDENTIALS, HOSTS["compute"])
        if isinstance(key, str):
            return google.auth.default(scopes=scopes)[0]
        return Credentials.from_service_account_info(key, scopes=scopes)  # type: ignore[no-untyped-call]
    except (GoogleAuthError, OSError, ValueError, SettingError) as error:
        raise SettingError(
            f"no Google credentials: {error}. Set GCP_CREDENTIALS to a service account's key file, or run: "
            "gcloud auth application-default login"
        ) from None


@contextmanager
def _session(project: str, region: str) -> Iterator[Session]:
    """What goes wrong ends as one sentence."""
    try:
        import google.cloud.functions_v2  # noqa: F401

        from infra.deploy.google import GoogleRefused, GoogleSilent
    except ImportError:
        print("dumont deploy needs its own requirements, apart from the functions': make deployer", file=sys.stderr)
        raise SystemExit(2) from None
    try:
        session = Session(project, region, dict(os.environ), time.sleep)
        try:
            yield session
        finally:
            session.google.close()
    except SettingError as error:
        print(f"dumont deploy: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except (Failed, GoogleRefused, GoogleSilent, DumontError) as error:
        print(f"dumont deploy: {error}\nwhat was done stays done; run it again to go on", file=sys.stderr)
        raise SystemExit(1) from None


def _show(step: Step) -> None:
    colour = COLOURS[step.act]
    out.print(f"[{colour}]{SIGNS[step.act]}[/{colour}] {step.kind} {step.name}", highlight=False)
    for line in step.differences:
        out.print(f"    {line}", highlight=False, markup=False)


def _show_cost(region: str) -> None:
    """Regional and multi-regional prices beside each other; what a standby costs comes on top, per instance."""
    table = Table(title=f"USD a month, prices as of {cost.PRICES_AS_OF}, no free tier", title_justify="left")
    for column in ("hosts all day", "regional", "multi-regional"):
        table.add_column(column, justify="right")
    for hosts in HOSTS_SHOWN:
        table.add_row(str(hosts), *(f"{monthly(prices, hosts):.2f}" for prices in (cost.REGIONAL, cost.MULTI_REGIONAL)))
    out.print(table)
    for line in standby_lines(region):
        out.print(line, soft_wrap=True, highlight=False)


def standby_lines(region: str) -> Iterator[str]:
    """What a standby costs a month, in the deployment's region for example: each one stands near its own GPU."""
    from infra.deploy.network import in_words, open_to_all

    cheapest, dearest = cost.standby_range()
    span = f"{cheapest.usd_per_month:.2f} to {dearest.usd_per_month:.2f} USD a month"
    if region in regions():
        month = cost.standby_month(region)
        parts = f"machine {month.machine:.2f}, disk {month.disk:.2f}, address {month.address:.2f}"
        span = f"{month.usd_per_month:.2f} USD a month in {region} ({parts}), {span} anywhere"
    yield (
        f"a standby, for each instance that has one, hibernated or not: {span}, with {cost.STANDBY_DISK_GB} GB and "
        f"without traffic, prices as of {cheapest.as_of}"
    )
    yield f"open to everybody on standbys, and on them alone: {in_words(open_to_all()['open'])}"
    yield "no standby and no address is made here: an instance reserves its own with its first standby"


def monthly(prices: cost.Prices, hosts: int) -> Decimal:
    """Fixed and per host, the heartbeats sharing instances as far as they overlap."""
    from common.topology import function

    row = function("heartbeat")
    size = {"cpu": Decimal(row.cpu), "memory_gib": Decimal(row.memory_mb) / 1024}
    calls_per_s = cost.HOST_DAY.requests * hosts / 86_400
    call_s = cost.HOST_DAY.busy_s / cost.HOST_DAY.requests
    busy_s = cost.shared(cost.HOST_DAY.busy_s, calls_per_s=calls_per_s, call_s=call_s, concurrency=row.concurrency)
    day = cost.Load(**{**vars(cost.HOST_DAY), "busy_s": busy_s})
    fixed = cost.fixed_usd_per_month(prices) + cost.min_instances_usd_per_month(prices)
    return fixed + hosts * cost.usd_per_month(day, prices, **size)

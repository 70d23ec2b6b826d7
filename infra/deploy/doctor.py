"""`dumont doctor`: is the deployment well? What it says of itself, and what only the outside can see."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from types import FrameType
from typing import Annotated, Any
from urllib.parse import urlsplit

import httpx
import typer
from rich.console import Console

from common.cli import session
from common.client import Client
from common.domain.health import Finding, Probe, Verdict, failed, of_clocks, of_probe, warning, worst
from common.domain.shape import AnswerShape
from common.errors import SettingError

SIGNS = {Verdict.OK: ("green", "ok"), Verdict.WARNING: ("yellow", "!!"), Verdict.FAILED: ("red", "NO")}
PROBE_TIMEOUT_S = 15.0
"""A cold start and its answer."""
AT_GOOGLE = re.compile(r"https://(?P<region>[a-z]+-[a-z]+\d+)-(?P<project>[a-z][-a-z0-9]*)\.cloudfunctions\.net(/|$)")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
QUOTA_TRIES = 2
"""Of each look: a person waits."""


def command(
    project: Annotated[str, typer.Option("--project", help="Of the quotas; by default the one in the API's URL.")] = "",
    region: Annotated[str, typer.Option("--region", help="Likewise.")] = "",
    rent: Annotated[bool, typer.Option("--rent", help="Also rent the cheapest real machine, for --max-usd.")] = False,
    max_usd: Annotated[float, typer.Option("--max-usd", min=0, help="All that --rent may cost.")] = 0.10,
    within_min: Annotated[int, typer.Option("--within-min", min=10, max=180, help="All that --rent may take.")] = 30,
    gpu: Annotated[str | None, typer.Option("--gpu", help="The model to --rent; by default the cheapest.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Check credentials, clock, webhooks, schedules, quotas, store and bucket; each failure with its mend.

    Nothing is rented, unless --rent asks for it. Exit code 0 = well or warnings only, 1 = something failed.
    """
    rented: list[Finding] = []
    with session.client() as api:
        if rent:
            _refuse_in_ci(session.signed().url)
            rented = list(_rented(api, Decimal(str(max_usd)), within_min * 60.0, gpu))
        said = api.get("/doctor")
    url = session.signed().url
    findings = [
        *(Finding.model_validate(row) for row in said["findings"]),
        _clock(url),
        *_at_google(*place(url, project, region)),
        *_probed([Probe.model_validate(row) for row in said["probes"]]),
        *rented,
    ]
    if json_:
        session.out(_document(findings))
    else:
        _show(findings)
    if worst(findings) is Verdict.FAILED:
        raise typer.Exit(session.FAILED)


def _clock(url: str) -> Finding:
    """The deployment's clock by the Date header of one answer."""
    began = time.monotonic()
    try:
        answer = httpx.get(f"{url}/healthz", timeout=PROBE_TIMEOUT_S)
        server = parsedate_to_datetime(answer.headers["Date"])
    except (httpx.HTTPError, KeyError, ValueError) as error:
        return failed("clock", f"{url} tells no time: {type(error).__name__}", "see that DUMONT_API_URL is the API's")
    return of_clocks(server, datetime.now(UTC), time.monotonic() - began)


def _refuse_in_ci(url: str) -> None:
    if os.environ.get("CI") and urlsplit(url).hostname not in LOOPBACK:
        session.fail("--rent spends money on a real market, and is never run by CI", session.USAGE)


def _rented(api: Client, max_usd: Decimal, within_s: float, gpu: str | None) -> Iterator[Finding]:
    """The trial, and what its marketplace answered otherwise than its simulator. A signal ends it in order."""
    from infra.deploy import answers
    from infra.deploy.ssh import shell
    from infra.deploy.trial import Trial

    with shell() as machine, _signals():
        trial = Trial(
            api=api,
            shell=machine,
            max_usd=max_usd,
            within_s=within_s,
            now=time.time,
            sleep=time.sleep,
            say=lambda line: print(line, file=sys.stderr, flush=True),
            gpu=gpu,
        )
        with closing(trial.run()) as findings:
            yield from findings
    if trial.provider:
        seen = [AnswerShape.model_validate(row) for row in api.get("/doctor")["answers"]]
        yield from answers.compared(trial.provider, seen)


@contextmanager
def _signals() -> Iterator[None]:
    """The first SIGINT or SIGTERM ends the trial; those that follow do not keep it from ending what it rented."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        for what in (signal.SIGINT, signal.SIGTERM):
            signal.signal(what, signal.SIG_IGN)
        print("ending what was rented; only SIGKILL leaves that to the product", file=sys.stderr, flush=True)
        raise KeyboardInterrupt

    before = {what: signal.signal(what, stop) for what in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for what, handler in before.items():
            signal.signal(what, handler)


def place(url: str, project: str, region: str) -> tuple[str, str]:
    """(project, region) as asked for, else as the URL of a deployed API names them; empty = not at Google."""
    named = AT_GOOGLE.match(url)
    return project or (named["project"] if named else ""), region or (named["region"] if named else "")


def _at_google(project: str, region: str) -> Iterator[Finding]:
    """Quotas and the standbys' door, asked with this machine's own credentials: no function may read them."""
    if not project or not region:
        return
    from infra.deploy import quotas, standing
    from infra.deploy.cli import credentials, hosts
    from infra.deploy.google import Google

    try:
        google = Google(project, region, credentials(), time.sleep, hosts(os.environ), tries=QUOTA_TRIES)
    except SettingError as error:
        yield warning("quotas", "not looked at", str(error))
        return
    try:
        yield from quotas.examine(google)
        yield from standing.examine(google)
    finally:
        google.close()


def _probed(probes: list[Probe]) -> Iterator[Finding]:
    with httpx.Client(timeout=PROBE_TIMEOUT_S) as http:
        for probe in probes:
            headers = {"Authorization": f"Bearer {probe.token}"} if probe.token else {}
            try:
                answer = http.post(probe.url, headers=headers, json={})
            except httpx.HTTPError as error:
                yield of_probe(probe, None, type(error).__name__)
            else:
                yield of_probe(probe, answer.status_code)


def _document(findings: list[Finding]) -> dict[str, Any]:
    return {"verdict": worst(findings), "findings": [finding.model_dump(mode="json") for finding in findings]}


def _show(findings: list[Finding]) -> None:
    out = Console(highlight=False)
    for finding in findings:
        colour, sign = SIGNS[finding.verdict]
        out.print(f"[{colour}]{sign}[/{colour}]  {finding.check}: ", finding.found, sep="", soft_wrap=True)
        if finding.mend:
            out.print(f"      mend: {finding.mend}", markup=False, soft_wrap=True)
    out.print({Verdict.OK: "all well", Verdict.WARNING: "works; look at the warnings"}.get(worst(findings), "not well"))

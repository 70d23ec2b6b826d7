"""`dumont doctor`: is the deployment well? What it says of itself, and what only the outside can see."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console

from common.cli import session
from common.domain.health import Finding, Probe, Verdict, failed, of_clocks, of_probe, warning, worst
from common.errors import SettingError

SIGNS = {Verdict.OK: ("green", "ok"), Verdict.WARNING: ("yellow", "!!"), Verdict.FAILED: ("red", "NO")}
PROBE_TIMEOUT_S = 15.0
"""A cold start and its answer."""
AT_GOOGLE = re.compile(r"https://(?P<region>[a-z]+-[a-z]+\d+)-(?P<project>[a-z][-a-z0-9]*)\.cloudfunctions\.net(/|$)")
QUOTA_TRIES = 2
"""Of each look: a person waits."""


def command(
    project: Annotated[str, typer.Option("--project", help="Of the quotas; by default the one in the API's URL.")] = "",
    region: Annotated[str, typer.Option("--region", help="Likewise.")] = "",
    json_: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Check credentials, clock, webhooks, schedules, quotas, store, bucket; each failure with its mend. Rents nothing.

    Exit code 0 = well or warnings only, 1 = something failed.
    """
    with session.client() as api:
        said = api.get("/doctor")
    url = session.signed().url
    findings = [
        *(Finding.model_validate(row) for row in said["findings"]),
        _clock(url),
        *_quotas(*place(url, project, region)),
        *_probed([Probe.model_validate(row) for row in said["probes"]]),
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


def place(url: str, project: str, region: str) -> tuple[str, str]:
    """(project, region) as asked for, else as the URL of a deployed API names them; empty = not at Google."""
    named = AT_GOOGLE.match(url)
    return project or (named["project"] if named else ""), region or (named["region"] if named else "")


def _quotas(project: str, region: str) -> Iterator[Finding]:
    """Asked with this machine's own credentials: no function may read them."""
    if not project or not region:
        return
    from infra.deploy import quotas
    from infra.deploy.cli import credentials, hosts
    from infra.deploy.google import Google

    try:
        google = Google(project, region, credentials(), time.sleep, hosts(os.environ), tries=QUOTA_TRIES)
    except SettingError as error:
        yield warning("quotas", "not looked at", str(error))
        return
    try:
        yield from quotas.examine(google)
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

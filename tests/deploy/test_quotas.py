"""What the doctor says of Google's quotas, against a simulated Google."""

from __future__ import annotations

import pytest

pytest.importorskip("google.cloud.functions_v2", reason="the deployer is not installed: make deployer")


from common.domain.health import Finding, Verdict
from infra.demo.gcp.sim import Refused, Trouble
from infra.deploy import doctor, quotas
from tests.deploy.cloud import PROJECT, REGION, Cloud, built, cloud, served

__all__ = ["built", "cloud", "served"]
CPU, DATABASES = "run.googleapis.com/cpu_allocation", "firestore.googleapis.com/databases"


@pytest.fixture
def deployed(cloud: Cloud) -> Cloud:
    cloud.sim.enabled |= dict.fromkeys(("run", "cloudscheduler", "firestore", "iam", "cloudbuild"), cloud.now)
    return cloud


def found(cloud: Cloud) -> dict[str, Finding]:
    google = cloud.google()
    findings = {finding.check: finding for finding in quotas.examine(google)}
    google.close()
    return findings


def test_a_project_of_some_age_has_all_that_is_needed(deployed: Cloud) -> None:
    findings = found(deployed)

    assert {finding.verdict for finding in findings.values()} == {Verdict.OK}, findings
    assert set(findings) == {f"quota of {need.what}" for need in quotas.needs()}
    assert "of 200" in findings["quota of CPUs"].found
    assert "as documented" in findings["quota of schedules"].found
    assert not deployed.sim.writes


@pytest.mark.parametrize(
    ("metric", "limit", "check", "verdict"),
    [
        (CPU, 20_000, "quota of CPUs", Verdict.WARNING),
        (CPU, 19_999, "quota of CPUs", Verdict.FAILED),
        (CPU, -1, "quota of CPUs", Verdict.OK),
        (DATABASES, 0, "quota of databases", Verdict.FAILED),
    ],
)
def test_a_regions_own_limit_counts_and_what_is_too_little_names_its_mend(
    deployed: Cloud, metric: str, limit: int, check: str, verdict: Verdict
) -> None:
    deployed.sim.table("quotas")[metric] = limit

    finding = found(deployed)[check]

    assert finding.verdict is verdict, finding
    assert (f"quotas?project={PROJECT}" in (finding.mend or "")) is (verdict is not Verdict.OK)


def test_an_interface_that_is_off_is_one_finding_and_the_others_are_looked_at(deployed: Cloud) -> None:
    del deployed.sim.enabled["firestore"]

    findings = found(deployed)

    off = findings.pop("quotas of firestore")
    assert off.verdict is Verdict.FAILED
    assert "firestore.googleapis.com" in off.found
    assert f"dumont deploy apply --project {PROJECT}" in (off.mend or "")
    assert {"quota of CPUs", "quota of service accounts"} <= set(findings)


@pytest.mark.parametrize(
    ("refusal", "mend"),
    [
        (Refused(403, "PERMISSION_DENIED", "Permission 'serviceusage.quotas.get' denied"), "roles/servicemanagement"),
        (Refused(404, "NOT_FOUND", "project acme-gpus was not found"), "see that acme-gpus is the project"),
        (Refused(503, "UNAVAILABLE", "later"), "ask again"),
    ],
)
def test_a_refusal_is_a_readable_warning_with_its_mend(deployed: Cloud, refusal: Refused, mend: str) -> None:
    deployed.sim.trouble.append(Trouble("GET", "consumerQuotaMetrics$", refusal, times=1000))

    findings = list(found(deployed).values())

    if refusal.status == 404:  # a parent that is not there has no quotas
        assert {finding.verdict for finding in findings} == {Verdict.WARNING, Verdict.OK}
        return
    assert {finding.verdict for finding in findings} == {Verdict.WARNING}
    assert str(refusal) in findings[0].found
    assert mend in (findings[0].mend or "")
    assert len(findings) == (5 if refusal.status == 503 else 1)


@pytest.mark.parametrize(
    "buckets",
    [[], [{}], [{"effectiveLimit": "many"}], [{"dimensions": {"region": "mars-north1"}, "effectiveLimit": "9"}]],
)
def test_an_answer_without_a_number_is_no_limit_and_no_absence_of_one(buckets: list) -> None:
    [need] = [need for need in quotas.needs() if need.what == "CPUs"]

    limit = quotas.limit_of(need, [{"metric": CPU, "consumerQuotaLimits": [{"quotaBuckets": buckets}]}], REGION)

    assert limit is None
    assert quotas.judge(need, limit, PROJECT).verdict is Verdict.WARNING


def test_the_project_and_the_region_are_read_from_the_url_of_the_api() -> None:
    deployed = f"https://{REGION}-{PROJECT}.cloudfunctions.net/api"

    assert doctor.place(deployed, "", "") == (PROJECT, REGION)
    assert doctor.place(deployed, "other", "us-east1") == ("other", "us-east1")
    assert doctor.place("http://127.0.0.1:8766", "", "") == ("", "")


def test_without_credentials_the_doctor_says_that_it_did_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCP_CREDENTIALS", "/nowhere.json")

    [finding] = doctor._at_google(PROJECT, REGION)

    assert finding.verdict is Verdict.WARNING
    assert "gcloud auth application-default login" in (finding.mend or "")

"""Service Usage's quotas (v1beta1), as far as a deployment looks at them: a limit per metric, or per region too."""

from __future__ import annotations

from typing import Any

from infra.demo.gcp.sim import Ask, GoogleSim, Refused

GIB = 1 << 30
LIMITS: dict[str, tuple[str, int]] = {
    "run.googleapis.com/cpu_allocation": ("1/min/{project}/{region}", 200_000),
    "run.googleapis.com/mem_allocation": ("1/min/{project}/{region}", 400 * GIB),
    "run.googleapis.com/instances": ("1/{project}/{region}", 200),
    "firestore.googleapis.com/databases": ("1/{project}", 100),
    "iam.googleapis.com/quota/service-account-count": ("1/{project}", 100),
    "cloudbuild.googleapis.com/concurrent_public_pool_build_cpus": ("1/{project}/{region}", 10),
}
"""Metric -> (unit, limit) of a project of some age. A new one may have a tenth of the CPU."""
PAGE_ROWS = 2


def add_quotas(sim: GoogleSim) -> None:
    limits = sim.table("quotas")
    """Metric -> another limit in the region."""

    def shown(metric: str) -> dict[str, Any]:
        unit, default = LIMITS[metric]
        everywhere = {"effectiveLimit": str(default), "defaultLimit": str(default)}
        own = {"effectiveLimit": str(limits.get(metric)), "dimensions": {"region": sim.region}}
        buckets = [everywhere, *([own] if metric in limits else [])]
        return {
            "name": f"projects/{sim.project}/services/{metric.partition('/')[0]}/consumerQuotaMetrics/{metric}",
            "metric": metric,
            "displayName": metric.rpartition("/")[2],
            "unit": "1",
            "consumerQuotaLimits": [{"metric": metric, "unit": unit, "quotaBuckets": buckets}],
        }

    def list_(ask: Ask) -> Any:
        service = ask.names["service"]
        if service.partition(".")[0] not in sim.enabled:
            sentence = f"{service} has not been used in project {sim.project} before or it is disabled."
            raise Refused(403, "PERMISSION_DENIED", sentence, [{"reason": "SERVICE_DISABLED"}])
        metrics = [metric for metric in LIMITS if metric.startswith(f"{service}/")]
        begin = int(ask.query.get("pageToken", 0))
        more = {"nextPageToken": str(begin + PAGE_ROWS)} if begin + PAGE_ROWS < len(metrics) else {}
        return {"metrics": [shown(metric) for metric in metrics[begin : begin + PAGE_ROWS]], **more}

    sim.on("GET", "/v1beta1/projects/{project}/services/{service}/consumerQuotaMetrics", list_, api=None)

"""Google Cloud, as far as a deployment uses it."""

from __future__ import annotations

from infra.demo.gcp.code import add_code
from infra.demo.gcp.database import add_database
from infra.demo.gcp.network import add_network
from infra.demo.gcp.project import add_project
from infra.demo.gcp.quotas import add_quotas
from infra.demo.gcp.sim import GoogleSim


def google_sim(project: str, region: str, *, operation_s: float = 12, settle_s: float = 4) -> GoogleSim:
    """An empty project, in which nothing is switched on."""
    sim = GoogleSim(project, region, operation_s=operation_s, settle_s=settle_s)
    for add in (add_project, add_database, add_code, add_quotas, add_network):
        add(sim)
    return sim

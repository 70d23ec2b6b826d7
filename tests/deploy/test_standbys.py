"""What a deployment makes for its standbys, and what it says of those that there are, against a simulated Google."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("google.cloud.functions_v2", reason="the deployer is not installed: make deployer")

from common.adapters.gcp.compute import TAG
from common.domain.health import Finding, Verdict
from common.domain.standby_price import Terms, offers_in
from common.topology import FUNCTIONS
from infra.demo.gcp.sim import Refused, Trouble
from infra.deploy import cost, standing
from infra.deploy.cli import deployment_of, standby_lines
from infra.deploy.network import RULE
from infra.deploy.resource import Failed
from tests.deploy.cloud import PROJECT, REGION, Cloud, Killed, built, cloud, served

__all__ = ["built", "cloud", "served"]
ZONE = "europe-west1-b"
MACHINE = "dumont-d1-abc-1-0123abcd"
ADVANCING = {"api", "provision", "heartbeat", "failover", "slack", "reconcile", "hibernate_idle"}


def rule(cloud: Cloud) -> dict[str, Any]:
    return cloud.sim.table("firewalls")[RULE]  # type: ignore[no-any-return]


def members(cloud: Cloud, role: str) -> set[str]:
    bindings = cloud.sim.table("policies")["project"]["bindings"]
    return {member for row in bindings if row["role"] == role for member in row["members"]}


def machine(cloud: Cloud, name: str = MACHINE) -> None:
    """A standby with its address, as the control plane makes them."""
    terms, compute = Terms(zone=ZONE), cloud.sim.compute
    disk = {"diskSizeGb": "32", "diskType": f"x/{terms.disk_type}", "sourceImage": "debian"}
    body = {
        "name": name,
        "machineType": f"x/{terms.machine_type}",
        "scheduling": {"provisioningModel": "SPOT"},
        "disks": [{"boot": True, "initializeParams": disk}],
        "networkInterfaces": [{}],
    }
    compute.reserve(REGION, name.rpartition("-1-")[0], None, cloud.now)
    compute.insert(ZONE, body, None, cloud.now)


def found(cloud: Cloud) -> dict[str, Finding]:
    google = cloud.google()
    findings = {finding.check: finding for finding in standing.examine(google)}
    google.close()
    return findings


# --- what is made


def test_exactly_the_ports_of_a_standby_stand_open_on_machines_with_its_tag(cloud: Cloud) -> None:
    cloud.apply()

    made = rule(cloud)
    opened = {row["IPProtocol"]: set(row["ports"]) for row in made["allowed"]}
    assert opened == {"tcp": {"22", "8888", "8080", "2200", "7946"}, "udp": {"7946"}}
    assert (made["targetTags"], made["sourceRanges"], made["direction"]) == ([TAG], ["0.0.0.0/0"], "INGRESS")


def test_who_advances_instances_may_rent_standbys_as_himself_and_nobody_else_may(cloud: Cloud) -> None:
    cloud.apply()

    accounts = {
        f"serviceAccount:dumont-{row.service}@{PROJECT}.iam.gserviceaccount.com"
        for row in FUNCTIONS
        if row.name in ADVANCING
    }
    assert members(cloud, "roles/compute.instanceAdmin.v1") == accounts
    assert members(cloud, "roles/compute.publicIpAdmin") == accounts
    assert not members(cloud, "roles/iam.serviceAccountUser")  # a standby acts as nobody
    for row in FUNCTIONS:
        env = cloud.sim.table("functions")[row.service]["serviceConfig"]["environmentVariables"]
        settings = {name: value for name, value in env.items() if name.startswith("GCP_")}
        assert settings == ({"GCP_CREDENTIALS": "default", "GCP_PROJECT": PROJECT} if row.name in ADVANCING else {})
        assert row.name not in ADVANCING or row.memory_mb >= 512, "Google's client takes 160 MiB"


@pytest.mark.parametrize(
    ("by_hand", "difference"),
    [
        (
            {"allowed": [{"IPProtocol": "tcp", "ports": ["22"]}, {"IPProtocol": "tcp", "ports": ["3389"]}]},
            "open.tcp: ['22', '3389'] -> ['22', '2200', '7946', '8080', '8888']",
        ),
        ({"disabled": True}, "on: False -> True"),
        ({"sourceRanges": ["10.0.0.0/8"]}, "from: ['10.0.0.0/8'] -> ['0.0.0.0/0']"),
        ({"sourceTags": ["office"]}, "sourceTags: ['office'] -> nothing"),
    ],
)
def test_a_rule_that_somebody_changed_is_one_difference_and_put_right(
    cloud: Cloud, by_hand: dict[str, Any], difference: str
) -> None:
    cloud.apply()
    before = dict(rule(cloud))
    rule(cloud).update(by_hand)

    [step] = [step for step in cloud.plan() if step.act != "keep"]
    assert (step.act, step.kind, step.name) == ("change", "firewall", RULE)
    assert difference in step.differences
    cloud.sim.calls.clear()
    assert [done.kind for done in cloud.apply()] == ["firewall"]

    assert [method for method, _ in cloud.sim.writes] == ["PATCH"]
    assert rule(cloud) == before
    assert {step.act for step in cloud.plan()} == {"keep"}


def test_a_strangers_rules_are_not_touched(cloud: Cloud) -> None:
    network = f"https://www.googleapis.com/compute/v1/projects/{PROJECT}/global/networks/default"
    stranger = {"network": network, "direction": "INGRESS", "allowed": [{"IPProtocol": "icmp"}]}
    cloud.sim.table("firewalls").update({"dumont-vpn": {"name": "dumont-vpn", **stranger}})
    cloud.apply()
    assert "dumont-vpn" in cloud.sim.table("firewalls")
    rule(cloud)["description"] = "mine"

    with pytest.raises(Failed, match=f"firewall {RULE} exists in {PROJECT} and is not Dumont's"):
        cloud.apply()


def test_without_the_network_the_refusal_names_the_command_that_makes_it(cloud: Cloud) -> None:
    cloud.sim.table("knobs")["no_network"] = True

    with pytest.raises(Failed, match="gcloud compute networks create default"):
        cloud.apply()
    cloud.sim.table("knobs").clear()
    cloud.apply()

    assert {step.act for step in cloud.plan()} == {"keep"}


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_what_a_killed_apply_has_begun_with_the_rule_is_waited_for(cloud: Cloud, method: str) -> None:
    if method == "PATCH":
        cloud.apply()
        rule(cloud)["disabled"] = True

    def die() -> None:
        asked, path = cloud.sim.calls[-1] if cloud.sim.calls else ("", "")
        if asked == method and "/firewalls" in path:
            raise Killed

    with pytest.raises(Killed):
        cloud.deployer(before=die).apply(lambda _step: None)
    assert cloud.sim.table("firewalls").get(RULE, {"disabled": True})["disabled"]  # it is not carried out yet

    cloud.apply()

    assert rule(cloud)["disabled"] is False
    assert {step.act for step in cloud.plan()} == {"keep"}


def test_a_change_of_the_rule_that_google_accepts_and_does_not_carry_out_is_told(cloud: Cloud) -> None:
    cloud.sim.table("knobs")["rules_fail"] = "an organisation's policy forbids it"

    with pytest.raises(Failed, match=f"insert of {RULE}: an organisation's policy forbids it"):
        cloud.apply()
    cloud.sim.table("knobs").clear()
    cloud.apply()

    assert {step.act for step in cloud.plan()} == {"keep"}


def test_destroy_takes_the_rule_and_the_roles_along(cloud: Cloud) -> None:
    cloud.apply()

    cloud.destroy(with_data=False)

    assert not cloud.sim.table("firewalls")
    assert not members(cloud, "roles/compute.instanceAdmin.v1")


# --- what there is


def test_machines_and_addresses_of_ours_keep_a_deployment_from_being_destroyed(cloud: Cloud) -> None:
    cloud.apply()
    machine(cloud)
    google = cloud.google()

    assert deployment_of(cloud.store) is None
    cloud.store.create("deployment", "self", {"id": "d1", "key": "00", "created_at": cloud.now})
    with pytest.raises(Failed, match=f"machine {MACHINE} in {ZONE}, address dumont-d1-abc in {REGION}.*0.01 USD an"):
        standing.refuse_while_ours_stand(google, deployment_of(cloud.store))
    for other in ("d", "d2", None):
        said = standing.refuse_while_ours_stand(google, other)
        assert said.endswith(f"left as they are: machine {MACHINE} in {ZONE}, address dumont-d1-abc in {REGION}")
    google.close()


def test_with_nothing_at_google_nothing_is_said(cloud: Cloud) -> None:
    cloud.apply()
    google = cloud.google()

    assert standing.refuse_while_ours_stand(google, "d1") == ""
    google.close()


def test_what_cannot_be_listed_is_not_believed_absent(cloud: Cloud) -> None:
    cloud.apply()
    google = cloud.google()
    cloud.sim.compute.unreachable = {ZONE}
    with pytest.raises(Failed, match="does not list all instances"):
        standing.standing(google)

    cloud.sim.compute.unreachable = set()
    assert standing.standing(google) == []
    cloud.sim.trouble.append(Trouble("GET", "aggregated/addresses$", Refused(404, "NOT_FOUND", "no such project")))
    with pytest.raises(Failed, match="does not list all addresses"):
        standing.standing(google)
    google.close()


def test_every_page_is_read(cloud: Cloud) -> None:
    cloud.apply()
    cloud.sim.compute.page_rows = 2
    for number in range(5):
        machine(cloud, f"dumont-d1-i{number}-1-0123abcd")
    google = cloud.google()

    assert len(standing.standing(google)) == 10
    google.close()


def test_a_month_of_a_standby_is_what_its_offers_say() -> None:
    cheapest, dearest = cost.standby_range()

    here = cost.standby_month(REGION)
    assert cheapest.usd_per_month <= here.usd_per_month <= dearest.usd_per_month
    offer = offers_in(REGION)[0]
    assert round(offer.usd_per_hour(cost.STANDBY_DISK_GB) * 730, 6) == round(here.usd_per_month, 6)
    line, opened, made_by = standby_lines(REGION)
    assert f"{here.usd_per_month:.2f} USD a month in {REGION} (machine" in line
    assert "tcp 22 2200 7946 8080 8888, udp 7946" in opened
    assert "reserves its own" in made_by
    assert "to" in next(standby_lines("mars-north1"))


# --- the doctor


def test_the_door_is_open_and_there_is_room(cloud: Cloud) -> None:
    cloud.apply()
    cloud.sim.calls.clear()

    findings = found(cloud)

    assert {finding.verdict for finding in findings.values()} == {Verdict.OK}, findings
    assert "udp 7946" in findings["standby firewall"].found
    assert "room for 8 more" in findings["standby quotas"].found
    assert not cloud.sim.writes


def test_a_door_that_is_shut_or_ajar_names_its_mend(cloud: Cloud) -> None:
    cloud.apply()
    rule(cloud)["disabled"] = True
    ajar = found(cloud)["standby firewall"]
    del cloud.sim.table("firewalls")[RULE]
    shut = found(cloud)["standby firewall"]

    for finding in (ajar, shut):
        assert finding.verdict is Verdict.FAILED
        assert finding.mend == f"dumont deploy apply --project {PROJECT} --region {REGION}"
    assert "on: False -> True" in ajar.found


@pytest.mark.parametrize(
    ("own", "verdict", "said"),
    [
        ({"us-east1": {"CPUS": (8.0, 7.0)}}, Verdict.WARNING, "us-east1 (CPUS)"),
        ({"us-east1": {"CPUS": (8.0, 7.0), "PREEMPTIBLE_CPUS": (8.0, 0.0)}}, Verdict.OK, "fewest in us-east1"),
        ({"us-east1": {"STATIC_ADDRESSES": (8.0, 8.0)}}, Verdict.WARNING, "us-east1 (STATIC_ADDRESSES)"),
        ("everywhere", Verdict.FAILED, "no region has room"),
    ],
)
def test_quotas_that_are_used_up_are_named(cloud: Cloud, own: Any, verdict: Verdict, said: str) -> None:
    from common.domain.region import regions

    cloud.apply()
    everywhere = {name: {"IN_USE_ADDRESSES": (4.0, 4.0)} for name in regions()}
    cloud.sim.table("region quotas").update(everywhere if own == "everywhere" else own)

    finding = found(cloud)["standby quotas"]

    assert finding.verdict is verdict
    assert said in finding.found
    assert (PROJECT in (finding.mend or "")) is (verdict is not Verdict.OK)


def test_an_interface_that_is_off_or_shut_is_one_finding(cloud: Cloud) -> None:
    off = found(cloud)
    assert [*off] == ["compute engine"]
    assert off["compute engine"].verdict is Verdict.FAILED
    assert "dumont deploy apply" in (off["compute engine"].mend or "")

    cloud.apply()
    refusal = Refused(403, "PERMISSION_DENIED", "Required 'compute.firewalls.list' permission")
    cloud.sim.trouble.append(Trouble("GET", "/firewalls$", refusal))
    [shut] = found(cloud).values()
    assert shut.verdict is Verdict.WARNING
    assert "roles/compute.viewer" in (shut.mend or "")

    cloud.sim.trouble.append(Trouble("GET", "/regions$", Refused(503, "UNAVAILABLE", "later"), times=100))
    findings = found(cloud)
    assert findings["compute engine"].verdict is Verdict.WARNING
    assert findings["standby firewall"].verdict is Verdict.OK

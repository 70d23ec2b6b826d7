"""Service Usage, IAM, Resource Manager and Secret Manager."""

from __future__ import annotations

import base64
import copy
from datetime import datetime, timedelta
from typing import Any

from infra.demo.gcp.sim import Ask, GoogleSim, Refused, not_there, there

PROJECT = "/v1/projects/{project}"


def add_project(sim: GoogleSim) -> None:
    """The project starts with nothing switched on but Service Usage itself."""
    _services(sim)
    _accounts(sim)
    _secrets(sim)
    sim.on("POST", PROJECT + ":getIamPolicy", lambda _: policy_of(sim, "project"), api="cloudresourcemanager")
    sim.on("POST", PROJECT + ":setIamPolicy", lambda ask: set_policy(sim, "project", ask), api="cloudresourcemanager")


def policy_of(sim: GoogleSim, resource: str) -> dict[str, Any]:
    policy: dict[str, Any] = sim.table("policies").setdefault(resource, {"version": 1, "etag": "0", "bindings": []})
    return copy.deepcopy(policy)


def set_policy(sim: GoogleSim, resource: str, ask: Ask) -> dict[str, Any]:
    """Refused when somebody else wrote first, or when a member is not known (yet)."""
    before, policy = policy_of(sim, resource), ask.body["policy"]
    if policy.get("etag", before["etag"]) != before["etag"]:
        raise Refused(409, "ABORTED", "There were concurrent policy changes. Please retry.")
    for binding in policy["bindings"]:
        for member in binding["members"]:
            _demand_member(sim, member, ask.now)
    policy = {"version": policy.get("version", 1), "bindings": policy["bindings"], "etag": str(int(before["etag"]) + 1)}
    sim.table("policies")[resource] = policy
    return copy.deepcopy(policy)


def has_role(sim: GoogleSim, resource: str, role: str, email: str) -> bool:
    bindings = policy_of(sim, resource)["bindings"]
    return any(row["role"] == role and f"serviceAccount:{email}" in row["members"] for row in bindings)


def _demand_member(sim: GoogleSim, member: str, now: datetime) -> None:
    kind, _, email = member.partition(":")
    if kind != "serviceAccount":
        return
    row = sim.table("accounts").get(email)
    if row is None or now - row["made"] < timedelta(seconds=sim.settle_s):
        raise Refused(400, "INVALID_ARGUMENT", f"Service account {email} does not exist.")


def _services(sim: GoogleSim) -> None:
    def enable(ask: Ask) -> Any:
        api = ask.names["service"].removesuffix(".googleapis.com")

        def finish(now: datetime) -> dict[str, Any]:
            sim.enabled.setdefault(api, now)
            return {"service": {"state": "ENABLED"}}

        return sim.slow(sim.numbered("v1").removeprefix("v1/"), ask.now, finish, factor=0.5)

    def list_(_: Ask) -> Any:
        rows = [{"config": {"name": f"{api}.googleapis.com"}, "state": "ENABLED"} for api in sorted(sim.enabled)]
        return {"services": rows}

    sim.on("GET", PROJECT + "/services", list_, api=None)
    sim.on("POST", PROJECT + "/services/{service}:enable", enable, api=None)
    sim.on("GET", "/v1/operations/{id}", lambda ask: sim.operations[f"operations/{ask.names['id']}"].shown(), api=None)


def _accounts(sim: GoogleSim) -> None:
    path, accounts = PROJECT + "/serviceAccounts", sim.table("accounts")

    def create(ask: Ask) -> Any:
        id = ask.body["accountId"]
        if not 6 <= len(id) <= 30:
            raise Refused(400, "INVALID_ARGUMENT", f"Invalid service account id {id}: 6 to 30 characters")
        email = f"{id}@{sim.project}.iam.gserviceaccount.com"
        not_there(accounts, email)
        accounts[email] = {"email": email, **ask.body["serviceAccount"], "made": ask.now}
        return _shown(accounts[email])

    def change(ask: Ask) -> Any:
        there(accounts, ask.names["email"]).update(ask.body["serviceAccount"])
        return _shown(accounts[ask.names["email"]])

    def delete(ask: Ask) -> Any:
        """Its memberships stay in the policies, as those of a deleted one."""
        email = there(accounts, ask.names["email"])["email"]
        del accounts[email]
        for policy in sim.table("policies").values():
            for row in policy["bindings"]:
                gone = f"deleted:serviceAccount:{email}?uid=1"
                row["members"] = [gone if member == f"serviceAccount:{email}" else member for member in row["members"]]
        return {}

    sim.on("GET", path, lambda _: {"accounts": [_shown(row) for row in accounts.values()]}, api="iam")
    sim.on("POST", path, create, api="iam")
    sim.on("PATCH", path + "/{email}", change, api="iam")
    sim.on("DELETE", path + "/{email}", delete, api="iam")


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "made"}


def _secrets(sim: GoogleSim) -> None:
    path, secrets, api = PROJECT + "/secrets", sim.table("secrets"), "secretmanager"

    def create(ask: Ask) -> Any:
        not_there(secrets, ask.query["secretId"])
        secrets[ask.query["secretId"]] = {"labels": ask.body.get("labels", {}), "versions": []}
        return {"name": _full(sim, ask.query["secretId"])}

    def list_(ask: Ask) -> Any:
        ours = [name for name, row in secrets.items() if row["labels"].get("managed-by") == "dumont"]
        assert ask.query["filter"] == "labels.managed-by=dumont"
        return {"secrets": [{"name": _full(sim, name)} for name in sorted(ours)]}

    def add(ask: Ask) -> Any:
        versions = there(secrets, ask.names["secret"])["versions"]
        versions.append(base64.b64decode(ask.body["payload"]["data"], validate=True).decode())
        return {"name": f"{_full(sim, ask.names['secret'])}/versions/{len(versions)}"}

    def access(ask: Ask) -> Any:
        versions = there(secrets, ask.names["secret"])["versions"]
        if not versions:
            raise Refused(404, "NOT_FOUND", f"{ask.names['secret']} has no versions.")
        payload = {"data": base64.b64encode(versions[-1].encode()).decode()}
        return {"name": f"{_full(sim, ask.names['secret'])}/versions/{len(versions)}", "payload": payload}

    def delete(ask: Ask) -> Any:
        there(secrets, ask.names["secret"])
        del secrets[ask.names["secret"]]
        sim.table("policies").pop(f"secret/{ask.names['secret']}", None)
        return {}

    sim.on("GET", path, list_, api=api)
    sim.on("POST", path, create, api=api)
    sim.on("POST", path + "/{secret}:addVersion", add, api=api)
    sim.on("GET", path + "/{secret}/versions/latest:access", access, api=api)
    sim.on("DELETE", path + "/{secret}", delete, api=api)
    sim.on("GET", path + "/{secret}:getIamPolicy", lambda ask: policy_of(sim, f"secret/{ask.names['secret']}"), api=api)
    sim.on(
        "POST",
        path + "/{secret}:setIamPolicy",
        lambda ask: there(secrets, ask.names["secret"]) and set_policy(sim, f"secret/{ask.names['secret']}", ask),
        api=api,
    )


def _full(sim: GoogleSim, secret: str) -> str:
    return f"projects/{sim.project}/secrets/{secret}"

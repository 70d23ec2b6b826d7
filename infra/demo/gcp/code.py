"""Cloud Storage, Cloud Functions (2nd gen), Cloud Run and Cloud Scheduler, as far as a deployment uses them."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from infra.demo.gcp.project import has_role, policy_of, set_policy
from infra.demo.gcp.sim import Ask, GoogleSim, Refused, not_there, there

LOCATION = "/v2/projects/{project}/locations/{region}"
JOBS = "/v1/projects/{project}/locations/{region}/jobs"
ACTIVE, FAILED, DEPLOYING, DELETING = 1, 2, 3, 4
ENABLED, PAUSED = 1, 2
READER = "roles/secretmanager.secretAccessor"


def add_code(sim: GoogleSim) -> None:
    _storage(sim)
    _functions(sim)
    _services(sim)
    _jobs(sim)
    sim.on("GET", LOCATION + "/operations/{id}", lambda ask: sim.operations[_operation(sim, ask)].shown(), api=None)


def _there(sim: GoogleSim, ask: Ask, rows: dict[str, Any]) -> list[Any]:
    """Everything is in one region; in another there is nothing."""
    return list(rows.values()) if ask.names["region"] == sim.region else []


def _operation(sim: GoogleSim, ask: Ask) -> str:
    return f"projects/{sim.project}/locations/{sim.region}/operations/{ask.names['id']}"


def _begin(sim: GoogleSim) -> str:
    return sim.numbered(f"projects/{sim.project}/locations/{sim.region}")


# --- Cloud Storage


def _storage(sim: GoogleSim) -> None:
    buckets, objects, api = sim.table("buckets"), sim.table("objects"), "storage"

    def create(ask: Ask) -> Any:
        not_there(buckets, ask.body["name"])
        buckets[ask.body["name"]] = {**ask.body, "location": ask.body["location"].upper()}
        return buckets[ask.body["name"]]

    def change(ask: Ask) -> Any:
        there(buckets, ask.names["bucket"]).update(ask.body)
        return buckets[ask.names["bucket"]]

    def delete(ask: Ask) -> Any:
        there(buckets, ask.names["bucket"])
        if objects:
            raise Refused(409, "FAILED_PRECONDITION", "The bucket you tried to delete is not empty.")
        del buckets[ask.names["bucket"]]
        return {}

    def upload(ask: Ask) -> Any:
        there(buckets, ask.names["bucket"])
        if ask.query.get("ifGenerationMatch") == "0" and ask.query["name"] in objects:
            raise Refused(412, "FAILED_PRECONDITION", "At least one of the pre-conditions you specified did not hold.")
        objects[ask.query["name"]] = ask.raw
        return {"name": ask.query["name"], "size": str(len(ask.raw))}

    def remove(ask: Ask) -> Any:
        there(objects, ask.names["object"])
        del objects[ask.names["object"]]
        return {}

    def list_(ask: Ask) -> Any:
        there(buckets, ask.names["bucket"])
        return {"items": [{"name": name} for name in sorted(objects) if name.startswith(ask.query.get("prefix", ""))]}

    one = "/storage/v1/b/{bucket}"
    sim.on("POST", "/storage/v1/b", create, api=api)
    sim.on("GET", one, lambda ask: there(buckets, ask.names["bucket"]), api=api)
    sim.on("PATCH", one, change, api=api)
    sim.on("DELETE", one, delete, api=api)
    sim.on("GET", one + "/o", list_, api=api)
    sim.on("DELETE", one + "/o/{object=**}", remove, api=api)
    sim.on("POST", "/upload/storage/v1/b/{bucket}/o", upload, api=api)


# --- Cloud Functions


def _functions(sim: GoogleSim) -> None:
    functions, api, path = sim.table("functions"), "cloudfunctions", LOCATION + "/functions"

    def create(ask: Ask) -> Any:
        id = ask.query["functionId"]
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", id):
            raise Refused(400, "INVALID_ARGUMENT", f"{id} is not a valid function id")
        not_there(functions, id)
        return build(id, ask)

    def update(ask: Ask) -> Any:
        demand_quiet(ask.names["function"])
        return build(ask.names["function"], ask)

    def demand_quiet(id: str) -> None:
        if there(functions, id)["state"] in (DEPLOYING, DELETING):
            raise Refused(409, "ABORTED", "unable to queue the operation: another one is in progress")

    def build(id: str, ask: Ask) -> Any:
        _demand_sound(sim, ask.body)
        name = f"projects/{sim.project}/locations/{sim.region}/functions/{id}"
        functions[id] = {**ask.body, "name": name, "state": DEPLOYING, "stateMessages": []}

        def finish(_: datetime) -> Any:
            if id not in functions:
                return {}
            if wrong := _wrong_at_start(sim, ask.body):
                message = {"severity": 1, "type": "BuildFailed", "message": wrong}
                functions[id] |= {"state": FAILED, "stateMessages": [message]}
                raise Refused(400, "FAILED_PRECONDITION", wrong)
            functions[id]["state"] = ACTIVE
            _serve(sim, id)
            return {"@type": "type.googleapis.com/google.cloud.functions.v2.Function", "name": functions[id]["name"]}

        return sim.slow(_begin(sim), ask.now, finish, factor=5)

    def delete(ask: Ask) -> Any:
        id = ask.names["function"]
        demand_quiet(id)
        functions[id]["state"] = DELETING

        def finish(_: datetime) -> Any:
            for table, name in (("functions", id), ("services", id), ("policies", f"service/{id}")):
                sim.table(table).pop(name, None)
            return {"@type": "type.googleapis.com/google.protobuf.Empty"}

        return sim.slow(_begin(sim), ask.now, finish, factor=5)

    sim.on("GET", path, lambda ask: {"functions": _there(sim, ask, functions)}, api=api)
    sim.on("POST", path, create, api=api)
    sim.on("PATCH", path + "/{function}", update, api=api)
    sim.on("DELETE", path + "/{function}", delete, api=api)


def _demand_sound(sim: GoogleSim, body: dict[str, Any]) -> None:
    """What Google refuses at once."""
    service, account = body["serviceConfig"], body["serviceConfig"]["serviceAccountEmail"]
    if account not in sim.table("accounts"):
        raise Refused(400, "INVALID_ARGUMENT", f"Service account {account} does not exist.")
    if float(service["availableCpu"]) < 1 and service["maxInstanceRequestConcurrency"] > 1:
        raise Refused(400, "INVALID_ARGUMENT", "Total cpu < 1 is not supported with concurrency > 1.")
    source = body["buildConfig"]["source"]["storageSource"]
    if source["object"] not in sim.table("objects"):
        raise Refused(400, "INVALID_ARGUMENT", f"{source['object']} was not found in {source['bucket']}.")


def _wrong_at_start(sim: GoogleSim, body: dict[str, Any]) -> str | None:
    """What only the build or the first revision finds out."""
    service, build = body["serviceConfig"], body["buildConfig"]
    if fault := sim.table("knobs").get("builds_fail"):
        return str(fault)
    builder = build["serviceAccount"].rpartition("/")[2]
    if not has_role(sim, "project", "roles/cloudbuild.builds.builder", builder):
        return f"Build failed: {builder} does not have storage.objects.get access"
    for secret in service.get("secretEnvironmentVariables", []):
        kept = sim.table("secrets").get(secret["secret"])
        if not kept or int(secret["version"]) > len(kept["versions"]):
            return f"Secret {secret['secret']} version {secret['version']} was not found"
        if not has_role(sim, f"secret/{secret['secret']}", READER, service["serviceAccountEmail"]):
            return f"Permission denied on secret {secret['secret']} for {service['serviceAccountEmail']}"
    return None


# --- Cloud Run


def _serve(sim: GoogleSim, id: str) -> None:
    """A new revision: the template is made anew from the function."""
    name = f"projects/{sim.project}/locations/{sim.region}/services/{id}"
    boost = sim.table("knobs").get("cpu_boost", True)
    container = {"image": "function", "resources": {"startupCpuBoost": boost}}
    sim.table("services")[id] = {"name": name, "template": {"containers": [container]}}


def _services(sim: GoogleSim) -> None:
    services, api, path = sim.table("services"), "run", LOCATION + "/services"

    def change(ask: Ask) -> Any:
        row = there(services, ask.names["service"])
        return sim.slow(_begin(sim), ask.now, lambda _: row.update(template=ask.body["template"]), factor=0.5)

    def policy(ask: Ask) -> Any:
        there(services, ask.names["service"])
        return policy_of(sim, f"service/{ask.names['service']}")

    def set_(ask: Ask) -> Any:
        there(services, ask.names["service"])
        return set_policy(sim, f"service/{ask.names['service']}", ask)

    sim.on("GET", path, lambda ask: {"services": _there(sim, ask, services)}, api=api)
    sim.on("PATCH", path + "/{service}", change, api=api)
    sim.on("GET", path + "/{service}:getIamPolicy", policy, api=api)
    sim.on("POST", path + "/{service}:setIamPolicy", set_, api=api)


# --- Cloud Scheduler


def _jobs(sim: GoogleSim) -> None:
    jobs, api = sim.table("jobs"), "cloudscheduler"

    def put(id: str, ask: Ask) -> Any:
        deadline_s = float(ask.body["attemptDeadline"].removesuffix("s"))
        if not 15 <= deadline_s <= 1800:
            raise Refused(400, "INVALID_ARGUMENT", "attempt_deadline must be between 15 seconds and 30 minutes")
        caller = ask.body["httpTarget"]["oidcToken"]["serviceAccountEmail"]
        if caller not in sim.table("accounts"):
            raise Refused(404, "NOT_FOUND", f"Service account {caller} does not exist.")
        name = f"projects/{sim.project}/locations/{sim.region}/jobs/{id}"
        jobs[id] = {**ask.body, "name": name, "state": jobs.get(id, {}).get("state", ENABLED)}
        return jobs[id]

    def create(ask: Ask) -> Any:
        id = ask.body["name"].rpartition("/")[2]
        not_there(jobs, id)
        return put(id, ask)

    def update(ask: Ask) -> Any:
        there(jobs, ask.names["job"])
        return put(ask.names["job"], ask)

    def resume(ask: Ask) -> Any:
        there(jobs, ask.names["job"])["state"] = ENABLED
        return jobs[ask.names["job"]]

    def delete(ask: Ask) -> Any:
        there(jobs, ask.names["job"])
        del jobs[ask.names["job"]]
        return {}

    sim.on("GET", JOBS, lambda ask: {"jobs": _there(sim, ask, jobs)}, api=api)
    sim.on("POST", JOBS, create, api=api)
    sim.on("PATCH", JOBS + "/{job}", update, api=api)
    sim.on("POST", JOBS + "/{job}:resume", resume, api=api)
    sim.on("DELETE", JOBS + "/{job}", delete, api=api)

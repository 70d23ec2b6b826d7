"""What runs: the source archive in a bucket, the functions, who may call them, and the schedules that do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from google.api_core import exceptions
from google.api_core.operation import Operation
from google.cloud import functions_v2, scheduler_v1  # type: ignore[attr-defined]
from google.protobuf.duration_pb2 import Duration

from infra.deploy.archive import Archive
from infra.deploy.google import CALL_TIMEOUT_S, Google, GoogleRefused, GoogleSilent
from infra.deploy.project import LABELS, PREFIX, Policy, email, pending, unless_gone, unless_there
from infra.deploy.resource import Failed, Found, Pending, Sort, Spec

SOURCE_LABEL = "dumont-source"
INVOKER = "roles/run.invoker"
EVERYBODY = "allUsers"
BACKOFF_S = 5
FOLDER = "source/"


class Buckets:
    """The bucket of the source archives."""

    sort = Sort("bucket", api="storage", prunes=False)

    def __init__(self, google: Google) -> None:
        self._google, self._bucket = google, bucket_of(google.project)

    def present(self) -> dict[str, Found]:
        row = self._google.read("storage", f"/storage/v1/b/{self._bucket}")
        if row is None:
            return {}
        access = row.get("iamConfiguration", {})
        spec = {
            "location": row["location"].lower(),
            "uniform": access.get("uniformBucketLevelAccess", {}).get("enabled", False),
            "public": access.get("publicAccessPrevention", "inherited"),
        }
        return {self._bucket: Found(spec)}

    def create(self, name: str, spec: Spec) -> None:
        body = {"name": name, "location": spec["location"], "labels": LABELS, **_access(spec)}
        unless_there(
            lambda: self._google.write("POST", "storage", "/storage/v1/b", body, project=self._google.project)
        )  # fmt: skip

    def change(self, name: str, spec: Spec, found: Found) -> None:
        if spec["location"] != found.spec["location"]:
            raise Failed(f"bucket {name} is in {found.spec['location']} and cannot be moved: delete it, then apply")
        self._google.write("PATCH", "storage", f"/storage/v1/b/{name}", _access(spec))

    def delete(self, name: str, found: Found) -> None:
        unless_gone(lambda: self._google.write("DELETE", "storage", f"/storage/v1/b/{name}"))


def _access(spec: Spec) -> dict[str, Any]:
    return {
        "iamConfiguration": {
            "uniformBucketLevelAccess": {"enabled": spec["uniform"]},
            "publicAccessPrevention": spec["public"],
        }
    }


def bucket_of(project: str) -> str:
    return f"{project}-dumont-source"


class Sources:
    """Uploaded archives, by their id; those that no function is built from any more go."""

    sort = Sort("source", api="storage")

    def __init__(self, google: Google, archive: Archive) -> None:
        self._google, self._archive, self._bucket = google, archive, bucket_of(google.project)

    def present(self) -> dict[str, Found]:
        rows = self._google.pages("storage", f"/storage/v1/b/{self._bucket}/o", "items", prefix=FOLDER)
        return {row["name"].removeprefix(FOLDER).removesuffix(".zip"): Found({}) for row in rows}

    def create(self, name: str, spec: Spec) -> None:
        query = {"uploadType": "media", "name": object_of(name), "ifGenerationMatch": "0"}
        path = f"/upload/storage/v1/b/{self._bucket}/o"
        unless_there(lambda: self._google.write("POST", "storage", path, content=self._archive.data, **query))

    def change(self, name: str, spec: Spec, found: Found) -> None:
        """An object is its content: it never changes."""

    def delete(self, name: str, found: Found) -> None:
        path = f"/storage/v1/b/{self._bucket}/o/{object_of(name).replace('/', '%2F')}"
        unless_gone(lambda: self._google.write("DELETE", "storage", path))


def object_of(id: str) -> str:
    return f"{FOLDER}{id}.zip"


class Functions:
    sort = Sort("function", api="cloudfunctions")

    def __init__(self, google: Google) -> None:
        self._google = google
        self._parent = f"projects/{google.project}/locations/{google.region}"
        self._client = functions_v2.FunctionServiceClient(
            credentials=google.credentials,
            transport="rest",
            client_options={"api_endpoint": google.hosts["cloudfunctions"]},
        )
        google.at_close(self._client.transport.close)

    def present(self) -> dict[str, Found]:
        """Those with our label. A stranger's function under a name of ours is found when it is created."""
        rows = looked(
            self._google,
            lambda: list(self._client.list_functions(parent=self._parent, retry=None, timeout=CALL_TIMEOUT_S)),
        )
        ours = [row for row in rows if dict(row.labels).get("managed-by") == LABELS["managed-by"]]
        return {row.name.rpartition("/")[2]: _found_function(row) for row in ours}

    def create(self, name: str, spec: Spec) -> Pending:
        function = self._function(name, spec)
        try:
            operation = asked(
                self._google,
                lambda: self._client.create_function(
                    parent=self._parent, function=function, function_id=name, retry=None, timeout=CALL_TIMEOUT_S
                ),
            )
        except GoogleRefused as refused:
            if refused.status != 409:
                raise
            return self._taken(name)
        return _over(self._google, operation)

    def change(self, name: str, spec: Spec, found: Found) -> Pending:
        """The whole function is sent: what the mask leaves out would keep its old value."""
        operation = asked(
            self._google,
            lambda: self._client.update_function(
                function=self._function(name, spec), retry=None, timeout=CALL_TIMEOUT_S
            ),
        )
        return _over(self._google, operation)

    def delete(self, name: str, found: Found) -> Pending | None:
        full = f"{self._parent}/functions/{name}"
        operation = unless_gone(
            lambda: asked(
                self._google, lambda: self._client.delete_function(name=full, retry=None, timeout=CALL_TIMEOUT_S)
            )
        )
        return _over(self._google, operation) if operation else None

    def _taken(self, name: str) -> Pending:
        """Ours from an apply that was killed, or somebody else's."""
        if name not in self.present():
            raise Failed(
                f"function {name} exists in {self._parent} and is not Dumont's: deploy to another project or region"
            )
        return lambda: True

    def _function(self, name: str, spec: Spec) -> functions_v2.Function:
        build_account = f"projects/{self._google.project}/serviceAccounts/{spec['build_account']}"
        source = functions_v2.StorageSource(bucket=bucket_of(self._google.project), object_=object_of(spec["source"]))
        return functions_v2.Function(
            name=f"{self._parent}/functions/{name}",
            environment=functions_v2.Environment.GEN_2,
            labels={**LABELS, SOURCE_LABEL: spec["source"]},
            build_config=functions_v2.BuildConfig(
                runtime=spec["runtime"],
                entry_point=spec["entry_point"],
                source=functions_v2.Source(storage_source=source),
                service_account=build_account,
            ),
            service_config=functions_v2.ServiceConfig(
                available_memory=spec["memory"],
                available_cpu=spec["cpu"],
                timeout_seconds=spec["timeout_s"],
                max_instance_request_concurrency=spec["concurrency"],
                min_instance_count=spec["min_instances"],
                max_instance_count=spec["max_instances"],
                service_account_email=spec["account"],
                environment_variables=dict(spec["env"]),
                secret_environment_variables=[
                    functions_v2.SecretEnvVar(key=key, project_id=self._google.project, secret=key, version=version)
                    for key, version in spec["secrets"].items()
                ],
                ingress_settings=functions_v2.ServiceConfig.IngressSettings.ALLOW_ALL,
                all_traffic_on_latest_revision=True,
            ),
        )


def _found_function(row: functions_v2.Function) -> Found:
    build, service, state = row.build_config, row.service_config, functions_v2.Function.State
    spec = {
        "runtime": build.runtime,
        "entry_point": build.entry_point,
        "source": dict(row.labels).get(SOURCE_LABEL, ""),
        "build_account": build.service_account.rpartition("/")[2],
        "memory": service.available_memory,
        "cpu": service.available_cpu,
        "timeout_s": service.timeout_seconds,
        "concurrency": service.max_instance_request_concurrency,
        "min_instances": service.min_instance_count,
        "max_instances": service.max_instance_count,
        "account": service.service_account_email,
        "env": {name: value for name, value in dict(service.environment_variables).items() if name != PLATFORM_ENV},
        "secrets": {secret.key: secret.version for secret in service.secret_environment_variables},
    }
    said = "; ".join(message.message for message in row.state_messages)
    failure = (said or "its build failed") if row.state == state.FAILED else ""
    return Found(spec, ready=row.state in (state.ACTIVE, state.FAILED), failure=failure)


PLATFORM_ENV = "LOG_EXECUTION_ID"
"""The platform sets it by itself."""


def _over(google: Google, operation: Operation) -> Pending:
    def is_over() -> bool:
        if not looked(google, lambda: operation.done(retry=None)):  # type: ignore[no-untyped-call]
            return False
        if error := operation.exception(timeout=0):  # type: ignore[no-untyped-call]
            raise Failed(f"{operation.operation.name}: {error}")
        return True

    return is_over


class Services:
    """The Cloud Run service under each function: who may call it, and more CPU while it starts."""

    sort = Sort("service", api="run", prunes=False, goes_with="function")

    def __init__(self, google: Google, names: Sequence[str]) -> None:
        """`names` = of the functions that are wanted."""
        self._google, self._names = google, names
        self._path = f"/v2/projects/{google.project}/locations/{google.region}/services"

    def present(self) -> dict[str, Found]:
        rows = {row["name"].rpartition("/")[2]: row for row in self._google.pages("run", self._path, "services")}
        return {name: self._found(name, rows[name]) for name in self._names if name in rows}

    def create(self, name: str, spec: Spec) -> None:
        raise Failed(f"function {name} has no service at Cloud Run: look at it in the console, then apply again")

    def change(self, name: str, spec: Spec, found: Found) -> Pending | None:
        if spec["callers"] != found.spec["callers"]:
            Policy(self._google, "run", f"{self._path}/{name}", read_by="GET").set(
                INVOKER, spec["callers"], lambda _member: True
            )
        if spec["cpu_boost"] == found.spec["cpu_boost"]:
            return None
        template = found.handle["template"]
        for container in template["containers"]:
            container.setdefault("resources", {})["startupCpuBoost"] = spec["cpu_boost"]
        operation = self._google.write(
            "PATCH", "run", f"{self._path}/{name}", {"template": template}, updateMask="template.containers"
        )
        return pending(self._google, "run", operation, version="v2")

    def delete(self, name: str, found: Found) -> None:
        """It goes with its function."""

    def _found(self, name: str, row: dict[str, Any]) -> Found:
        bindings = Policy(self._google, "run", f"{self._path}/{name}", read_by="GET").read().get("bindings", [])
        callers = sorted(member for binding in bindings if binding["role"] == INVOKER for member in binding["members"])
        containers = row.get("template", {}).get("containers", [{}])
        boost = all(container.get("resources", {}).get("startupCpuBoost", False) for container in containers)
        return Found({"callers": callers, "cpu_boost": boost}, handle=row)


class Schedules:
    sort = Sort("schedule", api="cloudscheduler")

    def __init__(self, google: Google) -> None:
        self._google = google
        self._parent = f"projects/{google.project}/locations/{google.region}"
        self._client = scheduler_v1.CloudSchedulerClient(
            credentials=google.credentials,
            transport="rest",
            client_options={"api_endpoint": google.hosts["cloudscheduler"]},
        )
        google.at_close(self._client.transport.close)

    def present(self) -> dict[str, Found]:
        rows = looked(
            self._google, lambda: list(self._client.list_jobs(parent=self._parent, retry=None, timeout=CALL_TIMEOUT_S))
        )
        named = {row.name.rpartition("/")[2]: row for row in rows}
        return {name: _found_job(row) for name, row in named.items() if name.startswith(PREFIX)}

    def create(self, name: str, spec: Spec) -> None:
        job = self._job(name, spec)
        unless_there(
            lambda: asked(
                self._google,
                lambda: self._client.create_job(parent=self._parent, job=job, retry=None, timeout=CALL_TIMEOUT_S),
            )
        )

    def change(self, name: str, spec: Spec, found: Found) -> None:
        asked(
            self._google,
            lambda: self._client.update_job(job=self._job(name, spec), retry=None, timeout=CALL_TIMEOUT_S),
        )
        if found.spec["paused"]:
            asked(
                self._google,
                lambda: self._client.resume_job(name=f"{self._parent}/jobs/{name}", retry=None, timeout=CALL_TIMEOUT_S),
            )

    def delete(self, name: str, found: Found) -> None:
        full = f"{self._parent}/jobs/{name}"
        unless_gone(
            lambda: asked(self._google, lambda: self._client.delete_job(name=full, retry=None, timeout=CALL_TIMEOUT_S))
        )

    def _job(self, name: str, spec: Spec) -> scheduler_v1.Job:
        token = scheduler_v1.OidcToken(service_account_email=spec["caller"], audience=spec["url"])
        return scheduler_v1.Job(
            name=f"{self._parent}/jobs/{name}",
            schedule=spec["cron"],
            time_zone="Etc/UTC",
            attempt_deadline=Duration(seconds=spec["deadline_s"]),
            retry_config=scheduler_v1.RetryConfig(
                retry_count=spec["retries"], min_backoff_duration=Duration(seconds=BACKOFF_S)
            ),
            http_target=scheduler_v1.HttpTarget(
                uri=spec["url"], http_method=scheduler_v1.HttpMethod.POST, oidc_token=token
            ),
        )


def _found_job(row: scheduler_v1.Job) -> Found:
    target = row.http_target
    spec = {
        "cron": row.schedule,
        "url": target.uri,
        "caller": target.oidc_token.service_account_email,
        "deadline_s": int(row.attempt_deadline.total_seconds()),
        "retries": row.retry_config.retry_count,
        "paused": row.state == scheduler_v1.Job.State.PAUSED,
    }
    return Found(spec)


def scheduler_account(project: str) -> str:
    return email(project, f"{PREFIX}scheduler")


def looked(google: Google, call: Callable[[], Any]) -> Any:
    """A read by Google's own client: asked again while nobody answers."""
    return asked(google, call, also_silence=True)


def asked(google: Google, call: Callable[[], Any], *, also_silence: bool = False) -> Any:
    """A call of Google's own client with our errors and patience."""

    def once() -> Any:
        with _translated():
            return call()

    return google.patiently(once, also_silence=also_silence)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (exceptions.ServerError, exceptions.RetryError) as error:
        raise GoogleSilent(str(error)) from error
    except exceptions.GoogleAPICallError as error:
        raise GoogleRefused(error.code or 0, getattr(error, "reason", None) or _status(error), str(error)) from error
    except OSError as error:  # what requests raises when nobody answers
        raise GoogleSilent(f"no answer ({type(error).__name__})") from error


def _status(error: exceptions.GoogleAPICallError) -> str:
    return "ABORTED" if isinstance(error, exceptions.Aborted) else type(error).__name__

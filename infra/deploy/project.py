"""The project's own resources: enabled interfaces, service accounts, roles, secrets and who may read them."""

from __future__ import annotations

import base64
import functools
import secrets as chance
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from infra.deploy.google import Google, GoogleRefused
from infra.deploy.resource import Failed, Found, Pending, Sort, Spec

PREFIX = "dumont-"
LABELS = {"managed-by": "dumont"}
TITLES = ("Dumont function ", "Dumont's ")
"""How an account's title begins that is ours: it takes no labels, and whoever deploys may call his own account
`dumont-deployer`."""
READER = "roles/secretmanager.secretAccessor"
POLICY_VERSION = 3
"""The oldest that keeps other people's conditions."""
RETRIES = 5
"""Of a policy's read and write, when somebody else wrote in between."""
NEW_VERSION = "new"
"""The version that an apply will add."""
DRAWN = ("JWT_SECRET",)
"""Secrets that only this deployment knows: drawn when nobody gives one."""
BEFORE = {"JWT_SECRET": "JWT_SECRET_BEFORE"}
"""Under which name the value before is kept when another is given: machines that run hold what it signed."""


class Apis:
    """Google's interfaces, switched on for the project. They are never switched off: others may use them."""

    sort = Sort("api", api=None, is_data=True, prunes=False, goes_with="nothing")

    def __init__(self, google: Google, names: Iterable[str]) -> None:
        self._google, self._names = google, tuple(names)

    def present(self) -> dict[str, Found]:
        path = f"/v1/projects/{self._google.project}/services"
        rows = self._google.pages("serviceusage", path, "services", filter="state:ENABLED", pageSize="200")
        enabled = {row["config"]["name"].partition(".")[0] for row in rows}
        return {name: Found({}) for name in self._names if name in enabled}

    def create(self, name: str, spec: Spec) -> Pending:
        path = f"/v1/projects/{self._google.project}/services/{name}.googleapis.com:enable"
        return pending(self._google, "serviceusage", self._google.write("POST", "serviceusage", path, {}))

    def change(self, name: str, spec: Spec, found: Found) -> Pending:
        return self.create(name, spec)

    def delete(self, name: str, found: Found) -> None:
        """Left on."""


class Accounts:
    """Service accounts of ours, by the part before the @."""

    sort = Sort("account", api="iam")

    def __init__(self, google: Google) -> None:
        self._google, self._path = google, f"/v1/projects/{google.project}/serviceAccounts"

    def present(self) -> dict[str, Found]:
        rows = self._google.pages("iam", self._path, "accounts", pageSize="100")
        titles = {row["email"].partition("@")[0]: row.get("displayName", "") for row in rows}
        ours = {name: title for name, title in titles.items() if name.startswith(PREFIX) and title.startswith(TITLES)}
        return {name: Found({"title": title}) for name, title in ours.items()}

    def create(self, name: str, spec: Spec) -> None:
        """One that is there by that name is only not known as ours: it gets its title back."""
        body = {"accountId": name, "serviceAccount": {"displayName": spec["title"]}}
        if unless_there(lambda: self._google.write("POST", "iam", self._path, body)) is None:
            self.change(name, spec, Found({}))

    def change(self, name: str, spec: Spec, found: Found) -> None:
        body = {"serviceAccount": {"displayName": spec["title"]}, "updateMask": "displayName"}
        self._google.write("PATCH", "iam", f"{self._path}/{email(self._google.project, name)}", body)

    def delete(self, name: str, found: Found) -> None:
        path = f"{self._path}/{email(self._google.project, name)}"
        unless_gone(lambda: self._google.write("DELETE", "iam", path))


class Roles:
    """Which of our service accounts have a role on the project. Other members of the policy are left as they are."""

    sort = Sort("role", api="cloudresourcemanager")

    def __init__(self, google: Google, accounts: Accounts) -> None:
        self._policy = Policy(google, "cloudresourcemanager", f"/v1/projects/{google.project}")
        self._accounts, self._domain = accounts, email(google.project, "").lstrip("@")

    def present(self) -> dict[str, Found]:
        is_ours = self._judge()
        bindings = [row for row in self._policy.read().get("bindings", []) if "condition" not in row]
        ours = {row["role"]: sorted(filter(is_ours, row["members"])) for row in bindings}
        return {role: Found({"members": members}) for role, members in ours.items() if members}

    def create(self, name: str, spec: Spec) -> None:
        self._policy.set(name, spec["members"], self._judge())

    def change(self, name: str, spec: Spec, found: Found) -> None:
        self.create(name, spec)

    def delete(self, name: str, found: Found) -> None:
        self._policy.set(name, [], self._judge())

    def _judge(self) -> Callable[[str], bool]:
        """Is a member ours? The accounts are looked at once, and only when one could be: IAM may not be on yet."""
        known = functools.cache(self._accounts.present)

        def is_ours(member: str) -> bool:
            """Also one whose account was deleted, which Google lists as `deleted:serviceAccount:...?uid=`."""
            kind, _, address = member.rpartition("serviceAccount:")
            name, _, domain = address.partition("@")
            could_be = name.startswith(PREFIX) and domain.startswith(self._domain)
            return could_be and (kind == "deleted:" or name in known())

        return is_ours


class Secrets:
    """Settings that are secret, by the setting's name. The values never appear in a specification."""

    sort = Sort("secret", api="secretmanager", is_data=True, prunes=False)

    def __init__(self, google: Google, values: Mapping[str, str]) -> None:
        """`values` = what the environment gives; a secret without one keeps what Google has."""
        self._google, self._values = google, values
        self._path = f"/v1/projects/{google.project}/secrets"

    def present(self) -> dict[str, Found]:
        rows = self._google.pages("secretmanager", self._path, "secrets", filter="labels.managed-by=dumont")
        names = [row["name"].rpartition("/")[2] for row in rows]
        return {name: self._found(name) for name in names}

    def create(self, name: str, spec: Spec) -> None:
        self._make(name)
        self._add(name, self._value(name))

    def change(self, name: str, spec: Spec, found: Found) -> None:
        """The value before goes first: killed in between, the next apply finds everything as it was."""
        if name in BEFORE and (kept := self._newest(name)):
            self._make(BEFORE[name])
            self._add(BEFORE[name], kept[1])
        self._add(name, self._value(name))

    def delete(self, name: str, found: Found) -> None:
        unless_gone(lambda: self._google.write("DELETE", "secretmanager", f"{self._path}/{name}"))

    def _found(self, name: str) -> Found:
        """With the newest version's number: a function is given that one, so that a new value is a new revision."""
        kept = self._newest(name)
        if kept is None:
            return Found({"value": "missing"}, handle=NEW_VERSION)
        version, value = kept
        if self._values.get(name, value) == value:
            return Found({"value": "current"}, handle=version)
        return Found({"value": "outdated"}, handle=NEW_VERSION)

    def _newest(self, name: str) -> tuple[str, str] | None:
        """Its newest version's number and value."""
        kept = self._google.read("secretmanager", f"{self._path}/{name}/versions/latest:access")
        if kept is None:
            return None
        return kept["name"].rpartition("/")[2], base64.b64decode(kept["payload"]["data"]).decode()

    def _value(self, name: str) -> str:
        value = self._values.get(name) or (chance.token_hex(32) if name in DRAWN else None)
        if value is None:
            raise Failed(f"secret {name} has no value yet: set {name} in the environment and apply again")
        return value

    def _make(self, name: str) -> None:
        body = {"replication": {"automatic": {}}, "labels": LABELS}
        unless_there(lambda: self._google.write("POST", "secretmanager", self._path, body, secretId=name))

    def _add(self, name: str, value: str) -> None:
        body = {"payload": {"data": base64.b64encode(value.encode()).decode()}}
        self._google.write("POST", "secretmanager", f"{self._path}/{name}:addVersion", body)


class Readers:
    """Which service accounts may read a secret."""

    sort = Sort("reader", api="secretmanager")

    def __init__(self, google: Google) -> None:
        self._google = google
        self._path = f"/v1/projects/{google.project}/secrets"

    def present(self) -> dict[str, Found]:
        rows = self._google.pages("secretmanager", self._path, "secrets", filter="labels.managed-by=dumont")
        policies = {row["name"].rpartition("/")[2]: self._readers(row["name"].rpartition("/")[2]) for row in rows}
        return {name: Found({"members": members}) for name, members in policies.items() if members}

    def create(self, name: str, spec: Spec) -> None:
        self._policy(name).set(READER, spec["members"], lambda _member: True)

    def change(self, name: str, spec: Spec, found: Found) -> None:
        self.create(name, spec)

    def delete(self, name: str, found: Found) -> None:
        unless_gone(lambda: self._policy(name).set(READER, [], lambda _member: True))

    def _readers(self, name: str) -> list[str]:
        bindings = self._policy(name).read().get("bindings", [])
        return sorted(member for row in bindings if row["role"] == READER for member in row["members"])

    def _policy(self, name: str) -> Policy:
        return Policy(self._google, "secretmanager", f"{self._path}/{name}", read_by="GET")


class Policy:
    """One IAM policy, changed by read, edit and guarded write."""

    def __init__(self, google: Google, host: str, path: str, read_by: str = "POST") -> None:
        self._google, self._host, self._path, self._read_by = google, host, path, read_by

    def read(self) -> dict[str, Any]:
        path = f"{self._path}:getIamPolicy"
        if self._read_by == "GET":
            query = {"options.requestedPolicyVersion": str(POLICY_VERSION)}
            return self._google.read(self._host, path, **query) or {}
        body = {"options": {"requestedPolicyVersion": POLICY_VERSION}}
        return self._google.write("POST", self._host, path, body)

    def set(self, role: str, members: Iterable[str], ours: Callable[[str], bool]) -> None:
        """Exactly these among ours; everybody else keeps the role, and every other binding stays."""
        for left in reversed(range(RETRIES)):
            policy = self.read()
            bindings = _with(policy.get("bindings", []), role, members, ours)
            body = {"policy": {**policy, "version": POLICY_VERSION, "bindings": bindings}}
            try:
                self._google.write("POST", self._host, f"{self._path}:setIamPolicy", body)
                return
            except GoogleRefused as refused:
                if refused.status != 409 or not left:
                    raise


def _with(
    bindings: list[dict[str, Any]], role: str, members: Iterable[str], ours: Callable[[str], bool]
) -> list[dict[str, Any]]:
    plain = [row for row in bindings if row["role"] == role and "condition" not in row]
    others = [row for row in bindings if row not in plain]
    strangers = {member for row in plain for member in row["members"] if not ours(member)}
    all_members = sorted({*strangers, *members})
    return [*others, *([{"role": role, "members": all_members}] if all_members else [])]


def email(project: str, account: str) -> str:
    return f"{account}@{project}.iam.gserviceaccount.com"


def unless_there(create: Callable[[], Any]) -> Any:
    """Creating what is there already succeeds: an apply that was killed had made it."""
    try:
        return create()
    except GoogleRefused as refused:
        if refused.status not in (409, 412):
            raise
        return None


def unless_gone(delete: Callable[[], Any]) -> Any:
    try:
        return delete()
    except GoogleRefused as refused:
        if refused.status != 404:
            raise
        return None


def pending(google: Google, host: str, operation: dict[str, Any] | None, version: str = "v1") -> Pending:
    """Asks for one of Google's long operations by its name, unless it was over at once."""

    def is_over() -> bool:
        nonlocal operation
        if operation and not operation.get("done"):
            operation = google.read(host, f"/{version}/{operation['name']}") or {"done": True}
        if operation and "error" in operation:
            raise Failed(f"{operation['name']}: {operation['error'].get('message', operation['error'])}")
        return operation is None or bool(operation.get("done"))

    return is_over

"""The Firestore database: itself, the composite indexes of the table, and the settings of single fields.

Every document keeps its content in one map (`data`). By default Firestore would index each field of it twice, and pay
for that with every write; here nothing is indexed but what INDEXES asks for.
"""

from __future__ import annotations

from typing import Any

from common.adapters.firestore import field_path
from common.ports import EXPIRING, EXPIRY_FIELD, INDEXES, Index
from infra.deploy.google import Google
from infra.deploy.project import pending, unless_gone, unless_there
from infra.deploy.resource import Failed, Found, Pending, Sort, Spec

DATABASE = "dumont"
"""A database of its own: what else lives in the project is not touched."""
DEFAULT = "__default__.*"
"""The settings of every field that has none of its own."""
NAME = "__name__"
ORDERS = {"asc": "ASCENDING", "desc": "DESCENDING"}


def composite_indexes() -> list[str]:
    """Every query that looks at two fields or more: `snapshots: data.instance_key asc, data.taken_at desc`."""
    shapes = {_shape(index) for index in INDEXES if len(_fields(index)) > 1}
    return sorted(shapes)


def field_settings() -> dict[str, Spec]:
    """Per `<collection>.<field>`: the orders in which it alone is indexed, and whether documents expire by it."""
    settings: dict[str, dict[str, Any]] = {DEFAULT: {"orders": [], "expires": False}}
    for index in INDEXES:
        if len(fields := _fields(index)) == 1:
            [(field, order)] = fields
            row = settings.setdefault(f"{index.collection}.{field_path(field)}", {"orders": [], "expires": False})
            row["orders"] = sorted({*row["orders"], order})
    for collection in EXPIRING:
        settings[f"{collection}.{field_path(EXPIRY_FIELD)}"] = {"orders": [], "expires": True}
    return dict(settings)


def _fields(index: Index) -> list[tuple[str, str]]:
    equal = [(name, "asc") for name in index.equal]
    return equal + ([(index.order, "desc" if index.newest_first else "asc")] if index.order else [])


def _shape(index: Index) -> str:
    return f"{index.collection}: " + ", ".join(f"{field_path(name)} {order}" for name, order in _fields(index))


class Databases:
    sort = Sort("database", api="firestore", is_data=True, prunes=False)

    def __init__(self, google: Google) -> None:
        self._google, self._path = google, f"/v1/projects/{google.project}/databases"

    def present(self) -> dict[str, Found]:
        row = self._google.read("firestore", f"{self._path}/{DATABASE}")
        if row is None:
            return {}
        spec = {
            "location": row["locationId"],
            "type": row["type"],
            "protected": row.get("deleteProtectionState") == "DELETE_PROTECTION_ENABLED",
        }
        return {DATABASE: Found(spec)}

    def create(self, name: str, spec: Spec) -> Pending:
        body = {"locationId": spec["location"], "type": spec["type"], **_protection(spec["protected"])}
        made = unless_there(lambda: self._google.write("POST", "firestore", self._path, body, databaseId=name))
        return pending(self._google, "firestore", made)

    def change(self, name: str, spec: Spec, found: Found) -> Pending:
        for fixed in ("location", "type"):
            if spec[fixed] != found.spec[fixed]:
                raise Failed(
                    f"database {name} is {found.spec[fixed]}, not {spec[fixed]}, and cannot be moved: "
                    f"deploy to the region it is in, or export it and delete it first"
                )
        return self._protect(name, bool(spec["protected"]))

    def delete(self, name: str, found: Found) -> Pending:
        is_over = self._protect(name, False)
        for _ in range(PROTECTION_LOOKS):
            if is_over():
                break
            self._google.pause(PROTECTION_LOOK_S)
        path = f"{self._path}/{name}"
        return pending(
            self._google, "firestore", unless_gone(lambda: self._google.write("DELETE", "firestore", path))
        )  # fmt: skip

    def _protect(self, name: str, on: bool) -> Pending:
        path, mask = f"{self._path}/{name}", "deleteProtectionState"
        answer = self._google.write("PATCH", "firestore", path, _protection(on), updateMask=mask)
        return pending(self._google, "firestore", answer)


PROTECTION_LOOKS, PROTECTION_LOOK_S = 30, 2.0


def _protection(on: bool) -> dict[str, str]:
    return {"deleteProtectionState": f"DELETE_PROTECTION_{'ENABLED' if on else 'DISABLED'}"}


class Indexes:
    """Composite indexes by their shape. One that is not in the table costs with every write, and goes."""

    sort = Sort("index", api="firestore", is_data=True, goes_with="database")

    def __init__(self, google: Google) -> None:
        self._google = google
        self._path = f"/v1/projects/{google.project}/databases/{DATABASE}/collectionGroups"

    def present(self) -> dict[str, Found]:
        rows = self._google.pages("firestore", f"{self._path}/-/indexes", "indexes")
        return {_shape_of(row): _found_index(row) for row in rows}

    def create(self, name: str, spec: Spec) -> Pending:
        collection, _, fields = name.partition(": ")
        parts = [part.rpartition(" ") for part in fields.split(", ")]
        body = {
            "queryScope": "COLLECTION",
            "fields": [{"fieldPath": field, "order": ORDERS[order]} for field, _, order in parts],
        }
        path = f"{self._path}/{collection}/indexes"
        return pending(
            self._google, "firestore", unless_there(lambda: self._google.write("POST", "firestore", path, body))
        )

    def change(self, name: str, spec: Spec, found: Found) -> Pending:
        """Only a broken one is ever changed: it is made anew."""
        self.delete(name, found)
        return self.create(name, spec)

    def delete(self, name: str, found: Found) -> None:
        unless_gone(lambda: self._google.write("DELETE", "firestore", f"/v1/{found.handle}"))


def _shape_of(row: dict[str, Any]) -> str:
    collection = row["name"].rpartition("/collectionGroups/")[2].partition("/")[0]
    words = {order: word for word, order in ORDERS.items()}
    fields = [
        f"{field['fieldPath']} {words.get(field.get('order', ''), 'other')}"
        for field in row["fields"]
        if field["fieldPath"] != NAME
    ]
    return f"{collection}: " + ", ".join(fields)


def _found_index(row: dict[str, Any]) -> Found:
    state = row.get("state")
    return Found(
        {}, ready=state == "READY", failure="it needs repair" if state == "NEEDS_REPAIR" else "", handle=row["name"]
    )


class Fields:
    """Settings of single fields, by `<collection>.<path>`."""

    sort = Sort("field", api="firestore", is_data=True, goes_with="database")

    def __init__(self, google: Google) -> None:
        self._google = google
        self._path = f"/v1/projects/{google.project}/databases/{DATABASE}/collectionGroups"

    def present(self) -> dict[str, Found]:
        """Google lists only what was set; the default has to be asked for."""
        rows: dict[str, dict[str, Any]] = {}
        for which in ("indexConfig.usesAncestorConfig:false", "ttlConfig:*"):
            for row in self._google.pages("firestore", f"{self._path}/-/fields", "fields", filter=which):
                rows[row["name"]] = row
        default = self._google.read("firestore", f"{self._path}/__default__/fields/*")
        if default and not default.get("indexConfig", {}).get("usesAncestorConfig", False) and _is_set(default):
            rows[default["name"]] = default
        return {_field_name(row): _found_field(row) for row in rows.values()}

    def create(self, name: str, spec: Spec) -> Pending:
        baseline: list[str] | None = (
            [] if spec["expires"] else None
        )  # an expiring field is indexed as the default says: not at all
        return self.change(name, spec, Found({"orders": baseline, "expires": False}))

    def change(self, name: str, spec: Spec, found: Found) -> Pending:
        """One write sets both; a setting that Google has already is not touched."""
        masks = [
            mask
            for mask, key in (("indexConfig", "orders"), ("ttlConfig", "expires"))
            if spec[key] != found.spec[key] or found.failure
        ]
        body = {
            "indexConfig": {"indexes": [_single(name, order) for order in spec["orders"]]},
            **({"ttlConfig": {}} if spec["expires"] else {}),
        }
        return self._patch(name, {key: value for key, value in body.items() if key in masks}, masks)

    def delete(self, name: str, found: Found) -> Pending:
        """Back to what the database does by default."""
        return self._patch(name, {}, ["indexConfig", "ttlConfig"])

    def _patch(self, name: str, body: dict[str, Any], masks: list[str]) -> Pending:
        collection, _, path = name.partition(".")
        url = f"{self._path}/{collection}/fields/{path}"
        return pending(
            self._google, "firestore", self._google.write("PATCH", "firestore", url, body, updateMask=",".join(masks))
        )


def _single(name: str, order: str) -> dict[str, Any]:
    path = name.partition(".")[2]
    return {"queryScope": "COLLECTION", "fields": [{"fieldPath": path, "order": ORDERS[order]}]}


def _is_set(default: dict[str, Any]) -> bool:
    """A new database answers with Google's own default: every field both ways."""
    return not default.get("indexConfig", {}).get("indexes")


def _field_name(row: dict[str, Any]) -> str:
    collection, _, path = row["name"].rpartition("/collectionGroups/")[2].partition("/fields/")
    return f"{collection}.{path}"


def _found_field(row: dict[str, Any]) -> Found:
    indexes, words = row.get("indexConfig", {}).get("indexes", []), {order: word for word, order in ORDERS.items()}
    orders = sorted(words.get(index["fields"][0].get("order", ""), "other") for index in indexes)
    inherits = row.get("indexConfig", {}).get("usesAncestorConfig", False)
    ttl = row.get("ttlConfig", {}).get("state", "")
    states = {index.get("state") for index in indexes} | ({ttl} if ttl else set())
    spec = {"orders": [] if inherits else orders, "expires": bool(ttl)}
    failure = "it needs repair" if "NEEDS_REPAIR" in states else ""
    return Found(
        spec, ready=not states & {"CREATING"} and not row.get("indexConfig", {}).get("reverting"), failure=failure
    )

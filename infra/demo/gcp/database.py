"""Firestore's admin interface: databases, composite indexes, settings of fields."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from infra.demo.gcp.sim import Ask, GoogleSim, Refused, not_there, there

DATABASES = "/v1/projects/{project}/databases"
GROUPS = DATABASES + "/{database}/collectionGroups"
API = "firestore"


def add_database(sim: GoogleSim) -> None:
    _databases(sim)
    _indexes(sim)
    _fields(sim)
    sim.on("GET", DATABASES + "/{database}/operations/{id}", lambda ask: _operation(sim, ask), api=API)


def _operation(sim: GoogleSim, ask: Ask) -> Any:
    name = f"projects/{sim.project}/databases/{ask.names['database']}/operations/{ask.names['id']}"
    return there(sim.operations, name).shown()


def _name(sim: GoogleSim, database: str) -> str:
    return sim.numbered(f"projects/{sim.project}/databases/{database}")


def _databases(sim: GoogleSim) -> None:
    databases, making = sim.table("databases"), sim.table("databases in the making")

    def create(ask: Ask) -> Any:
        id = ask.query["databaseId"]
        not_there(databases, id)
        not_there(making, id)
        making[id] = True

        def finish(_: datetime) -> Any:
            databases[id] = {"name": f"projects/{sim.project}/databases/{id}", **ask.body}
            del making[id]
            return databases[id]

        return sim.slow(_name(sim, id), ask.now, finish)

    def change(ask: Ask) -> Any:
        row = there(databases, ask.names["database"])
        wanted = {name: ask.body[name] for name in ask.query["updateMask"].split(",")}
        return sim.slow(_name(sim, ask.names["database"]), ask.now, lambda _: row.update(wanted), factor=0.2)

    def delete(ask: Ask) -> Any:
        row = there(databases, ask.names["database"])
        if row.get("deleteProtectionState") == "DELETE_PROTECTION_ENABLED":
            raise Refused(400, "FAILED_PRECONDITION", "Database has delete protection enabled.")
        del databases[ask.names["database"]]
        for table in ("indexes", "fields"):
            sim.table(table).clear()
        return sim.slow(_name(sim, ask.names["database"]), ask.now, lambda _: {}, factor=0.2)

    sim.on("POST", DATABASES, create, api=API)
    sim.on("GET", DATABASES + "/{database}", lambda ask: there(databases, ask.names["database"]), api=API)
    sim.on("PATCH", DATABASES + "/{database}", change, api=API)
    sim.on("DELETE", DATABASES + "/{database}", delete, api=API)


def _indexes(sim: GoogleSim) -> None:
    indexes = sim.table("indexes")

    def create(ask: Ask) -> Any:
        there(sim.table("databases"), ask.names["database"])
        fields = ask.body["fields"]
        if len(fields) < 2:
            raise Refused(400, "INVALID_ARGUMENT", "this index is not necessary, configure using single field index")
        same = [row for row in indexes.values() if row["group"] == ask.names["group"] and row["fields"][:-1] == fields]
        if same:
            raise Refused(409, "ALREADY_EXISTS", "index already exists")
        group = f"projects/{sim.project}/databases/{ask.names['database']}/collectionGroups/{ask.names['group']}"
        name = f"{group}/indexes/i{len(sim.operations) + 1}"
        last = {"fieldPath": "__name__", "order": fields[-1]["order"]}
        indexes[name] = {
            "name": name, "queryScope": "COLLECTION", "fields": [*fields, last], "state": "CREATING",
            "group": ask.names["group"],
        }  # fmt: skip
        return sim.slow(
            _name(sim, ask.names["database"]), ask.now, lambda _: indexes.get(name, {}).update(state="READY"), factor=4
        )

    def delete(ask: Ask) -> Any:
        groups = f"projects/{sim.project}/databases/{ask.names['database']}/collectionGroups"
        name = f"{groups}/{ask.names['group']}/indexes/{ask.names['id']}"
        there(indexes, name)
        del indexes[name]
        return {}

    def list_(ask: Ask) -> Any:
        there(sim.table("databases"), ask.names["database"])
        return {"indexes": [{k: v for k, v in row.items() if k != "group"} for row in indexes.values()]}

    sim.on("POST", GROUPS + "/{group}/indexes", create, api=API)
    sim.on("GET", GROUPS + "/-/indexes", list_, api=API)
    sim.on("DELETE", GROUPS + "/{group}/indexes/{id}", delete, api=API)


def _fields(sim: GoogleSim) -> None:
    fields = sim.table("fields")

    def full(ask: Ask) -> str:
        groups = f"projects/{sim.project}/databases/{ask.names['database']}/collectionGroups"
        return f"{groups}/{ask.names['group']}/fields/{ask.names['field']}"

    def change(ask: Ask) -> Any:
        there(sim.table("databases"), ask.names["database"])
        row = fields.setdefault(full(ask), _untouched(full(ask)))
        for mask in ask.query["updateMask"].split(","):
            _set(row, mask, ask.body.get(mask))
        return sim.slow(_name(sim, ask.names["database"]), ask.now, lambda _: _ready(row), factor=3)

    def list_(ask: Ask) -> Any:
        there(sim.table("databases"), ask.names["database"])
        own = ask.query["filter"] == "indexConfig.usesAncestorConfig:false"
        assert own or ask.query["filter"] == "ttlConfig:*"
        shown = [
            row
            for name, row in fields.items()
            if (not row["indexConfig"]["usesAncestorConfig"] if own else "ttlConfig" in row)
            and "__default__" not in name
        ]
        return {"fields": shown}

    sim.on("PATCH", GROUPS + "/{group}/fields/{field}", change, api=API)
    sim.on("GET", GROUPS + "/-/fields", list_, api=API)
    sim.on("GET", GROUPS + "/{group}/fields/{field}", lambda ask: fields.get(full(ask), _untouched(full(ask))), api=API)


def _untouched(name: str) -> dict[str, Any]:
    """What Google answers for a field nobody has set: the two orders of the default."""
    indexes = [
        {"queryScope": "COLLECTION", "fields": [{"fieldPath": "*", "order": order}], "state": "READY"}
        for order in ("ASCENDING", "DESCENDING")
    ]
    return {"name": name, "indexConfig": {"indexes": indexes, "usesAncestorConfig": "__default__" not in name}}


def _set(row: dict[str, Any], mask: str, value: Any) -> None:
    if mask == "ttlConfig":
        row.pop("ttlConfig", None)
        if value is not None:
            row["ttlConfig"] = {"state": "CREATING"}
    elif value is None:
        row["indexConfig"] = _untouched(row["name"])["indexConfig"]
    else:
        indexes = [{**index, "state": "CREATING"} for index in value.get("indexes", [])]
        row["indexConfig"] = {"indexes": indexes, "usesAncestorConfig": False}


def _ready(row: dict[str, Any]) -> None:
    for index in row["indexConfig"].get("indexes", []):
        index["state"] = "READY"
    if "ttlConfig" in row:
        row["ttlConfig"] = {"state": "ACTIVE"}

"""The firewall in front of the standbys: what a user and a GPU connect to, and nothing else. Compute v1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.adapters.gcp.compute import NETWORK, TAG
from common.host.ports import Ports
from infra.deploy.google import Google, GoogleRefused
from infra.deploy.project import unless_gone
from infra.deploy.resource import Failed, Found, Pending, Sort, Spec

RULE = "dumont-standby"
DESCRIPTION = "Made by dumont deploy: what users and GPUs connect to on a standby. Changes are put right."
"""By which a rule is known as ours: a firewall rule takes no labels."""
EVERYWHERE = "0.0.0.0/0"
"""Users and rented GPUs come from anywhere."""
PRIORITY = 1000
FIXED = ("network", "direction")
"""What Google does not change in a rule."""
OTHERS = ("sourceTags", "sourceServiceAccounts", "targetServiceAccounts", "denied")
"""What a rule may say besides, and none of ours does."""


def open_to_all() -> Spec:
    """What stands open on a machine with the standbys' tag, of the ports as `common.host.ports` has them."""
    ports = Ports()
    tcp = sorted([*(service.door_port for service in ports.services), ports.tunnel, ports.beats])
    return {
        "network": _last(NETWORK),
        "direction": "INGRESS",
        "priority": PRIORITY,
        "on": True,
        "from": [EVERYWHERE],
        "tags": [TAG],
        "open": {"tcp": [str(port) for port in tcp], "udp": [str(ports.beats)]},
    }


def in_words(opened: Mapping[str, Sequence[str]]) -> str:
    """`tcp 22 2200, udp 7946`, of ports by protocol."""
    return ", ".join(f"{protocol} {' '.join(ports)}" for protocol, ports in opened.items())


class Firewalls:
    """Firewall rules of ours, by their name."""

    sort = Sort("firewall", api="compute")

    def __init__(self, google: Google) -> None:
        self._google = google
        self._global = f"/compute/v1/projects/{google.project}/global"
        self._path = f"{self._global}/firewalls"

    def present(self) -> dict[str, Found]:
        rows = self._google.pages("compute", self._path, "items", maxResults="500")
        return {row["name"]: Found(_found(row)) for row in rows if row.get("description") == DESCRIPTION}

    def create(self, name: str, spec: Spec) -> Pending:
        try:
            made = self._google.write("POST", "compute", self._path, {"name": name, **self._body(spec)})
        except GoogleRefused as refused:
            if refused.status == 409:
                return self._taken(name)
            raise self._explained(refused, spec) from None
        return self._over(made)

    def change(self, name: str, spec: Spec, found: Found) -> Pending:
        for fixed in FIXED:
            if spec[fixed] != found.spec[fixed]:
                raise Failed(
                    f"firewall {name} has the {fixed} {found.spec[fixed]}, not {spec[fixed]}, and cannot be moved: "
                    "delete it, then apply"
                )
        emptied: dict[str, Any] = {other: [] for other in OTHERS if other in found.spec}
        return self._over(self._google.write("PATCH", "compute", f"{self._path}/{name}", self._body(spec) | emptied))

    def delete(self, name: str, found: Found) -> Pending | None:
        asked = unless_gone(lambda: self._google.write("DELETE", "compute", f"{self._path}/{name}"))
        return self._over(asked) if asked else None

    def _body(self, spec: Spec) -> dict[str, Any]:
        return {
            "description": DESCRIPTION,
            "network": f"projects/{self._google.project}/global/networks/{spec['network']}",
            "direction": spec["direction"],
            "priority": spec["priority"],
            "disabled": not spec["on"],
            "sourceRanges": spec["from"],
            "targetTags": spec["tags"],
            "allowed": [{"IPProtocol": protocol, "ports": ports} for protocol, ports in spec["open"].items()],
        }

    def _taken(self, name: str) -> Pending:
        """Ours from an apply that was killed, which Google may not show yet; or somebody else's."""
        row = self._google.read("compute", f"{self._path}/{name}")
        if row is not None and row.get("description") != DESCRIPTION:
            raise Failed(f"firewall {name} exists in {self._google.project} and is not Dumont's: delete or rename it")
        return lambda: True

    def _explained(self, refused: GoogleRefused, spec: Spec) -> Exception:
        if f"global/networks/{spec['network']}'" not in str(refused):
            return refused
        return Failed(
            f"{self._google.project} has no network {spec['network']}, on which standbys stand: if the project is new, "
            f"apply again in a minute; else: gcloud compute networks create {spec['network']} --subnet-mode=auto"
        )

    def _over(self, asked: dict[str, Any]) -> Pending:
        """Asks for the operation by its name: Compute's own have another form than Google's others."""
        row: dict[str, Any] | None = asked

        def is_over() -> bool:
            nonlocal row
            if row is not None and row.get("status") != "DONE":
                row = self._google.read("compute", f"{self._global}/operations/{row['name']}")
            if row is not None and "error" in row:
                said = "; ".join(str(error.get("message")) for error in row["error"].get("errors", []))
                raise Failed(f"{row.get('operationType', 'change')} of {_last(row.get('targetLink', ''))}: {said}")
            return row is None or row.get("status") == "DONE"

        return is_over


def _found(row: dict[str, Any]) -> Spec:
    """A row of Google's in our words; what it says besides is shown as it is."""
    found: dict[str, Any] = {
        "network": _last(row.get("network", "")),
        "direction": row.get("direction", ""),
        "priority": row.get("priority", 0),
        "on": not row.get("disabled", False),
        "from": sorted(row.get("sourceRanges", [])),
        "tags": sorted(row.get("targetTags", [])),
        "open": _opened(row.get("allowed", [])),
    }
    return found | {name: row[name] for name in OTHERS if row.get(name)}


def _opened(allowed: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Ports by protocol, which may be named more than once; without ports every one is open."""
    ports: dict[str, set[str]] = {}
    for rule in allowed:
        ports.setdefault(rule["IPProtocol"], set()).update(rule.get("ports") or ["all"])
    return {protocol: sorted(opened, key=lambda port: (len(port), port)) for protocol, opened in ports.items()}


def _last(url: str) -> str:
    return str(url).rpartition("/")[2]

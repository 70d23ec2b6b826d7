"""Google Compute Engine as the standbys' market: Spot machines with a disk and an address of their own.

Google's client is imported when the first call is made: it takes a second of CPU. No operation is ever waited for. The
client's own way to do so (`op.result()`) asks the real Google whatever endpoint was set, so the plain answers are used
(`insert_unary` and the like), and what became of an operation is looked up later.
"""

from __future__ import annotations

import re
import shlex
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from typing import Any

from common.adapters.gcp.answers import (
    Missing,
    There,
    address,
    answers,
    bounded,
    later_refusal,
    listed,
    operation,
    operation_name,
    rows_of,
    whole,
)
from common.adapters.gcp.keys import SCOPE, credentials_of, key_of
from common.domain.offer import Offer, Survey, Wanted
from common.domain.pacing import Limit, Limits
from common.domain.standby_price import Terms, terms_of
from common.errors import InvalidInput, MarketRefused, NotFound, OfferGone, SettingError
from common.ports import Address, Charge, Launch, Listed, Operation

ENDPOINT = "https://compute.googleapis.com"
CALL_TIMEOUT_S = 30.0
"""To connect, and again between two pieces of an answer."""
ONCE: dict[str, Any] = {"timeout": CALL_TIMEOUT_S, "retry": None}
"""Of every call."""
PAGE_ROWS = 500

IMAGE = "projects/debian-cloud/global/images/family/debian-12"
NETWORK = "global/networks/default"
TAG = "dumont-standby"
"""The network tag for which the deployer opens the firewall."""
PREFIX = "dumont-"
"""Of every label and every address of ours. What a project holds beside them is nobody's business here."""
ACCESS = "External NAT"
"""Of a machine's way to the internet."""
NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?\Z")
STARTS = "# what was asked for starts here"
"""Line of the start-up script that ends its own part."""

_ONE = Limit("all", interval_s=0.06, burst=100)
LIMITS: Limits = {"create": _ONE, "list": _ONE, "get": _ONE, "destroy": _ONE}
"""Google's default: 1,500 requests a minute for each group of calls of one project; kept as if they were one group."""

Json = dict[str, Any]


class GcpCompute:
    """`ports.Standbys` in one Google project; it rents no GPUs. A machine's id is `zone/name`, its name the label."""

    name = "gcp"
    limits: Limits = LIMITS

    def __init__(
        self,
        credentials: str,
        *,
        project: str | None = None,
        base_url: str = ENDPOINT,
        network: str = NETWORK,
        service_account: str | None = None,
        carrier: Any = None,
    ) -> None:
        """`credentials`: a service account's key as JSON or the path of its file, DEFAULT_CREDENTIALS or ANONYMOUS.

        `project` = None: the key's own. `service_account` = None: the machines have no rights in Google at all.
        `carrier`: a `requests` adapter that carries the calls in the network's place. Raises `SettingError`.
        """
        self._base_url, self._network, self._service_account = base_url.rstrip("/"), network, service_account
        self._key, self._carrier = key_of(credentials, self._base_url), carrier
        self._project = project or (self._key.get("project_id") if isinstance(self._key, dict) else None)
        if not self._project:
            raise SettingError("the Google project is not known. Set GCP_PROJECT, for example: my-project")

    def close(self) -> None:
        for name in ("_instances", "_addresses", "_zone_operations", "_region_operations"):
            if client := self.__dict__.pop(name, None):
                client.transport.close()

    # --- the market

    def search(self, wanted: Wanted) -> list[Offer]:  # noqa: ARG002 - the port's
        return []

    def survey(self, gpu: str) -> Survey:  # noqa: ARG002 - the port's
        return Survey(offers=(), is_whole=True)

    def create(self, offer: Offer, launch: Launch) -> str:
        """Begin one machine named `launch.label`, on the terms of the offer's id (`domain.standby_price`).

        A stockout usually comes later, as the end of its operation; a quota at once. Raises `MarketRefused` without a
        call for a label that no listing of ours would show, an image that is not Google's, or another market's offer.
        """
        terms = _terms(offer)
        if not NAME.match(launch.label) or not launch.label.startswith(PREFIX):
            raise MarketRefused(f"{launch.label!r} cannot name a machine of ours at Google")
        cap, price = launch.max_usd_per_hour, offer.usd_per_hour(launch.disk_gb)
        if cap is not None and price > Decimal(cap):
            raise OfferGone(f"the price of {price:.4f} USD/h is above {cap}")
        request = {
            "project": self._project,
            "zone": terms.zone,
            "request_id": request_id(launch.label),
            "instance_resource": self._machine(offer, terms, launch),
        }
        id = f"{terms.zone}/{launch.label}"
        try:
            with answers(f"create {id}"):
                made = self._instances.insert_unary(request=request, **ONCE)
        except There as there:
            raise MarketRefused(str(there), provider_id=id) from there
        operation_name(made)
        if refused := later_refusal(made):
            raise refused
        return id

    def list(self) -> Sequence[Listed]:
        rows = self._all(self._instances.aggregated_list, "instances")
        return [listed(row) for row in rows]

    def get(self, provider_id: str) -> Listed | None:
        zone, name = _split(provider_id)
        try:
            with answers(f"get {provider_id}", missing=f"/instances/{name}'"):
                request = {"project": self._project, "zone": zone, "instance": name}
                return listed(self._instances.get(request=request, **ONCE))
        except Missing:
            return None

    def destroy(self, provider_id: str) -> bool:
        """Its disk goes with it; a reserved address stays."""
        try:
            self._change(provider_id, "destroy", lambda one: self._instances.delete_unary(request=one, **ONCE))
        except NotFound:
            return False
        return True

    def credit_usd(self) -> str | None:
        """Google bills afterwards."""
        return None

    def charges(self, since: datetime, until: datetime) -> Sequence[Charge] | None:  # noqa: ARG002 - the port's
        """Google's bill is an export to a database of its own, a day late."""
        return None

    # --- the standbys

    def start(self, provider_id: str) -> str:
        return self._change(provider_id, "start", lambda machine: self._instances.start_unary(request=machine, **ONCE))

    def detach(self, provider_id: str) -> str:
        access = {"access_config": ACCESS, "network_interface": "nic0"}
        return self._change(
            provider_id,
            "detach",
            lambda machine: self._instances.delete_access_config_unary(request={**machine, **access}, **ONCE),
        )

    def _change(self, provider_id: str, verb: str, ask: Callable[[Json], Any]) -> str:
        """The name of the operation that a call on one machine began."""
        zone, name = _split(provider_id)
        try:
            with answers(f"{verb} {provider_id}", missing=f"/instances/{name}'"):
                return operation_name(ask({"project": self._project, "zone": zone, "instance": name}))
        except Missing as error:
            raise NotFound(f"google has no machine {provider_id}") from error

    def operation(self, name: str) -> Operation | None:
        kind, place, id = _operation_parts(name)
        client = self._zone_operations if kind == "zones" else self._region_operations
        request = {"project": self._project, kind.removesuffix("s"): place, "operation": id}
        try:
            with answers(f"get {name}", missing=f"/operations/{id}'"):
                return operation(client.get(request=request, **ONCE))
        except Missing:
            return None

    def operations(self, provider_id: str) -> Sequence[Operation]:
        zone, name = _split(provider_id)
        with answers(f"operations of {provider_id}"):
            request = {
                "project": self._project,
                "zone": zone,
                "filter": f'targetLink eq ".*/zones/{zone}/instances/{name}"',
                "max_results": PAGE_ROWS,
            }
            pages = self._zone_operations.list(request=request, **ONCE).pages
            rows = [row for page in bounded(pages) for row in whole(page).items]
        found = [operation(row) for row in rows if row.target_link.endswith(f"/instances/{name}")]
        return sorted(found, key=lambda one: one.begun_at.timestamp() if one.begun_at else 0.0, reverse=True)

    def reserve(self, name: str, region: str) -> Address:
        """One look, and one reservation if there is none: who comes second finds the first one's."""
        if not NAME.match(name) or not name.startswith(PREFIX):
            raise InvalidInput(f"{name!r} cannot name an address of ours", {"name": f"begins with {PREFIX}"})
        if found := self._address(name, region):
            return found
        resource = {"name": name, "address_type": "EXTERNAL", "description": "address of a dumont standby"}
        request = {"project": self._project, "region": region, "address_resource": resource}
        try:
            with answers(f"reserve {region}/{name}"):
                # by its name alone: a request id would be taken for the one before it was given back
                asked = self._addresses.insert_unary(request=request, **ONCE)
        except There:
            return Address(name, region, None)
        operation_name(asked)
        return Address(name, region, None)

    def release(self, name: str, region: str) -> bool:
        try:
            with answers(f"release {region}/{name}", missing=f"/addresses/{name}'"):
                request = {"project": self._project, "region": region, "address": name}
                asked = self._addresses.delete_unary(request=request, **ONCE)
        except Missing:
            return False
        operation_name(asked)
        return True

    def addresses(self) -> Sequence[Address]:
        return [address(row) for row in self._all(self._addresses.aggregated_list, "addresses")]

    def _address(self, name: str, region: str) -> Address | None:
        try:
            with answers(f"get {region}/{name}", missing=f"/addresses/{name}'"):
                request = {"project": self._project, "region": region, "address": name}
                return address(self._addresses.get(request=request, **ONCE))
        except Missing:
            return None

    def _all(self, listing: Callable[..., Any], kind: str) -> Sequence[Any]:
        """Rows of ours in every zone or region, all pages; a part that did not answer makes it no listing at all."""
        with answers(f"list {kind}"):
            request = {"project": self._project, "filter": f'name eq "{PREFIX}.*"', "max_results": PAGE_ROWS}
            pages = listing(request=request, **ONCE).pages
            rows = [row for page in bounded(pages) for row in rows_of(page, kind)]
        return [row for row in rows if row.name.startswith(PREFIX) or not row.name]  # a row without one is refused

    def _machine(self, offer: Offer, terms: Terms, launch: Launch) -> Json:
        spot = {
            "provisioning_model": "SPOT",
            "instance_termination_action": "STOP",
            "automatic_restart": False,
            "on_host_maintenance": "TERMINATE",
        }
        standard = {"provisioning_model": "STANDARD", "automatic_restart": True, "on_host_maintenance": "MIGRATE"}
        access = {"name": ACCESS, "type_": "ONE_TO_ONE_NAT", "network_tier": "PREMIUM"}
        rights = [{"email": self._service_account, "scopes": [SCOPE]}] if self._service_account else []
        place = f"zones/{terms.zone}"
        return {
            "name": launch.label,
            "machine_type": f"{place}/machineTypes/{terms.machine_type}",
            "labels": {"managed-by": "dumont"},
            "tags": {"items": [TAG]},
            "scheduling": spot if terms.model == "spot" else standard,
            "disks": [
                {
                    "boot": True,
                    "auto_delete": True,
                    "initialize_params": {
                        "source_image": _image(launch.image),
                        "disk_size_gb": offer.created_disk_gb(launch.disk_gb),
                        "disk_type": f"{place}/diskTypes/{terms.disk_type}",
                    },
                }
            ],
            "network_interfaces": [
                {
                    "network": self._network,
                    "access_configs": [access | ({"nat_i_p": launch.address} if launch.address else {})],
                }
            ],
            "service_accounts": rights,
            "metadata": {"items": [{"key": key, "value": value} for key, value in metadata(launch).items()]},
        }

    # --- Google's client

    @cached_property
    def _instances(self) -> Any:
        from google.cloud import compute_v1

        return self._client(compute_v1.InstancesClient)

    @cached_property
    def _addresses(self) -> Any:
        from google.cloud import compute_v1

        return self._client(compute_v1.AddressesClient)

    @cached_property
    def _zone_operations(self) -> Any:
        from google.cloud import compute_v1

        return self._client(compute_v1.ZoneOperationsClient)

    @cached_property
    def _region_operations(self) -> Any:
        from google.cloud import compute_v1

        return self._client(compute_v1.RegionOperationsClient)

    @cached_property
    def _credentials(self) -> Any:
        return credentials_of(self._key)

    def _client(self, make: Callable[..., Any]) -> Any:
        """Its session follows no redirect and repeats no call, not even after a 401: both are the client's habits."""
        options = {"api_endpoint": self._base_url}
        client = make(credentials=self._credentials, client_options=options, transport="rest")
        session = client.transport._session
        session.max_redirects = 0
        session._refresh_status_codes = ()
        if self._carrier is not None:
            session.mount(self._base_url, self._carrier)
        return client


def request_id(name: str) -> str:
    """Of the one create under that name: Google takes a second request with it for the first one's repetition."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"dumont:{name}"))


def metadata(launch: Launch) -> dict[str, str]:
    """The machine's metadata. Google runs the start-up script as root at every boot, so after a preemption too."""
    env = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in launch.env.items())
    script = f'#!/bin/sh\n: "${{HOME:=/root}}"; export HOME\n{env}{STARTS}\n{launch.start_script}'
    return {"startup-script": script, "block-project-ssh-keys": "TRUE", "enable-oslogin": "FALSE"}


def _terms(offer: Offer) -> Terms:
    try:
        if offer.provider != "gcp":
            raise ValueError(f"an offer of {offer.provider}")
        return terms_of(offer.offer_id)
    except ValueError as error:
        raise MarketRefused(f"not an offer of Google's: {error}") from error


def _image(image: str) -> str:
    """ "" = IMAGE; else a path of Google's own."""
    if image and not image.startswith(("projects/", "global/")):
        raise MarketRefused(f"{image!r} is no image of Google's. Example: {IMAGE}")
    return image or IMAGE


def _split(provider_id: str) -> tuple[str, str]:
    zone, _, name = provider_id.partition("/")
    if not NAME.match(zone) or not NAME.match(name):
        raise InvalidInput(f"{provider_id!r} is no machine of Google's", {"provider_id": "for example us-east1-b/name"})
    return zone, name


def _operation_parts(name: str) -> tuple[str, str, str]:
    parts = name.split("/")
    if len(parts) != 4 or parts[0] not in ("zones", "regions") or parts[2] != "operations":
        raise InvalidInput(f"{name!r} is no operation of Google's", {"name": "for example zones/z/operations/x"})
    return parts[0], parts[1], parts[3]

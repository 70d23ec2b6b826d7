"""The standbys at Google, seen from outside: which machines and addresses there are, and whether one more finds its
door open and room to stand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from common.adapters.gcp.compute import PREFIX
from common.domain.health import Finding, failed, ok, warning
from common.domain.region import regions
from common.domain.standby_price import ADDRESS_USD_PER_HOUR
from infra.deploy.cost import STANDBY_DISK_GB
from infra.deploy.google import PAGES_MAX, Google, GoogleRefused, GoogleSilent
from infra.deploy.network import RULE, Firewalls, in_words, open_to_all
from infra.deploy.resource import Failed, Step

CONSOLE = "https://console.cloud.google.com/iam-admin/quotas"
MAY_LOOK = "compute.firewalls.list and compute.regions.list (for instance roles/compute.viewer)"
CPUS_OF_ONE = 2
"""A shared-core machine counts as two against the quota."""
NEEDS: Mapping[str, int] = {"STATIC_ADDRESSES": 1, "IN_USE_ADDRESSES": 1, "SSD_TOTAL_GB": STANDBY_DISK_GB}
"""Of one standby with the usual disk, beside its CPUs: Google's names of a region's quotas."""
SPOT_CPUS, CPUS = "PREEMPTIBLE_CPUS", "CPUS"
"""Spot machines count against the second unless the project was given some of the first."""
SHOWN = 5


@dataclass(frozen=True)
class Standing:
    """A machine or an address at Google with a name of ours."""

    kind: Literal["machine", "address"]
    name: str
    place: str
    """Its zone or region."""

    def is_of(self, deployment: str | None) -> bool:
        """None = no deployment is known, and nothing is its."""
        return deployment is not None and self.name.startswith(f"{PREFIX}{deployment}-")

    def __str__(self) -> str:
        return f"{self.kind} {self.name} in {self.place}"


def standing(google: Google) -> list[Standing]:
    """Of every deployment in the project. Raises `Failed` where Google lists a part only, `GoogleRefused` and
    `GoogleSilent`: what could not be listed is not believed absent."""
    machines = [Standing("machine", row["name"], _last(row["zone"])) for row in _everywhere(google, "instances")]
    addresses = [Standing("address", row["name"], _last(row["region"])) for row in _everywhere(google, "addresses")]
    return [*machines, *addresses]


def refuse_while_ours_stand(google: Google, deployment: str | None) -> str:
    """Raises `Failed` with the names of this deployment's: without the control plane nobody would give them back.

    Returns what is to be said of others, which are left as they are. Raises what `standing` raises.
    """
    here = standing(google)
    if ours := [one for one in here if one.is_of(deployment)]:
        raise Failed(
            f"at Google there are still {_named(ours)}: terminate their instances (dumont instances terminate), or "
            "let them do without a standby (dumont standby off); the control plane gives them back within minutes. "
            f"An address that no machine uses costs {ADDRESS_USD_PER_HOUR['unused']} USD an hour"
        )
    return f"not this deployment's, and left as they are: {_named(here)}" if here else ""


def _named(found: Sequence[Standing]) -> str:
    return ", ".join(str(one) for one in found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if found[SHOWN:] else "")


def _everywhere(google: Google, kind: str) -> Iterator[dict[str, Any]]:
    """Rows of all zones or regions, all pages."""
    path, query = f"/compute/v1/projects/{google.project}/aggregated/{kind}", {"filter": f'name eq "{PREFIX}.*"'}
    for _ in range(PAGES_MAX):
        page = google.read("compute", path, maxResults="500", **query)
        if page is None or "items" not in page or page.get("unreachables"):
            raise Failed(f"Google does not list all {kind} of {google.project} now: ask again in a minute")
        for place, scope in page["items"].items():
            if scope.get("warning", {}).get("code", "") not in ("", "NO_RESULTS_ON_PAGE"):
                raise Failed(f"Google does not list the {kind} of {place} now: ask again in a minute")
            yield from scope.get(kind, [])
        if not page.get("nextPageToken"):
            return
        query["pageToken"] = page["nextPageToken"]
    raise Failed(f"{google.project} has more than {PAGES_MAX} pages of {kind}")


# --- what the doctor looks at


def examine(google: Google) -> Iterator[Finding]:
    """Is the way to a standby open, and is there room for one more? A refusal is one finding."""
    check = "compute engine"
    try:
        yield door(google)
        yield room(google)
    except GoogleRefused as refused:
        if "SERVICE_DISABLED" in str(refused):
            yield failed(check, f"the interface is off, and no instance gets a standby: {refused}", _apply(google))
        elif refused.status == 403:
            mend = f"give the account that asks {MAY_LOOK} on {google.project}"
            yield warning(check, f"it may not be looked at: {refused}", mend)
        else:
            yield warning(check, f"it cannot be looked at: {refused}", f"see that {google.project} is the project")
    except GoogleSilent as silent:
        yield warning(check, f"not known: {silent}", "ask again in a minute")


def door(google: Google) -> Finding:
    """The firewall rule, as it must be."""
    check, wish = "standby firewall", open_to_all()
    found = Firewalls(google).present().get(RULE)
    if found is None:
        return failed(check, f"there is no rule {RULE}: no GPU and no user reaches a standby", _apply(google))
    if differences := Step("change", "firewall", RULE, wish, found).differences:
        return failed(check, f"{RULE} is not as it must be: {'; '.join(differences)}", _apply(google))
    return ok(check, f"{in_words(wish['open'])} stand open, and nothing else by a rule of ours")


def room(google: Google) -> Finding:
    """How many more standbys each region's quotas would take."""
    check, path = "standby quotas", f"/compute/v1/projects/{google.project}/regions"
    rows = google.pages("compute", path, "items", maxResults="500", fields="items(name,quotas),nextPageToken")
    rooms = {row["name"]: _room(row.get("quotas", [])) for row in rows if row.get("name") in regions()}
    known = {name: more for name, more in rooms.items() if more is not None}
    mend = f"ask for more of {', '.join([CPUS, *NEEDS])} at {CONSOLE}?project={google.project}"
    if not known:
        return warning(check, "Google tells none of any region", mend)
    full = sorted(name for name, (more, _) in known.items() if more < 1)
    if len(full) == len(known):
        return failed(check, "no region has room for another standby", mend)
    if full:
        shown = ", ".join(f"{name} ({known[name][1]})" for name in full[:SHOWN]) + (" ..." if full[SHOWN:] else "")
        return warning(check, f"{len(full)} of {len(known)} regions have no room for another standby: {shown}", mend)
    least, (more, metric) = min(known.items(), key=lambda item: item[1][0])
    return ok(check, f"room for {more} more or more in each of {len(known)} regions (fewest in {least}, by {metric})")


def _room(quotas: Sequence[Mapping[str, Any]]) -> tuple[int, str] | None:
    """(how many more, the quota that ends it); None = none of those that are needed is told."""
    left = {str(row.get("metric")): float(row.get("limit", 0)) - float(row.get("usage", 0)) for row in quotas}
    rooms = [(int(left[metric] // need), metric) for metric, need in NEEDS.items() if metric in left]
    cpus = [(int(left[metric] // CPUS_OF_ONE), metric) for metric in (CPUS, SPOT_CPUS) if metric in left]
    rooms += [max(cpus, key=lambda one: one[0])] if cpus else []
    return min(rooms) if rooms else None


def _apply(google: Google) -> str:
    return f"dumont deploy apply --project {google.project} --region {google.region}"


def _last(url: str) -> str:
    return str(url).rpartition("/")[2]

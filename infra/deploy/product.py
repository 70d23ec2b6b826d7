"""What a deployment has outside Google: the host bundle, the object store's rules, marketplaces' webhooks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from common.adapters.s3 import S3
from common.ports import Announcing, App
from common.workflows import announcements
from infra.deploy.resource import Found, Sort, Spec
from infra.gpu_host.bundle import Bundle

RELEASES, INSTANCES = "releases/", "instances/"
DELETED_AT_ONCE = 1000
UNFINISHED, RULE_ID = "unfinished uploads", "dumont-unfinished-uploads"
ABORT_AFTER_DAYS = 7
"""Nobody pays for the parts of an upload that never ended for longer."""


class Bundles:
    """The GPU host's bundle in the object store. Older ones stay: machines that boot now may still ask for them."""

    sort = Sort("bundle", api=None, is_data=True, prunes=False)

    def __init__(self, objects: Callable[[], S3], bundle: Bundle) -> None:
        self._objects, self._bundle = objects, bundle

    def present(self) -> dict[str, Found]:
        stored = {item.key.removeprefix(RELEASES): item.size for item in self._objects().list(RELEASES)}
        return {
            name: Found({})
            for name, size in stored.items()
            if name != self._bundle.sha256 or size == self._bundle.bytes
        }

    def create(self, name: str, spec: Spec) -> None:
        self._objects().put_file(f"{RELEASES}{name}", self._bundle.path)

    def change(self, name: str, spec: Spec, found: Found) -> None:
        """A bundle is its content: it never changes."""

    def delete(self, name: str, found: Found) -> None:
        self._objects().delete([f"{RELEASES}{name}"])


class Snapshots:
    """What the instances have in the object store. Made by them, never by a deployment; deleted only with the data."""

    sort = Sort("snapshots", api=None, is_data=True, prunes=False)

    def __init__(self, objects: Callable[[], S3]) -> None:
        self._objects = objects

    def present(self) -> dict[str, Found]:
        return {INSTANCES: Found({})} if next(iter(self._objects().list(INSTANCES)), None) else {}

    def create(self, name: str, spec: Spec) -> None:
        """There is nothing to be wished for."""

    def change(self, name: str, spec: Spec, found: Found) -> None:
        """Nor to be changed."""

    def delete(self, name: str, found: Found) -> None:
        """In pieces, so that a million objects need no more memory than one batch."""
        objects = self._objects()
        keys = (item.key for item in objects.list(name))
        while batch := list(itertools.islice(keys, DELETED_AT_ONCE)):
            objects.delete(batch)


class StorageRules:
    """Lifecycle rules of the object store's bucket; rules that are not ours are kept."""

    sort = Sort("storage rule", api=None, is_data=True, prunes=False)

    def __init__(self, objects: Callable[[], S3]) -> None:
        self._objects = objects

    def present(self) -> dict[str, Found]:
        """A store that has no such rules is left as it is."""
        rules = self._objects().lifecycle_rules()
        if rules is None:
            return {UNFINISHED: Found({"abort_after_days": ABORT_AFTER_DAYS})}
        ours = next((rule for rule in rules if rule.get("ID") == RULE_ID), None)
        return {UNFINISHED: Found({"abort_after_days": _days(ours)})} if ours else {}

    def create(self, name: str, spec: Spec) -> None:
        rule: dict[str, Any] = {
            "ID": RULE_ID,
            "Status": "Enabled",
            "Filter": {"Prefix": ""},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": spec["abort_after_days"]},
        }
        self._objects().set_lifecycle_rules([*self._others(), rule])

    def change(self, name: str, spec: Spec, found: Found) -> None:
        self.create(name, spec)

    def delete(self, name: str, found: Found) -> None:
        self._objects().set_lifecycle_rules(self._others())

    def _others(self) -> list[dict[str, Any]]:
        return [rule for rule in self._objects().lifecycle_rules() or [] if rule.get("ID") != RULE_ID]


def _days(rule: dict[str, Any]) -> int:
    """0 = the rule does nothing."""
    if rule.get("Status") != "Enabled":
        return 0
    return int(rule.get("AbortIncompleteMultipartUpload", {}).get("DaysAfterInitiation", 0))


class Webhooks:
    """What marketplaces announce, by the marketplace's name."""

    sort = Sort("webhook", api="firestore")

    def __init__(self, app: Callable[[], App], has_store: Callable[[], bool]) -> None:
        """`has_store`: before there is a database nothing can be subscribed."""
        self._make_app, self._has_store = app, has_store

    @property
    def _app(self) -> App:
        return self._make_app()

    def present(self) -> dict[str, Found]:
        """Those whose secret we have; one without is of no use, and is made anew by `subscribe`."""
        if not self._has_store():
            return {}
        found = {
            name: self._found(name) for name, market in self._app.markets.items() if isinstance(market, Announcing)
        }
        return {name: here for name, here in found.items() if here}

    def create(self, name: str, spec: Spec) -> None:
        announcements.subscribe(self._app, name, self._app.clock())

    def change(self, name: str, spec: Spec, found: Found) -> None:
        market = self._app.markets[name]
        assert isinstance(market, Announcing)
        market.unsubscribe(found.handle)
        self.create(name, spec)

    def delete(self, name: str, found: Found) -> None:
        market = self._app.markets[name]
        assert isinstance(market, Announcing)
        market.unsubscribe(found.handle)

    def _found(self, name: str) -> Found | None:
        market, doc = self._app.markets[name], self._app.store.get("subscriptions", name)
        assert isinstance(market, Announcing)
        known = {row.id for row in market.subscriptions()}
        return Found({"url": doc.data["url"]}, handle=doc.data["id"]) if doc and doc.data["id"] in known else None

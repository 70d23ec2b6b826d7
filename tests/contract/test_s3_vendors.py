"""Adapter and engine through what each vendor refuses, with the credentials that a host gets there."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from common import bootstrap
from common.adapters.s3 import S3
from common.config import Settings
from common.errors import ObjectMissing, ObjectStoreError
from common.ports import Grant, StorageAccess
from common.snapshots import engine
from infra.demo.s3_server import S3Server, s3_server
from infra.demo.s3_vendors import VENDORS, VendorS3, vendor_s3
from tests.snapshots_fixtures import KEY, tree

NOW = datetime.now(UTC)
PREFIX = "instances/acme.box/"
REGION = {"r2": "auto"}


@dataclass
class Place:
    """One vendor's store, as a deployment is set up for it."""

    name: str
    vendor: VendorS3
    settings: Settings
    objects: S3

    @property
    def access(self) -> StorageAccess:
        made = bootstrap.access_of(self.settings)
        assert made
        return made

    def grant(self, prefix: str = PREFIX, for_s: float = 3600) -> Grant:
        return self.access.grant(prefix, for_s=for_s, now=datetime.now(UTC))

    def as_host(self, grant: Grant) -> S3:
        return S3(
            endpoint=self.vendor.url,
            bucket=self.settings.bucket,
            key_id=grant.access_key,
            secret=grant.secret_key,
            session_token=grant.session_token,
            region=self.settings.storage_region,
        )

    def endpoint(self, grant: Grant) -> engine.Endpoint:
        return engine.Endpoint(
            self.vendor.url,
            self.settings.bucket,
            grant.access_key,
            grant.secret_key,
            grant.session_token,
            self.settings.storage_region,
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("vendors")) as made:
        yield made


@pytest.fixture(params=[*VENDORS, "s3 by a role"])
def place(request: pytest.FixtureRequest, server: S3Server) -> Iterator[Place]:
    name = request.param.partition(" ")[0]
    with vendor_s3(name, server) as vendor:
        settings = Settings.from_env(environment(name, vendor, server, by_role=request.param != "s3"))
        objects = bootstrap.objects_of(settings)
        yield Place(name, vendor, settings, objects)
        vendor.slow_down_every = 0
        objects.delete([stored.key for stored in objects.list("")])
        objects.close()


def environment(name: str, vendor: VendorS3, server: S3Server, *, by_role: bool) -> dict[str, str]:
    """What the customer sets for that vendor, all addresses on loopback."""
    prefix = name.upper()
    env = {
        "DUMONT_STORE": "sqlite:////tmp/unused.db",
        "DUMONT_URL": "http://functions.test",
        "JWT_SECRET": "0123456789abcdef",
        "STORAGE_PROVIDER": name,
        f"{prefix}_ENDPOINT": vendor.url,
        f"{prefix}_STS_ENDPOINT": vendor.url,
        f"{prefix}_BUCKET": server.bucket,
        f"{prefix}_KEY_ID": server.access_key,
        f"{prefix}_APPLICATION_KEY": server.secret_key,
        "B2_API_URL": vendor.url,
    }
    return env | ({f"{prefix}_ROLE_ARN": "arn:aws:iam::1:role/hosts"} if by_role else {})


# --- the adapter


def test_the_adapter_keeps_its_contract(place: Place) -> None:
    store, content = place.objects, os.urandom(2 << 20)

    store.put("a/b c+d", content)
    store.put("a/empty", b"")

    assert store.get("a/b c+d") == content
    assert [(stored.key, stored.size) for stored in store.list("a/")] == [("a/b c+d", len(content)), ("a/empty", 0)]
    with pytest.raises(ObjectMissing):
        store.get("a/nothing")
    store.delete(["a/b c+d", "a/never was"])
    assert [stored.key for stored in store.list("")] == ["a/empty"]
    with pytest.raises(ObjectMissing):
        store.get("a/b c+d")


def test_what_is_deleted_is_billed_no_longer(place: Place) -> None:
    for _ in range(2):
        place.objects.put("a/twice", os.urandom(10))
    place.objects.put("a/stays", b"x")

    place.objects.delete(["a/twice"])

    billed = [key for key, ids in place.vendor.versions.items() if any(not id.startswith("hide") for id in ids)]
    assert billed == (["a/stays"] if place.name == "b2" else [])


def test_presigned_urls_read_and_write_one_key(place: Place) -> None:
    place.objects.put("bundle", b"content")

    with urllib.request.urlopen(place.objects.presign_get("bundle", 60)) as answer:
        assert answer.read() == b"content"
    url = place.objects.presign_put("probe", 5, 60)
    urllib.request.urlopen(urllib.request.Request(url, b"12345", method="PUT")).close()
    assert place.objects.get("probe") == b"12345"
    for wrong, body in ((url.replace("probe", "other"), b"12345"), (url, b"123456")):
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(urllib.request.Request(wrong, body, method="PUT"))
        refusal.value.close()
        assert refusal.value.code == 403


def test_an_overloaded_store_is_asked_again(place: Place) -> None:
    place.vendor.slow_down_every = 3

    for number in range(5):
        place.objects.put(f"n/{number}", b"x")

    assert len(list(place.objects.list("n/"))) == 5
    place.objects.delete([f"n/{number}" for number in range(5)])
    assert list(place.objects.list("n/")) == []


def test_a_client_without_these_settings_is_refused(server: S3Server) -> None:
    """What the table of quirks is for: boto3 as it comes fails at these doors."""

    def fails(name: str, **config: Any) -> str:
        with vendor_s3(name, server) as vendor:
            client = boto3.client(
                "s3",
                endpoint_url=vendor.url,
                region_name=config.pop("region", "us-east-1"),
                aws_access_key_id=server.access_key,
                aws_secret_access_key=server.secret_key,
                config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, **config),
            )
            with pytest.raises(ClientError) as refusal:
                client.put_object(Bucket=server.bucket, Key="x", Body=b"1")
                client.delete_objects(Bucket=server.bucket, Delete={"Objects": [{"Key": "x"}]})
            client.close()
            return str(refusal.value.response["Error"]["Code"])

    assert fails("b2") == "InvalidArgument"
    assert fails("b2", request_checksum_calculation="when_required") == "InvalidArgument"
    assert fails("wasabi") == "MissingContentMD5"
    assert fails("r2", region="eu-west-1") == "InvalidRegionName"


# --- credentials


def test_a_host_reads_and_writes_its_own_prefix_only(place: Place) -> None:
    place.objects.put(f"{PREFIX}packs/mine", b"mine")
    place.objects.put("instances/other.box/packs/theirs", b"theirs")
    host = place.as_host(place.grant())

    assert host.get(f"{PREFIX}packs/mine") == b"mine"
    host.put(f"{PREFIX}packs/new", b"new")
    for forbidden in (
        lambda: host.get("instances/other.box/packs/theirs"),
        lambda: host.put("instances/other.box/packs/new", b""),
        lambda: list(host.list("instances/other.box/")),
        lambda: list(host.list("")),
        lambda: host.put("releases/bundle", b""),
    ):
        with pytest.raises(ObjectStoreError) as refusal:
            forbidden()
        assert not isinstance(refusal.value, ObjectMissing)
    host.close()


def test_a_host_deletes_nothing_for_good(place: Place) -> None:
    place.objects.put(f"{PREFIX}packs/mine", b"mine")
    host = place.as_host(place.grant())

    if place.name == "b2":  # may hide it, and the version stays
        host.delete([f"{PREFIX}packs/mine"])
        assert any(not id.startswith("hide") for id in place.vendor.versions[f"{PREFIX}packs/mine"])
    else:
        with pytest.raises(ObjectStoreError):
            host.delete([f"{PREFIX}packs/mine"])
        assert place.objects.get(f"{PREFIX}packs/mine") == b"mine"
    host.close()


def test_credentials_end(place: Place) -> None:
    host = place.as_host(place.grant(for_s=900))
    host.put(f"{PREFIX}packs/new", b"new")

    place.vendor.clock = lambda: time.time() + 901

    with pytest.raises(ObjectStoreError):
        host.put(f"{PREFIX}packs/later", b"new")
    host.close()


def test_a_grant_is_given_again_until_half_of_its_time_is_over(place: Place) -> None:
    access, now = place.access, datetime.now(UTC)

    first = access.grant(PREFIX, for_s=3600, now=now)
    again = access.grant(PREFIX, for_s=3600, now=now.replace(microsecond=0))
    other = access.grant("instances/other.box/", for_s=3600, now=now)
    late = access.grant(PREFIX, for_s=3600, now=datetime.fromtimestamp(now.timestamp() + 1801, UTC))

    assert first == again
    assert len({first.secret_key, other.secret_key, late.secret_key}) == 3
    assert first.secret_key not in repr(first)


def test_a_wrong_key_of_ours_is_an_error_in_words(place: Place) -> None:
    wrong = place.settings.model_copy(update={"storage_application_key": "wrong" * 8})
    access = bootstrap.access_of(wrong)
    assert access

    if place.name == "r2":  # signed here: the store refuses what was signed so
        with pytest.raises(ObjectStoreError):
            place.as_host(access.grant(PREFIX, for_s=900, now=NOW)).put(f"{PREFIX}packs/x", b"")
    else:
        with pytest.raises(ObjectStoreError):
            access.grant(PREFIX, for_s=900, now=NOW)


# --- the engine


def test_the_engine_takes_and_restores_with_a_hosts_credentials(place: Place, tmp_path: Path) -> None:
    root, copy = tmp_path / "workspace", tmp_path / "copy"
    (root / "deep").mkdir(parents=True)
    (root / "deep/text").write_text("words " * 5000)
    (root / "data").write_bytes(os.urandom(5 << 20))
    place.vendor.slow_down_every = 7
    words: dict[str, Any] = {"prefix": PREFIX, "instance_key": KEY, "endpoint": place.endpoint(place.grant())}

    taken = engine.take(
        root,
        epoch=1,
        seq=1,
        taken_at=NOW,
        previous=None,
        state_dir=tmp_path / "state",
        clock=time.monotonic,
        **words,
    )
    found = engine.verify(place.objects, taken.manifest_key, prefix=PREFIX, instance_key=KEY, proven=())
    engine.restore(taken.manifest_key, copy, state_dir=tmp_path / "other", clock=time.monotonic, **words)

    assert found.files == 2
    assert tree(copy) == tree(root)

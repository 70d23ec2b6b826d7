"""The object store's contract, against a real S3 server."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from pathlib import Path

import pytest

from common.adapters.s3 import S3
from common.errors import ObjectMissing, ObjectStoreError
from common.ports import ObjectStore, Stored
from infra.demo.s3_server import S3Server, s3_server
from tests.snapshots_fixtures import objects, s3, s3_on_loopback

__all__ = ["objects", "s3_on_loopback"]


def test_what_was_put_is_got(objects: S3) -> None:
    store: ObjectStore = objects
    content = os.urandom(3 << 20)

    store.put("a/b", content)

    assert store.get("a/b") == content
    assert [len(piece) for piece in store.read("a/b")] == [1 << 20] * 3


def test_a_file_is_put_in_one_part_so_that_the_store_knows_its_md5(objects: S3, tmp_path: Path) -> None:
    content = os.urandom(20 << 20)
    (tmp_path / "file").write_bytes(content)

    objects.put_file("file", str(tmp_path / "file"))

    assert list(objects.list("file")) == [Stored("file", len(content), hashlib.md5(content).hexdigest())]


def test_the_listing_has_all_pages_in_key_order_below_the_prefix_only(objects: S3) -> None:
    for number in range(1005):
        objects.put(f"many/{number:04}", b"")
    objects.put("other/1", b"")

    keys = [stored.key for stored in objects.list("many/")]

    assert keys == [f"many/{number:04}" for number in range(1005)]
    assert list(objects.list("none/")) == []


def test_deleting_what_is_not_there_succeeds(objects: S3) -> None:
    objects.put("a", b"1")

    objects.delete(["a", "b"])
    objects.delete([])

    assert list(objects.list("")) == []


def test_absent_is_said_only_when_the_store_says_so(objects: S3, s3_on_loopback: S3Server) -> None:
    with pytest.raises(ObjectMissing):
        objects.get("nothing")
    for wrong in ({"secret": "wrong"}, {"bucket": "nobody-has-it"}, {"endpoint": "http://127.0.0.1:9"}):
        store = s3(s3_on_loopback, **wrong)
        with pytest.raises(ObjectStoreError) as refusal:
            store.get("nothing")
        with pytest.raises(ObjectStoreError):
            list(store.list(""))
        store.close()
        assert not isinstance(refusal.value, ObjectMissing)


def test_a_presigned_url_reads_without_credentials(objects: S3) -> None:
    objects.put("bundle", b"content")

    with urllib.request.urlopen(objects.presign_get("bundle", 60)) as answer:
        assert answer.read() == b"content"


def test_a_presigned_url_names_the_endpoint_of_those_who_get_it(s3_on_loopback: S3Server) -> None:
    store = s3(s3_on_loopback, presign_endpoint="http://storage.example:1")

    url = store.presign_get("bundle", 60)
    store.close()

    assert url.startswith(f"http://storage.example:1/{s3_on_loopback.bucket}/bundle?")


def test_the_server_ends_with_its_block(tmp_path: Path) -> None:
    with s3_server(tmp_path) as server:
        process = server.process

    assert process.poll() is not None

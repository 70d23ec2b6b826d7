"""Any S3-compatible object store through boto3: Amazon, Backblaze B2, Cloudflare R2, Wasabi, and rclone in the demo.

What they refuse, and what is done about it for all of them alike (`infra/demo/s3_vendors.py` refuses the same):

| quirk | who | here |
|---|---|---|
| `x-amz-checksum-*` and `x-amz-sdk-checksum-algorithm` are invalid | B2 | when required only, then Content-MD5 |
| checksums as a trailer of an aws-chunked body are refused | R2 | never sent |
| a range is answered with the checksum of the whole object | rclone | never validated |
| a batch of deletes needs a checksum | Amazon | Content-MD5 |
| the region is `auto`, another one is refused | R2 | `config.STORAGE_REGIONS` |
| a delete hides a version that is billed on | B2 | versions are deleted by their ids |
| conditional writes are ignored | B2, Wasabi, rclone | nothing depends on one: no name is used twice |
| the bucket's name as a host's name needs DNS of its own | rclone | the path names the bucket |
| parts of a broken multipart upload stay and are billed | Amazon, B2, Wasabi | a rule of the bucket (deploy) |
| 503 SlowDown and 500 InternalError at any time | all | MAX_ATTEMPTS |
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from common.errors import ObjectMissing, ObjectStoreError
from common.ports import Stored

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 60
MAX_ATTEMPTS = 4
"""Of each request, the first included."""
READ_BYTES = 1 << 20
DELETE_BATCH = 1000
"""S3's limit for one request."""
NO_LIFECYCLE = ("NotImplemented", "MethodNotAllowed", "XNotImplemented")
"""How a store says that it knows no lifecycle rules."""
SINGLE_PART_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
"""An ETag of this shape is the MD5 of an object uploaded in one part (multipart ones end in -<parts>)."""


class S3:
    """One bucket, as `ports.ObjectStore`; safe to share between threads."""

    def __init__(
        self,
        *,
        endpoint: str,
        bucket: str,
        key_id: str,
        secret: str,
        region: str,
        session_token: str | None = None,
        presign_endpoint: str | None = None,
        keeps_deleted_versions: bool = False,
    ) -> None:
        """`presign_endpoint`: where the readers of presigned URLs reach the store, when that is another address."""
        self._bucket, self._keeps_deleted_versions = bucket, keeps_deleted_versions
        self._make = functools.partial(_client, key_id=key_id, secret=secret, region=region, token=session_token)
        self._endpoint, self._presign_endpoint = endpoint, presign_endpoint or endpoint

    @functools.cached_property
    def _client(self) -> Any:
        """Made when it is first needed: boto3 and its tables take a quarter of a second to load."""
        return self._make(self._endpoint)

    @functools.cached_property
    def _presigner(self) -> Any:
        return self._client if self._presign_endpoint == self._endpoint else self._make(self._presign_endpoint)

    def get(self, key: str) -> bytes:
        """The whole object; raises `ObjectMissing`."""
        return b"".join(self.read(key))

    def read(self, key: str) -> Iterator[bytes]:
        """The object's bytes in pieces of at most 1 MiB; raises `ObjectMissing`."""
        with _translated(key), closing(self._client.get_object(Bucket=self._bucket, Key=key)["Body"]) as body:
            yield from body.iter_chunks(READ_BYTES)

    def put(self, key: str, data: bytes) -> None:
        """Write the whole object in one part."""
        with _translated(key):
            self._client.put_object(Bucket=self._bucket, Key=key, Body=data)

    def put_file(self, key: str, path: str) -> None:
        """Upload a local file, in one part too: at most 5 GiB."""
        with _translated(key), open(path, "rb") as file:
            self._client.put_object(Bucket=self._bucket, Key=key, Body=file)

    def list(self, prefix: str) -> Iterator[Stored]:
        """Every object below the prefix, in key order."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
        with _translated(prefix):
            for page in pages:
                for item in page.get("Contents", ()):
                    md5 = SINGLE_PART_MD5.fullmatch(item.get("ETag", ""))
                    yield Stored(item["Key"], item["Size"], md5[1] if md5 else None)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete for good; deleting what is not there succeeds."""
        doomed = [{"Key": key} for key in keys]
        if self._keeps_deleted_versions and keys:
            doomed = list(self._versions(keys))
        for first in range(0, len(doomed), DELETE_BATCH):
            batch = doomed[first : first + DELETE_BATCH]
            with _translated(batch[0]["Key"]):
                answer = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": batch, "Quiet": True})
            failed = [error for error in answer.get("Errors", ()) if error.get("Code") != "NoSuchKey"]
            if failed:
                raise ObjectStoreError(f"{len(failed)} of {len(batch)} objects were not deleted: {failed[0]}")

    def _versions(self, keys: Sequence[str]) -> Iterator[dict[str, str]]:
        """All of each, markers too: a plain delete would only hide what is billed on."""
        wanted, prefix = set(keys), _common_prefix(keys)
        pages = self._client.get_paginator("list_object_versions").paginate(Bucket=self._bucket, Prefix=prefix)
        with _translated(prefix):
            for page in pages:
                for item in (*page.get("Versions", ()), *page.get("DeleteMarkers", ())):
                    if item["Key"] in wanted:
                        yield {"Key": item["Key"], "VersionId": item["VersionId"]}

    def lifecycle_rules(self) -> Sequence[dict[str, Any]] | None:
        """The bucket's rules as S3 writes them; None for a store that has no such thing."""
        from botocore.exceptions import ClientError

        try:
            found = self._client.get_bucket_lifecycle_configuration(Bucket=self._bucket)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code == "NoSuchLifecycleConfiguration":
                return ()
            if code in NO_LIFECYCLE:
                return None
            raise ObjectStoreError(f"the bucket's rules cannot be read: {error}") from error
        rules: Sequence[dict[str, Any]] | None = found.get("Rules")  # a store may answer with something else
        return rules

    def set_lifecycle_rules(self, rules: Sequence[dict[str, Any]]) -> None:
        """All of them: what is left out is no longer a rule."""
        with _translated(self._bucket):
            if rules:
                self._client.put_bucket_lifecycle_configuration(
                    Bucket=self._bucket, LifecycleConfiguration={"Rules": list(rules)}
                )
            else:
                self._client.delete_bucket_lifecycle(Bucket=self._bucket)

    def presign_get(self, key: str, expires_s: int) -> str:
        """A URL that reads the object without credentials until it expires."""
        place = {"Bucket": self._bucket, "Key": key}
        return str(self._presigner.generate_presigned_url("get_object", Params=place, ExpiresIn=expires_s))

    def presign_put(self, key: str, size_bytes: int, expires_s: int) -> str:
        """A URL that writes exactly `size_bytes` to that one key by PUT: the length is part of what is signed."""
        place = {"Bucket": self._bucket, "Key": key, "ContentLength": size_bytes}
        return str(self._presigner.generate_presigned_url("put_object", Params=place, ExpiresIn=expires_s))

    def close(self) -> None:
        """Ends the kept connections."""
        for name in ("_client", "_presigner"):
            if name in vars(self):
                getattr(self, name).close()


def _common_prefix(keys: Sequence[str]) -> str:
    least, most = min(keys), max(keys)
    same = next((at for at, letter in enumerate(least) if letter != most[at]), len(least))
    return least[:same]


def _client(endpoint: str, key_id: str, secret: str, region: str, token: str | None) -> Any:
    """boto3 is imported here, when the store is first needed: it costs a cold start 0.1 s."""
    import boto3
    from botocore.config import Config

    client = boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name=region,
        aws_access_key_id=key_id,
        aws_secret_access_key=secret,
        aws_session_token=token,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            # see QUIRKS
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": MAX_ATTEMPTS},
        ),
    )
    client.meta.events.register("before-call.s3.DeleteObjects", _with_md5)
    return client


def _with_md5(params: dict[str, Any], **_: Any) -> None:
    """A batch of deletes must carry a checksum: the one that every vendor takes, in place of boto3's own."""
    params["context"].get("checksum", {}).pop("request_algorithm", None)  # it would be added after this
    headers, body = params["headers"], params["body"]
    for name in [name for name in headers if name.lower().startswith(("x-amz-checksum-", "x-amz-sdk-checksum-"))]:
        del headers[name]
    digest = hashlib.md5(body, usedforsecurity=False).digest()
    headers["Content-MD5"] = base64.b64encode(digest).decode()


@contextmanager
def _translated(key: str) -> Iterator[None]:
    """Only a definite "no such key" is an absence; a missing bucket or a broken answer is not."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") == "NoSuchKey":
            raise ObjectMissing(f"the store has no {key}") from None
        raise ObjectStoreError(f"the object store refused {key}: {error}") from error
    except (BotoCoreError, OSError) as error:
        raise ObjectStoreError(f"the object store did not answer for {key}: {error}") from error

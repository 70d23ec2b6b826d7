"""Application keys for one prefix of a Backblaze B2 bucket, which end by themselves.

backblaze.com/apidocs: b2_authorize_account, b2_list_buckets, b2_create_key (`namePrefix`, `validDurationInSeconds`).
Such a key works at the S3-compatible endpoint as it is, without a session token. Lacking `deleteFiles` it deletes no
version of a file for good; `writeFiles` lets it hide one, whose version stays until somebody with more rights ends it.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from typing import Any

import httpx

from common.errors import ObjectStoreError
from common.ports import Grant

CAPABILITIES = ("listFiles", "readFiles", "writeFiles")
API = "https://api.backblazeb2.com"
TIMEOUT_S = 10.0
MOST_S = 999 * 86_400
NAME_CHARS = 24


class B2:
    """`ports.StorageAccess`. The deployment's own key needs `writeKeys` and `listBuckets` for it."""

    def __init__(self, *, bucket: str, key_id: str, secret: str, api: str = API) -> None:
        self._bucket, self._auth, self._api = bucket, (key_id, secret), api

    def grant(self, prefix: str, *, for_s: float, now: datetime) -> Grant:
        """Raises `ObjectStoreError`. A new key for each call: Backblaze shows its secret only then."""
        seconds = int(min(for_s, MOST_S))
        wanted = {
            "capabilities": list(CAPABILITIES),
            "keyName": f"dumont-{hashlib.sha256(prefix.encode()).hexdigest()[:NAME_CHARS]}",
            "validDurationInSeconds": seconds,
            "namePrefix": prefix,
        }
        try:
            with httpx.Client(timeout=TIMEOUT_S) as http:
                made = self._made(http, wanted)
            id, key = str(made["applicationKeyId"]), str(made["applicationKey"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise ObjectStoreError(f"Backblaze gave no key for {prefix}: {error!r}") from error
        return Grant(id, key, None, now + timedelta(seconds=seconds))

    def _made(self, http: httpx.Client, wanted: dict[str, Any]) -> Any:
        """Authorized anew each time: the token is good for a day, and so never an expired one."""
        account = _answer(http.get(f"{self._api}/b2api/v3/b2_authorize_account", auth=self._auth))
        url, id = account["apiInfo"]["storageApi"]["apiUrl"], account["accountId"]
        headers = {"Authorization": str(account["authorizationToken"])}

        def call(name: str, **body: Any) -> Any:
            return _answer(http.post(f"{url}/b2api/v3/{name}", json={"accountId": id, **body}, headers=headers))

        found = call("b2_list_buckets", bucketName=self._bucket)["buckets"]
        if not found:
            raise ObjectStoreError(f"the account has no bucket {self._bucket}")
        return call("b2_create_key", bucketId=found[0]["bucketId"], **wanted)


def _answer(answer: httpx.Response) -> Any:
    if answer.status_code != 200:
        raise ObjectStoreError(f"Backblaze refused {answer.url.path}: {answer.status_code} {answer.text[:200]}")
    return answer.json()

"""Credentials for one prefix of a Cloudflare R2 bucket, signed here with the deployment's own key.

developers.cloudflare.com/r2/api/s3/temporary-credentials, "Locally": a JWT (HS256 under the parent's secret access key)
names bucket, actions and prefixes; the session token is base64("jwt/" + JWT), the secret access key the SHA-256 of the
JWT in hex, the access key id the parent's. Only so can single actions be granted: there is no DeleteObject among ours.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime, timedelta
from urllib.parse import urlsplit

import jwt

from common.ports import WRITABLE, Grant

READ = ("HeadObject", "GetObject", "GetBucketLocation", "ListObjectsV1", "ListObjectsV2")
WRITE = ("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "AbortMultipartUpload")
MOST_S = 7 * 86_400


class R2:
    """`ports.StorageAccess`. `endpoint` = https://<account>.r2.cloudflarestorage.com (or one of a jurisdiction)."""

    def __init__(self, *, endpoint: str, bucket: str, key_id: str, secret: str, account: str | None = None) -> None:
        self._host = urlsplit(endpoint).netloc
        self._account = account or self._host.partition(".")[0]
        self._bucket, self._key_id, self._secret = bucket, key_id, secret

    def grant(self, prefix: str, *, for_s: float, now: datetime) -> Grant:
        """Nothing is asked of Cloudflare. One credential has one list of paths: what may be written may be read."""
        until = now + timedelta(seconds=min(for_s, MOST_S))
        claims = {
            "sub": self._account,
            "iss": self._key_id,
            "aud": self._host,
            "iat": int(now.timestamp()),
            "exp": int(until.timestamp()),
            "bucket": self._bucket,
            "scope": "object-read-write",
            "actions": [*READ, *WRITE],
            "paths": {"prefixPaths": [f"{prefix}{name}/" for name in WRITABLE], "objectPaths": []},
        }
        token = jwt.encode(claims, self._secret, algorithm="HS256")
        secret = hashlib.sha256(token.encode()).hexdigest()
        return Grant(self._key_id, secret, base64.b64encode(f"jwt/{token}".encode()).decode(), until)

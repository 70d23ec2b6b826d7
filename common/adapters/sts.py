"""Credentials for one prefix from a Security Token Service: Amazon's, and Wasabi's, which speaks the same.

Amazon: AssumeRole with a session policy where a role is named, else GetFederationToken of the deployment's IAM user.
Wasabi has AssumeRole alone, of a sub-user and at most 12 h (docs.wasabi.com, "IAM and STS support"). A session policy
can only take away from what the role or user may do; it has at most 2,048 characters.
"""

from __future__ import annotations

import functools
import hashlib
import json
from datetime import datetime, timedelta
from typing import Any

from common.errors import ObjectStoreError
from common.ports import WRITABLE, Grant

LEAST_S = 900
MOST_S = 12 * 3600
"""Of an AssumeRole, if the role's own maximum allows it."""
NAME_CHARS = 32
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, 10
MAX_ATTEMPTS = 3


class Sts:
    """`ports.StorageAccess`. `endpoint` None = Amazon's own; `role_arn` None = GetFederationToken."""

    def __init__(
        self, *, bucket: str, key_id: str, secret: str, region: str, endpoint: str | None, role_arn: str | None
    ) -> None:
        self._bucket, self._role_arn = bucket, role_arn
        self._make = functools.partial(_client, endpoint, key_id, secret, region)

    @functools.cached_property
    def _client(self) -> Any:
        return self._make()

    def grant(self, prefix: str, *, for_s: float, now: datetime) -> Grant:
        """Raises `ObjectStoreError`."""
        from botocore.exceptions import BotoCoreError, ClientError

        seconds = int(min(max(for_s, LEAST_S), MOST_S))
        name = hashlib.sha256(prefix.encode()).hexdigest()[:NAME_CHARS]
        words = {"Policy": json.dumps(policy(self._bucket, prefix)), "DurationSeconds": seconds}
        try:
            if self._role_arn:
                answer = self._client.assume_role(RoleArn=self._role_arn, RoleSessionName=name, **words)
            else:
                answer = self._client.get_federation_token(Name=name, **words)
            got = answer["Credentials"]
            return Grant(
                got["AccessKeyId"], got["SecretAccessKey"], got["SessionToken"], now + timedelta(seconds=seconds)
            )
        except (ClientError, BotoCoreError, KeyError) as error:
            raise ObjectStoreError(f"no credentials for {prefix}: {error}") from error


def policy(bucket: str, prefix: str) -> dict[str, Any]:
    """Read and list below the prefix; write manifests and packs; delete nothing."""
    arn = f"arn:aws:s3:::{bucket}"
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": [f"{arn}/{prefix}*"]},
            {
                "Effect": "Allow",
                "Action": ["s3:PutObject", "s3:AbortMultipartUpload"],
                "Resource": [f"{arn}/{prefix}{name}/*" for name in WRITABLE],
            },
            {
                "Effect": "Allow",
                "Action": ["s3:ListBucket"],
                "Resource": [arn],
                "Condition": {"StringLike": {"s3:prefix": [f"{prefix}*"]}},
            },
        ],
    }


def _client(endpoint: str | None, key_id: str, secret: str, region: str) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "sts",
        endpoint_url=endpoint,
        region_name=region,
        aws_access_key_id=key_id,
        aws_secret_access_key=secret,
        config=Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": MAX_ATTEMPTS},
        ),
    )

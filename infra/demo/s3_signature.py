"""AWS Signature Version 4, from the server's side (docs.aws.amazon.com, "Authenticating Requests")."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from urllib.parse import quote

ALGORITHM = "AWS4-HMAC-SHA256"
FIELD = re.compile(r"(Credential|SignedHeaders|Signature)=([^,\s]+)")
UNSIGNED = "UNSIGNED-PAYLOAD"


class Unsigned(Exception):
    """The signature is missing or wrong."""


@dataclass(frozen=True)
class Asked:
    """One request; header names in lower case, query values decoded."""

    method: str
    path: str
    """As it was sent."""
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class _Claim:
    credential: list[str]
    """key id, date, region, service, aws4_request"""
    signed_headers: list[str]
    signature: str
    stamp: str


def key_id_of(asked: Asked) -> str:
    return _claim(asked).credential[0]


def region_of(asked: Asked) -> str:
    return _claim(asked).credential[2]


def token_of(asked: Asked) -> str | None:
    return asked.headers.get("x-amz-security-token") or asked.query.get("X-Amz-Security-Token")


def verify(asked: Asked, secret: str) -> None:
    """Raises `Unsigned`."""
    claim = _claim(asked)
    payload = _payload(asked)
    query = {name: value for name, value in asked.query.items() if name != "X-Amz-Signature"}
    words = sorted(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in query.items())
    headers = [f"{name}:{' '.join(asked.headers.get(name, '').split())}\n" for name in claim.signed_headers]
    canonical = "\n".join(
        [asked.method, asked.path, "&".join(words), "".join(headers), ";".join(claim.signed_headers), payload]
    )
    scope = "/".join(claim.credential[1:])
    text = "\n".join([ALGORITHM, claim.stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{secret}".encode()
    for part in claim.credential[1:]:
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    if not hmac.compare_digest(hmac.new(key, text.encode(), hashlib.sha256).hexdigest(), claim.signature):
        raise Unsigned("The request signature we calculated does not match the signature you provided.")


def _payload(asked: Asked) -> str:
    if "X-Amz-Signature" in asked.query:
        return UNSIGNED
    said, digest = asked.headers.get("x-amz-content-sha256"), hashlib.sha256(asked.body).hexdigest()
    if said is None or said == digest:
        return digest
    if said == UNSIGNED or said.startswith("STREAMING-"):
        return said
    raise Unsigned("The provided 'x-amz-content-sha256' header does not match what was computed.")


def _claim(asked: Asked) -> _Claim:
    if "X-Amz-Signature" in asked.query:
        query = asked.query
        headers = query["X-Amz-SignedHeaders"].split(";")
        return _Claim(query["X-Amz-Credential"].split("/"), headers, query["X-Amz-Signature"], query["X-Amz-Date"])
    said = asked.headers.get("authorization", "")
    fields = dict(FIELD.findall(said))
    if not said.startswith(ALGORITHM) or len(fields) != 3:
        raise Unsigned("the request is not signed")
    stamp = asked.headers.get("x-amz-date", "")
    return _Claim(fields["Credential"].split("/"), fields["SignedHeaders"].split(";"), fields["Signature"], stamp)

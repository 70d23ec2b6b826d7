"""Object stores as their vendors refuse things: a proxy on loopback in front of a real S3 server.

Each vendor's row says what it refuses and how it grants less than everything; all of them check signatures (SigV4), and
may be told to be overloaded every so many requests. Facts: backblaze.com/docs (S3-compatible API, unsupported
features; b2_create_key), developers.cloudflare.com/r2/api/s3, docs.wasabi.com (IAM and STS support), Amazon's API
references of S3 and STS.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import itertools
import json
import threading
import time
import urllib.parse
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from xml.sax.saxutils import escape

import jwt
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from infra.demo.s3_server import S3Server
from infra.demo.s3_signature import Asked, Unsigned, key_id_of, region_of, token_of, verify

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
FORWARDED = ("content-type", "content-md5", "range", "x-amz-copy-source")
ANSWERED = ("etag", "content-type", "last-modified", "content-range", "accept-ranges")
ET.register_namespace("", NAMESPACE)


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code

    def answer(self) -> Answer:
        text = f"<Error><Code>{self.code}</Code><Message>{escape(str(self))}</Message></Error>"
        return Answer(self.status, text.encode(), {"content-type": "application/xml"})


Allows = Callable[[str, str], bool]
"""allows(action, key): S3's name of the call, and the key (of a listing: its prefix)."""


@dataclass(frozen=True)
class Holder:
    """Whose key signed a request."""

    secret: str
    allows: Allows
    until: float = float("inf")


def everything(_action: str, _key: str) -> bool:
    return True


# --- what each vendor refuses


def refuse_checksums(asked: Asked) -> None:
    """Backblaze B2."""
    for name in asked.headers:
        if name.startswith(("x-amz-checksum-", "x-amz-sdk-checksum-")):
            raise Refusal(400, "InvalidArgument", f"Unsupported header '{name}' received for this API call.")


def refuse_trailers(asked: Asked) -> None:
    """Cloudflare R2."""
    if "x-amz-trailer" in asked.headers:
        raise Refusal(501, "NotImplemented", "STREAMING-UNSIGNED-PAYLOAD-TRAILER not implemented")
    if region_of(asked) not in ("auto", "us-east-1", ""):
        raise Refusal(400, "InvalidRegionName", f"The region name '{region_of(asked)}' is not valid.")


def require_checksum_of_deletes(asked: Asked) -> None:
    """Amazon S3."""
    sums = [name for name in asked.headers if name == "content-md5" or name.startswith("x-amz-checksum-")]
    if asked.method == "POST" and "delete" in asked.query and not sums:
        raise Refusal(400, "InvalidRequest", "Missing required header for this request: Content-MD5")


def refuse_newer_checksums(asked: Asked) -> None:
    """Wasabi: what it does not know it does not take for a checksum of a batch of deletes."""
    if asked.method == "POST" and "delete" in asked.query and "content-md5" not in asked.headers:
        raise Refusal(400, "MissingContentMD5", "Missing required header for this request: Content-MD5")


@dataclass(frozen=True)
class Vendor:
    refuse: Callable[[Asked], None]
    sts: tuple[str, ...] = ()
    """Actions of its Security Token Service."""
    signs_tokens: bool = False
    """R2: a session token that the holder of the key signed himself."""
    has_keys: bool = False
    """B2: application keys by its native API."""
    keeps_versions: bool = False


VENDORS = {
    "s3": Vendor(require_checksum_of_deletes, sts=("AssumeRole", "GetFederationToken")),
    "b2": Vendor(refuse_checksums, has_keys=True, keeps_versions=True),
    "r2": Vendor(refuse_trailers, signs_tokens=True),
    "wasabi": Vendor(refuse_newer_checksums, sts=("AssumeRole",)),
}


@dataclass
class VendorS3:
    """The vendor's endpoint, its STS and its native API at one address."""

    vendor: Vendor
    server: S3Server
    slow_down_every: int = 0
    """503 for every so manyth request; 0 = never."""
    clock: Callable[[], float] = time.time
    url: str = ""
    granted: dict[str, Holder] = field(default_factory=dict)
    """By session token, or by the id of an application key."""
    versions: dict[str, list[str]] = field(default_factory=dict)
    """Key -> ids of its versions, the newest last; those that begin with `hide` are markers."""
    calls: list[str] = field(default_factory=list)
    _ids: Iterator[int] = field(default_factory=itertools.count)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def handle(self, asked: Asked) -> Answer:
        with self._lock:
            number = next(self._ids)
            try:
                if asked.path.startswith("/b2api/"):
                    return self._native(asked)
                if asked.method == "POST" and asked.path == "/":
                    return self._sts(asked)
                return self._s3(asked, number)
            except Refusal as refusal:
                return refusal.answer()
            except Unsigned as wrong:
                return Refusal(403, "SignatureDoesNotMatch", str(wrong)).answer()

    # --- the object store

    def _s3(self, asked: Asked, number: int) -> Answer:
        holder = self._holder(asked)
        verify(asked, holder.secret)
        if self.clock() >= holder.until:
            raise Refusal(400, "ExpiredToken", "The provided token has expired.")
        self.vendor.refuse(asked)
        if self.slow_down_every and number % self.slow_down_every == self.slow_down_every - 1:
            raise Refusal(503, "SlowDown", "Please reduce your request rate.")
        _, bucket, key = (asked.path + "/").split("/", 2)
        key, action = urllib.parse.unquote(key.removesuffix("/")), action_of(asked)
        self.calls.append(f"{action} {key}")
        if bucket != self.server.bucket:
            raise Refusal(404, "NoSuchBucket", "The specified bucket does not exist.")
        if action != "DeleteObjects" and not holder.allows(action, key or asked.query.get("prefix", "")):
            raise Refusal(403, "AccessDenied", "Access Denied")
        if action == "DeleteObjects":
            return self._delete_many(asked, holder)
        return self._versioned(asked, action, key) if self.vendor.keeps_versions else self._forward(asked)

    def _holder(self, asked: Asked) -> Holder:
        token, key_id = token_of(asked), key_id_of(asked)
        if token and self.vendor.signs_tokens:
            return self._of_signed(token)
        holder = self.granted.get(token or key_id)
        if holder:
            return holder
        if key_id != self.server.access_key or token:
            raise Refusal(403, "InvalidAccessKeyId", "The key id does not exist in our records.")
        return Holder(self.server.secret_key, everything)

    def _delete_many(self, asked: Asked, holder: Holder) -> Answer:
        doomed = [
            (str(item.findtext(f"{{{NAMESPACE}}}Key")), item.findtext(f"{{{NAMESPACE}}}VersionId"))
            for item in ET.fromstring(asked.body)
            if item.tag.endswith("Object")
        ]
        refused = [key for key, _ in doomed if not holder.allows("DeleteObject", key)]
        for key, version in doomed:
            if key not in refused:
                self._delete(key, version)
        errors = "".join(f"<Error><Key>{escape(key)}</Key><Code>AccessDenied</Code></Error>" for key in refused)
        return _xml(f'<DeleteResult xmlns="{NAMESPACE}">{errors}</DeleteResult>')

    def _delete(self, key: str, version: str | None) -> None:
        if self.vendor.keeps_versions:
            ids = self.versions.setdefault(key, [])
            if version is None:
                ids.append(f"hide{next(self._ids)}")
                return
            if version in ids:
                ids.remove(version)
            if any(not id.startswith("hide") for id in ids):
                return
        self._forward(Asked("DELETE", f"/{self.server.bucket}/{urllib.parse.quote(key)}", {}, {}, b""))

    # --- B2's versions

    def _versioned(self, asked: Asked, action: str, key: str) -> Answer:
        match action:
            case "ListObjectVersions":
                return self._list_versions(asked.query.get("prefix", ""))
            case "DeleteObject":
                self._delete(key, asked.query.get("versionId"))
                return Answer(204)
            case "GetObject" | "HeadObject" if self._is_hidden(key):
                raise Refusal(404, "NoSuchKey", "The specified key does not exist.")
        answer = self._forward(asked)
        if action in ("PutObject", "CompleteMultipartUpload") and answer.status == 200:
            self.versions.setdefault(key, []).append(f"v{next(self._ids)}")
        if action in ("ListObjectsV2", "ListObjectsV1"):
            return self._without_hidden(answer)
        return answer

    def _is_hidden(self, key: str) -> bool:
        ids = self.versions.get(key, [])
        return bool(ids) and ids[-1].startswith("hide")

    def _list_versions(self, prefix: str) -> Answer:
        rows = [
            f"<{kind}><Key>{escape(key)}</Key><VersionId>{id}</VersionId></{kind}>"
            for key, ids in sorted(self.versions.items())
            if key.startswith(prefix)
            for id in ids
            for kind in ["DeleteMarker" if id.startswith("hide") else "Version"]
        ]
        text = f'<ListVersionsResult xmlns="{NAMESPACE}"><IsTruncated>false</IsTruncated>{"".join(rows)}'
        return _xml(f"{text}</ListVersionsResult>")

    def _without_hidden(self, answer: Answer) -> Answer:
        tree = ET.fromstring(answer.body)
        for item in tree.findall(f"{{{NAMESPACE}}}Contents"):
            if self._is_hidden(str(item.findtext(f"{{{NAMESPACE}}}Key"))):
                tree.remove(item)
        return Answer(answer.status, ET.tostring(tree), answer.headers)

    # --- who may do less

    def _of_signed(self, token: str) -> Holder:
        """R2's own session token; what it grants is in it."""
        signed = base64.b64decode(token).decode().removeprefix("jwt/")
        try:
            options: Any = {"verify_aud": False, "verify_exp": False, "verify_iat": False}
            claims = jwt.decode(signed, self.server.secret_key, algorithms=["HS256"], options=options)
        except jwt.InvalidTokenError as error:
            raise Refusal(403, "InvalidToken", str(error)) from None
        if (claims["iss"], claims["bucket"]) != (self.server.access_key, self.server.bucket):
            raise Refusal(403, "AccessDenied", "another key or bucket")

        def allows(action: str, key: str) -> bool:
            return action in claims["actions"] and key.startswith(tuple(claims["paths"]["prefixPaths"]))

        return Holder(hashlib.sha256(signed.encode()).hexdigest(), allows, claims["exp"])

    def _sts(self, asked: Asked) -> Answer:
        verify(asked, self.server.secret_key)
        form = dict(urllib.parse.parse_qsl(asked.body.decode()))
        action = form.get("Action", "")
        if action not in self.vendor.sts:
            raise Refusal(400, "InvalidAction", f"Could not find operation {action}")
        if len(form["Policy"]) > 2048 or not 900 <= int(form["DurationSeconds"]) <= 129_600:
            raise Refusal(400, "ValidationError", "the policy or the duration is too long")
        if (action == "AssumeRole") != ("RoleArn" in form):
            raise Refusal(400, "ValidationError", "RoleArn is required of AssumeRole alone")
        statements = json.loads(form["Policy"])["Statement"]
        number, until = next(self._ids), self.clock() + int(form["DurationSeconds"])
        token, secret = f"session{number}", f"secret{number}"

        def allows(action: str, key: str) -> bool:
            return any(_states(statement, self.server.bucket, action, key) for statement in statements)

        self.granted[token] = Holder(secret, allows, until)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(until))
        inside = f"<AccessKeyId>ASIA{number}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>"
        inside += f"<SessionToken>{token}</SessionToken><Expiration>{stamp}</Expiration>"
        text = f"<{action}Result><Credentials>{inside}</Credentials></{action}Result>"
        return _xml(f'<{action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/">{text}</{action}Response>')

    def _native(self, asked: Asked) -> Answer:
        """B2's own API: the three calls that make a key."""
        if not self.vendor.has_keys:
            raise Refusal(404, "NoSuchBucket", "there is no such API")
        call = asked.path.rpartition("/")[2]
        said = asked.headers.get("authorization", "")
        if call == "b2_authorize_account":
            pair = base64.b64encode(f"{self.server.access_key}:{self.server.secret_key}".encode()).decode()
            if said != f"Basic {pair}":
                return _json(401, {"code": "unauthorized"})
            info = {"storageApi": {"apiUrl": self.url}}
            return _json(200, {"accountId": "account", "authorizationToken": "4_token", "apiInfo": info})
        if said != "4_token":
            return _json(401, {"code": "bad_auth_token"})
        body = json.loads(asked.body)
        if call == "b2_list_buckets":
            found = [{"bucketId": "bucket-id"}] if body["bucketName"] == self.server.bucket else []
            return _json(200, {"buckets": found})
        return self._make_key(body)

    def _make_key(self, body: dict[str, Any]) -> Answer:
        if body["bucketId"] != "bucket-id" or len(body["keyName"]) > 100:
            return _json(400, {"code": "bad_request"})
        able, prefix = set(body["capabilities"]), body["namePrefix"]
        needs = {"GetObject": "readFiles", "HeadObject": "readFiles", "PutObject": "writeFiles"}
        needs |= {"DeleteObject": "writeFiles", "ListObjectsV2": "listFiles", "ListObjectVersions": "listFiles"}

        def allows(action: str, key: str) -> bool:
            return needs.get(action) in able and key.startswith(prefix)

        id, secret = f"004key{next(self._ids)}", f"K004secret{next(self._ids)}"
        self.granted[id] = Holder(secret, allows, self.clock() + body["validDurationInSeconds"])
        return _json(200, {"applicationKeyId": id, "applicationKey": secret, "capabilities": sorted(able)})

    # --- the server behind it

    def _forward(self, asked: Asked) -> Answer:
        """The same request, signed with the real server's key."""
        query = urllib.parse.urlencode({n: value for n, value in asked.query.items() if not n.startswith("X-Amz-")})
        target = asked.path + (f"?{query}" if query else "")
        headers = {name: value for name, value in asked.headers.items() if name in FORWARDED}
        signed = AWSRequest(asked.method, f"{self.server.endpoint}{target}", headers, asked.body)
        S3SigV4Auth(Credentials(self.server.access_key, self.server.secret_key), "s3", "us-east-1").add_auth(signed)
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(self.server.endpoint).netloc, timeout=60)
        try:
            connection.request(asked.method, target, asked.body, dict(signed.headers.items()))
            got = connection.getresponse()
            kept = {name.lower(): value for name, value in got.getheaders() if name.lower() in ANSWERED}
            if asked.method == "HEAD":
                kept["content-length"] = got.getheader("content-length") or "0"
            return Answer(got.status, got.read(), kept)
        finally:
            connection.close()


def action_of(asked: Asked) -> str:
    """S3's name of the call, as policies and actions name it."""
    has_key = asked.path.strip("/").count("/") > 0
    query = asked.query
    match asked.method, has_key:
        case "GET", False:
            return "ListObjectVersions" if "versions" in query else "ListObjectsV2"
        case "GET", True:
            return "GetObject"
        case "HEAD", True:
            return "HeadObject"
        case "PUT", True:
            return "UploadPart" if "uploadId" in query else "PutObject"
        case "DELETE", True:
            return "AbortMultipartUpload" if "uploadId" in query else "DeleteObject"
        case "POST", False:
            return "DeleteObjects"
        case "POST", True:
            return "CreateMultipartUpload" if "uploads" in query else "CompleteMultipartUpload"
    return asked.method


IAM = {"HeadObject": "GetObject", "ListObjectsV2": "ListBucket", "UploadPart": "PutObject"}
"""What policies call them."""


def _states(statement: dict[str, Any], bucket: str, action: str, key: str) -> bool:
    name = IAM.get(action, action)
    if f"s3:{name}" not in statement["Action"]:
        return False
    is_listing = name == "ListBucket"
    arn = f"arn:aws:s3:::{bucket}" + ("" if is_listing else f"/{key}")
    prefixes = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix", ["*"])
    fits = any(fnmatchcase(arn, resource) for resource in statement["Resource"])
    return fits and (not is_listing or any(fnmatchcase(key, prefix) for prefix in prefixes))


def _xml(text: str) -> Answer:
    return Answer(200, text.encode(), {"content-type": "application/xml"})


def _json(status: int, body: dict[str, Any]) -> Answer:
    return Answer(status, json.dumps(body).encode(), {"content-type": "application/json"})


@contextmanager
def vendor_s3(name: str, server: S3Server, **options: Any) -> Iterator[VendorS3]:
    """That vendor on a free port of loopback, before the server."""
    made = VendorS3(VENDORS[name], server, **options)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            path, _, query = self.path.partition("?")
            words = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = made.handle(Asked(self.command, path, words, headers, body))
            self.send_response(answer.status)
            for header, value in {"content-length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(header, value)
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815 - names of the base class

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    made.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()

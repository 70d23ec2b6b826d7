"""The store's small answers by our own hand: lists, and objects of a few MB, over one connection that stays open.

Packs and manifests are uploaded by s5cmd, and packs fetched by it; but a program started for each question costs more
than the question, and so does loading the standard library's client (`http.client` brings all of `email` with it:
50 ms of processor before anything is done). Requests are signed by AWS Signature Version 4 (docs.aws.amazon.com,
"Authenticating Requests").
"""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import time  # noqa: TID251 - a signature carries the time, and a store that is overloaded is asked again later
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, BinaryIO, NamedTuple
from urllib.parse import quote, urlsplit

from common.errors import ObjectMissing, ObjectStoreError
from common.snapshots.markup import texts

if TYPE_CHECKING:
    import ssl

    from common.snapshots.transfer import Endpoint

ATTEMPTS = 6
PAUSE_S = 0.1
"""Before the second attempt; twice as long before each further one."""
ANSWER_S = 60.0
"""The store says nothing for so long: that attempt failed."""
PARTIAL = 206
TRANSIENT = {429, 500, 502, 503, 504}
SKEWED = "RequestTimeTooSkewed"
ALGORITHM = "AWS4-HMAC-SHA256"
AUTHORITIES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
"""Where distributions keep the certificates that they trust; s5cmd looks there, too."""
MAX_ANSWER_BYTES = 1 << 30
MAX_LINE_BYTES = 1 << 16
MAX_HEADERS = 200


class Broken(OSError):
    """What came is no whole answer of HTTP; the connection is no use any more."""


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    """Names in lower case."""
    content: bytes
    ends_with_connection: bool = False


class Row(NamedTuple):
    """An object as the store lists it; `etag` without its quotes."""

    key: str
    size: int
    etag: str
    at: datetime


class Wire:
    """One bucket, one request at a time."""

    def __init__(self, endpoint: Endpoint, *, attempts: int = ATTEMPTS, answer_s: float = ANSWER_S) -> None:
        self._endpoint = endpoint
        self._attempts, self._answer_s = attempts, answer_s
        parts = urlsplit(endpoint.url)
        self._is_https, self._host = parts.scheme == "https", parts.netloc
        self._address = (parts.hostname or "", parts.port or (443 if self._is_https else 80))
        self._place = f"{parts.path.rstrip('/')}/{endpoint.bucket}"
        self._socket: socket.socket | None = None
        self._skew_s = 0.0
        """What the store's clock is ahead of ours."""

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """The object, or `length` bytes of it; raises `ObjectMissing`, else `ObjectStoreError`."""
        if length is None:
            return self._ask("GET", key).content
        answer = self._ask("GET", key, also={"range": f"bytes={start}-{start + length - 1}"})
        # a store may give all where a part was asked for
        return answer.content if answer.status == PARTIAL else answer.content[start : start + length]

    def put(self, key: str, content: bytes) -> None:
        self._ask("PUT", key, body=content)

    def list(self, prefix: str) -> Iterator[Row]:
        """Every object below the prefix, in key order; raises `ObjectStoreError`: what failed is never an absence."""
        query = {"list-type": "2", "prefix": prefix}
        while True:
            rows, following = _listing(self._ask("GET", "", query).content)
            yield from rows
            if not following:
                return
            query["continuation-token"] = following

    def close(self) -> None:
        if self._socket:
            self._socket.close()
        self._socket = None

    def _ask(
        self,
        method: str,
        key: str,
        query: Mapping[str, str] | None = None,
        body: bytes = b"",
        also: Mapping[str, str] | None = None,
    ) -> Answer:
        """`also` = headers besides those of every request."""
        what = f"{method} {key or (query or {}).get('prefix', '')}"
        wrong = ""
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(PAUSE_S * 2 ** (attempt - 1))
            try:
                answer = self._once(method, key, query or {}, body, also or {})
            except OSError as error:
                self.close()
                wrong = str(error) or type(error).__name__
                continue
            if answer.status in (200, 204, PARTIAL):
                return answer
            code = _code_of(answer.content)
            wrong = f"status code: {answer.status} {code}"
            if code == SKEWED:
                self._skew_s = _seconds(answer.headers.get("date", "")) - time.time()
            elif answer.status == 404 and key and code in ("", "NoSuchKey"):
                raise ObjectMissing(f"the store has no {key}: {wrong}")
            elif answer.status not in TRANSIENT:
                break
        raise ObjectStoreError(f"{what}: {wrong}")

    def _once(self, method: str, key: str, query: Mapping[str, str], body: bytes, also: Mapping[str, str]) -> Answer:
        """Raises OSError. A server may close a connection that rests: then the request is sent over a fresh one."""
        rested = self._socket is not None
        try:
            return self._exchange(method, key, query, body, also)
        except (Broken, ConnectionError):
            self.close()
            if not rested:
                raise
        return self._exchange(method, key, query, body, also)

    def _exchange(
        self, method: str, key: str, query: Mapping[str, str], body: bytes, also: Mapping[str, str]
    ) -> Answer:  # fmt: skip
        path = quote(f"{self._place}/{key}" if key else self._place, safe="/-_.~")
        words = "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in sorted(query.items()))
        headers = signed(self._endpoint, method, self._host, path, words, body, time.time() + self._skew_s)
        headers |= also  # what is not signed may be said all the same
        lines = [f"{method} {path}?{words} HTTP/1.1" if words else f"{method} {path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in {**headers, "content-length": str(len(body))}.items()]
        self._socket = self._socket or self._connected()
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        with self._socket.makefile("rb") as file:
            answer = _answer(file)
        if answer.headers.get("connection", "").lower() == "close" or answer.ends_with_connection:
            self.close()
        return answer

    def _connected(self) -> socket.socket:
        host, port = self._address
        name = host.encode() if host.isascii() else host  # as text it loads a codec of international names, 5 ms
        plain = socket.create_connection((name, port), timeout=self._answer_s)  # type: ignore[arg-type]
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _trust().wrap_socket(plain, server_hostname=self._address[0]) if self._is_https else plain


def _answer(file: BinaryIO) -> Answer:
    """The next answer that is not an interim one; raises `Broken`."""
    status = 100
    while status < 200:
        version, _, rest = _line(file).partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise Broken("what answers is no HTTP server")
        status, headers = int(rest[:3]), _headers(file)
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return Answer(status, headers, b"".join(_chunks(file)))
    if status == 204:
        return Answer(status, headers, b"")
    length = headers.get("content-length")
    if length is None:
        return Answer(status, headers, file.read(MAX_ANSWER_BYTES), ends_with_connection=True)
    return Answer(status, headers, _exactly(file, length, 10))


def _headers(file: BinaryIO) -> dict[str, str]:
    headers: dict[str, str] = {}
    for _ in range(MAX_HEADERS):
        line = _line(file)
        if not line:
            return headers
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    raise Broken("an answer with too many headers")


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    left = MAX_ANSWER_BYTES
    while piece := _exactly(file, _line(file).partition(";")[0], 16):
        left -= len(piece)
        if left < 0 or _line(file):
            raise Broken("a chunk that does not end where it says, or one too many")
        yield piece
    _headers(file)


def _exactly(file: BinaryIO, size: str, base: int) -> bytes:
    try:
        wanted = int(size, base)
    except ValueError:
        raise Broken(f"an answer of {size[:20]!r} bytes") from None
    if not 0 <= wanted <= MAX_ANSWER_BYTES:
        raise Broken(f"an answer of {wanted} bytes")
    content = file.read(wanted)
    if len(content) != wanted:
        raise Broken(f"the answer ended after {len(content)} of {wanted} bytes")
    return content


def _line(file: BinaryIO) -> str:
    line = file.readline(MAX_LINE_BYTES)
    if not line.endswith(b"\n"):
        raise Broken("the connection was closed in the middle of an answer" if line else "the connection was closed")
    return line.rstrip(b"\r\n").decode("latin-1")


def _seconds(date: str) -> float:
    """Since 1970, of HTTP's way to write a time; now where there is none."""
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(date).timestamp()
    except ValueError:
        return time.time()


def signed(endpoint: Endpoint, method: str, host: str, path: str, query: str, body: bytes, at: float) -> dict[str, str]:
    """The headers of a request; path and query as they are sent, `at` in seconds since 1970."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at))
    headers = {"host": host, "x-amz-content-sha256": hashlib.sha256(body).hexdigest(), "x-amz-date": stamp}
    if endpoint.session_token:
        headers["x-amz-security-token"] = endpoint.session_token
    names = ";".join(headers)
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    canonical = "\n".join([method, path, query, lines, names, headers["x-amz-content-sha256"]])
    scope = f"{stamp[:8]}/{endpoint.region}/s3/aws4_request"
    text = "\n".join([ALGORITHM, stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{endpoint.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    said = f"{ALGORITHM} Credential={endpoint.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    return {**headers, "authorization": said}


def _trust() -> ssl.SSLContext:
    """What s5cmd trusts: AWS_CA_BUNDLE, SSL_CERT_FILE and SSL_CERT_DIR, else what the machine trusts."""
    import ssl

    try:
        context = ssl.create_default_context()  # looks at the two SSL_CERT variables
        if bundle := os.environ.get("AWS_CA_BUNDLE"):
            context.load_verify_locations(bundle)
        elif not context.cert_store_stats()["x509_ca"] and not os.environ.get("SSL_CERT_DIR"):
            for place in AUTHORITIES:
                with suppress(FileNotFoundError):
                    context.load_verify_locations(place)
                    break
    except (OSError, ssl.SSLError) as error:
        raise ObjectStoreError(f"the certificates to trust cannot be read: {error}") from None
    return context


def _listing(content: bytes) -> tuple[list[Row], str]:
    """(objects, how to ask for those that follow); raises `ObjectStoreError`."""
    try:
        alone, objects = texts(content, "Contents")
        rows = [
            Row(row["Key"], int(row["Size"]), row.get("ETag", "").strip('"'), _time(row["LastModified"]))
            for row in objects
        ]
        more = alone["IsTruncated"] == "true"
        return rows, alone["NextContinuationToken"] if more else ""
    except (KeyError, ValueError) as error:
        raise ObjectStoreError(f"a list that does not parse is no answer: {error!r}") from None


def _time(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("a time without its zone")
    return at


def _code_of(content: bytes) -> str:
    try:
        return texts(content, "")[0].get("Code", "")
    except ValueError:
        return ""

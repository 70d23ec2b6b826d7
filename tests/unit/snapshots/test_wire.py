"""What comes over the engine's own connection: lists and small objects, whatever the server does on the way."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from common.errors import ObjectMissing, ObjectStoreError
from common.snapshots import engine, wire
from common.snapshots.wire import Wire
from infra.demo.s3_server import S3Server, s3_server
from tests.snapshots_fixtures import Box, endpoint, tree
from tests.unit.snapshots.test_repository import URL, host

ERROR = b"<?xml version='1.0'?><Error><Code>%s</Code></Error>"
LIST = (
    b"<ListBucketResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'><IsTruncated>%s</IsTruncated>%s"
    b"<Contents><Key>a/%s</Key><Size>3</Size><ETag>&quot;e&quot;</ETag><Owner><ID>o</ID></Owner>"
    b"<LastModified>2026-01-02T03:04:05.000Z</LastModified></Contents></ListBucketResult>"
)
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
MORE = b"<NextContinuationToken>t/+=</NextContinuationToken>"


def plain(body: bytes, status: bytes = b"200 OK", headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n%s" % (status, len(body), headers, body)


@contextmanager
def server(*answers: bytes) -> Iterator[tuple[Wire, list[bytes]]]:
    """Gives these answers, one to each request; b"" closes the connection instead. What was asked is kept."""
    asked: list[bytes] = []
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        left = list(answers)
        while left:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                while left:
                    request = b""
                    while b"\r\n\r\n" not in request and (piece := connection.recv(1 << 16)):
                        request += piece
                    if not request:
                        break
                    asked.append(request)
                    answer = left.pop(0)
                    connection.sendall(answer)
                    if not answer or b"onnection: close" in answer:
                        break

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with closing(Wire(engine.Endpoint(url, "b", "key", "secret"))) as way:
            yield way, asked
    finally:
        listening.close()


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "PAUSE_S", 0.001)


def test_it_writes_lists_and_reads_what_the_store_has(box: Box) -> None:
    with closing(Wire(box.endpoint)) as way, closing(Wire(replace(box.endpoint, secret_key="wrong"))) as wrong:
        for name in ("x", "y z", "q=1&r"):
            way.put(f"a/{name}", name.encode())

        assert [(row.key, row.size) for row in way.list("a/")] == [("a/q=1&r", 5), ("a/x", 1), ("a/y z", 3)]
        assert way.get("a/y z") == b"y z"
        assert list(way.list("nothing/")) == []
        with pytest.raises(ObjectMissing):
            way.get("a/nothing")
        with pytest.raises(ObjectStoreError) as refusal:
            wrong.get("a/x")
    assert not isinstance(refusal.value, ObjectMissing)


def test_a_list_of_several_pages_is_one_list() -> None:
    with server(plain(LIST % (b"true", MORE, b"1")), plain(LIST % (b"false", b"", b"2"))) as (way, asked):
        rows = [(row.key, row.size, row.etag, row.at.year) for row in way.list("a/")]

    assert rows == [("a/1", 3, "e", 2026), ("a/2", 3, "e", 2026)]
    assert b"continuation-token=t%2F%2B%3D&list-type=2" in asked[1].splitlines()[0]


@pytest.mark.parametrize(
    "trouble",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n\r\nshort",
        CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + b"4\r\nhalf",
        b"SSH-2.0-OpenSSH\r\nConnection: close\r\n",
        plain(ERROR % b"SlowDown", b"503 Slow Down"),
        plain(b"", b"500 Oh", b"Connection: close\r\n"),
        plain(ERROR % b"RequestTimeTooSkewed", b"403 Forbidden", b"Date: Fri, 02 Jan 2099 03:04:05 GMT\r\n"),
    ],
)
def test_what_went_wrong_on_the_way_is_asked_again(trouble: bytes) -> None:
    with server(trouble, trouble, plain(b"content")) as (way, asked):
        assert way.get("k") == b"content"

    assert len(asked) == 3
    assert (b"x-amz-date: 2099" in asked[2]) == (b"Skewed" in trouble)


@pytest.mark.parametrize(
    ("answer", "content"),
    [
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4;x=y\r\nhalf\r\n2\r\n +\r\n0\r\nt: 1\r\n\r\n",
            b"half +",
        ),
        (b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + plain(b"after all"), b"after all"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ],
)
def test_every_way_to_say_where_an_answer_ends_is_understood(answer: bytes, content: bytes) -> None:
    with server(answer, plain(b"next")) as (way, _):
        assert (way.get("k"), way.get("k")) == (content, b"next")


@pytest.mark.parametrize(
    "answer",
    [
        plain(b"<html>a proxy's greeting</html>"),
        plain(b"<!DOCTYPE x [<!ENTITY a 'aaaa'>]><ListBucketResult><IsTruncated>&a;</IsTruncated></ListBucketResult>"),
        plain(b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>"),
        plain(
            b"<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>a</Key></Contents></ListBucketResult>"
        ),
        plain(b""),
        plain(ERROR % b"NoSuchBucket", b"404 Not Found"),
        plain(ERROR % b"AccessDenied", b"403 Forbidden"),
        plain(b"", b"301 Moved", b"Location: http://elsewhere/\r\n"),
    ],
)
def test_an_answer_that_is_no_list_is_never_an_absence(answer: bytes) -> None:
    with server(answer) as (way, _), pytest.raises(ObjectStoreError) as refusal:
        list(way.list("a/"))

    assert not isinstance(refusal.value, ObjectMissing)


def test_a_store_that_stays_away_is_an_error_in_words() -> None:
    refusals = [plain(b"", b"503 Slow Down")] * wire.ATTEMPTS
    with server(*refusals) as (way, asked), pytest.raises(ObjectStoreError, match="503"):
        way.get("k")

    assert len(asked) == wire.ATTEMPTS


# --- a certificate of one's own


@pytest.fixture
def authority(tmp_path: Path) -> tuple[Path, Path]:
    """(certificate that trusts itself, its key) of 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a store of one's own")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    no_password = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    (tmp_path / "ca.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "ca.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, no_password))
    return tmp_path / "ca.pem", tmp_path / "ca.key"


@pytest.fixture
def private_store(authority: tuple[Path, Path], tmp_path: Path) -> Iterator[S3Server]:
    certificate, key = authority
    options = ("--cert", str(certificate), "--key", str(key))
    with s3_server(tmp_path / "private", options=options) as made:
        yield replace(made, endpoint=made.endpoint.replace("http:", "https:"))


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "AWS_CA_BUNDLE"])
def test_a_private_certificate_is_believed_when_we_are_told_to(
    box: Box, private_store: S3Server, authority: tuple[Path, Path], variable: str
) -> None:
    (box.root / "a").write_bytes(os.urandom(5000))
    there = replace(box, endpoint=endpoint(private_store))

    host(there, "backup", box.root, URL, **{variable: str(authority[0])})
    host(there, "restore", URL, box.copy, **{variable: str(authority[0])})
    refused = host(there, "list", URL, code=6)

    assert tree(box.copy) == tree(box.root)
    assert "certificate" in refused["detail"].lower()

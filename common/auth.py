"""Passwords, sessions, API keys and the tokens of hosts. One algorithm, required claims, secrets only as hashes.

PyJWT loads all of `cryptography` at once, a twentieth of a cold start: it is loaded with the first token, and who comes
with an API key or Slack's signature needs none.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import threading  # noqa: TID251 - a lock between the threads that the functions framework makes, and no thread
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from common.domain.account import ApiKey, Caller, Role, User
from common.domain.liveness import Recorded
from common.errors import KeyLost, Unauthenticated

ALGORITHM = "HS256"
ISSUER = "dumont"
AUDIENCES_OF_HOSTS = ("bootstrap", "host")
SESSION_FOR = timedelta(hours=12)
BOOTSTRAP_FOR = timedelta(minutes=10)
HOST_TOKEN_FOR = timedelta(minutes=15)
HOST_TOKEN_GRACE = timedelta(minutes=30)
"""A host that was cut off or frozen may still renew an expired token for so long."""
STANDBY_TOKEN_FOR = timedelta(days=2)
"""Of a standby, which is a machine of our own project and may be the only one that has what a user wrote: cut off for
hours, it must still be able to say so."""
SCHEDULER_TOKEN_FOR = timedelta(minutes=5)
GOOGLE_ALGORITHM = "RS256"
GOOGLE_ISSUERS = ("accounts.google.com", "https://accounts.google.com")
GOOGLE_CLOCK_SKEW = timedelta(seconds=10)
ADVANCE_TOKEN_FOR = timedelta(minutes=1)
OUTBOX_TOKEN_FOR = timedelta(minutes=1)
TIMESTAMP_DIGITS_MAX = 12
SLACK_AGE_MAX_S = 300
"""Of a signed request, into the past and into the future."""
API_KEY_PREFIX = "dk_"
WRAP_NONCE_BYTES = 12
SSH_KEY_TYPE = b"\0\0\0\x0bssh-ed25519"

_hashing = threading.Lock()
"""One password at a time: each takes 64 MiB, and half as many as the function takes requests would take all it has."""


def hash_password(password: str) -> str:
    from argon2 import PasswordHasher

    with _hashing:
        return PasswordHasher().hash(password)


def password_is_right(password_hash: str, password: str) -> bool:
    from argon2 import PasswordHasher
    from argon2.exceptions import InvalidHashError, VerificationError

    try:
        with _hashing:
            return PasswordHasher().verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return False


def session_token(user: User, *, secret: str, now: datetime) -> str:
    claims = {"sub": user.id, "account": user.account, "role": user.role.value}
    return _sign("session", claims, SESSION_FOR, secret, now)


def caller_of_session(token: str, *, secret: str, now: datetime) -> Caller:
    """Raises `Unauthenticated`."""
    claims = _read("session", token, secret, now)
    try:
        return Caller(account=claims["account"], user_id=claims["sub"], role=Role(claims["role"]))
    except (KeyError, ValueError):
        raise Unauthenticated("this session is not valid; sign in again") from None


def new_api_key(*, ids: Callable[[], str], caller: Caller, name: str, role: Role, now: datetime) -> tuple[ApiKey, str]:
    """The record to keep, and the key itself, which is shown once: dk_<id>_<secret>."""
    id, secret = ids(), ids() + ids() + ids()
    record = ApiKey(
        id=id,
        account=caller.account,
        user_id=caller.user_id,
        name=name,
        role=role,
        secret_hash=hashlib.sha256(secret.encode()).hexdigest(),
        created_at=now,
    )
    return record, f"{API_KEY_PREFIX}{id}_{secret}"


def api_key_id(key: str) -> str | None:
    """The id inside a key, or None when the text is not a key."""
    parts = key.removeprefix(API_KEY_PREFIX).split("_")
    return parts[0] if key.startswith(API_KEY_PREFIX) and len(parts) == 2 and parts[0].isalnum() else None


def api_key_is_right(record: ApiKey, key: str) -> bool:
    secret = key.rpartition("_")[2]
    return hmac.compare_digest(record.secret_hash, hashlib.sha256(secret.encode()).hexdigest())


def bootstrap_token(label: str, *, secret: str, now: datetime, lifetime: timedelta = BOOTSTRAP_FOR) -> str:
    """`lifetime` = as long as the machine may take to boot: one that still pulls its image is waited for."""
    return _sign("bootstrap", {"sub": label}, max(lifetime, BOOTSTRAP_FOR), secret, now)


def label_of_bootstrap(token: str, *, secret: str, now: datetime) -> str:
    """Raises `Unauthenticated`. That it is used once is the store's business."""
    return str(_read("bootstrap", token, secret, now)["sub"])


def host_token(
    label: str,
    epoch: int,
    *,
    secret: str,
    now: datetime,
    recorded: Recorded | None = None,
    lifetime: timedelta = HOST_TOKEN_FOR,
) -> str:
    """`recorded` = what is known of the report that this token answers; None = the next one is looked at in full."""
    claims: dict[str, Any] = {"sub": label, "epoch": epoch}
    if recorded:
        times = [int(recorded.written_at.timestamp()), int(recorded.durable_at.timestamp())]
        claims["rec"] = [recorded.key, recorded.beat, recorded.facts, *times]
    return _sign("host", claims, lifetime, secret, now)


def label_of_host(token: str, *, secret: str, now: datetime) -> str:
    """Raises `Unauthenticated`."""
    return recorded_of_host(token, secret=secret, now=now)[0]


def host_token_issued_at(token: str, *, secret: str, now: datetime) -> datetime:
    """When we gave it to the host. Raises `Unauthenticated`."""
    claims = _read("host", token, secret, now, grace=HOST_TOKEN_GRACE)
    return datetime.fromtimestamp(claims["iat"], UTC)


def recorded_of_host(token: str, *, secret: str, now: datetime) -> tuple[str, Recorded | None]:
    """The label, and what the token says of the last report. Raises `Unauthenticated`."""
    claims = _read("host", token, secret, now, grace=HOST_TOKEN_GRACE)
    if "rec" not in claims:
        return str(claims["sub"]), None
    key, beat, facts, written_at, durable_at = claims["rec"]
    times = [datetime.fromtimestamp(at, UTC) for at in (written_at, durable_at)]
    return str(claims["sub"]), Recorded(key, beat, facts, *times)


def signed_anew(token: str, *, secret: str, before: str) -> str:
    """What the secret before signed for a machine, with the same claims under the present one; any other as it is."""
    import jwt

    options: Any = {"verify_exp": False, "verify_iat": False}
    try:
        claims = jwt.decode(
            token, before, algorithms=[ALGORITHM], audience=AUDIENCES_OF_HOSTS, issuer=ISSUER, options=options
        )
    except jwt.PyJWTError:
        return token
    return jwt.encode(claims, secret, algorithm=ALGORITHM)


def scheduler_token(job: str, *, secret: str, now: datetime) -> str:
    return _sign("scheduler", {"sub": job}, SCHEDULER_TOKEN_FOR, secret, now)


def check_scheduler(token: str, *, secret: str, now: datetime) -> str:
    """The job's name; raises `Unauthenticated`."""
    return str(_read("scheduler", token, secret, now)["sub"])


def google_key_id(token: str) -> str:
    """Which of Google's keys a token names; raises `Unauthenticated`."""
    import jwt

    try:
        return str(jwt.get_unverified_header(token)["kid"])
    except (jwt.PyJWTError, KeyError):
        raise Unauthenticated("this token is not valid") from None


def check_google(token: str, *, key: dict[str, Any], account: str, audience: str, now: datetime) -> None:
    """A token that Google signed for one service account and one receiver; raises `Unauthenticated`.

    `key` = the public key that the token names, as a JSON Web Key. Audience, issuer, verified e-mail and times are all
    judged; Google allows for clocks that differ by GOOGLE_CLOCK_SKEW.
    """
    import jwt

    options: Any = {"require": ["exp", "iat", "aud", "iss"], "verify_exp": False, "verify_iat": False}
    try:
        public = jwt.PyJWK(key, GOOGLE_ALGORITHM).key
        claims = jwt.decode(
            token, public, algorithms=[GOOGLE_ALGORITHM], audience=audience, issuer=GOOGLE_ISSUERS, options=options
        )
        issued_at, expires_at = float(claims["iat"]), float(claims["exp"])
    except (jwt.PyJWTError, TypeError, ValueError):
        raise Unauthenticated("this token is not valid") from None
    skew_s = GOOGLE_CLOCK_SKEW.total_seconds()
    if not issued_at - skew_s <= now.timestamp() < expires_at + skew_s:
        raise Unauthenticated("this token has expired, or is not valid yet")
    if claims.get("email") != account or claims.get("email_verified") is not True:
        raise Unauthenticated("this token is another account's")


def advance_token(key: str, *, secret: str, now: datetime) -> str:
    return _sign("advance", {"sub": key}, ADVANCE_TOKEN_FOR, secret, now)


def key_to_advance(token: str, *, secret: str, now: datetime) -> str:
    """The instance's key; raises `Unauthenticated`."""
    return str(_read("advance", token, secret, now)["sub"])


def outbox_token(*, secret: str, now: datetime) -> str:
    return _sign("outbox", {"sub": "outbox"}, OUTBOX_TOKEN_FOR, secret, now)


def check_outbox(token: str, *, secret: str, now: datetime) -> None:
    """Raises `Unauthenticated`."""
    _read("outbox", token, secret, now)


def check_slack(body: bytes, *, timestamp: str, signature: str, secret: str, now: datetime) -> None:
    """Slack signs the raw body: v0=<hex HMAC-SHA256(secret, "v0:<timestamp>:<body>")>. Raises `Unauthenticated`."""
    digest = hmac.new(secret.encode(), b"v0:" + timestamp.encode() + b":" + body, hashlib.sha256).hexdigest()
    is_right = hmac.compare_digest(f"v0={digest}".encode(), signature.encode())
    is_number = timestamp.isascii() and timestamp.isdecimal() and len(timestamp) <= TIMESTAMP_DIGITS_MAX
    if not is_right or not is_number or abs(now.timestamp() - int(timestamp)) > SLACK_AGE_MAX_S:
        raise Unauthenticated("this request is not signed by Slack, or not now")


def bearer(header: str | None) -> str:
    """The token of an Authorization header; raises `Unauthenticated`."""
    scheme, _, token = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("send the header: Authorization: Bearer <token or API key>")
    return token.strip()


def _sign(audience: str, claims: dict[str, Any], lifetime: timedelta, secret: str, now: datetime) -> str:
    import jwt

    times = {"iat": int(now.timestamp()), "exp": int((now + lifetime).timestamp())}
    return jwt.encode({**claims, **times, "aud": audience, "iss": ISSUER}, secret, algorithm=ALGORITHM)


def _read(audience: str, token: str, secret: str, now: datetime, grace: timedelta = timedelta(0)) -> dict[str, Any]:
    """PyJWT reads a clock of its own, so the times are judged here, by the `now` that was passed in."""
    import jwt

    options: Any = {"require": ["sub", "exp", "iat", "aud", "iss"], "verify_exp": False, "verify_iat": False}
    try:
        claims = jwt.decode(
            token, secret, algorithms=[ALGORITHM], audience=audience, issuer=ISSUER, options=options
        )  # fmt: skip
        expires_at = float(claims["exp"])
    except (jwt.PyJWTError, TypeError, ValueError):
        raise Unauthenticated("this token is not valid") from None
    if now.timestamp() >= expires_at + grace.total_seconds():
        raise Unauthenticated("this token has expired")
    return claims


# --- keys under keys ----------------------------------------------------------------------------------------------


@functools.lru_cache(1024)
def ssh_private_key(seed: bytes) -> str:
    """The Ed25519 key of 32 secret bytes, as OpenSSH keeps it. Both machines of a pair show it to the user.

    The same seed is the same text: hosts write down what differs from the reply before. The format (OpenSSH's
    PROTOCOL.key) has a random number twice before the private half, to tell a wrong passphrase; here it is drawn from
    the seed.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.from_private_bytes(seed)
    text = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    head, *lines, foot = text.splitlines()
    blob = bytearray(base64.b64decode("".join(lines)))
    private_half = blob.rindex(SSH_KEY_TYPE)
    blob[private_half - 8 : private_half] = hashlib.sha256(b"check" + seed).digest()[:4] * 2
    body, width = base64.b64encode(blob).decode(), len(lines[0])
    return "\n".join([head, *(body[at : at + width] for at in range(0, len(body), width)), foot, ""])


def wrapping_key(secret: bytes) -> bytes:
    """The key, made from one of the deployment's secrets, under which data keys are kept."""
    return hmac.new(secret, b"dumont data keys 1", hashlib.sha256).digest()


def wrapping_key_id(key: bytes) -> str:
    """Tells one wrapping key from another, and nothing of it."""
    return hmac.new(key, b"id", hashlib.sha256).hexdigest()[:12]


def wrap(key: bytes, subject: str, *, under: bytes, nonce: bytes) -> str:
    """A data key as it may be written down: AES-256-GCM, bound to its subject. `nonce` is drawn anew for each."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return (nonce + AESGCM(under).encrypt(nonce, key, subject.encode())).hex()


def unwrap(wrapped: str, subject: str, *, under: bytes) -> bytes:
    """Raises `KeyLost` when it was not wrapped so, or for another subject."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        sealed = bytes.fromhex(wrapped)
        nonce, body = sealed[:WRAP_NONCE_BYTES], sealed[WRAP_NONCE_BYTES:]
        return AESGCM(under).decrypt(nonce, body, subject.encode())
    except (InvalidTag, ValueError):
        raise KeyLost(f"the data key of {subject} does not open") from None

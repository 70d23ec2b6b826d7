"""A place in a bucket that holds many snapshots of one directory, under a passphrase: the engine without the rest.

Below the prefix: `keys/<name>.json` the repository's key, wrapped by the passphrase (scrypt, AES-256-GCM); `manifests/`
and `packs/` as every instance has them. Keys are never overwritten: should two first backups make one each at the same
moment, both stay readable, and the older one is used from then on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ObjectMissing, SnapshotError, SnapshotRefused
from common.snapshots.bucket import Bucket
from common.snapshots.keys import aes_gcm
from common.snapshots.limits import PREFIX_SHAPE
from common.snapshots.manifest import Manifest
from common.snapshots.packing import Progress
from common.snapshots.restore import Restored, restore
from common.snapshots.seal import KEY_SHAPE, unseal
from common.snapshots.state import State
from common.snapshots.take import Taken, take
from common.snapshots.transfer import Endpoint

if TYPE_CHECKING:
    from common.domain.retention import Retention
    from common.snapshots.prune import Pruned
    from common.snapshots.verify import Verified

SCRYPT = {"n": 1 << 15, "r": 8, "p": 1, "maxmem": 64 << 20}
KEY_BYTES, SALT_BYTES, NONCE_BYTES = 32, 16, 12
URL_SCHEME = "s3://"
EPOCH = 1


@dataclass(frozen=True)
class Listed:
    """A snapshot as the listing shows it; nothing of it is proven."""

    id: str
    manifest_key: str
    stored_at: datetime
    manifest_bytes: int


class Repository:
    """Opened by `open_repository`. Every verb asks the store what is there; what is remembered only saves time."""

    def __init__(self, endpoint: Endpoint, prefix: str, keys: list[bytes], home: Path, clock: Callable[[], float]):
        self._endpoint = endpoint
        self._prefix = prefix
        self._keys = keys
        self._home = home
        self._clock = clock
        self._bucket = Bucket(endpoint, home)

    def snapshots(self) -> list[Listed]:
        """The snapshots, the newest last."""
        found = [
            Listed(f"{name['epoch']}-{name['seq']}-{name['content']}", row.key, row.at, row.size)
            for row in self._bucket.dated(f"{self._prefix}manifests/")
            if (name := KEY_SHAPE.fullmatch(row.key))
        ]
        return sorted(found, key=lambda each: _order(each.id))

    def backup(self, root: Path, now: datetime, progress: Progress) -> Taken:
        """A new snapshot of the directory, upon the newest one."""
        newest = self.snapshots()[-1:]
        instance_key, previous = self._manifest(root, newest[0].manifest_key) if newest else (self._keys[0], None)
        if instance_key != self._keys[0]:
            previous = None  # another key's gives no base to build upon
        return take(
            root,
            prefix=self._prefix,
            instance_key=self._keys[0],
            epoch=EPOCH,
            seq=_order(newest[0].id)[1] + 1 if newest else 1,
            taken_at=now,
            previous=previous,
            state_dir=self._state(root).folder,
            endpoint=self._endpoint,
            clock=self._clock,
            progress=progress,
        )

    def restore(self, root: Path, snapshot: str | None, progress: Progress) -> Restored:
        """That snapshot, or the newest. It never falls back to another one by itself."""
        key = self._find(snapshot).manifest_key
        instance_key, manifest = self._manifest(root, key)
        return restore(
            key,
            root,
            manifest=manifest,
            prefix=self._prefix,
            instance_key=instance_key,
            state_dir=self._state(root).folder,
            endpoint=self._endpoint,
            clock=self._clock,
            progress=progress,
        )

    def verify(self, snapshot: str | None, *, quick: bool) -> list[Verified]:
        """All snapshots (or that one): every byte read back, or with `quick` what the store's listing proves."""
        from common.snapshots.verify import verify

        proven: set[str] = set()
        done = []
        for listed in [self._find(snapshot)] if snapshot else self.snapshots():
            verified = verify(
                self._bucket,
                listed.manifest_key,
                prefix=self._prefix,
                instance_key=self._key_of(listed.manifest_key),
                proven=proven.copy,
                every_byte=not quick,
            )
            proven |= set(verified.packs_new)
            done.append(verified)
        return done

    def prune(self, retention: Retention, now: datetime) -> Pruned:
        """Keeps what the retention names; packs that nobody needs go one day later at the earliest."""
        from common.domain.retention import kept
        from common.snapshots.prune import prune

        at = {listed.manifest_key: listed.stored_at for listed in self.snapshots()}

        def keep(manifests: list[str]) -> set[str]:
            stay = kept(at, retention)
            return stay | {name for name in manifests if name not in at}  # came since the listing

        return prune(self._bucket, prefix=self._prefix, needs=self._needs, keep=keep, now=now)

    def _find(self, snapshot: str | None) -> Listed:
        listed = self.snapshots()
        if not listed:
            raise ObjectMissing(f"there is no snapshot in {URL_SCHEME}{self._endpoint.bucket}/{self._prefix}")
        if snapshot is None:
            return listed[-1]
        fits = [each for each in listed if each.id == snapshot or each.id.startswith(f"{snapshot}-")]
        if len(fits) != 1:
            raise ObjectMissing(f"{len(fits)} snapshots are called {snapshot}; `list` names them")
        return fits[0]

    def _needs(self, key: str) -> Iterable[str]:
        return self._opened(key)[1].packs

    def _key_of(self, key: str) -> bytes:
        return self._opened(key)[0]

    def _opened(self, key: str, sealed: bytes | None = None) -> tuple[bytes, Manifest]:
        content = sealed or self._bucket.get(key)
        for instance_key in self._keys[:-1]:
            try:
                return instance_key, unseal(content, key, instance_key)
            except SnapshotRefused:
                continue
        return self._keys[-1], unseal(content, key, self._keys[-1])

    def _manifest(self, root: Path, key: str) -> tuple[bytes, Manifest]:
        """From the copy remembered here if it is that one, else from the store."""
        state = self._state(root)
        if last := state.last():
            with suppress(SnapshotRefused):
                return self._opened(key, last)
        sealed = self._bucket.get(key)
        opened = self._opened(key, sealed)
        state.keep_last(sealed)
        return opened

    def _state(self, root: Path) -> State:
        place = f"{self._endpoint.url} {self._endpoint.bucket} {self._prefix} {root.resolve()}"
        return State(self._home / hashlib.sha256(place.encode()).hexdigest()[:16], root)


def open_repository(
    url: str,
    endpoint: Callable[[str], Endpoint],
    passphrase: str,
    home: Path,
    clock: Callable[[], float],
    *,
    create: bool = False,
) -> Repository:
    """The repository at `s3://bucket/prefix`. `endpoint` makes the way to a bucket; `home` is what is remembered here.

    Raises `SnapshotRefused` (the passphrase is wrong), `ObjectMissing` (there is none, and `create` is not set).
    """
    bucket, prefix = parse_url(url)
    way = endpoint(bucket)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    store = Bucket(way, home)
    known: dict[str, bytes] = {}
    if create and not list(store.list(f"{prefix}keys/")):
        key = os.urandom(KEY_BYTES)
        name, wrapped = _wrapped(key, passphrase)
        store.put(f"{prefix}keys/{name}.json", wrapped)
        known[f"{prefix}keys/{name}.json"] = key
    found = sorted((row.at, row.key) for row in store.dated(f"{prefix}keys/"))
    if not found:
        raise ObjectMissing(f"there is no repository at {url}")
    keys = [known.get(name) or _unwrapped(store.get(name), passphrase) for _, name in found]
    return Repository(way, prefix, keys, home, clock)


def parse_url(url: str) -> tuple[str, str]:
    """(bucket, prefix that is empty or ends in a slash); raises `SnapshotError`."""
    bucket, _, path = url.removeprefix(URL_SCHEME).partition("/")
    prefix = f"{path.strip('/')}/" if path.strip("/") else ""
    if not url.startswith(URL_SCHEME) or not bucket or PREFIX_SHAPE.fullmatch(prefix) is None:
        raise SnapshotError(f"{url!r} is not of the shape s3://bucket/prefix")
    return bucket, prefix


def _wrapped(key: bytes, passphrase: str) -> tuple[str, bytes]:
    salt, nonce = os.urandom(SALT_BYTES), os.urandom(NONCE_BYTES)
    sealed = aes_gcm(_stretched(passphrase, salt)).encrypt(nonce, key, b"dumont repository key 1")
    text = {"schema": 1, "salt": salt.hex(), "nonce": nonce.hex(), "key": sealed.hex()}
    return salt.hex(), json.dumps(text).encode()


def _unwrapped(stored: bytes, passphrase: str) -> bytes:
    from cryptography.exceptions import InvalidTag

    try:
        text: Any = json.loads(stored)
        salt, nonce, sealed = (bytes.fromhex(text[name]) for name in ("salt", "nonce", "key"))
        return aes_gcm(_stretched(passphrase, salt)).decrypt(nonce, sealed, b"dumont repository key 1")
    except InvalidTag:
        raise SnapshotRefused("the passphrase does not open this repository") from None
    except (ValueError, KeyError, TypeError) as error:
        raise SnapshotRefused(f"the repository's key is damaged: {error}") from None


def _stretched(passphrase: str, salt: bytes) -> bytes:
    return hashlib.scrypt(passphrase.encode(), salt=salt, dklen=KEY_BYTES, **SCRYPT)


def _order(id: str) -> tuple[int, int, str]:
    epoch, seq, content = id.split("-")
    return int(epoch), int(seq), content

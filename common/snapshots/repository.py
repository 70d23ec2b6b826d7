"""A place in a bucket that holds many snapshots of one directory, under a passphrase: the engine without the rest.

Below the prefix: `keys/<name>.json` the repository's key, wrapped by the passphrase (scrypt, AES-256-GCM); `manifests/`
and `packs/` as every instance has them. Keys are never overwritten: should two first backups make one each at the same
moment, both stay readable, and the older one is used from then on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.domain.version import Version
from common.errors import BadRequest, ObjectMissing, SnapshotRefused
from common.snapshots.limits import PREFIX_SHAPE
from common.snapshots.wire import Wire
from common.snapshots.workers import telling

if TYPE_CHECKING:  # the rest of the engine is loaded while the key is stretched
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from common.domain.retention import Retention
    from common.snapshots.manifest import Manifest
    from common.snapshots.packing import Progress
    from common.snapshots.prune import Pruned
    from common.snapshots.restore import Restored
    from common.snapshots.state import State
    from common.snapshots.take import Begun, Taken
    from common.snapshots.transfer import Endpoint
    from common.snapshots.verify import Verified

SCRYPT = {"n": 1 << 15, "r": 8, "p": 1, "maxmem": 64 << 20}
KEY_BYTES, SALT_BYTES, NONCE_BYTES = 32, 16, 12
URL_SCHEME = "s3://"
EPOCH = 1

Base = tuple[int, "Manifest | None"]
"""(sequence of the next snapshot, the manifest of the one before)"""


@dataclass(frozen=True)
class Listed:
    """A snapshot as the listing shows it; nothing of it is proven."""

    id: str
    manifest_key: str
    stored_at: datetime
    manifest_bytes: int


class Repository:
    """Opened by `open_repository`. Every verb asks the store what is there; what is remembered only saves time."""

    def __init__(self, endpoint: Endpoint, prefix: str, keyring: Keyring, home: Path, clock: Callable[[], float]):
        from common.snapshots.bucket import Bucket

        self._endpoint = endpoint
        self._prefix = prefix
        self._keyring = keyring
        self._keys = cache(keyring.open)
        self._home = home
        self._clock = clock
        self._bucket = Bucket(endpoint, home)

    def snapshots(self) -> list[Listed]:
        """The snapshots, the newest last."""
        listed = self._listed()
        self._keys()  # a wrong passphrase is said before anything else
        return listed

    def _listed(self) -> list[Listed]:
        from common.snapshots.seal import KEY_SHAPE

        found = [
            Listed(f"{name['epoch']}-{name['seq']}-{name['content']}", row.key, row.at, row.size)
            for row in self._bucket.dated(f"{self._prefix}manifests/")
            if (name := KEY_SHAPE.fullmatch(row.key))
        ]
        return sorted(found, key=lambda each: _order(each.id))

    def base(self, root: Path) -> Base:
        """What the next snapshot of that directory builds upon."""
        newest = self._listed()[-1:]
        instance_key, previous = self._manifest(root, newest[0].manifest_key) if newest else (self._keys()[0], None)
        seq = _order(newest[0].id)[1] + 1 if newest else 1
        return seq, previous if instance_key == self._keys()[0] else None  # another key's gives nothing to build upon

    def backup(self, begun: Begun, base: Base, now: datetime, started: float, progress: Progress) -> Taken:
        """A new snapshot, which was begun when the clock stood at `started`; it repacks when that is worth it."""
        from common.snapshots.repack import waste_of
        from common.snapshots.take import finish

        seq, previous = base
        repacks = previous is not None and waste_of(previous).is_worth_it
        key, clock = self._keys()[0], self._clock

        def version() -> Version:
            self._keyring.settle()  # before there is a manifest
            return Version(epoch=EPOCH, seq=seq)

        return finish(begun, self._prefix, key, version, now, previous, clock, started, progress, repacks=repacks)

    def restore(self, root: Path, snapshot: str | None, progress: Progress) -> Restored:
        """That snapshot, or the newest. It never falls back to another one by itself."""
        from common.snapshots.restore import begun, finish

        started = self._clock()
        with begun(root, self._state(root), self._endpoint) as begin:
            instance_key, manifest = self._manifest(root, self._find(snapshot).manifest_key)
            return finish(begin, manifest, self._prefix, instance_key, self._clock, started, progress)

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
        listed = self._listed()
        if not listed:
            self._keys()
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
        from common.snapshots.seal import unseal

        content = sealed or self._bucket.get(key)
        keys = self._keys()
        for instance_key in keys[:-1]:
            try:
                return instance_key, unseal(content, key, instance_key)
            except SnapshotRefused:
                continue
        return keys[-1], unseal(content, key, keys[-1])

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
        return _state_of(self._endpoint, self._prefix, root, self._home)


def back_up(
    url: str,
    root: Path,
    endpoint: Callable[[str], Endpoint],
    passphrase: str,
    home: Path,
    *,
    clock: Callable[[], float],
    now: datetime,
    progress: Progress,
) -> Taken:
    """A new snapshot of the directory, in the repository at `url`, which is made when there is none.

    The directory is walked while the repository is opened: that is waiting for the store, and stretching a passphrase.
    Raises what `open_repository` and `take` raise.
    """
    started = clock()
    with open_repository(url, endpoint, passphrase, home, clock, create=True) as repository:
        from common.snapshots.take import begun

        bucket, prefix = parse_url(url)
        way = endpoint(bucket)
        with begun(root, _state_of(way, prefix, root, home), way) as begin:
            return repository.backup(begin, repository.base(root), now, started, progress)


@contextmanager
def open_repository(
    url: str,
    endpoint: Callable[[str], Endpoint],
    passphrase: str,
    home: Path,
    clock: Callable[[], float],
    *,
    create: bool = False,
) -> Iterator[Repository]:
    """The repository at `s3://bucket/prefix`. `endpoint` makes the way to a bucket; `home` is what is remembered here.

    Its keys are got by a process of its own. So it is the verbs that raise `ObjectMissing` (there is none, and `create`
    is not set), `SnapshotRefused` (the passphrase is wrong) and `ObjectStoreError`.
    """
    bucket, prefix = parse_url(url)
    way = endpoint(bucket)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with telling(lambda: _keys_of(url, way, prefix, passphrase, create=create)) as told:
        yield Repository(way, prefix, Keyring(told), home, clock)


@dataclass(frozen=True)
class Made:
    """The key of a repository that is new: it is on its way to the store, and None is said when it is there."""

    key: bytes


Told = Made | list[tuple[bytes, bytes]] | None
"""(wrapped key as it is stored, what unwraps it) of each of the repository's keys, the oldest first."""


class Keyring:
    """The repository's keys, as a process of their own tells of them."""

    def __init__(self, told: Iterator[Told]) -> None:
        self._told = told
        self._is_made = False

    def open(self) -> list[bytes]:
        """Waits until they are known; once."""
        from common.snapshots import codec

        codec.load()  # while the other process still stretches
        _aes_gcm(bytes(KEY_BYTES))
        found = next(self._told)
        if isinstance(found, Made):
            self._is_made = True
            return [found.key]
        return [_unwrapped(stored, key) for stored, key in found or ()]

    def settle(self) -> None:
        """Waits until a new key is in the store: what it sealed would be lost without it."""
        if self._is_made:
            next(self._told)
            self._is_made = False


def _keys_of(url: str, endpoint: Endpoint, prefix: str, passphrase: str, *, create: bool) -> Iterator[Told]:
    with closing(Wire(endpoint)) as store:
        rows = sorted(store.list(f"{prefix}keys/"), key=lambda row: (row.at, row.key))
        if create and not rows:
            salt, instance_key = os.urandom(SALT_BYTES), os.urandom(KEY_BYTES)
            yield Made(instance_key)
            wrapped = _wrapped(instance_key, salt, _stretched(passphrase, salt))
            store.put(f"{prefix}keys/{salt.hex()}.json", wrapped)
            yield None
            return
        if not rows:
            raise ObjectMissing(f"there is no repository at {url}")
        contents = [store.get(row.key) for row in rows]
    yield [(stored, _stretched(passphrase, _salt_of(stored))) for stored in contents]


def parse_url(url: str) -> tuple[str, str]:
    """(bucket, prefix that is empty or ends in a slash); raises `BadRequest`."""
    bucket, _, path = url.removeprefix(URL_SCHEME).partition("/")
    prefix = f"{path.strip('/')}/" if path.strip("/") else ""
    if not url.startswith(URL_SCHEME) or not bucket or PREFIX_SHAPE.fullmatch(prefix) is None:
        raise BadRequest(f"{url!r} is not of the shape s3://bucket/prefix")
    return bucket, prefix


def _state_of(endpoint: Endpoint, prefix: str, root: Path, home: Path) -> State:
    from common.snapshots.state import State

    place = f"{endpoint.url} {endpoint.bucket} {prefix} {root.resolve()}"
    return State(home / hashlib.sha256(place.encode()).hexdigest()[:16], root)


def _wrapped(key: bytes, salt: bytes, stretched: bytes) -> bytes:
    nonce = os.urandom(NONCE_BYTES)
    sealed = _aes_gcm(stretched).encrypt(nonce, key, b"dumont repository key 1")
    text = {"schema": 1, "salt": salt.hex(), "nonce": nonce.hex(), "key": sealed.hex()}
    return json.dumps(text).encode()


def _unwrapped(stored: bytes, stretched: bytes) -> bytes:
    from cryptography.exceptions import InvalidTag

    nonce, sealed = _fields(stored, "nonce", "key")
    try:
        return _aes_gcm(stretched).decrypt(nonce, sealed, b"dumont repository key 1")
    except InvalidTag:
        raise SnapshotRefused("the passphrase does not open this repository") from None
    except ValueError as error:
        raise SnapshotRefused(f"the repository's key is damaged: {error}") from None


def _salt_of(stored: bytes) -> bytes:
    return _fields(stored, "salt")[0]


def _fields(stored: bytes, *names: str) -> list[bytes]:
    try:
        text: Any = json.loads(stored)
        return [bytes.fromhex(text[name]) for name in names]
    except (ValueError, KeyError, TypeError) as error:
        raise SnapshotRefused(f"the repository's key is damaged: {error}") from None


def _aes_gcm(key: bytes) -> AESGCM:
    from common.snapshots.keys import aes_gcm

    return aes_gcm(key)


def _stretched(passphrase: str, salt: bytes) -> bytes:
    return hashlib.scrypt(passphrase.encode(), salt=salt, dklen=KEY_BYTES, **SCRYPT)


def _order(id: str) -> tuple[int, int, str]:
    epoch, seq, content = id.split("-")
    return int(epoch), int(seq), content

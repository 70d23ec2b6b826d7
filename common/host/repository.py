"""`dumont-host`: the snapshot engine by itself, for anyone with a directory and a bucket.

Endpoint and keys come from the usual AWS_* variables, the passphrase from DUMONT_SNAPSHOT_KEY.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from common.errors import (
    BadRequest,
    DiskFull,
    DumontError,
    NotFound,
    ObjectMissing,
    ObjectStoreError,
    SnapshotDamaged,
    SnapshotRefused,
)
from common.host import wanted
from common.host.livesync.errors import NotInSync

if TYPE_CHECKING:
    from common.snapshots.packing import Progress
    from common.snapshots.repository import Repository

VERBS = ("backup", "restore", "verify", "list", "prune", "want", "sync")
EXIT_CODES = {
    0: "done",
    1: "failed for another reason",
    2: "wrong words or settings",
    3: "a snapshot is damaged",
    4: "refused: wrong passphrase, or not authentic",
    5: "no such snapshot, object, repository or file",
    6: "the object store did not answer or refused",
    7: "no room on the disk",
    8: "not everything is on the standby",
    130: "interrupted; it goes on where it was when it is called again",
}
INTERRUPTED = 130
CODE_OF: tuple[tuple[type[DumontError], int], ...] = (
    (BadRequest, 2),
    (SnapshotDamaged, 3),
    (SnapshotRefused, 4),
    (ObjectMissing, 5),
    (NotFound, 5),
    (ObjectStoreError, 6),
    (DiskFull, 7),
    (NotInSync, 8),
)
HOME = "~/.cache/dumont-host"
AGENT_HOME = "/opt/dumont"
"""Of the agent on a machine that serves an instance."""


def main(words: Sequence[str] | None = None) -> int:
    """The exit code; with --json one line of JSON on stdout, else one for people."""
    args = _parser().parse_args(words)
    gc.disable()  # a short run that makes many small things and drops none of them
    try:
        result = _run(args, os.environ)
    except DumontError as error:
        _say(args, {"ok": False, "error": error.code, "detail": str(error)}, f"{args.verb} failed: {error}")
        return next((code for kind, code in CODE_OF if isinstance(error, kind)), 1)
    except BadSetting as wrong:
        _say(args, {"ok": False, "error": "bad_setting", "detail": str(wrong)}, str(wrong))
        return 2
    except KeyboardInterrupt:
        _say(args, {"ok": False, "error": "interrupted", "detail": EXIT_CODES[INTERRUPTED]}, EXIT_CODES[INTERRUPTED])
        return INTERRUPTED
    except OSError as error:
        _say(args, {"ok": False, "error": "os_error", "detail": str(error)}, f"{args.verb} failed: {error}")
        return 1
    _say(args, {"ok": True, **result}, _for_people(result))
    return 0


class BadSetting(Exception):
    """An environment variable is not set, or is none of its kind; the sentence names it."""


def _parser() -> argparse.ArgumentParser:
    codes = "\n".join(f"  {code}  {meaning}" for code, meaning in EXIT_CODES.items())
    parser = argparse.ArgumentParser(
        prog="dumont-host",
        description=__doc__,
        epilog=f"URL = s3://bucket/prefix; it holds many snapshots.\nExit codes:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    backup = verbs.add_parser("backup", help="a new snapshot of a directory")
    backup.add_argument("dir", type=Path)
    backup.add_argument("url")
    restore = verbs.add_parser(
        "restore",
        help="make a directory what a snapshot holds; what else is there is removed, save what backups leave out",
    )
    restore.add_argument("url")
    restore.add_argument("dir", type=Path)
    restore.add_argument("--snapshot", metavar="ID", help="as `list` names it; the newest when left out")
    verify = verbs.add_parser("verify", help="read every byte back and prove it")
    verify.add_argument("url")
    verify.add_argument("--quick", action="store_true", help="only what the store's listing proves: sizes and MD5")
    verify.add_argument("--snapshot", metavar="ID")
    verbs.add_parser("list", help="the snapshots, the newest last").add_argument("url")
    prune = verbs.add_parser("prune", help="remove old snapshots, and a day later what nobody needs")
    prune.add_argument("url")
    for name, many in (("last", 12), ("hourly", 24), ("daily", 7), ("weekly", 4)):
        prune.add_argument(f"--keep-{name}", type=_kept(name), default=many, metavar="N")
    want = verbs.add_parser("want", help="while this machine's workspace comes back: have these fetched next")
    want.add_argument("paths", type=Path, nargs="+", metavar="PATH")
    want.add_argument("--wait-s", type=float, default=600, metavar="S", help="until they are there; 0 = not at all")
    sync = verbs.add_parser("sync", help="how this machine's standby stands")
    sync.add_argument("--wait", action="store_true", help="until everything saved before this is on the standby")
    sync.add_argument("--timeout", type=float, default=60, metavar="S", help="for --wait; then it fails")
    sync.add_argument("--compare", action="store_true", help="with --wait: everything, for what maps files to memory")
    for verb in (want, sync):
        verb.add_argument("--agent", type=Path, default=Path(os.environ.get("DUMONT_HOME", AGENT_HOME)))
    for verb in verbs.choices.values():
        verb.add_argument("--json", action="store_true", help="one line of JSON on stdout")
        verb.add_argument("--home", type=Path, default=Path(HOME), help=f"what is remembered ({HOME})")
    return parser


def _kept(name: str) -> Callable[[str], int]:
    """What `--keep-NAME` may be: as many as a retention takes."""

    def many(word: str) -> int:
        from common.domain.retention import Retention

        try:
            return int(getattr(Retention.model_validate({name: word}), name))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{word!r} is not from {int(name == 'last')} to 1000") from None

    return many


def _run(args: argparse.Namespace, env: Mapping[str, str]) -> dict[str, Any]:
    if args.verb == "want":
        started = time.monotonic()
        missing = wanted.want(args.agent, args.paths, wait_s=args.wait_s)
        if missing and args.wait_s:
            raise NotFound(f"{missing[0]} is not there after {args.wait_s:.0f} s, or the restore ended without it")
        return {"missing": list(map(str, missing)), "seconds": round(time.monotonic() - started, 3)}
    if args.verb == "sync":
        from common.host.livesync import control

        started = time.monotonic()
        answer = control.ask(args.agent, wait_s=args.timeout if args.wait else None, compares=args.compare)
        return {**answer, "seconds": round(time.monotonic() - started, 3)}
    from common.snapshots.repository import back_up, open_repository
    from common.snapshots.transfer import Endpoint

    def endpoint(bucket: str) -> Endpoint:
        region = env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1"
        return Endpoint(
            _endpoint_url(env) or f"https://s3.{region}.amazonaws.com",
            bucket,
            _setting(env, "AWS_ACCESS_KEY_ID"),
            _setting(env, "AWS_SECRET_ACCESS_KEY"),
            env.get("AWS_SESSION_TOKEN"),
            region,
        )

    passphrase = _setting(env, "DUMONT_SNAPSHOT_KEY")
    now = datetime.now(UTC)
    show, home = _progress(args), _home(args.home)
    if args.verb == "backup":
        if not args.dir.is_dir():
            raise NotFound(f"there is no directory {args.dir}")
        way = (args.url, args.dir, endpoint, passphrase, home)
        return _taken(back_up(*way, clock=time.monotonic, now=now, progress=show))
    with open_repository(args.url, endpoint, passphrase, home, time.monotonic) as repository:
        return _done(args, repository, now, show)


def _done(args: argparse.Namespace, repository: Repository, now: datetime, show: Progress) -> dict[str, Any]:
    """What came of any other verb than a backup."""
    match args.verb:
        case "restore":
            return _restored(repository.restore(args.dir, args.snapshot, show))
        case "verify":
            started = time.monotonic()
            verified = repository.verify(args.snapshot, quick=args.quick)
            read = sum(each.bytes_read_back for each in verified)
            return {"snapshots": len(verified), "bytes_read": read, "seconds": round(time.monotonic() - started, 3)}
        case "list":
            rows = repository.snapshots()
            return {"snapshots": [{"id": row.id, "stored_at": row.stored_at.isoformat()} for row in rows]}
        case _:
            from common.domain.retention import Retention

            keep = {name: getattr(args, f"keep_{name}") for name in ("last", "hourly", "daily", "weekly")}
            pruned = repository.prune(Retention(**keep), now)
            return {
                "snapshots_removed": len(pruned.manifests),
                "packs_removed": len(pruned.packs),
                "bytes_removed": pruned.bytes,
                "packs_waiting": pruned.waiting,
            }


def _taken(taken: Any) -> dict[str, Any]:
    return {
        "snapshot": taken.manifest_key.rpartition("/")[2].removesuffix(".dm"),
        "files": taken.files,
        "bytes": taken.bytes,
        "new_bytes": taken.new_bytes,
        "stored_bytes": taken.stored_bytes,
        "seconds": round(taken.seconds, 3),
        "torn": list(taken.torn),
        "vanished": list(taken.vanished),
        "skipped": [list(each) for each in taken.skipped],
        "excluded": list(taken.excluded),
    }


def _restored(restored: Any) -> dict[str, Any]:
    return {
        "snapshot": restored.manifest.key.rpartition("/")[2].removesuffix(".dm"),
        "files": restored.files,
        "bytes": restored.bytes,
        "files_written": restored.files_written,
        "bytes_written": restored.bytes_written,
        "bytes_fetched": restored.bytes_fetched,
        "removed": restored.removed,
        "seconds": round(restored.seconds, 3),
    }


def _progress(args: argparse.Namespace) -> Callable[[int, int, str], None]:
    """On a terminal: what is being done, how far, how fast, how long yet."""
    if args.json or not sys.stderr.isatty():
        return lambda _done, _total, _what: None
    started = time.monotonic()

    def show(done: int, total: int, what: str) -> None:
        seconds = max(time.monotonic() - started, 0.001)
        rate = done / seconds
        left = (total - done) / rate if rate else 0
        share = 100 * done // max(total, 1)
        text = f"\r{what} {share} % of {total >> 20} MiB, {rate / 1e6:.0f} MB/s, {left:.0f} s left "
        print(text, end="\n" if done >= total else "", file=sys.stderr, flush=True)

    return show


def _home(given: Path) -> Path:
    try:
        return given.expanduser()
    except RuntimeError:
        raise BadSetting("nobody's home: HOME is not set; say --home") from None


def _endpoint_url(env: Mapping[str, str]) -> str | None:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "S3_ENDPOINT_URL")
    name = next((name for name in names if env.get(name)), None)
    if name is None:
        return None
    try:
        parts = urlsplit(env[name])
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one:
        raise BadSetting(f"{name} is {env[name]!r}: no address of the shape https://host:port")
    return env[name]


def _setting(env: Mapping[str, str], name: str) -> str:
    if not env.get(name):
        raise BadSetting(f"{name} is not set")
    return env[name]


def _for_people(result: dict[str, Any]) -> str:
    """One line; what are rows are lines of their own."""
    if rows := result.get("snapshots") if isinstance(result.get("snapshots"), list) else None:
        return "\n".join("  ".join(row.values()) for row in rows)
    return " ".join(f"{name}={value}" for name, value in result.items())


def _say(args: argparse.Namespace, result: dict[str, Any], text: str) -> None:
    if args.json:
        print(json.dumps(result))
    else:
        print(text, file=sys.stdout if result["ok"] else sys.stderr)


def command() -> None:
    """Ends at once: all is closed and said, and taking the interpreter apart costs some 20 ms for nobody's good."""
    try:
        code = main()
        sys.stdout.flush()
    except OSError as error:  # nobody reads what came of it, or there is no room for it
        code = 1
        print(f"dumont-host: the result cannot be written: {error}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    command()

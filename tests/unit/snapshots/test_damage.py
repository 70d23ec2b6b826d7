"""A snapshot that is not whole is refused, by name, before anything is changed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import DiskFull, ObjectMissing, ObjectStoreError, SnapshotDamaged, SnapshotRefused
from common.ports import Stored
from common.snapshots import engine, restore
from tests.snapshots_fixtures import KEY, PREFIX, Box, WithoutMd5, tree


@pytest.fixture
def taken(box: Box) -> engine.Taken:
    (box.root / "notes").write_bytes(b"notes " * 1000)
    (box.root / "model").write_bytes(os.urandom(9 << 20))
    box.copy.mkdir()
    (box.copy / "precious").write_bytes(b"still here")
    return box.take()


def flip(box: Box, key: str) -> None:
    content = bytearray(box.objects.get(key))
    content[len(content) // 2] ^= 1
    box.objects.put(key, bytes(content))


def look(box: Box) -> dict[str, tuple[bytes, int, int]]:
    """Content, mode and time of every file of the copy."""
    files = [path for path in box.copy.rglob("*") if path.is_file()]
    return {str(p.relative_to(box.copy)): (p.read_bytes(), p.stat().st_mode, p.stat().st_mtime_ns) for p in files}


def test_one_flipped_byte_names_its_chunk_and_changes_nothing(box: Box, taken: engine.Taken) -> None:
    flip(box, taken.packs_new[0].key)
    before, whole = look(box), tree(box.copy)

    with pytest.raises(SnapshotDamaged) as refusal:
        box.restore(taken.manifest_key)

    middle = taken.packs_new[0].size // 2
    chunk = taken.manifest.chunks[refusal.value.chunk]
    assert chunk.offset <= middle < chunk.offset + chunk.stored
    assert (look(box), tree(box.copy)) == (before, whole)
    assert set(before) == {"precious"}


def test_a_damaged_snapshot_leaves_an_empty_tree_empty(box: Box, taken: engine.Taken) -> None:
    (box.copy / "precious").unlink()
    flip(box, taken.packs_new[-1].key)

    with pytest.raises(SnapshotDamaged):
        box.restore(taken.manifest_key)

    assert list(box.copy.iterdir()) == []


def test_a_tree_that_was_restored_before_keeps_the_work_done_since(box: Box, taken: engine.Taken) -> None:
    box.restore(taken.manifest_key)
    (box.copy / "notes").write_bytes(b"work of today")
    (box.copy / "model").unlink()
    before = look(box)
    flip(box, taken.packs_new[0].key)

    with pytest.raises(SnapshotDamaged):
        box.restore(taken.manifest_key)

    assert look(box) == before


@pytest.mark.parametrize("harm", ["truncate", "remove"])
def test_a_pack_that_is_short_or_missing_stops_the_restore(box: Box, taken: engine.Taken, harm: str) -> None:
    key = taken.packs_new[0].key
    if harm == "truncate":
        box.objects.put(key, box.objects.get(key)[:1000])
    else:
        box.objects.delete([key])
    before = look(box)

    with pytest.raises(SnapshotDamaged) as refusal:
        box.restore(taken.manifest_key)

    assert refusal.value.chunk in taken.manifest.chunks
    assert look(box) == before


def test_verify_proves_by_the_stores_own_checksum(box: Box, taken: engine.Taken) -> None:
    verified = box.verify(taken.manifest_key)

    assert (verified.ok, verified.proof, verified.bytes_read_back) == (True, "md5", 0)
    assert set(verified.packs_new) == set(taken.manifest.packs)


def test_verify_reads_back_where_the_store_has_no_checksum(box: Box, taken: engine.Taken) -> None:
    verified = box.verify(taken.manifest_key, objects=WithoutMd5(box.objects))

    assert (verified.proof, verified.bytes_read_back) == ("read_back", sum(pack.size for pack in taken.packs_new))


@pytest.mark.parametrize("has_md5", [True, False])
def test_verify_refuses_a_flipped_byte(box: Box, taken: engine.Taken, has_md5: bool) -> None:
    flip(box, taken.packs_new[0].key)

    with pytest.raises(SnapshotDamaged):
        box.verify(taken.manifest_key, objects=box.objects if has_md5 else WithoutMd5(box.objects))


def test_verify_refuses_a_missing_or_short_pack_even_if_it_was_proven_before(box: Box, taken: engine.Taken) -> None:
    proven = tuple(taken.manifest.packs)
    key = taken.packs_new[0].key
    box.objects.put(key, box.objects.get(key)[:-1])
    with pytest.raises(SnapshotDamaged):
        box.verify(taken.manifest_key, proven)

    box.objects.delete([key])
    with pytest.raises(SnapshotDamaged):
        box.verify(taken.manifest_key, proven)


def test_an_answer_that_failed_is_never_an_absence(box: Box, taken: engine.Taken) -> None:
    class Down(WithoutMd5):
        def list(self, prefix: str) -> Iterator[Stored]:
            raise ObjectStoreError("503 SlowDown")

    with pytest.raises(ObjectStoreError):
        box.verify(taken.manifest_key, objects=Down(box.objects))


def test_a_manifest_of_another_key_prefix_or_name_is_refused(box: Box, taken: engine.Taken) -> None:
    with pytest.raises(SnapshotRefused):
        box.restore(taken.manifest_key, instance_key=b"another")
    with pytest.raises(SnapshotRefused):
        engine.verify(box.objects, taken.manifest_key, prefix="other/", instance_key=KEY, proven=tuple)
    newer = taken.manifest_key.replace("/1-1-", "/9-9-")
    box.objects.put(newer, box.objects.get(taken.manifest_key))
    with pytest.raises(SnapshotRefused):
        engine.load_manifest(box.objects, newer, KEY)
    with pytest.raises(ObjectMissing):
        engine.load_manifest(box.objects, f"{PREFIX}manifests/1-2-{'0' * 12}.dm", KEY)


def test_an_uploader_that_lies_is_found_out(box: Box, tmp_path: Path) -> None:
    (box.root / "a").write_bytes(b"a")
    liar = tmp_path / "s5cmd"
    liar.write_text(
        f"#!{sys.executable}\nimport json, sys\nfor line in sys.stdin:\n    *_, source, destination = line.split()\n"
        "    print(json.dumps({'success': True, 'source': source, 'destination': destination}), flush=True)\n"
    )
    liar.chmod(0o755)

    taken = box.take(endpoint=replace(box.endpoint, s5cmd=liar))

    with pytest.raises(ObjectMissing):
        box.verify(taken.manifest_key)


def test_an_uploader_killed_in_the_middle_leaves_no_manifest(box: Box, tmp_path: Path) -> None:
    (box.root / "a").write_bytes(b"a")
    dying = tmp_path / "s5cmd"
    dying.write_text(f"#!{sys.executable}\nimport os, sys\nsys.stdin.readline()\nos.kill(os.getpid(), 9)\n")
    dying.chmod(0o755)

    with pytest.raises(ObjectStoreError, match="s5cmd ended"):
        box.take(endpoint=replace(box.endpoint, s5cmd=dying))
    assert box.manifests() == []

    box.verify(box.take(2).manifest_key)


def test_wrong_credentials_fail_the_snapshot(box: Box) -> None:
    (box.root / "a").write_bytes(b"a")

    with pytest.raises(ObjectStoreError, match=r"403|SignatureDoesNotMatch|AccessDenied"):
        box.take(endpoint=replace(box.endpoint, secret_key="wrong secret"))


def test_a_disk_without_room_is_found_before_anything_is_changed(
    box: Box, taken: engine.Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "SPARE_BYTES", 1 << 60)
    before = tree(box.copy)

    with pytest.raises(DiskFull):
        box.restore(taken.manifest_key)

    assert tree(box.copy) == before


def test_a_restore_killed_anywhere_is_completed_by_the_next(box: Box) -> None:
    for number in range(600):
        (box.root / str(number % 7)).mkdir(exist_ok=True)
        (box.root / str(number % 7) / str(number)).write_bytes(os.urandom(30_000))
    os.link(box.root / "0/0", box.root / "other name")
    for number in range(3):
        (box.root / f"large {number}").write_bytes(os.urandom(40 << 20))
    key = box.take().manifest_key
    program = f"""
        import sys, time
        from pathlib import Path
        from common.snapshots import engine
        def progress(done, total, what):
            if what == "download" and done >= total * float(sys.argv[1]):
                print("now", flush=True)
                time.sleep(60)
        engine.restore(
            {key!r}, Path({str(box.copy)!r}), prefix={PREFIX!r}, instance_key={KEY!r},
            state_dir=Path({str(box.base / "other state")!r}), clock=time.monotonic, progress=progress,
            endpoint=engine.Endpoint(*{(box.endpoint.url, box.endpoint.bucket)!r}, *sys.argv[2:]),
        )
    """
    for part in ("0.01", "0.3", "0.6", "1"):
        secrets = (box.endpoint.access_key, box.endpoint.secret_key)
        words = [sys.executable, "-c", textwrap.dedent(program), part, *secrets]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            if process.stdout.readline() == b"now\n":
                process.send_signal(signal.SIGKILL)
            else:  # the workers of the one before had written all of it by the time they died
                assert part != "0.01" and process.wait() == 0

    seen: set[str] = set()
    again = box.restore(key, progress=lambda _done, _total, what: seen.add(what))

    assert tree(box.copy) == tree(box.root)
    assert again.bytes_fetched < 40 << 20
    assert "verify" not in seen  # what a killed restore left is no reason to read anything twice


def test_a_difference_names_what_is_missing(box: Box) -> None:
    for name in ("kept", "changed", "removed"):
        (box.root / name).write_bytes(b"1")
    first = box.take()
    (box.root / "removed").unlink()
    (box.root / "changed").write_bytes(b"2")
    (box.root / "added").write_bytes(b"3")
    os.utime(box.root / "kept", ns=(time.time_ns(), 1))

    difference = engine.diff(first.manifest, box.take(2, first.manifest).manifest)

    assert difference.added == engine.Names(1, ("added",))
    assert difference.changed == engine.Names(1, ("changed",))
    assert difference.removed == engine.Names(1, ("removed",))

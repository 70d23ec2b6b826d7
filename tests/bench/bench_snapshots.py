"""The snapshot engine beside its peers: whole processes against one S3 server on loopback, interleaved, medians.

Run: python -m tests.bench.bench_snapshots [directory of the sets]; QUICK=1 for a small round, HUGE=1 for the memory
that 16 GiB and a million files take. Everything of the sets lies in the page cache, the store and what is restored in
memory. The server recomputes no sums of its own (rclone's --ignore-checksum), for all peers alike: it has the same two
cores as they. Ratios above 1 mean that ours is faster; cpu and stored are ours / theirs. The last line is JSON.
"""

from __future__ import annotations

import filecmp
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infra.demo.s3_server import S3Server, s3_server
from tests.bench import snapshot_codecs, snapshot_line, snapshot_neighbour
from tests.bench.snapshot_alone import GIB, LINK_BYTES_S, alone, pss_mb
from tests.bench.snapshot_peers import (
    Borg,
    Cost,
    Ours,
    Peer,
    PlainS5cmd,
    Rclone,
    Restic,
    Restic32,
    S3cmd,
    TarLz4,
    s5cmd,
)
from tests.bench.snapshot_sets import Set, build

QUICK = bool(os.environ.get("QUICK"))
ROUNDS = 1 if QUICK else 5
SCALE = 0.25 if QUICK else 1.0
BULK_FILES = 1 if QUICK else 3
"""Of a GiB each."""
ALWAYS: tuple[type[Peer], ...] = (Ours, Restic, Restic32, TarLz4)
SLOW_ON_MANY_FILES: tuple[type[Peer], ...] = (PlainS5cmd, Rclone, S3cmd)
"""Once on code, in every round elsewhere."""
ONCE: tuple[type[Peer], ...] = (Borg,)
MEMORY = Path("/dev/shm")

Costs = dict[tuple[str, str, str], list[Cost]]
"""(set, peer, operation) -> one for each round"""


def main() -> None:
    where = sys.argv[1] if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory(dir=where) as sets_in, tempfile.TemporaryDirectory(dir=MEMORY) as home_name:
        home = Path(home_name)
        with s3_server(home / "store", md5_in_listings=False, options=("--ignore-checksum",)) as server:
            sets = build(Path(sets_in), scale=SCALE)
            costs: Costs = {}
            stored: dict[tuple[str, str], tuple[int, int]] = {}
            for number in range(ROUNDS):
                for each in sets:
                    for peer in _peers(each, number, server, home):
                        stored[each.name, peer.name] = _play(each, peer, costs, home)
            _table(sets, costs, stored)
            figures = {
                "vs_restic": _against_restic(sets, costs, stored),
                "vs_s5cmd": {"backup": _ratios(sets, costs, "backup", "PlainS5cmd")},
                "added_to_new": {e.name: round(stored[e.name, "Ours"][1] / e.new_bytes, 2) for e in sets[::2]},
                **_engine_figures(sets, server, home, costs),
                **_lines(sets, server, home, stored),
                "codec_gb_s": snapshot_codecs.measure(sets[0].root / "base.safetensors", sets[1].root),
                "neighbour": snapshot_neighbour.measure(server, sets[0].root, home / "neighbour"),
            }
    print(json.dumps(figures))


def _peers(each: Set, round: int, server: S3Server, home: Path) -> Iterator[Peer]:
    """Another order in every round, so that nobody always comes after the same one."""
    kinds = [*ALWAYS, *(SLOW_ON_MANY_FILES if each.name != "code" or round == 0 else ()), *(ONCE if round == 0 else ())]
    for kind in kinds[round % len(kinds) :] + kinds[: round % len(kinds)]:
        yield kind(kind.__name__, server, home, f"{each.name}-{kind.__name__}-{round}".lower())


def _play(each: Set, peer: Peer, costs: Costs, home: Path) -> tuple[int, int]:
    """One peer's backup, incremental backup and restore; the bytes it stored for version 1, and added for version 2."""
    target = home / "restored"
    each.become(1)
    peer.init()
    costs.setdefault((each.name, peer.name, "backup"), []).append(peer.backup(each.root))
    first = peer.stored_bytes()
    each.become(2)
    if not isinstance(peer, TarLz4):
        costs.setdefault((each.name, peer.name, "incremental"), []).append(peer.backup(each.root))
        costs.setdefault((each.name, peer.name, "restore"), []).append(peer.restore(target))
        _same(each, target, peer)
    added = peer.stored_bytes() - first
    if isinstance(peer, TarLz4):
        costs.setdefault((each.name, peer.name, "restore"), []).append(peer.restore(target))
    shutil.rmtree(target)
    peer.forget()
    print(f"  {each.name} {peer.name}: {first / 1e6:.0f} MB, then {added / 1e6:.1f} MB", file=sys.stderr, flush=True)
    return first, added


def _same(each: Set, target: Path, peer: Peer) -> None:
    """What came back is what was there: by name and size everywhere, by content in the files that changed."""
    for name, (_, content) in each.changes.items():
        assert (target / name).read_bytes() == content, f"{peer.name} restored another {name}"
    here = {path.relative_to(each.root): path for path in each.root.rglob("*") if path.is_file()}
    for name, path in list(here.items())[:: max(1, len(here) // 500)]:
        assert filecmp.cmp(path, target / name, shallow=False), f"{peer.name} restored another {name}"


def _table(sets: list[Set], costs: Costs, stored: dict[tuple[str, str], tuple[int, int]]) -> None:
    print(f"{'set':6} {'peer':11} {'operation':12} {'wall s':>7} {'cpu s':>7}  n  {'MB stored':>9} {'MB added':>8}")
    for (name, peer, operation), found in costs.items():
        first, added = stored[name, peer]
        sizes = f"{first / 1e6:9.1f} {added / 1e6:8.1f}" if operation == "backup" else ""
        print(f"{name:6} {peer:11} {operation:12} {_wall(found):7.2f} {_cpu(found):7.2f}  {len(found)}  {sizes}")
    for each in sets:
        print(f"{each.name}: {each.bytes / 1e6:.0f} MB, of which version 2 has {each.new_bytes / 1e6:.1f} MB new")


def _against_restic(sets: list[Set], costs: Costs, stored: dict[tuple[str, str], tuple[int, int]]) -> dict[str, Any]:
    """Restic's faster way of the two is the peer."""
    found: dict[str, Any] = {}
    for operation in ("backup", "incremental", "restore"):
        ratios = [_ratios(sets, costs, operation, name) for name in ("Restic", "Restic32")]
        found[operation] = {each.name: min(ratio[each.name] for ratio in ratios) for each in sets}
    cpu = {each.name: _cpu(costs[each.name, "Ours", "backup"]) for each in sets}
    theirs = {e.name: min(_cpu(costs[e.name, name, "backup"]) for name in ("Restic", "Restic32")) for e in sets}
    found["cpu_backup"] = {name: round(cpu[name] / theirs[name], 2) for name in cpu}
    found["stored"] = {e.name: round(stored[e.name, "Ours"][0] / stored[e.name, "Restic"][0], 3) for e in sets}
    return found


def _ratios(sets: list[Set], costs: Costs, operation: str, peer: str) -> dict[str, float]:
    return {
        each.name: round(_wall(costs[each.name, peer, operation]) / _wall(costs[each.name, "Ours", operation]), 2)
        for each in sets
    }


def _wall(found: list[Cost]) -> float:
    return statistics.median(cost.wall_s for cost in found)


def _cpu(found: list[Cost]) -> float:
    return statistics.median(cost.cpu_s for cost in found)


def _engine_figures(sets: list[Set], server: S3Server, home: Path, costs: Costs) -> dict[str, float]:
    """Of the engine alone, on the sets as they are: first file, unchanged workspace, memory, share of the raw line."""
    model, code = sets[0], sets[1]
    ours = Ours("Ours", server, home, "figures")
    raw = _raw_get(ours, home, model.bytes)
    share = model.bytes / _wall(costs["model", "Ours", "restore"]) / raw
    pss = _pss_mb(ours, model)
    first, unchanged = _first_file_and_unchanged(server, home, code)
    return {
        "raw_get_share": round(share, 2),
        "first_file_s": round(first, 3),
        "unchanged_s": round(unchanged, 3),
        "pss_mb": round(pss),
    }


def _lines(
    sets: list[Set], server: S3Server, home: Path, stored: dict[tuple[str, str], tuple[int, int]]
) -> dict[str, Any]:
    """What a slow line, one far away, and a workspace of small and large files show."""
    model, code, data = sets
    slow = alone("paced", server, home / "paced", root=str(data.root), max_bytes_s=LINK_BYTES_S)
    tight = alone("paced", server, home / "tight", root=str(code.root), max_bytes_s=LINK_BYTES_S)
    both = home / "both"
    shutil.copytree(code.root, both / "code", symlinks=True)
    shutil.copytree(model.root, both / "model")
    order = alone("order", server, home / "order", root=str(both))
    shutil.rmtree(home / "order")
    _add_bulk(both / "bulk")
    bulky = alone("order", server, home / "bulky", root=str(both))
    with snapshot_line.line(server) as far:
        asked = alone("wanted", far, home / "asked", root=str(data.root))
    shutil.rmtree(both)
    shutil.rmtree(home / "bulky")
    cpu_s = slow["cpu_s_per_gib"]
    print(f"1 Gbit/s: {slow['link_share']:.2f} of it filled, {cpu_s:.2f} CPU s for each GiB that is sent")
    print(f"computed, not measured: 10 Gbit/s would take {cpu_s * 10 * LINK_BYTES_S / GIB:.1f} such cores")
    print(f"restore of code and model: {order}")
    print(f"a file that is asked for while the data comes from far away: {asked}")
    print(f"restore of the same with {BULK_FILES} GiB of weights besides: {bulky}")
    figures: dict[str, Any] = {
        "link_share": round(slow["link_share"], 2),
        "cpu_s_per_gib": round(cpu_s, 2),
        "stored_slow_link": {"code": round(tight["stored_bytes"] / stored["code", "Restic"][0], 3)},
        "first_usable_s": round(order["first_s"], 3),
        "most_small_files_at": round(order["most_small_share"], 2),
        "most_small_files_at_with_bulk": round(bulky["most_small_share"], 2),
        "asked_for_s": {"want": round(asked["want_s"], 3), "least_of_a_view": round(asked["view_s"], 3)},
        "vs_s3cmd_far": snapshot_line.measure(server, home, 1 if QUICK else 3),
    }
    if os.environ.get("HUGE"):
        for name, size, entries in (("1 GiB", GIB, 0), ("16 GiB", 16 * GIB, 0), ("million files", 0, 1_000_000)):
            folder = Path(tempfile.mkdtemp(dir=model.root.parent))
            figures[f"pss_mb {name}"] = round(alone("memory", server, folder, size=size, entries=entries)["pss_mb"])
            shutil.rmtree(folder)
    return figures


def _add_bulk(folder: Path) -> None:
    """What a workspace of models has besides: files that no codec makes smaller."""
    folder.mkdir()
    for number in range(BULK_FILES):
        with (folder / f"{number}.safetensors").open("wb") as file:
            for _ in range(GIB >> 20):
                file.write(os.urandom(1 << 20))


def _raw_get(peer: Peer, home: Path, size: int) -> float:
    """Bytes per second of one object of that size, fetched in parts as the engine does."""
    whole = home / "raw"
    with whole.open("wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
    place = f"s3://{peer.server.bucket}/raw"
    peer.run(f"{s5cmd(peer)} cp --part-size 50 {whole} {place}")
    costs = [peer.run(f"{s5cmd(peer)} cp --part-size 8 {place} {whole}") for _ in range(ROUNDS)]
    whole.unlink()
    return size / _wall(costs)


def _pss_mb(ours: Ours, each: Set) -> float:
    """The largest sum of PSS over all processes of one backup, sampled every 20 ms."""
    command = [
        sys.executable,
        "-m",
        "common.host.repository",
        "backup",
        str(each.root),
        f"s3://{ours.server.bucket}/pss",
    ]
    most = 0.0
    with subprocess.Popen(
        [*command, "--home", str(ours.home / "pss")], env=ours.env(), stdout=subprocess.DEVNULL
    ) as run:
        while run.poll() is None:
            most = max(most, pss_mb(run.pid))
            time.sleep(0.02)
    return most


def _first_file_and_unchanged(server: S3Server, home: Path, code: Set) -> tuple[float, float]:
    """Seconds of engine time after imports: until the first file of a restore is there; for a workspace unchanged."""
    program = f"""
        import gc, sys, time
        from datetime import UTC, datetime
        from pathlib import Path
        from common.snapshots import engine, repository
        gc.disable()
        root, state = Path({str(code.root)!r}), Path({str(home / "state")!r})
        way = engine.Endpoint({server.endpoint!r}, {server.bucket!r}, {server.access_key!r}, {server.secret_key!r})
        same = {{"prefix": "alone/", "instance_key": b"k" * 32, "endpoint": way}}
        words = {{"epoch": 1, "taken_at": datetime.now(UTC), "clock": time.monotonic}}
        taken = engine.take(root, seq=1, previous=None, state_dir=state, **words, **same)
        (state / "last.dm").unlink()
        began = time.monotonic()
        previous = lambda: engine.fetch_manifest(taken.manifest_key, root=root, state_dir=state, **same)
        taken = engine.take(root, seq=2, previous=previous, state_dir=state, **words, **same)
        assert taken.new_bytes == 0
        print(time.monotonic() - began, flush=True)
        (state / "last.dm").unlink()
        target = Path({str(home / "first")!r})
        print("begins", flush=True)
        engine.restore(taken.manifest_key, target, state_dir=state, clock=time.monotonic, **same)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        unchanged = float(run.stdout.readline())
        assert run.stdout.readline() == "begins\n"
        began = time.monotonic()
        while not _has_file(home / "first") and run.poll() is None:
            time.sleep(0.002)
        first = time.monotonic() - began
    shutil.rmtree(home / "first")
    return first, unchanged


def _has_file(target: Path) -> bool:
    """One with content, for the empty ones come first."""
    try:
        return any(path.is_file() and path.stat().st_size for path in target.glob("env*/*/*"))
    except OSError:
        return False


if __name__ == "__main__":
    gc.freeze()
    main()

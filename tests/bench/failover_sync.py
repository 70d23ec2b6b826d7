"""The live sync's half of `bench_failover`: how soon a save is on the standby, what a cut loses, beside rsync.

Run by itself: python -m tests.bench.failover_sync [QUICK]. Both ends are the real programs; between them lies a relay
that cuts the line at a moment of ours (what had arrived before that counts as arrived, as with a real line). Disk and
processors are shared by both ends and by this program, so a real pair is no slower but for its round trip.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.host.livesync import frames, wire
from common.host.livesync.control import ask
from common.host.livesync.frames import Hello, Refused
from common.host.livesync.inotify import Inotify
from infra.local.ports import fresh_ports
from tests.livesync_pair import GPU, Pair, Programs, save, tree

GAP_S = 0.02
LOST_AFTER_S = 60.0
BATCH_S = 0.2
SAVED_NAMES = 20
SETTLED_S = 0.05
"""After a cut: what had arrived is put in place."""
TREE_FILES = 10_000
Figures = dict[str, Any]


def measure(quick: bool) -> Figures:
    """Every figure of the live sync; durations in seconds, `save_s` and its like as {"p50", "p99", "n"}."""
    with tempfile.TemporaryDirectory(prefix="livesync-") as folder:
        bench = Bench(Path(folder), random.Random(6))
        with bench.running():
            figures: Figures = {"save_s": bench.saves(100 if quick else 400)}
            figures["cpu_s_per_1000_saves"] = bench.cpu_s_per_1000_saves
            figures["idle_cpu_s_per_minute"] = bench.idle_cpu_s(2.0 if quick else 10.0)
            figures |= bench.beside_rsync(15 if quick else 40, figures["save_s"]["p50"])
            figures |= bench.during_a_large_file((256 if quick else 1024) << 20)
            figures["tree_extra_s"] = bench.tree(TREE_FILES)
            figures["overflow_identical"] = bench.overflow(TREE_FILES)
            figures |= bench.barriers(5 if quick else 20)
            figures |= bench.cuts(30 if quick else 200)
            figures |= bench.stale(100)
        return figures


class Bench:
    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder, self._chance = folder, chance
        self.pair = Pair(folder)
        self.relay = Relay(self.pair.socket, folder / "far")
        self.programs = Programs(self.pair, far=folder / "far")
        self.cpu_s_per_1000_saves = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with self.relay, self.programs:
            self.programs.start("receive")
            self.programs.start("send")
            self.programs.wait()
            yield

    # --- saves

    def saves(self, count: int) -> Figures:
        before_s = self._cpu_s()
        lags = [self._save_and_wait(self.pair.mirror, GAP_S) for _ in range(count)]
        self.cpu_s_per_1000_saves = round((self._cpu_s() - before_s) / count * 1000, 2)
        return summary(lags)

    def _save_and_wait(self, mirror: Path, gap_s: float) -> float:
        """An editor's save of 2 to 8 kB, until it is byte-identical over there."""
        time.sleep(gap_s * (0.5 + self._chance.random()))
        name, data = (
            f"s{self._chance.randrange(SAVED_NAMES)}",
            self._chance.randbytes(self._chance.randrange(2000, 8000)),
        )
        began_s = time.perf_counter()
        save(self.pair.gpu / name, data)
        while not _holds(mirror / name, data):
            lag_s = time.perf_counter() - began_s
            if lag_s > LOST_AFTER_S:
                raise SystemExit(f"a save did not arrive in {LOST_AFTER_S} s")
            time.sleep(0.0005)
        return time.perf_counter() - began_s

    def idle_cpu_s(self, for_s: float) -> float:
        time.sleep(3.0)  # the directories' times, the proving pass
        before_s = self._cpu_s()
        time.sleep(for_s)
        return round((self._cpu_s() - before_s) * 60 / for_s, 3)

    def _cpu_s(self) -> float:
        """Of both ends so far."""
        ticks = 0
        for process in self.programs.running.values():
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def during_a_large_file(self, size: int) -> Figures:
        """The large file is written beside its place and then moved there, as checkpoints are."""
        source = self.folder / "source"
        with source.open("wb") as file:
            for _ in range(size >> 20):
                file.write(self._chance.randbytes(1 << 20))
        new, large = self.pair.gpu / ".large.new", self.pair.gpu / "large"
        began_s = time.perf_counter()
        copying = subprocess.Popen(["sh", "-c", f"cp '{source}' '{new}' && mv '{new}' '{large}'"])
        lags = []
        while copying.poll() is None or not _is_as_long(self.pair.mirror / "large", size):
            lags.append(self._save_and_wait(self.pair.mirror, GAP_S))
        took_s = time.perf_counter() - began_s
        self.programs.wait(LOST_AFTER_S)
        is_equal = tree(self.pair.mirror) == tree(self.pair.gpu)
        large.unlink()
        source.unlink()
        self.programs.wait(LOST_AFTER_S)
        return {
            "save_during_1gib_s": summary(lags),
            "large_bytes": size,
            "large_s": round(took_s, 2),
            "large_identical": is_equal,
        }

    # --- trees, lost events

    def tree(self, count: int) -> float:
        """How much longer the mirror takes than the copying itself."""
        source = self.folder / "tree"
        for number in range(count):
            file = source / f"d{number % 100}" / f"f{number}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(self._chance.randbytes(self._chance.randrange(100, 4000)))
        subprocess.run(["cp", "-r", str(source), str(self.pair.gpu / "tree")], check=True)
        ended_s = time.perf_counter()
        self.programs.wait(LOST_AFTER_S)
        extra_s = time.perf_counter() - ended_s
        if tree(self.pair.mirror) != tree(self.pair.gpu):
            raise SystemExit("the tree is not identical after the barrier")
        return round(extra_s, 3)

    def overflow(self, count: int) -> bool:
        """The sender stands still while more happens than the kernel keeps."""
        sender = self.programs.running["send"]
        sender.send_signal(signal.SIGSTOP)
        try:
            for number in range(count):
                (self.pair.gpu / "tree" / f"d{number % 100}" / f"f{number}").write_bytes(b"%d again" % number)
            shutil.rmtree(self.pair.gpu / "tree/d0")
        finally:
            sender.send_signal(signal.SIGCONT)
        self.programs.wait(LOST_AFTER_S)
        is_equal = tree(self.pair.mirror) == tree(self.pair.gpu)
        shutil.rmtree(self.pair.gpu / "tree")
        self.programs.wait(LOST_AFTER_S)
        return is_equal

    # --- cuts

    def barriers(self, count: int) -> Figures:
        """200 saves, a new deep directory and 64 MiB; cut in the instant in which the barrier returned."""
        equal, took = 0, []
        for turn in range(count):
            for number in range(200):
                save(self.pair.gpu / f"b{number}", b"%d %d" % (turn, number))
            deep = self.pair.gpu / f"deep{turn}/er"
            deep.mkdir(parents=True)
            (deep / "64").write_bytes(os.urandom(64 << 20))
            began_s = time.perf_counter()
            ask(self.pair.gpu_home, wait_s=LOST_AFTER_S)
            self.relay.cut()
            took.append(time.perf_counter() - began_s)
            equal += tree(self.pair.mirror) == tree(self.pair.gpu)
            shutil.rmtree(deep.parent)
            self.relay.mend()
            self.programs.wait(LOST_AFTER_S)
        return {"barrier_ok": equal, "barrier_n": count, "barrier_s": summary(took)}

    def cuts(self, count: int) -> Figures:
        """At random moments while files are saved: nothing confirmed may be missing; the age of what else is."""
        lost = acked_n = 0
        ages = []
        for _ in range(count):
            until_s = time.monotonic() + self._chance.uniform(0.03, 0.25)
            saved: dict[str, list[tuple[int, float]]] = {}
            while time.monotonic() < until_s:
                name = f"s{self._chance.randrange(SAVED_NAMES)}"
                save(self.pair.gpu / name, self._chance.randbytes(self._chance.randrange(2000, 8000)))
                mtime_ns = (self.pair.gpu / name).stat().st_mtime_ns
                saved.setdefault(name, []).append((mtime_ns, time.monotonic()))
                time.sleep(self._chance.uniform(0, 0.01))
            self.relay.cut()
            cut_s = time.monotonic()
            acked = {path: each for path, each in self.programs.acked().items() if path.startswith(b"s")}
            time.sleep(SETTLED_S)
            acked_n += len(acked)
            lost += sum(_mtime_ns(self.pair.mirror / os.fsdecode(path)) < each[1] for path, each in acked.items())
            ages.append(self._oldest_lost_s(saved, cut_s))
            self.relay.mend()
            self.programs.wait(LOST_AFTER_S)
        return {"acked_lost": lost, "acked_n": acked_n, "cuts_n": count, "unacked_age_s": summary(ages)}

    def _oldest_lost_s(self, saved: dict[str, list[tuple[int, float]]], cut_s: float) -> float:
        """Age at the cut of the oldest save that is not over there (0: all are)."""
        ages = [0.0]
        for name, states in saved.items():
            there_ns = _mtime_ns(self.pair.mirror / name)
            ages += [cut_s - closed_s for mtime_ns, closed_s in states if mtime_ns > there_ns]
        return max(ages)

    def stale(self, count: int) -> Figures:
        refused = 0
        for number in range(count):
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(10)
                line.connect(str(self.folder / "far"))
                line.sendall(wire.pack(Hello(frames.VERSION, number + 2, GPU.encode(), b"stale")))
                head = line.recv(wire.HEAD.size, socket.MSG_WAITALL)
                body = line.recv(wire.body_bytes(head), socket.MSG_WAITALL)
                refused += isinstance(wire.parse(head, body), Refused)
        return {"stale_refused": refused, "stale_n": count}

    # --- the peer

    def beside_rsync(self, count: int, ours_p50_s: float) -> Figures:
        mirror = self.folder / "rsync-mirror"
        mirror.mkdir()
        with Shell(self.folder / "ssh") as shell, RsyncBatches(self.pair.gpu, mirror, shell):
            lags = summary([self._save_and_wait(mirror, 0.1) for _ in range(count)])
        return {"vs_rsync": round(lags["p50"] / ours_p50_s, 1), "rsync_save_s": lags, "rsync_over": shell.name}


class Relay:
    """Between the two ends: passes bytes on until it is told to cut, and then again when it is told to mend."""

    def __init__(self, near: Path, far: Path) -> None:
        self._near, self._far = near, far
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._is_cut = False
        self._writers: set[asyncio.StreamWriter] = set()

    def __enter__(self) -> Relay:
        self._thread.start()
        self._run(asyncio.start_unix_server(self._serve, self._near, limit=1 << 20))
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def cut(self) -> None:
        self._run(self._cut())

    def mend(self) -> None:
        self._is_cut = False

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _cut(self) -> None:
        self._is_cut = True
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._is_cut:
                return
            far_reader, far_writer = await asyncio.open_unix_connection(self._far, limit=1 << 20)
            self._writers |= {writer, far_writer}
            await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))
        except OSError:
            return
        finally:
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while not self._is_cut and (data := await reader.read(1 << 18)):
                writer.write(data)
                await writer.drain()
        self._writers.discard(writer)
        writer.close()


class Shell:
    """sshd on loopback, and one ssh connection to it that others share; plain rsync where there is no sshd."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sshd: subprocess.Popen[bytes] | None = None
        self.rsync: list[str] = ["rsync", "-a", "--files-from=-", "--from0", "--ignore-missing-args"]
        self.host, self.name = "", "no line at all: there is no sshd here"

    def __enter__(self) -> Shell:
        sshd, folder = shutil.which("sshd", path="/usr/sbin:/usr/bin"), self._folder
        if not sshd:
            return self
        folder.mkdir()
        Path("/run/sshd").mkdir(exist_ok=True)
        for key in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
        port = fresh_ports(1)[0]
        (folder / "config").write_text(
            f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
            f"StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\n"
        )
        self._sshd = subprocess.Popen([sshd, "-D", "-f", str(folder / "config")], stderr=subprocess.DEVNULL)
        ssh = f"ssh -p {port} -i {folder}/user -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
        ssh += f" -o LogLevel=ERROR -o ControlMaster=auto -o ControlPersist=60 -o ControlPath={folder}/mux"
        self.rsync += ["-e", ssh]
        self.host, self.name = "127.0.0.1:", "ssh on loopback, ControlMaster"
        self._await(ssh.split())
        return self

    def _await(self, ssh: list[str]) -> None:
        for _ in range(50):
            if subprocess.run([*ssh, "127.0.0.1", "true"], capture_output=True, check=False).returncode == 0:
                return
            time.sleep(0.1)
        raise SystemExit("sshd on loopback lets nobody in")

    def __exit__(self, *_: object) -> None:
        if self._sshd:
            mux = f"ControlPath={self._folder}/mux"
            subprocess.run(["ssh", "-o", mux, "-O", "exit", "127.0.0.1"], capture_output=True, check=False)
            self._sshd.terminate()
            self._sshd.wait()


class RsyncBatches:
    """inotify, and what changed within 0.2 s by one rsync: as good as rsync gets here."""

    def __init__(self, root: Path, mirror: Path, shell: Shell) -> None:
        self._root, self._shell = root, shell
        self._command = [*shell.rsync, f"{root}/", f"{shell.host}{mirror}/"]
        self._inotify = Inotify()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> RsyncBatches:
        fd = os.open(self._root, os.O_RDONLY)
        self._inotify.watch(fd)
        os.close(fd)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        self._inotify.close()

    def _run(self) -> None:
        while not self._is_over.is_set():
            time.sleep(BATCH_S)
            names = {event.name for event in self._inotify.read() if event.name and not event.name.startswith(b".")}
            if names:
                subprocess.run(self._command, input=b"\0".join(names), check=True)


def summary(values: list[float]) -> Figures:
    ordered = sorted(values)
    at_99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return {"p50": round(statistics.median(ordered), 4), "p99": round(at_99, 4), "n": len(ordered)}


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except FileNotFoundError:
        return False


def _is_as_long(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _mtime_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


if __name__ == "__main__":
    print(json.dumps(measure("QUICK" in sys.argv[1:])))

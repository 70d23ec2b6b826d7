"""How fast the user's connection is answered by the standby when the GPU dies in each of four ways; how often wrongly.

Run: make bench-failover (QUICK=1: few trials). Needs root and /dev/net/tun; three network namespaces hold the user, the
GPU host and the standby with the product's own programs: HAProxy, sshd, tunnel, watchdog, heartbeat, live sync. What
lies between GPU and standby is a relay of packets that loses, delays and cuts. The half of the live sync alone is
`failover_sync`. The last line of stdout is JSON. Ends within 30 minutes.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import NotFound
from common.host import tunnel
from common.host.epoch import Epoch
from common.host.ports import Ports
from tests.bench.failover_link import DEVICE
from tests.pair_world import ROOT, STANDBY, WORKSPACE, PairWorld, can_run, until

TRIALS, QUICK_TRIALS = 20, 3
ROUNDS, QUICK_ROUNDS = 12, 2
"""Of each kind of bad line."""
LEASE_S = 1.0
LOSS, DELAY_S, ROUND_S, REST_S = 0.3, 0.3, (2.0, 5.0), 1.0
TRIAL_WITHIN_S = 20.0
USER_NET, GPU_NET, HUB_NET = "dumont-user", "dumont-gpu", "dumont-hub"
HUB_FOR_GPU, GPU_FOR_HUB, HUB_FOR_USER, USER_FOR_HUB = "10.77.1.1", "10.77.1.2", "10.77.2.1", "10.77.2.2"
MODES = ("kill", "cut", "freeze", "notice")
BOUNDS = {
    "kill": {"p50": 0.1, "max": 0.5},
    "notice": {"p50": 0.1},
    "cut": {"max": LEASE_S + 0.5},
    "freeze": {"max": LEASE_S + 0.5},
}
SHELL_MAX_S = 5.0


def inside(network: str) -> list[str]:
    return ["ip", "netns", "exec", network]


def do(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@contextlib.contextmanager
def networks() -> Iterator[Line]:
    """The three namespaces and their lines; what was left behind by a run that was killed is removed first."""
    names = (USER_NET, GPU_NET, HUB_NET)
    for name in names:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
    try:
        for name in names:
            do("ip", "netns", "add", name)
            do("ip", "-n", name, "link", "set", "lo", "up")
        do("ip", "-n", USER_NET, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", HUB_NET)
        for name, address in ((USER_NET, USER_FOR_HUB), (HUB_NET, HUB_FOR_USER)):
            do("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            do("ip", "-n", name, "link", "set", "eth0", "up")
        line = Line()
        for name, address in ((GPU_NET, GPU_FOR_HUB), (HUB_NET, HUB_FOR_GPU)):
            do("ip", "-n", name, "addr", "add", f"{address}/24", "dev", DEVICE)
            do("ip", "-n", name, "link", "set", DEVICE, "up")
        try:
            yield line
        finally:
            line.relay.kill()
            line.relay.wait()
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


class Line:
    """Between the GPU and the standby."""

    def __init__(self) -> None:
        words = [sys.executable, "-m", "tests.bench.failover_link", GPU_NET, HUB_NET]
        self.relay = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.relay.stdout
        assert self.relay.stdout.readline() == "up\n"

    def set(self, *, lost: float = 0.0, delay_s: float = 0.0) -> None:
        assert self.relay.stdin
        self.relay.stdin.write(f"{lost} {delay_s}\n")
        self.relay.stdin.flush()


@dataclass
class Eyes:
    """What a process of `failover_eyes` has seen: (time, what)."""

    process: subprocess.Popen[str]
    seen: list[tuple[float, str]] = field(default_factory=list)

    @classmethod
    def open(cls, kind: str, network: str, host: str, port: int) -> Eyes:
        words = [*inside(network), sys.executable, "-m", "tests.bench.failover_eyes", kind, host, str(port)]
        eyes = cls(subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        threading.Thread(target=eyes._read, daemon=True).start()
        return eyes

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            at_s, what = line.split()
            self.seen.append((float(at_s), what))

    def first(self, what: str, after_s: float) -> float:
        """When it was first seen after a time; waited for."""

        def found() -> float | None:
            return next((at_s for at_s, seen in self.seen if seen == what and at_s > after_s), None)

        return float(until(found, within_s=TRIAL_WITHIN_S, every_s=0.005, why=f"no {what}"))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Bench:
    def __init__(self, world: PairWorld, line: Line, user: Eyes) -> None:
        self.world, self.line, self.user = world, line, user
        self.saves = 0
        self.warnings: list[str] = []

    def ready(self) -> None:
        """A new epoch with a GPU that lives; the user's connections are answered by it."""
        self.line.set()
        self.world.gpu.end()
        self.world.attach()
        self.world.gpu.start()
        self.world.until_watched()
        self.world.until_whole()
        self.user.first("gpu", time.monotonic())

    def save(self) -> str:
        """The last save before the machine dies, as an editor does it; returns once the live sync has it over there."""
        self.saves += 1
        text, here, there = f"save {self.saves}", self.world.gpu.workspace, self.world.standby.workspace / "last"
        (here / "last.new").write_text(text)
        (here / "last.new").rename(here / "last")
        until(lambda: there.exists() and there.read_text() == text, every_s=0.002, why="the save is not mirrored")
        return text

    def hurt(self, mode: str) -> None:
        gpu = self.world.gpu
        if mode == "kill":
            gpu.kill()
        elif mode == "cut":
            self.line.set(lost=1.0)
        elif mode == "freeze":
            gpu.signal(signal.SIGSTOP)
        else:
            init = gpu.init()
            assert init
            os.kill(init, signal.SIGTERM)

    def trial(self, mode: str) -> tuple[float, float]:
        """Seconds from the death to the first new connection that the standby answered; to a login with the file."""
        text = self.save()
        hurt_s = time.monotonic()
        self.hurt(mode)
        redirect_s = self.user.first("standby", hurt_s) - hurt_s
        while True:
            shown = self.world.ssh(f"cat {WORKSPACE}/last", host=HUB_FOR_USER, network=inside(USER_NET))
            if shown.stderr:
                self.warnings.append(f"{mode}: {shown.stderr.strip()}")
            if (shown.returncode, shown.stdout, shown.stderr) == (0, text, ""):
                return redirect_s, time.monotonic() - hurt_s
            assert time.monotonic() - hurt_s < TRIAL_WITHIN_S, f"no login: {shown}"

    def deaths(self, trials: int) -> dict[str, dict[str, list[float]]]:
        found: dict[str, dict[str, list[float]]] = {"redirect_s": {}, "shell_s": {}}
        for mode in MODES:
            pairs = []
            for _ in range(trials):
                self.ready()
                time.sleep(random.uniform(0.3, 0.4))  # any phase of the heartbeat
                pairs.append(self.trial(mode))
            found["redirect_s"][mode] = [redirect_s for redirect_s, _ in pairs]
            found["shell_s"][mode] = [shell_s for _, shell_s in pairs]
            print(f"{mode}: {spread(found['redirect_s'][mode])}, shell {spread(found['shell_s'][mode])}", flush=True)
        return found

    def bad_lines(self, rounds: int) -> tuple[int, int]:
        """Wrong switches of the watchdog, and of a naive check beside it, in so many rounds of each kind."""
        self.ready()
        naive = Eyes.open("naive", HUB_NET, GPU_FOR_HUB, self.world.ports.http.gpu_port)
        chance, wrong = random.Random(1), 0
        try:
            for kind in ({"lost": LOSS}, {"delay_s": DELAY_S}):
                for _ in range(rounds):
                    self.line.set(**kind)
                    time.sleep(chance.uniform(*ROUND_S))
                    self.line.set()
                    time.sleep(REST_S)
                    if Epoch(self.world.standby.home, STANDBY).read().sealed is not None:
                        wrong += 1
                        self.ready()
                print(f"{rounds} rounds of {kind}: {wrong} wrong, naive {len(naive.seen)}", flush=True)
        finally:
            naive.close()
        return wrong, len(naive.seen)


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"p50": round(statistics.median(values), 3), "max": round(max(values), 3)}


def redirect(*, trials: int, rounds: int) -> dict[str, Any]:
    """The half of this file."""
    with networks() as line:
        world = PairWorld.temporary(
            ports=Ports(),
            lease_s=LEASE_S,
            gpu_network=inside(GPU_NET),
            standby_network=inside(HUB_NET),
            door_host=HUB_FOR_GPU,
            syncs=True,
        )
        world.gpu.env["ANSWER_HOST"] = "0.0.0.0"
        user = Eyes.open("user", USER_NET, HUB_FOR_USER, world.ports.http.door_port)
        try:
            world.standby.start()
            bench = Bench(world, line, user)
            found = bench.deaths(trials)
            wrong, naive = bench.bad_lines(rounds)
        finally:
            user.close()
            world.end()
    return {
        "redirect_s": {mode: spread(values) for mode, values in found["redirect_s"].items()},
        "shell_s": {mode: spread(values) for mode, values in found["shell_s"].items()},
        "false_switches": wrong,
        "naive_switches": naive,
        "ssh_warnings": bench.warnings,
    }


SYNC_KEYS = ("save_s", "save_during_1gib_s", "vs_rsync", "barrier_ok", "barrier_n", "acked_lost", "unacked_age_s")


def sync(quick: bool) -> dict[str, Any]:
    """The half of the live sync; None for what is not measured where it is not there."""
    try:
        measure: Callable[[bool], dict[str, Any]] = importlib.import_module("tests.bench.failover_sync").measure
    except ModuleNotFoundError:
        return dict.fromkeys(SYNC_KEYS)
    return {**dict.fromkeys(SYNC_KEYS), **measure(quick)}


def misses(found: dict[str, Any]) -> list[str]:
    """Bounds that do not hold."""
    wrong = []
    for mode, bounds in BOUNDS.items():
        for name, bound in bounds.items():
            if found["redirect_s"][mode][name] > bound:
                wrong.append(f"redirect {mode} {name} {found['redirect_s'][mode][name]} > {bound}")
        if found["shell_s"][mode]["max"] > SHELL_MAX_S:
            wrong.append(f"shell {mode} {found['shell_s'][mode]['max']} > {SHELL_MAX_S}")
    if found["false_switches"]:
        wrong.append(f"{found['false_switches']} wrong switches")
    if not found["naive_switches"]:
        wrong.append("the naive check did not flap: the lines were not bad")
    if any("HOST IDENTIFICATION" in said or "WARNING" in said for said in found["ssh_warnings"]):
        wrong.append("ssh warned of the host key")
    return wrong


def main() -> int:
    quick = os.environ.get("QUICK") == "1"
    if why := can_run() or (None if Path("/dev/net/tun").exists() else "no /dev/net/tun") or _no_ip():
        print(f"cannot be measured here: {why}", file=sys.stderr)
        return 1
    trials, rounds = (QUICK_TRIALS, QUICK_ROUNDS) if quick else (TRIALS, ROUNDS)
    found = redirect(trials=trials, rounds=rounds)
    wrong = misses(found)
    for each in wrong:
        print(f"MISSED: {each}", flush=True)
    print(f"lease_s {LEASE_S} (fixed), {2 * rounds} rounds of bad lines", flush=True)
    print(json.dumps({"trials": trials, "lease_s": LEASE_S, **found, **sync(quick)}))
    return 1 if wrong else 0


def _no_ip() -> str | None:
    try:
        tunnel.program("ip")
    except NotFound:
        return "ip is not installed"
    return None


if __name__ == "__main__":
    raise SystemExit(main())

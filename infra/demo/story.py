"""`dumont demo`: the whole story against a `dumont up` of its own, every step checked and measured."""

from __future__ import annotations

import json
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from common import auth
from common.adapters.s3 import S3
from common.adapters.sqlite import SqliteStore
from common.bootstrap import now
from common.domain.ledger import LedgerEntry, to_usd
from common.domain.rental import Rental
from common.domain.standby_price import ADDRESS_USD_PER_HOUR
from common.host.tunnel import SBIN
from common.ports import Deployment
from common.snapshots import engine
from infra.demo import material
from infra.demo.rental import can_be_apart
from infra.local.config import DEMO_TIMING, timing_table

GPU = "H100 SXM"
USD_PER_HOUR_MIN = Decimal("1.50")
STEP_WITHIN_S = 120.0
BACK_WITHIN_S = 300.0
"""A GPU is rented, filled with the whole workspace and told to be equal, on this very computer."""
ANSWER_WITHIN_S = 30.0
POLL_S = 0.25
SAVED_WITHIN_S = 10.0
EDITED = "thesis.tex"
"""In the workspace: what the user edits when the GPU dies."""
SECOND = Decimal(1)
OPERATIONS_S = Decimal(2)
MINUTE_OF_ADDRESS_USD = ADDRESS_USD_PER_HOUR["standard"] / 60
BOOT_GB = Decimal("0.1")
"""What a machine fetches before its agent counts: the bundle (48 MB), and the same again for the probe of its line."""
err = Console(stderr=True)


class CheckFailed(Exception):
    """The story is not true: what was expected and what was found."""


def command(
    keep: Annotated[bool, typer.Option("--keep", help="Leave it up, with URL, user and key printed.")] = False,
    state: Annotated[Path | None, typer.Option(help="State directory; a new one below .dumont by default.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Only the last line.")] = False,
    standby: Annotated[bool, typer.Option("--standby", help="And the GPU dies while a file is edited.")] = False,
) -> None:
    """Play the whole story on this machine and check every step."""
    folder = state or Path(tempfile.mkdtemp(prefix="demo-", dir=_parent()))
    folder.mkdir(parents=True, exist_ok=True)
    story = Story(folder.resolve(), quiet=json_, with_google=standby and can_stand_by())
    try:
        ok = story.play()
    finally:
        if not keep:
            story.end()
            if state is None:
                shutil.rmtree(folder, ignore_errors=True)
    if keep:
        err.print(f"left up: {story.facts['api']}  user {story.facts['user']}  key {story.facts['api_key']}")
    raise SystemExit(0 if ok else 1)


def _parent() -> Path:
    parent = Path(".dumont")
    parent.mkdir(exist_ok=True)
    return parent


@dataclass
class Story:
    folder: Path
    quiet: bool = False
    up_options: tuple[str, ...] = ()
    """Of the `dumont up` that it starts."""
    with_google: bool = False
    """The world has a Google, so that the instance gets a standby."""
    facts: dict[str, str] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    up: subprocess.Popen[str] | None = None
    api: httpx.Client = field(default_factory=httpx.Client)
    world: httpx.Client = field(default_factory=httpx.Client)
    shell: Shell = field(init=False)
    instance: str = ""
    result: dict[str, Any] = field(default_factory=dict)

    def play(self) -> bool:
        """True only if every check held. The last line of stdout is the result as JSON."""
        chapters: list[tuple[str, Callable[[], str]]] = [
            ("start", self._start),
            ("sign in and list offers", self._sign_in),
            ("deploy by race", self._deploy),
            ("write the workspace", self._write),
            ("idle: hibernated by itself", self._idle),
            ("wake on another machine", self._wake),
            ("work goes on, periodic snapshot", self._work),
            ("machine taken: back by itself", self._taken),
            *self._of_the_standby(),
            ("terminate", self._terminate),
            ("compare the money", self._money),
        ]
        ok, why = True, ""
        for name, chapter in chapters:
            started = time.monotonic()
            try:
                said = chapter()
            except (CheckFailed, httpx.HTTPError) as error:
                ok, why = False, f"{name}: {error}"
            seconds = round(time.monotonic() - started, 2)
            self.steps.append({"name": name, "seconds": seconds})
            if not ok:
                err.print(f"[red]failed[/red]  {why}", highlight=False)
                break
            if not self.quiet:
                err.print(f"{seconds:7.2f} s  {name}: {said}", highlight=False)
        self._table()
        print(json.dumps({"ok": ok, "steps": self.steps, **self.result, **({} if ok else {"why": why})}), flush=True)
        return ok

    def _of_the_standby(self) -> list[tuple[str, Callable[[], str]]]:
        if not self.with_google:
            return []
        return [
            ("mirrored to a standby", self._protect),
            ("the GPU dies while a file is edited", self._dies),
            ("back on a GPU by itself", self._back),
        ]

    def end(self) -> None:
        """SIGTERM to `up` ends every process it started."""
        if self.up and self.up.poll() is None:
            self.up.send_signal(signal.SIGTERM)
            try:
                self.up.wait(40)
            except subprocess.TimeoutExpired:
                self.up.kill()
        if self.up and self.up.stdout:
            self.up.stdout.close()
        self.api.close()
        self.world.close()

    # --- the chapters

    def _start(self) -> str:
        google = "--google" if self.with_google else "--no-google"
        options = ["--json", "--port", "0", "--state", str(self.folder), google, *self.up_options]
        with open(self.folder / "up.log", "w") as log:
            self.up = subprocess.Popen(
                [sys.executable, "-m", "infra.local.up", *options],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "DEMO_MODE": "true"},
            )
        assert self.up.stdout
        line = self.up.stdout.readline()
        if not line:
            raise CheckFailed(f"dumont up did not start: {(self.folder / 'up.log').read_text()[-500:]}")
        self.facts = json.loads(line)
        self.api = httpx.Client(base_url=self.facts["api"] + "/api/v1", timeout=30)
        self.world = httpx.Client(base_url=self.facts["world"], timeout=30)
        return f"the world and the control plane answer at {self.facts['api']}"

    def _sign_in(self) -> str:
        session = self._post("/auth/login", {"email": self.facts["user"], "password": self.facts["password"]}, 200)
        self.api.headers["Authorization"] = f"Bearer {session['access_token']}"
        offers = self._get(f"/offers?gpu={GPU}")["items"]
        _check(len(offers) >= 5, f"{len(offers)} offers of {GPU}, not 5")
        return f"{len(offers)} offers of {GPU} from {offers[0]['usd_per_hour'][:6]} USD/h"

    def _deploy(self) -> str:
        body = {"gpu": GPU, "strategy": "race", "name": "demo", "disk_gb": 64, "standby": False}
        if self.with_google:
            self.shell = Shell(self.folder)
            body["ssh_public_key"] = self.shell.public_key
        plan = self._post("/instances/plan", body, 200)
        _check(Decimal(plan["usd_per_hour"]) >= USD_PER_HOUR_MIN, f"{plan['usd_per_hour']} USD/h is below the story's")
        headers = {"Idempotency-Key": "the-demo"}
        operation = self._post("/instances/provision", body, 202, headers)["operation"]
        again = self._post("/instances/provision", body, 202, headers)["operation"]
        _check(again["id"] == operation["id"], "the same Idempotency-Key started a second operation")
        self.instance = operation["instance_id"]
        shown = self._until("running")
        label, race = self._writer()["label"], shown["race"]
        price = next(r["usd_per_hour"] for r in shown["rentals"] if r["label"] == label)
        seconds, usd = sum(loser["seconds"] for loser in race["losers"]), Decimal(race["losers_usd"])
        return (
            f"{price[:6]} USD/h, ready after {race['ready_after_s']:.1f} s; {len(race['losers']) + 1} of "
            f"{race['rentals']} started, the losers took {seconds:.1f} machine seconds and {usd:.4f} USD"
        )

    def _write(self) -> str:
        root = Path(self._writer()["workspace"])
        material.write(root, seed=1)
        tree = material.look(root)
        self.result.update(files=tree.files, bytes=tree.bytes)
        _check(tree.files >= material.FILES_MIN, f"{tree.files} files")
        _check(tree.bytes >= material.BYTES_MIN, f"{tree.bytes} bytes")
        self.tree = tree
        return f"{tree.files} files, {tree.bytes / 2**30:.2f} GiB"

    def _idle(self) -> str:
        self._gpu(self._writer()["label"], 0)
        self._until("hibernated")
        _check(not self._billing(), f"something still bills: {self._billing()}")
        snapshot = self._instance()["snapshot"]
        return f"snapshot of {snapshot['files']} files verified, machine destroyed, nothing bills"

    def _wake(self) -> str:
        before = self._instance()["race"]
        self._post(f"/instances/{self.instance}/wake", {}, 202)
        self._until("running")
        writer = self._writer()
        _check(before["winner"] != writer["label"], "it is the same rental")
        self._same(Path(writer["workspace"]))
        return f"byte-identical on {writer['label']}"

    def _work(self) -> str:
        root = Path(self._writer()["workspace"])
        before = self._instance()["snapshot"]
        material.change(root, seed=2)
        self.tree = material.look(root)
        written_at = now()

        def covered() -> bool:
            snapshot = self._instance()["snapshot"]
            newer = snapshot and (not before or snapshot["id"] != before["id"])
            return bool(newer and self._taken_at(snapshot["manifest_key"]) >= written_at)

        self._wait(covered, "a periodic snapshot taken after the change")
        return f"snapshot {self._instance()['snapshot']['version']} holds the change"

    def _taken(self) -> str:
        lost = self._writer()
        self._world("POST", f"/rentals/{lost['label']}/fault", json={"kind": "lose"})
        self._wait(lambda: self._instance()["state"] != "running", "the loss to be noticed")
        self._until("running")
        self._same(Path(self._writer()["workspace"]))
        return f"from {lost['label']} to {self._writer()['label']}, byte-identical to the newest verified snapshot"

    def _protect(self) -> str:
        """From here on the instance has a standby."""
        self._put("/standby", {"instance_id": self.instance, "standby": True}, 202)
        self._wait(lambda: self._instance()["protection"] == "mirrored", "the standby to be in sync", BACK_WITHIN_S)
        # it watches from the GPU's first beat on that it hears as its mirror; before that, silence means little
        self._wait(self._is_watched, "the standby to watch its GPU")
        (standby,) = self._get(f"/standby?instance={self.instance}")["items"]
        address = self._instance()["address"]
        self._wait(lambda: self.shell.says(address, "echo in") == "in", "a shell at the standby's address")
        return (
            f"{standby['zone']}, an estimated {standby['estimated_rtt_ms']} ms away, {standby['usd_per_month']} USD a "
            f"month; a shell at {address['host']} is on the GPU"
        )

    def _dies(self) -> str:
        """Saved as an editor saves; the next moment the machine is gone, without a word."""
        gpu, address = self._writer(), self._instance()["address"]
        root, mirror = Path(gpu["workspace"]), self._mirror()
        mirrored_s = _seconds_until(lambda: _save(root / EDITED, "the last save\n"), mirror / EDITED, "the last save\n")
        self._world("POST", f"/rentals/{gpu['label']}/fault", json={"kind": "kill"})
        began = time.monotonic()
        self._wait(
            lambda: self.shell.says(address, f"cat {mirror / EDITED}") == "the last save", "a shell that answers"
        )
        shell_s = time.monotonic() - began
        self._wait(lambda: self._instance()["state"] == "on_standby", "the record to agree")
        agreed_s = time.monotonic() - began
        _save(mirror / EDITED, "written on the standby\n")
        self.tree = material.look(mirror)
        self.result.update(save_s=round(mirrored_s, 3), shell_s=round(shell_s, 2), on_standby_s=round(agreed_s, 2))
        return (
            f"the save was on the standby after {mirrored_s * 1000:.0f} ms; a new shell, same address and host key, "
            f"showed it {shell_s:.2f} s after the death; on record after {agreed_s:.2f} s"
        )

    def _back(self) -> str:
        """Nobody works on the standby: it hands back as soon as another GPU has everything."""
        began = time.monotonic()
        self._until("running", BACK_WITHIN_S)
        back_s = time.monotonic() - began
        root, address = Path(self._writer()["workspace"]), self._instance()["address"]
        self._same(root)
        _check(
            (root / EDITED).read_text() == "written on the standby\n", "what was written on the standby is not there"
        )
        self._wait(lambda: self.shell.says(address, "echo in") == "in", "a shell on the new GPU")
        self.result.update(back_s=round(back_s, 2))
        return f"{self._writer()['label']} has everything after {back_s:.1f} s; the shell is there again"

    def _is_watched(self) -> bool:
        status = self._mirror().parent / "dumont" / "status.json"
        return status.exists() and bool(json.loads(status.read_text()).get("is_watched"))

    def _mirror(self) -> Path:
        """The standby's workspace."""
        return next(Path(row["workspace"]) for row in self._rentals() if row["provider"] == "gcp")

    def _terminate(self) -> str:
        self._post(f"/instances/{self.instance}/terminate", {"discard": False}, 202)
        self._until("terminated")
        self._wait(lambda: not self._rentals(), "every rental to be gone")
        self.result["rentals_left"] = len(self._rentals())
        self.result["identical"] = True
        return "last snapshot verified, nothing is left running"

    def _money(self) -> str:
        self._wait(self._all_settled, "the bills to be settled")
        ledger, metered, seconds = self._books()
        bill = self._bill()
        computed = self._computed()
        of_google = {rental["label"] for rental in self._store("rentals") if rental["kind"] == "standby"}
        # the simulated Google bills machines, disks and addresses; traffic comes a day late on the real one's bill
        untold = {key for key in {*ledger, *metered} if key[0] in of_google and key[1].startswith("bandwidth")}
        for key in (set(bill) | set(ledger) | set(metered)) - untold:
            billed, slack = bill.get(key, Decimal(0)), seconds.get(key, Decimal(0)) * SECOND + Decimal("0.000001")
            off = abs(ledger.get(key, Decimal(0)) - billed)
            _check(off <= (slack if key in computed else 0), f"the ledger of {key} is not the bill: off by {off} USD")
            off = abs(metered.get(key, Decimal(0)) - billed)
            _check(off <= slack, f"metered {key}: off by {off} USD; {self._meter_of(key[0])}")
        published = {"ledger_usd": ledger, "metered_usd": metered, "provider_usd": bill}
        self.result.update({name: _total(table, set(table) - computed) for name, table in published.items()})
        # a market that publishes no bill: the ledger's own computation beside the simulator's count
        unpublished = {"computed_usd": ledger, "unpublished_usd": bill}
        self.result.update({name: _total(table, set(table) & computed) for name, table in unpublished.items()})
        return ", ".join(f"{name} {self.result[name]}" for name in [*published, *unpublished])

    def _meter_of(self, label: str) -> str:
        """When it ran by our own records, for who looks for what is wrong."""
        return next(
            (str(rental["meter"]) for rental in self._store("rentals") if rental["label"] == label), "no record"
        )

    def _bill(self) -> dict[tuple[str, str], Decimal]:
        """The markets' own, per (rental, kind). Google's row of a machine's address is part of our rate for it."""
        bill: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
        known = {rental["label"] for rental in self._store("rentals")}
        for row in self._world("GET", "/bills").json():
            label, kind = row["key"]
            if kind == "address" and label not in known:
                continue  # it waited for its machine, or outlived it, for seconds
            bill[label, "gpu" if kind == "address" else kind] += Decimal(row["usd"])
        return dict(bill)

    # --- looking

    def _get(self, path: str) -> Any:
        answer = self._call("GET", path)
        _check(answer.status_code == 200, f"GET {path}: {answer.status_code} {answer.text[:300]}")
        return answer.json()

    def _post(self, path: str, body: dict[str, Any], status: int, headers: dict[str, str] | None = None) -> Any:
        """Every POST carries an Idempotency-Key, so that it may be repeated when the answer was lost."""
        key = {"Idempotency-Key": secrets.token_hex(8)}
        answer = self._call("POST", path, json=body, headers=key | (headers or {}))
        _check(answer.status_code == status, f"POST {path}: {answer.status_code} {answer.text[:300]}")
        return answer.json()

    def _put(self, path: str, body: dict[str, Any], status: int) -> Any:
        answer = self._call("PUT", path, json=body, headers={"Idempotency-Key": secrets.token_hex(8)})
        _check(answer.status_code == status, f"PUT {path}: {answer.status_code} {answer.text[:300]}")
        return answer.json()

    def _call(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Asked again while nobody answers: a control plane that died is started again."""
        deadline = time.monotonic() + ANSWER_WITHIN_S
        while True:
            try:
                return self.api.request(method, path, **more)
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)

    def _instance(self) -> Any:
        return self._get(f"/instances/{self.instance}")

    def _rentals(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self._world("GET", "/rentals").json()
        return rows

    def _world(self, method: str, path: str, **more: Any) -> httpx.Response:
        deadline = time.monotonic() + ANSWER_WITHIN_S
        while True:
            try:
                return self.world.request(method, path, **more).raise_for_status()
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)

    def _writer(self) -> dict[str, Any]:
        serving = [r["label"] for r in self._instance()["rentals"] if r["state"] == "serving"]
        return next(row for row in self._rentals() if row["label"] in serving)

    def _billing(self) -> list[str]:
        return [row["label"] for row in self._rentals() if Decimal(row["usd_per_hour"]) > 0]

    def _gpu(self, label: str, percent: float) -> None:
        self._world("POST", f"/gpu/{label}", json={"percent": percent})

    def _until(self, state: str, within_s: float = STEP_WITHIN_S) -> Any:
        self._wait(lambda: self._instance()["state"] in (state, "failed"), f"state {state}", within_s)
        shown = self._instance()
        _check(shown["state"] == state, f"{shown['state']}: {shown['failure']}")
        return shown

    def _wait(self, condition: Callable[[], bool], what: str, within_s: float = STEP_WITHIN_S) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > deadline:
                raise CheckFailed(f"waited {within_s:.0f} s for {what}; it is {self._instance()['state']}")
            time.sleep(POLL_S)

    def _same(self, root: Path) -> None:
        found = material.look(root)
        _check(found == self.tree, f"the tree differs: {found} is not {self.tree}")

    def _store(self, collection: str) -> list[dict[str, Any]]:
        """The instance's records, read beside the running control plane."""
        store = SqliteStore(str(self.folder / "store.db"))
        try:
            return [doc.data for doc in store.query(collection, [("instance_key", "==", self._key())])]
        finally:
            store.close()

    def _key(self) -> str:
        return str(self._documents("instances")[0]["account"]) + "." + self.instance

    def _documents(self, collection: str) -> list[dict[str, Any]]:
        id = "self" if collection == "deployment" else None
        store = SqliteStore(str(self.folder / "store.db"))
        try:
            found = [store.get(collection, id)] if id else store.query(collection, [("active", "==", True)])
            found = found or store.query(collection, [("active", "==", False)])
            return [doc.data for doc in found if doc]
        finally:
            store.close()

    def _taken_at(self, manifest_key: str) -> datetime:
        """When the snapshot began, as its authenticated manifest says."""
        drawn = self._documents("deployment")[0]
        wrapping = Deployment(drawn["id"], bytes.fromhex(drawn["key"])).derive("wrap", "data keys")
        wrapped = self._documents("instances")[0]["data_key"]
        key = auth.unwrap(wrapped, self._key(), under=auth.wrapping_key(wrapping))
        objects = S3(
            endpoint=self.facts["s3"],
            bucket=self.facts["bucket"],
            key_id=self.facts["s3_access_key"],
            secret=self.facts["s3_secret_key"],
            region="us-east-1",
        )
        try:
            return datetime.fromisoformat(engine.load_manifest(objects, manifest_key, key).taken_at)
        finally:
            objects.close()

    def _all_settled(self) -> bool:
        return all(rental["settled"] for rental in self._store("rentals"))

    def _books(self) -> tuple[dict[Any, Decimal], dict[Any, Decimal], dict[Any, Decimal]]:
        """(ledger, metered, USD of tolerance), each per (rental, kind): a second, and what nobody could count yet."""
        ledger: dict[Any, Decimal] = {}
        for data in self._store("ledger"):
            entry = LedgerEntry.model_validate(data)
            key = (entry.label, entry.kind)
            ledger[key] = ledger.get(key, Decimal(0)) + to_usd(entry.micro_usd)
        metered, tolerance = {}, {}
        for data in self._store("rentals"):
            rental = Rental.model_validate(data)
            uncounted = {"bandwidth_down": rental.offer.download_usd_per_gb * BOOT_GB}
            if rental.is_standby:  # nobody tells when Google's operations ended; an address has no least of a minute
                uncounted |= {kind: OPERATIONS_S * rental.usd_per_second(kind) for kind in ("gpu", "disk")}
                uncounted["gpu"] += MINUTE_OF_ADDRESS_USD
            for kind, usd in rental.metered_usd(now()).items():
                metered[rental.label, kind] = usd
                tolerance[rental.label, kind] = rental.usd_per_second(kind) + uncounted.get(kind, Decimal(0))
        return {k: v for k, v in ledger.items() if v}, metered, tolerance

    def _computed(self) -> set[tuple[str, str]]:
        """(rental, kind) of those whose provider publishes no bill."""
        entries = [LedgerEntry.model_validate(data) for data in self._store("ledger")]
        return {(entry.label, entry.kind) for entry in entries if entry.source == "computed"}

    def _table(self) -> None:
        if self.quiet:
            return
        table = Table("step", "seconds")
        for step in self.steps:
            table.add_row(step["name"], f"{step['seconds']:.2f}")
        err.print(table)
        times = Table("setting", "here", "production")
        for name, here, production in timing_table(DEMO_TIMING):
            times.add_row(name, f"{here:g} s", f"{production:g} s")
        err.print(times)


class Shell:
    """The user's ssh: a key of their own, and one address that they know by its host key."""

    def __init__(self, folder: Path) -> None:
        self._key, self._known = folder / "user.key", folder / "known_hosts"
        if not self._key.exists():
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "user", "-f", str(self._key)]
            subprocess.run(words, check=True, stdin=subprocess.DEVNULL)

    @property
    def public_key(self) -> str:
        return self._key.with_suffix(".key.pub").read_text().strip()

    def says(self, address: dict[str, Any], command: str) -> str | None:
        """What the command prints there; None: nobody let us in. A host key that changes is an error like any other."""
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": "3",
            "StrictHostKeyChecking": "yes" if self._known.exists() else "accept-new",
            "UserKnownHostsFile": str(self._known),
            "IdentitiesOnly": "yes",
        }
        words = ["ssh", "-F", "/dev/null", "-i", str(self._key), "-p", str(address["port"])]
        words += [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        user = pwd.getpwuid(os.geteuid()).pw_name
        try:
            done = subprocess.run(
                [*words, f"{user}@{address['host']}", command], capture_output=True, text=True, timeout=10
            )
        except subprocess.TimeoutExpired:
            return None
        return done.stdout.strip() if done.returncode == 0 else None


def can_stand_by() -> bool:
    """Can this computer play a standby? It takes root, for machines of their own, and the programs of one."""
    programs = ("haproxy", "sshd", "ssh", "ssh-keygen")
    return can_be_apart() and all(shutil.which(name) or shutil.which(name, path=SBIN) for name in programs)


def _save(file: Path, text: str) -> None:
    """As editors do: a new file, then its name."""
    new = file.with_name(file.name + ".new")
    new.write_text(text)
    new.replace(file)


def _seconds_until(do: Callable[[], None], file: Path, text: str) -> float:
    """From the save to the moment at which the file has that text; raises `CheckFailed`."""
    began = time.monotonic()
    do()
    while time.monotonic() - began < SAVED_WITHIN_S:
        if file.exists() and file.read_text() == text:
            return time.monotonic() - began
        time.sleep(0.001)
    raise CheckFailed(f"{file.name} was not on the standby within {SAVED_WITHIN_S} s")


def _check(held: bool, otherwise: str) -> None:
    if not held:
        raise CheckFailed(otherwise)


def _total(table: dict[Any, Decimal], keys: set[Any]) -> str:
    return str(round(sum((table.get(key, Decimal(0)) for key in keys), Decimal(0)), 6))


if __name__ == "__main__":
    typer.run(command)

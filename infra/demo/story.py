"""`dumont demo`: the whole story against a `dumont up` of its own, every step checked and measured."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from common.bootstrap import now
from infra.demo import books, material
from infra.demo.drive import CheckFailed, Drive, check
from infra.demo.shell import Shell, can_stand_by
from infra.local.config import DEMO_TIMING, timing_table

GPU = "H100 SXM"
USD_PER_HOUR_MIN = Decimal("1.50")
BACK_WITHIN_S = 300.0
"""A GPU is rented, filled with the whole workspace and told to be equal, on this very computer."""
SAVED_WITHIN_S = 10.0
EDITED = "thesis.tex"
"""In the workspace: what the user edits when the GPU dies."""
err = Console(stderr=True)


def command(
    keep: Annotated[bool, typer.Option("--keep", help="Leave it up, with URL, user and key printed.")] = False,
    state: Annotated[Path | None, typer.Option(help="State directory; a new one below .dumont by default.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Only the last line.")] = False,
    standby: Annotated[
        bool, typer.Option("--standby/--no-standby", help="And the GPU dies while a file is edited.")
    ] = True,
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
class Story(Drive):
    """Its chapters in their order; each checks what it says and raises `CheckFailed`."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    shell: Shell = field(init=False)
    tree: material.Tree = field(init=False)
    result: dict[str, Any] = field(default_factory=dict)

    def play(self) -> bool:
        """True only if every check held. The last line of stdout is the result as JSON."""
        chapters: list[tuple[str, Callable[[], str]]] = [
            ("start", self.start),
            ("sign in and list offers", self.sign_in),
            ("deploy by race", self.deploy),
            ("write the workspace", self.write),
            ("idle: hibernated by itself", self.idle),
            ("wake on another machine", self.wake),
            ("work goes on, periodic snapshot", self.work),
            ("machine taken: back by itself", self.taken),
            *self._of_the_standby(),
            ("terminate", self.terminate),
            ("compare the money", self.money),
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
            ("mirrored to a standby", self.protect),
            ("the GPU dies while a file is edited", self.dies),
            ("back on a GPU by itself", self.back),
        ]

    # --- the chapters

    def sign_in(self) -> str:
        session = self.post("/auth/login", {"email": self.facts["user"], "password": self.facts["password"]}, 200)
        self.api.headers["Authorization"] = f"Bearer {session['access_token']}"
        offers = self.get(f"/offers?gpu={GPU}")["items"]
        check(len(offers) >= 5, f"{len(offers)} offers of {GPU}, not 5")
        return f"{len(offers)} offers of {GPU} from {offers[0]['usd_per_hour'][:6]} USD/h"

    def deploy(self) -> str:
        body = {"gpu": GPU, "strategy": "race", "name": "demo", "disk_gb": 64, "standby": False}
        if self.with_google:
            self.shell = Shell(self.folder)
            body["ssh_public_key"] = self.shell.public_key
        plan = self.post("/instances/plan", body, 200)
        check(Decimal(plan["usd_per_hour"]) >= USD_PER_HOUR_MIN, f"{plan['usd_per_hour']} USD/h is below the story's")
        headers = {"Idempotency-Key": "the-demo"}
        operation = self.post("/instances/provision", body, 202, headers)["operation"]
        again = self.post("/instances/provision", body, 202, headers)["operation"]
        check(again["id"] == operation["id"], "the same Idempotency-Key started a second operation")
        self.instance = operation["instance_id"]
        shown = self.until("running")
        label, race = self.writer()["label"], shown["race"]
        price = next(r["usd_per_hour"] for r in shown["rentals"] if r["label"] == label)
        seconds, usd = sum(loser["seconds"] for loser in race["losers"]), Decimal(race["losers_usd"])
        return (
            f"{price[:6]} USD/h, ready after {race['ready_after_s']:.1f} s; {len(race['losers']) + 1} of "
            f"{race['rentals']} started, the losers took {seconds:.1f} machine seconds and {usd:.4f} USD"
        )

    def write(self) -> str:
        root = Path(self.writer()["workspace"])
        material.write(root, seed=1)
        tree = material.look(root)
        self.result.update(files=tree.files, bytes=tree.bytes)
        check(tree.files >= material.FILES_MIN, f"{tree.files} files")
        check(tree.bytes >= material.BYTES_MIN, f"{tree.bytes} bytes")
        self.tree = tree
        return f"{tree.files} files, {tree.bytes / 2**30:.2f} GiB"

    def idle(self) -> str:
        self.load_gpu(self.writer()["label"], 0)
        self.until("hibernated")
        check(not self.billing(), f"something still bills: {self.billing()}")
        snapshot = self.shown()["snapshot"]
        return f"snapshot of {snapshot['files']} files verified, machine destroyed, nothing bills"

    def wake(self) -> str:
        before = self.shown()["race"]
        self.post(f"/instances/{self.instance}/wake", {}, 202)
        self.until("running")
        writer = self.writer()
        check(before["winner"] != writer["label"], "it is the same rental")
        self.same(Path(writer["workspace"]))
        return f"byte-identical on {writer['label']}"

    def work(self) -> str:
        root = Path(self.writer()["workspace"])
        before = self.shown()["snapshot"]
        material.change(root, seed=2)
        self.tree = material.look(root)
        written_at = now()

        def covered() -> bool:
            snapshot = self.shown()["snapshot"]
            newer = snapshot and (not before or snapshot["id"] != before["id"])
            return bool(newer and self.taken_at(snapshot["manifest_key"]) >= written_at)

        self.wait(covered, "a periodic snapshot taken after the change")
        return f"snapshot {self.shown()['snapshot']['version']} holds the change"

    def taken(self) -> str:
        lost = self.writer()
        self.in_world("POST", f"/rentals/{lost['label']}/fault", json={"kind": "lose"})
        self.wait(lambda: self.shown()["state"] != "running", "the loss to be noticed")
        self.until("running")
        self.same(Path(self.writer()["workspace"]))
        return f"from {lost['label']} to {self.writer()['label']}, byte-identical to the newest verified snapshot"

    def protect(self) -> str:
        """From here on the instance has a standby."""
        self.put("/standby", {"instance_id": self.instance, "standby": True}, 202)
        self.wait(lambda: self.shown()["protection"] == "mirrored", "the standby to be in sync", BACK_WITHIN_S)
        # it watches from the GPU's first beat on that it hears as its mirror; before that, silence means little
        self.wait(self.is_watched, "the standby to watch its GPU")
        (standby,) = self.get(f"/standby?instance={self.instance}")["items"]
        address = self.shown()["address"]
        self.wait(lambda: self.shell.says(address, "echo in") == "in", "a shell at the standby's address")
        return (
            f"{standby['zone']}, an estimated {standby['estimated_rtt_ms']} ms away, {standby['usd_per_month']} USD a "
            f"month; a shell at {address['host']} is on the GPU"
        )

    def dies(self) -> str:
        """Saved as an editor saves; the next moment the machine is gone, without a word."""
        gpu, address = self.writer(), self.shown()["address"]
        root, mirror = Path(gpu["workspace"]), self.mirror()
        mirrored_s = _seconds_until(lambda: _save(root / EDITED, "the last save\n"), mirror / EDITED, "the last save\n")
        self.in_world("POST", f"/rentals/{gpu['label']}/fault", json={"kind": "kill"})
        began = time.monotonic()
        self.wait(lambda: self.shell.says(address, f"cat {mirror / EDITED}") == "the last save", "a shell that answers")
        shell_s = time.monotonic() - began
        self.wait(lambda: self.shown()["state"] == "on_standby", "the record to agree")
        agreed_s = time.monotonic() - began
        _save(mirror / EDITED, "written on the standby\n")
        self.tree = material.look(mirror)
        self.result.update(save_s=round(mirrored_s, 3), shell_s=round(shell_s, 2), on_standby_s=round(agreed_s, 2))
        return (
            f"the save was on the standby after {mirrored_s * 1000:.0f} ms; a new shell, same address and host key, "
            f"showed it {shell_s:.2f} s after the death; on record after {agreed_s:.2f} s"
        )

    def back(self) -> str:
        """Nobody works on the standby: it hands back as soon as another GPU has everything."""
        began = time.monotonic()
        self.until("running", BACK_WITHIN_S)
        back_s = time.monotonic() - began
        root, address = Path(self.writer()["workspace"]), self.shown()["address"]
        self.same(root)
        check((root / EDITED).read_text() == "written on the standby\n", "what was written on the standby is not there")
        self.wait(lambda: self.shell.says(address, "echo in") == "in", "a shell on the new GPU")
        self.result.update(back_s=round(back_s, 2))
        return f"{self.writer()['label']} has everything after {back_s:.1f} s; the shell is there again"

    def is_watched(self) -> bool:
        status = self.mirror().parent / "dumont" / "status.json"
        return status.exists() and bool(json.loads(status.read_text()).get("is_watched"))

    def mirror(self) -> Path:
        """The standby's workspace."""
        return next(Path(row["workspace"]) for row in self.rentals() if row["provider"] == "gcp")

    def terminate(self) -> str:
        self.post(f"/instances/{self.instance}/terminate", {"discard": False}, 202)
        self.until("terminated")
        self.wait(lambda: not self.rentals(), "every rental to be gone")
        self.result["rentals_left"] = len(self.rentals())
        self.result["identical"] = True
        return "last snapshot verified, nothing is left running"

    def money(self) -> str:
        self.wait(self.is_settled, "the bills to be settled")
        read = books.read(self)
        read.compare()
        totals = read.totals()
        self.result.update(totals)
        return ", ".join(f"{name} {usd}" for name, usd in totals.items())

    def same(self, root: Path) -> None:
        found = material.look(root)
        check(found == self.tree, f"the tree differs: {found} is not {self.tree}")

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


if __name__ == "__main__":
    typer.run(command)

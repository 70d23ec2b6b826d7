"""The agent of a machine of a pair: it hears the record's words, writes them down in order, and says what it has."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from common.domain.host import Door, HostPhase, Order, Pair, Reply, StorageCredentials, Sync, Wanted
from common.domain.version import Version
from common.host import pair
from common.host.agent import Agent
from common.host.children import Children, started
from common.host.epoch import Epoch
from common.host.pair import Kept
from common.host.ports import Ports
from common.host.programs import GpuPrograms, StandbyPrograms
from common.host.samples import Looks
from common.host.tunnel import AUTHORIZED, USER_HOST_KEY, address_of
from tests.unit.host.test_agent import Control, Work, Writers

GPU, STANDBY = "dumont-d-i-1-aaaaaaaa", "dumont-d-i-2-bbbbbbbb"
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
PLACE = StorageCredentials(endpoint="http://s3", bucket="b", prefix="p/", access_key="a", secret_key="s")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKq5xYcBzJ0Q0u7q0rK8p1cC1sT1v3n0m9p0o8i7u6y5"
PAIR = Pair(epoch=3, writer=GPU, mirror=STANDBY, standby=STANDBY, key="00" * 32, tunnel_keys={GPU: KEY})


class Programs:
    """Runs nothing, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.followed: list[Kept] = []
        self.said: list[str] = []
        self.seq = 40

    def follow(self, kept: Kept) -> None:
        self.followed.append(kept)

    def tend(self) -> None:
        self.said.append("tend")

    def pids(self) -> frozenset[int]:
        return frozenset()

    def sync(self) -> Sync | None:
        return Sync(epoch=3, seq=self.seq, is_whole=True, peer=STANDBY)

    def mark(self, above: int) -> int:
        return max(above, self.seq) + 1

    def tunnel_key(self) -> str | None:
        return KEY

    def door(self) -> Door | None:
        return None

    def farewell(self) -> None:
        self.said.append("farewell")

    def stop(self) -> None:
        self.said.append("stop")


class Host:
    def __init__(self, home: Path, label: str) -> None:
        (home / "token").write_text(json.dumps({"token": "t"}))
        self.home, self.label, self.programs = home, label, Programs()
        self.control, self.now = Control(reply()), START
        self.tasks: list[dict[str, Any]] = []
        self.start()

    def start(self) -> None:
        self.agent = Agent(
            label=self.label,
            home=self.home,
            workspace=self.home,
            control=self.control,
            writers=Writers(),
            looks=Looks(gpu_file=self.home / "gpu"),
            stop_machine=lambda: None,
            spawn=self._spawn,
            programs=self.programs,
        )

    def hears(self, answer: Reply) -> None:
        self.control.reply = answer
        self.agent.next_beat_at = None
        for _ in range(3):
            self.now += timedelta(seconds=1)
            self.agent.step(self.now)

    def _spawn(self, task: dict[str, Any], _home: Path) -> Any:
        self.tasks.append(task)
        return Work(Order.model_validate(task["order"]), task["epoch"], task)


def reply(**changes: Any) -> Reply:
    plain: dict[str, Any] = {"rev": 1, "phase_wanted": Wanted.WAIT, "epoch": 3, "token": "t", "next_in_s": 60}
    return Reply(**{**plain, **changes})


@pytest.fixture
def gpu(tmp_path: Path) -> Host:
    return Host(tmp_path, GPU)


@pytest.fixture
def standby(tmp_path: Path) -> Host:
    return Host(tmp_path, STANDBY)


def test_a_machine_of_no_pair_writes_nothing_of_one_down(gpu: Host) -> None:
    gpu.hears(reply(phase_wanted=Wanted.SERVE))

    assert not gpu.programs.followed
    assert pair.read(gpu.home) is None
    assert not (gpu.home / "role.json").exists()


def test_the_records_words_are_on_the_disk_before_the_programs_follow_them(gpu: Host) -> None:
    gpu.hears(reply(rev=5, pair=PAIR, phase_wanted=Wanted.SERVE))

    (kept,) = set_of(gpu.programs.followed)
    assert pair.read(gpu.home) == kept
    assert (kept.rev, kept.epoch, kept.writer, kept.key) == (5, 3, GPU, "00" * 32)
    role = Epoch(gpu.home, GPU).read()
    assert role.may_acknowledge
    assert (role.view.rev, role.view.epoch) == (5, 3)
    assert (gpu.home / pair.FILE).stat().st_mode & 0o077 == 0


def set_of(followed: list[Kept]) -> list[Kept]:
    return [kept for n, kept in enumerate(followed) if kept not in followed[:n]]


def test_an_older_word_that_arrives_late_changes_nothing(gpu: Host) -> None:
    gpu.hears(reply(rev=5, pair=PAIR))
    gpu.hears(reply(rev=4, pair=PAIR.model_copy(update={"epoch": 2, "writer": STANDBY, "key": "11" * 32})))

    kept = pair.read(gpu.home)
    assert kept
    assert (kept.rev, kept.key) == (5, "00" * 32)
    assert Epoch(gpu.home, GPU).read().view.writer == GPU


def test_a_door_that_is_found_later_is_followed_though_the_record_did_not_move(gpu: Host) -> None:
    gpu.hears(reply(rev=5, pair=PAIR))
    door = Door(host="192.0.2.1", ssh_port=2200, udp_port=7946, host_key=KEY)
    gpu.hears(reply(rev=5, pair=PAIR.model_copy(update={"door": door})))

    kept = pair.read(gpu.home)
    assert kept
    assert kept.door == door.model_dump()
    assert gpu.programs.followed[-1] == kept


def test_an_agent_that_was_started_anew_follows_the_last_word_at_once(gpu: Host) -> None:
    gpu.hears(reply(rev=5, pair=PAIR))
    before = gpu.programs.followed[-1]
    gpu.programs = Programs()
    gpu.start()

    assert gpu.programs.followed == [before]


def test_an_instance_that_lost_its_standby_acknowledges_nothing_through_it(gpu: Host) -> None:
    gpu.hears(reply(rev=5, pair=PAIR, phase_wanted=Wanted.SERVE))
    gpu.hears(reply(rev=6, phase_wanted=Wanted.SERVE))

    role = Epoch(gpu.home, GPU).read()
    assert (role.view.writer, role.view.mirror, role.may_acknowledge) == (GPU, None, False)
    assert gpu.programs.followed[-1].door is None


def test_a_report_says_how_the_copy_stands_and_the_key_to_dial_with(gpu: Host) -> None:
    gpu.hears(reply(rev=5, pair=PAIR))
    gpu.hears(reply(rev=5, pair=PAIR))

    beat = gpu.control.heard[-1]
    assert (beat.sync.seq, beat.sync.is_whole, beat.sync.peer) == (40, True, STANDBY)
    assert (beat.tunnel_key, beat.claim, beat.door) == (KEY, None, None)


def test_a_snapshot_is_of_a_version_that_can_be_compared_with_what_the_mirror_took(gpu: Host) -> None:
    order = Order(id="s1", kind="snapshot", args={"instance_key": "00", "prefix": "p/"})
    gpu.hears(reply(rev=5, pair=PAIR, phase_wanted=Wanted.SERVE, orders=[order], storage_credentials=PLACE))

    assert gpu.tasks[0]["seq"] == 41
    assert gpu.agent.memory.seq == 41


def test_a_sealed_standby_claims_in_every_report_until_the_record_answers(standby: Host) -> None:
    standby.hears(reply(rev=5, pair=PAIR))
    epoch = Epoch(standby.home, STANDBY)
    with epoch.taking(3, GPU) as done:
        done(17, True)
    epoch.seal()
    for _ in range(2):
        standby.hears(reply(rev=5, pair=PAIR))
        claim = standby.control.heard[-1].claim
        assert claim
        assert (claim.epoch, claim.version_epoch, claim.version_seq) == (3, 3, 17)

    standby.hears(reply(rev=6, epoch=4, pair=PAIR.model_copy(update={"epoch": 4, "writer": STANDBY, "mirror": None})))
    standby.hears(reply(rev=6, epoch=4))
    assert standby.control.heard[-1].claim is None


def test_a_standby_that_is_told_to_restore_first_claims_with_the_pointers_version(standby: Host) -> None:
    standby.hears(reply(rev=5, pair=PAIR))
    epoch = Epoch(standby.home, STANDBY)
    with epoch.taking(3, GPU) as done:
        done(17, True)
    epoch.seal()
    args = {"manifest_key": "m", "seq": 30, "epoch": 3}
    order = Order(id="rewind-3", kind="rewind", args=args)
    standby.hears(reply(rev=6, pair=PAIR, orders=[order], storage_credentials=PLACE))
    standby.hears(reply(rev=6, pair=PAIR))

    claim = standby.control.heard[-1].claim
    assert claim
    assert (claim.epoch, claim.version_epoch, claim.version_seq) == (3, 3, 30)
    assert standby.agent.phase is HostPhase.READY  # it owns nothing before the record says so
    assert epoch.read().version == Version(epoch=3, seq=30)


def test_a_machine_that_is_told_to_stop_stops_its_programs(gpu: Host) -> None:
    gpu.hears(reply(rev=5, pair=PAIR))
    gpu.hears(reply(rev=6, phase_wanted=Wanted.STOP))

    assert "stop" in gpu.programs.said
    assert gpu.agent.phase is HostPhase.STOPPED


def test_a_standby_writes_down_whom_its_programs_let_in_and_says_where_to_dial(tmp_path: Path) -> None:
    programs = StandbyPrograms(tmp_path, STANDBY, Ports(), "192.0.2.7")
    kept = Kept(label=STANDBY, rev=1, epoch=3, writer=GPU, tunnel_keys={GPU: KEY}, ssh_host_key="the key\n")
    programs.follow(kept)

    assert address_of(GPU) in (tmp_path / AUTHORIZED).read_text()
    assert (tmp_path / USER_HOST_KEY).read_text() == "the key\n"
    door = programs.door()
    assert door
    assert (door.host, door.ssh_port, door.udp_port) == ("192.0.2.7", 2200, 7946)
    assert door.host_key.startswith("ssh-ed25519 ")
    programs.follow(Kept(label=STANDBY, rev=2, epoch=4))
    assert (tmp_path / AUTHORIZED).read_text() == ""


def test_only_the_writer_and_the_candidate_dial_and_only_the_writer_beats(tmp_path: Path) -> None:
    programs = GpuPrograms(tmp_path, GPU, Ports(), lambda: 0.0, workspace=tmp_path)
    door = Door(host="192.0.2.1", ssh_port=2200, udp_port=7946, host_key=KEY).model_dump()

    def wanted(**words: Any) -> set[str]:
        return set(programs._wanted(Kept(label=GPU, rev=1, epoch=3, key="00", door=door, **words)))

    assert wanted(writer=GPU) == {"tunnel", "beats", "livesync-send"}
    assert wanted(writer=STANDBY, cand=GPU) == {"tunnel"}  # it is being filled from the snapshot
    Epoch(tmp_path, GPU).restored(Version(epoch=3, seq=1))
    assert wanted(writer=STANDBY, cand=GPU) == {"tunnel", "livesync-receive"}
    assert wanted(writer=STANDBY) == set()  # a held one stays away


def test_a_standby_serves_while_it_is_the_writer_and_is_a_guest_again_after_the_hand_back(standby: Host) -> None:
    writer = PAIR.model_copy(update={"epoch": 4, "writer": STANDBY, "mirror": None})
    keep = Order(id="keep-4", kind="keep")
    standby.hears(reply(rev=6, epoch=4, pair=writer, phase_wanted=Wanted.SERVE, orders=[keep]))
    assert standby.agent.phase is HostPhase.SERVING
    standby.hears(reply(rev=7, epoch=4, pair=writer, phase_wanted=Wanted.FREEZE, fz="n"))
    assert standby.agent.phase is HostPhase.FROZEN

    standby.hears(reply(rev=8, epoch=5, pair=PAIR.model_copy(update={"epoch": 5})))
    assert standby.agent.phase is HostPhase.READY
    standby.start()
    assert standby.agent.phase is HostPhase.READY


def test_who_worked_on_a_standby_is_ended_when_its_role_goes_back(tmp_path: Path) -> None:
    programs = StandbyPrograms(tmp_path, STANDBY, Ports(), "192.0.2.7")
    here = Kept(label=STANDBY, rev=1, epoch=4, writer=STANDBY)
    children = Children(tmp_path, lambda: 0.0)
    children.want({"users": ["sh", "-c", "sleep 600 & wait"]})
    pen = children.pid("users")
    assert pen

    def users() -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{pen}/task/{pen}/children").read_text().split()]

    while not users():
        """It starts."""
    (user,) = users()
    code = "import sys; from pathlib import Path; from tests.unit.host.test_pair_of_agent import *;"
    code += "kept = Kept(label=STANDBY, rev=1, epoch=4, writer=sys.argv[2]);"
    code += "StandbyPrograms(Path(sys.argv[1]), STANDBY, Ports(), '').follow(kept)"
    try:
        run(code, tmp_path, GPU)  # it has never been the writer: nobody of its users is touched
        assert started(user)
        programs.follow(here)
        run(code, tmp_path, GPU)
        assert not started(user)
    finally:
        children.want({})
        while not children.is_idle:
            children.tend()


def run(code: str, *words: object) -> None:
    """In a process beside those below: nobody ends what belongs to its own line."""
    root = Path(__file__).resolve().parents[3]
    subprocess.run([sys.executable, "-c", code, *map(str, words)], cwd=root, check=True, timeout=30)


def test_the_file_itself_takes_no_older_word(tmp_path: Path) -> None:
    newer = Kept(label=GPU, rev=5, epoch=4)
    pair.keep(tmp_path, newer)
    pair.keep(tmp_path, Kept(label=GPU, rev=4, epoch=3))

    assert pair.read(tmp_path) == newer


def copy_of(epoch: int, seq: int) -> Order:
    return Order(id=f"copy-3-{epoch}-{seq}", kind="copy", args={"manifest_key": "p/m", "epoch": epoch, "seq": seq})


def test_a_candidate_that_holds_what_it_is_to_copy_is_not_set_back(gpu: Host) -> None:
    gpu.agent.epoch.restored(Version(epoch=3, seq=27))

    gpu.hears(reply(orders=[copy_of(3, 19)], storage_credentials=PLACE))

    assert not gpu.tasks
    assert gpu.agent.memory.last
    assert (gpu.agent.memory.last.id, gpu.agent.memory.last.ok) == ("copy-3-3-19", True)
    assert gpu.agent.epoch.read().version == Version(epoch=3, seq=27)


def test_after_a_copy_a_candidate_is_of_the_snapshots_version_whatever_it_had_taken_in_part(gpu: Host) -> None:
    epoch = gpu.agent.epoch
    epoch.restored(Version(epoch=3, seq=27))
    epoch.fill(is_on=False)  # a pass broke off: it is of that version in part

    gpu.hears(reply(orders=[copy_of(3, 19)], storage_credentials=PLACE))

    assert len(gpu.tasks) == 1
    assert (epoch.read().version, epoch.read().is_whole) == (Version(epoch=3, seq=19), True)

"""The order of what the watchdog does when the GPU is dead, and what it does when the door does not turn."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from common.domain.role import Claim, View
from common.domain.version import Version
from common.domain.watch import BEAT_EVERY_S, Beat, Side, State
from common.host import beats, notice, pair
from common.host.epoch import Epoch
from common.host.haproxy import Unavailable
from common.host.tunnel import address_of
from common.host.watchdog import Watchdog
from infra.local.ports import fresh_ports

GPU, ME = "dumont-d-i-1-aaaaaaaa", "dumont-d-i-2-bbbbbbbb"
KEY = secrets.token_bytes(32)
LEASE_S = 0.4
WITHIN_S = 20.0


class Box:
    """A standby's folder, a door that writes down when it was turned, and a control plane that takes every claim."""

    def __init__(self, home: Path) -> None:
        self.home, self.story = home, []
        self.stands: tuple[Side, str | None] | None = None
        self.lease_s = LEASE_S
        self.stuck = 0
        """So many times the door does not answer."""
        self.epoch = Epoch(home, ME)
        self.port = fresh_ports(1)[0]
        self.hear(rev=1, epoch=3, writer=GPU, mirror=ME)
        self.epoch.restored(Version(epoch=3, seq=9))

    story: list[tuple[str, object]]

    def hear(self, *, rev: int, epoch: int, writer: str | None, mirror: str | None, is_called: bool = False) -> None:
        words = {"rev": rev, "epoch": epoch, "writer": writer, "mirror": mirror}
        pair.keep(self.home, pair.Kept(label=ME, key=KEY.hex(), **words))  # type: ignore[arg-type]
        self.epoch.hear(View(is_called=is_called, **words))  # type: ignore[arg-type]

    async def turn(self, side: Side, gpu_address: str | None) -> None:
        self.story.append(("turn", (side, self.epoch.read().sealed)))
        if self.stuck > 0:
            self.stuck -= 1
            raise Unavailable("stuck")
        self.stands = (side, gpu_address)

    async def state(self) -> tuple[Side, str | None] | None:
        return self.stands

    async def post(self, claim: Claim) -> bool:
        self.story.append(("claim", claim))
        return True

    def tell(self, message: str) -> None:
        self.story.append(("tell", message))

    def watchdog(self) -> Watchdog:
        return Watchdog(  # type: ignore[arg-type]
            self.home,
            ME,
            self,
            self.post,
            self.port,
            "127.0.0.1",
            probe_port=1,
            fixed_lease_s=self.lease_s,
            tell=self.tell,
        )

    def beat(self, seq: int, state: State = State.UP) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
            line.sendto(beats.pack(Beat(epoch=3, label=GPU, seq=seq, state=state), KEY), ("127.0.0.1", self.port))

    @property
    def sealed(self) -> int | None:
        return self.epoch.read().sealed


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def played(box: Box, *acts: Callable[[], Awaitable[None]]) -> None:
    """One watchdog that runs while the acts do."""

    async def story() -> None:
        running = asyncio.create_task(box.watchdog().run())
        try:
            for act in acts:
                await act()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(asyncio.wait_for(story(), 2 * WITHIN_S))


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not what():
            await asyncio.sleep(0.005)


def attached(box: Box) -> Callable[[], Awaitable[None]]:
    async def act() -> None:
        await until(lambda: box.stands == (Side.GPU, address_of(GPU)))
        for seq in range(4):
            box.beat(seq)
            await asyncio.sleep(BEAT_EVERY_S)
        await until(lambda: notice.read(box.home).get("is_watched"))
        box.story.clear()

    return act


def test_it_is_sealed_on_the_disk_before_the_door_turns_then_the_user_is_told_then_it_claims(box: Box) -> None:
    async def act() -> None:
        await until(lambda: any(what == "claim" for what, _ in box.story))

    played(box, attached(box), act)

    assert [what for what, _ in box.story] == ["turn", "tell", "claim"]
    assert box.story[0][1] == (Side.STANDBY, 3)
    assert box.story[2][1] == Claim(epoch=3, version=Version(epoch=3, seq=9))
    assert box.stands == (Side.STANDBY, None)


def test_a_gpu_that_dies_in_the_moment_in_which_the_standby_becomes_its_mirror_is_missed_at_once(box: Box) -> None:
    """It was heard while the first copy was made; of the new view it says nothing any more."""
    box.hear(rev=2, epoch=3, writer=GPU, mirror=None)

    async def act() -> None:
        await asyncio.sleep(2 * LEASE_S)
        assert box.sealed is None, "it is nobody's mirror, and watches nobody"
        box.hear(rev=3, epoch=3, writer=GPU, mirror=ME)
        await until(lambda: box.stands == (Side.STANDBY, None))

    played(box, attached(box), act)

    assert box.sealed == 3
    assert notice.read(box.home)["reason"] == "silent"


def test_a_door_that_does_not_turn_is_tried_again_and_the_user_is_told_and_the_claim_made_meanwhile(box: Box) -> None:
    async def act() -> None:
        box.stuck = 4
        await until(lambda: box.stands == (Side.STANDBY, None))
        await until(lambda: any(what == "claim" for what, _ in box.story))

    played(box, attached(box), act)

    turns = [said for what, said in box.story if what == "turn"]
    assert turns == [(Side.STANDBY, 3)] * 5
    assert [what for what, _ in box.story if what != "turn"] == ["tell", "claim"]


def test_a_watchdog_that_is_started_over_a_sealed_standby_turns_the_door_and_claims_at_once(box: Box) -> None:
    box.epoch.seal()

    async def act() -> None:
        box.beat(10)  # the GPU is back, and says so
        await until(lambda: any(what == "claim" for what, _ in box.story))
        await until(lambda: box.stands == (Side.STANDBY, None))

    played(box, act)

    assert {said for what, said in box.story if what == "turn"} == {(Side.STANDBY, 3)}


def test_the_records_answer_ends_the_claim_and_gives_the_door_back(box: Box) -> None:
    async def act() -> None:
        await until(lambda: notice.read(box.home).get("state") == "provisional")
        box.hear(rev=2, epoch=4, writer=ME, mirror=None)
        await until(lambda: notice.read(box.home).get("state") == "standby")
        box.hear(rev=3, epoch=5, writer=GPU, mirror=ME)
        await until(lambda: box.stands == (Side.GPU, address_of(GPU)))

    played(box, attached(box), act)

    assert box.epoch.read().claim is None
    told = [said for what, said in box.story if what == "tell"]
    assert len(told) == len(set(told)) == 3


def test_a_standby_that_is_called_seals_though_the_gpu_beats(box: Box) -> None:
    async def act() -> None:
        box.hear(rev=2, epoch=3, writer=GPU, mirror=ME, is_called=True)
        await until(lambda: box.stands == (Side.STANDBY, None))

    box.lease_s = 2 * WITHIN_S
    played(box, attached(box), act)

    assert box.sealed == 3
    assert notice.read(box.home)["reason"] == "called"


def test_a_standby_that_is_being_compared_again_has_all_that_was_acknowledged_and_takes_over(box: Box) -> None:
    async def act() -> None:
        with box.epoch.taking(3, GPU) as done:
            done(10, False)
        await until(lambda: notice.read(box.home).get("state") == "provisional")

    played(box, attached(box), act)

    claim = box.epoch.read().claim
    assert claim is not None
    assert claim.epoch == 3
    assert claim.version.seq < 10  # what it was whole at: parts of something newer take nothing from that


def test_a_standby_into_which_a_snapshot_is_put_seals_nothing_and_turns_nothing_until_it_is_in_place(box: Box) -> None:
    async def act() -> None:
        box.epoch.fill(is_on=True)
        await until(lambda: notice.read(box.home)["state"] == "incomplete")
        await asyncio.sleep(2 * LEASE_S)
        assert box.sealed is None

    played(box, attached(box), act)

    assert all(what != "turn" or said[0] is Side.GPU for what, said in box.story)


def test_the_way_back_is_told_once_with_its_first_number(box: Box) -> None:
    async def act() -> None:
        await until(lambda: box.sealed == 3)
        box.hear(rev=2, epoch=4, writer=ME, mirror=None)
        await until(lambda: notice.read(box.home).get("state") == "standby")
        for rev, back_in_s in enumerate((60.0, 41.0, 20.0), start=3):
            kept = pair.Kept(label=ME, rev=rev, epoch=4, writer=ME, key=KEY.hex(), hand_back_in_s=back_in_s)
            pair.keep(box.home, kept)
            await asyncio.sleep(0.15)
            moments.append(datetime.fromisoformat(notice.read(box.home)["hand_back_at"]))
        box.hear(rev=6, epoch=4, writer=ME, mirror=None)
        await until(lambda: notice.read(box.home)["hand_back_at"] is None)

    moments: list[datetime] = []
    played(box, attached(box), act)

    assert len(set(moments)) == 1
    assert timedelta(seconds=30) < moments[0] - datetime.now(UTC) < timedelta(seconds=61)
    told = [str(said) for what, said in box.story if what == "tell"]
    assert [said for said in told if " s, and processes" in said] == [
        "A GPU machine is ready: you move to it in 60 s, and processes here are ended then."
    ]

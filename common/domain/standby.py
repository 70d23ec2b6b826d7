"""What becomes of an instance's standby and of its pair: decisions on the records alone. Pure.

The names of the rules (W2, D1, ...) are those of the decision page `standby`.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from common.domain.backoff import pause_s
from common.domain.host import ClaimReport, HostPhase, HostRecord, Pair
from common.domain.instance import Instance, Phase, Want
from common.domain.liveness import UNWRITTEN_TIMES
from common.domain.rental import Rental, RentalState
from common.domain.version import Version

TRIES_PAUSE_S = 60.0
TRIES_PAUSE_MAX_S = 3600.0
"""Between standbys that never came up; doubles up to here."""
STOPPED_MAX_S = 900.0
"""A standby that Google took and will not give back for so long is replaced."""
HANDOVER_MAX_S = 900.0
"""A hand-over that takes longer is called off: nobody can write meanwhile."""


def is_wanted(instance: Instance) -> bool:
    """May it have a standby now? One is rented only for an instance that runs."""
    return instance.spec.standby and instance.want is Want.UP and instance.drain is None


def claimed(claim: ClaimReport) -> Version:
    return Version(epoch=claim.version_epoch, seq=claim.version_seq)


def may_take_over(instance: Instance, claim: ClaimReport | None) -> bool:
    """Rule W2: a claim of exactly this epoch, while a GPU writes; whoever is late changes nothing."""
    is_of_now = claim is not None and claim.epoch == instance.epoch
    writes = instance.writer is not None and not instance.is_on_standby
    return is_of_now and writes and instance.phase in (Phase.UP, Phase.FREEZING)


def is_behind(instance: Instance, claim: ClaimReport) -> bool:
    """The pointer holds what the claimant lacks: it takes that first, and claims again."""
    return instance.pointer is not None and claimed(claim) < instance.pointer.version


def may_attach(instance: Instance, gpu: HostRecord | None, standby: HostRecord | None) -> bool:
    """Rule D2: in this very epoch the writer says that the standby equals it, and the standby says the same.

    One that does not hear its GPU, behind a firewall perhaps, would take its silence for its death.
    """
    if not instance.is_running or instance.mirror or instance.drain or gpu is None or standby is None:
        return False
    sent, taken = gpu.sync, standby.sync
    is_sent = sent.is_whole and sent.peer == instance.standby and sent.epoch == instance.epoch
    is_taken = taken.is_whole and taken.peer == instance.writer and taken.epoch == instance.epoch
    return is_sent and is_taken and taken.hears and standby.claim is None


def is_equal(instance: Instance, standby: HostRecord | None, candidate: HostRecord | None) -> bool:
    """The candidate has everything of the standby, which is frozen for this very hand-over (the label is the nonce).

    The standby says both in one report: that nobody writes on it any more, and that nothing is on its way.
    """
    if standby is None or candidate is None or instance.cand is None:
        return False
    is_frozen = standby.phase is HostPhase.FROZEN and standby.fz == instance.cand
    return is_frozen and standby.sync.backlog_files == 0 and is_copied(instance, standby, candidate)


def is_copied(instance: Instance, standby: HostRecord | None, candidate: HostRecord | None) -> bool:
    """The candidate follows the standby: what is written now is there moments later."""
    if standby is None or candidate is None or instance.cand is None:
        return False
    sent, taken = standby.sync, candidate.sync
    is_sent = sent.is_whole and sent.peer == instance.cand and sent.epoch == instance.epoch
    return is_sent and taken.is_whole and taken.peer == instance.standby and taken.epoch == instance.epoch


def wants_back(instance: Instance, standby: HostRecord | None, *, idle_for_s: float, now: datetime) -> bool:
    """The user agrees, or nobody works on the standby."""
    since = standby.idle_since if standby else None
    return instance.hand_back or (since is not None and now - since >= timedelta(seconds=idle_for_s))


def is_mute(instance: Instance, writer: HostRecord | None, *, for_s: float, now: datetime) -> bool:
    """The standby writes and was not heard for `for_s`: nothing can be handed back, and a GPU bills for nothing."""
    return instance.is_on_standby and writer is not None and writer.silent_for_s(now) > for_s


def is_lost(rental: Rental | None) -> bool:
    return rental is None or not rental.is_live or rental.state is RentalState.LOST


def is_reached(rental: Rental | None, standby: HostRecord | None, *, silent_after_s: float, now: datetime) -> bool:
    """Could it take over now? Not while Google has stopped it, nor when it has not been heard for long."""
    if rental is None or is_lost(rental) or rental.stopped_at is not None or standby is None:
        return False
    return standby.silent_for_s(now) <= silent_after_s * UNWRITTEN_TIMES


def next_try_at(instance: Instance, now: datetime) -> datetime:
    return now + timedelta(seconds=pause_s(TRIES_PAUSE_S, instance.standby_tries, max_s=TRIES_PAUSE_MAX_S))


def pair_of(instance: Instance, label: str, *, key: bytes, ssh_host_key: str, now: datetime) -> Pair | None:
    """The record's words to one machine of the pair; None = it is none of it."""
    is_of_pair = label in (instance.writer, instance.standby, instance.cand, instance.held)
    if instance.standby is None or not is_of_pair:
        return None
    is_standby = label == instance.standby
    until = instance.hand_back_at
    return Pair(
        epoch=instance.epoch,
        writer=instance.writer,
        mirror=instance.mirror,
        standby=instance.standby,
        cand=instance.cand,
        is_frozen=instance.phase in (Phase.FREEZING, Phase.HANDOVER),
        is_draining=instance.drain == "going",
        is_called=instance.called,
        refusals_of=instance.refusals_of,
        hand_back_in_s=max(0.0, (until - now).total_seconds()) if until else None,
        key=key.hex() if label != instance.held else "",
        door=None if is_standby or label == instance.held else instance.door,
        tunnel_keys=instance.tunnel_keys if is_standby else {},
        ssh_host_key=ssh_host_key if label != instance.held else "",
    )

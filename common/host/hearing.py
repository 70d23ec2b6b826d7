"""What the agent hears of its pair, and says of it: between the host protocol and what stands on this disk."""

from __future__ import annotations

from pathlib import Path

from common.domain.host import ClaimReport, Pair, Reply, Wanted
from common.domain.role import View
from common.host import pair
from common.host.epoch import Epoch


def hear(epoch: Epoch, home: Path, label: str, reply: Reply) -> pair.Kept | None:
    """Write down what the programs of this machine need first, then the record's words; None: it is of no pair.

    A machine whose instance has no standby any more is told of no pair, and acknowledges nothing through one.
    """
    if reply.pair is None and pair.read(home) is None:
        return None
    is_writer = reply.phase_wanted in (Wanted.SERVE, Wanted.FREEZE)
    said = reply.pair or Pair(epoch=reply.epoch, writer=label if is_writer else None)
    kept = pair.Kept(
        label=label,
        rev=reply.rev,
        epoch=said.epoch,
        writer=said.writer,
        mirror=said.mirror,
        standby=said.standby,
        cand=said.cand,
        key=said.key,
        door=said.door.model_dump() if said.door else None,
        tunnel_keys=said.tunnel_keys,
        ssh_host_key=said.ssh_host_key,
        hand_back_in_s=said.hand_back_in_s,
    )
    pair.keep(home, kept)
    epoch.hear(
        View(
            rev=reply.rev,
            epoch=said.epoch,
            writer=said.writer,
            mirror=said.mirror,
            standby=said.standby,
            cand=said.cand,
            is_frozen=said.is_frozen,
            is_draining=said.is_draining,
            is_called=said.is_called,
            refusals_of=said.refusals_of,
        )
    )
    return kept


def claim_of(epoch: Epoch) -> ClaimReport | None:
    """What a sealed standby says until the record answers."""
    claim = epoch.read().claim
    if claim is None:
        return None
    return ClaimReport(epoch=claim.epoch, version_epoch=claim.version.epoch, version_seq=claim.version.seq)


def is_guest(epoch: Epoch) -> bool:
    """A machine of a pair that is not the writer."""
    role = epoch.read()
    return role.view.rev > 0 and not role.is_writer

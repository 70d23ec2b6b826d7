"""Who may take, seal, claim and acknowledge: by the record's words and a machine's own seal, and by nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.domain.role import Claim, Role, View
from common.domain.version import Version

GPU, ME, OTHER = "dumont-d-i-1-aaaaaaaa", "dumont-d-i-2-bbbbbbbb", "dumont-d-i-3-cccccccc"
MIRROR = View(rev=5, epoch=3, writer=GPU, mirror=ME, standby=ME)


def mirror(**changes: object) -> Role:
    return Role(**{"label": ME, "view": MIRROR, "version": Version(epoch=3, seq=7), "is_whole": True, **changes})


def test_only_a_newer_view_is_heard() -> None:
    older = View(rev=5, epoch=9, writer=OTHER)

    assert mirror().heard(older) == mirror()
    assert mirror().heard(View(rev=6, epoch=4, writer=OTHER)).view.writer == OTHER


@pytest.mark.parametrize(("epoch", "label"), [(2, GPU), (4, GPU), (3, OTHER), (3, ME)])
def test_a_frame_of_another_epoch_or_writer_is_not_taken(epoch: int, label: str) -> None:
    assert mirror().may_take(3, GPU)
    assert not mirror().may_take(epoch, label)


def test_after_the_seal_no_frame_is_taken_and_the_claim_is_of_the_content_at_the_seal() -> None:
    sealed = mirror().seal()

    assert not sealed.may_take(3, GPU)
    assert sealed.claim == Claim(epoch=3, version=Version(epoch=3, seq=7))
    assert not sealed.may_seal


@pytest.mark.parametrize(
    "view",
    [
        View(rev=5, epoch=3, writer=GPU, standby=ME),  # not attached
        View(rev=5, epoch=3, writer=GPU, mirror=OTHER, standby=OTHER),
        View(rev=5, epoch=3, writer=ME, mirror=ME, standby=ME),
        View(rev=5, epoch=3),
    ],
)
def test_who_is_not_the_mirror_of_a_gpu_seals_nothing(view: View) -> None:
    role = mirror(view=view)

    assert not role.may_seal
    with pytest.raises(ValueError, match="no mirror"):
        role.seal()


def test_a_mirror_that_is_compared_again_may_seal_and_one_that_is_being_filled_may_not() -> None:
    assert mirror(is_whole=False).may_seal
    assert not mirror().filling(is_on=True).may_seal


def test_a_seal_ends_with_a_later_epoch_and_with_nothing_else() -> None:
    sealed = mirror().seal()

    same_epoch = View(rev=6, epoch=3, writer=GPU, mirror=ME, standby=ME)
    later = View(rev=7, epoch=4, writer=ME, standby=ME)
    assert sealed.heard(same_epoch).sealed == 3
    assert sealed.heard(later).sealed is None
    assert sealed.heard(later).is_writer


def test_who_sealed_in_vain_takes_nothing_over_what_was_done_here_until_the_record_has_it() -> None:
    view = View(rev=6, epoch=4, writer=GPU, mirror=ME, standby=ME, refusals_of=2)
    refused = mirror().seal().heard(view)

    assert refused.refused == 3
    assert refused.claim is None
    assert not refused.may_take(4, GPU)
    assert not refused.may_seal
    assert refused.heard(replace(view, rev=7)).refused == 3
    settled = refused.heard(replace(view, rev=8, refusals_of=3))
    assert settled.refused is None
    assert settled.may_take(4, GPU)
    assert not settled.is_whole, "what the branch holds is none of the writer's versions"


def test_who_became_the_writer_by_its_seal_was_not_refused() -> None:
    assert mirror().seal().heard(View(rev=6, epoch=4, writer=ME, standby=ME)).refused is None


def test_a_gpu_acknowledges_through_an_attached_mirror_alone_and_a_standby_never() -> None:
    attached = Role(label=GPU, view=MIRROR)

    assert attached.may_acknowledge
    assert not Role(label=GPU, view=View(rev=5, epoch=3, writer=GPU, standby=ME)).may_acknowledge
    assert not Role(label=GPU, view=View(rev=5, epoch=3, writer=GPU, mirror=ME, is_draining=True)).may_acknowledge
    assert not Role(label=ME, view=View(rev=5, epoch=4, writer=ME, standby=ME)).may_acknowledge


def test_versions_only_grow() -> None:
    assert mirror().took(Version(epoch=3, seq=8)).version.seq == 8
    with pytest.raises(ValueError, match="older"):
        mirror().took(Version(epoch=3, seq=6))

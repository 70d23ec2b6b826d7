"""Who may write, as a machine of a pair knows it: the record's words it last heard, and its own seal. Pure.

A pair is the GPU that writes and the standby that mirrors it. Every decision that keeps two machines from both
acknowledging (rules A1-A4, W2 and D2) is made here, on what the machine keeps on its own disk, and never on time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from common.domain.version import Version

NOTHING = Version(epoch=0, seq=0)


@dataclass(frozen=True, kw_only=True)
class View:
    """The instance's record as a machine last heard it."""

    rev: int = 0
    epoch: int = 0
    writer: str | None = None
    """Label of the machine that may write: a GPU's, or the standby's own."""
    mirror: str | None = None
    """Label of the standby that is attached; None = the writer acknowledges nothing through a mirror."""
    standby: str | None = None
    cand: str | None = None
    """Label of the GPU that a standby hands the role back to."""
    is_frozen: bool = False
    """The writer is to stop writing (a hibernation, or a hand-over under way)."""
    is_draining: bool = False
    """The standby is on its way out: what it takes is not acknowledged."""
    is_called: bool = False
    """The standby is to take over although the GPU lives."""
    refusals_of: int = 0
    """Of every epoch up to this one is known what a standby alone had that sealed it in vain."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a sealed standby says in every report until the record agrees or refuses."""

    epoch: int
    """The epoch that it sealed."""
    version: Version
    """Of its content at the seal: what it took since is not in it, for it took nothing."""


@dataclass(frozen=True, kw_only=True)
class Role:
    """What a machine of a pair keeps on its disk, and survives a restart with."""

    label: str
    view: View = View()
    version: Version = NOTHING
    """Of the content: the last frame that was fsynced and renamed."""
    is_whole: bool = False
    """The content equals some version entirely; False while a first or a repairing pass is under way."""
    sealed: int | None = None
    """The epoch that this standby gave up waiting for."""
    refused: int | None = None
    """The epoch that this standby sealed in vain: what was done here since then it alone has, as far as is known."""
    is_filling: bool = False
    """A snapshot is being put in place here: what comes from elsewhere meanwhile would be overwritten."""
    fillings: int = 0
    """How often that began: who sent before it knows no longer what stands here."""

    def heard(self, view: View) -> Self:
        """A view replaces an older one alone (rule A3); a new epoch ends a seal of an earlier one.

        It was in vain when the role went elsewhere: users have worked here since, on a branch that nobody else has,
        until the record says that it is kept, or cannot be.
        """
        if view.rev <= self.view.rev:
            return self
        heard = replace(self, view=view)
        if self.sealed is not None and view.epoch > self.sealed:
            heard = replace(heard, sealed=None, refused=None if view.writer == self.label else self.sealed)
        is_settled = heard.refused is not None and view.refusals_of >= heard.refused
        return replace(heard, refused=None, is_whole=False) if is_settled else heard

    def may_take(self, epoch: int, label: str) -> bool:
        """A frame of exactly the writer and the epoch that the record names, and of nobody once it has sealed.

        Nor over a branch that was refused, until the record has it.
        """
        view = self.view
        if self.is_filling or self.refused is not None:
            return False
        return self.sealed is None and (epoch, label) == (view.epoch, view.writer) and label != self.label

    @property
    def may_seal(self) -> bool:
        """Only who knows itself as the mirror of a GPU watches it (rule D2), and not while a snapshot is put in place.

        It was whole when it was attached, and has lost nothing since: a comparison that a restart of the sender began
        only adds to it. So it need not be over: what was acknowledged is here, under the version that is claimed.
        """
        view = self.view
        is_mirror = view.mirror == self.label and view.writer not in (None, self.label)
        return is_mirror and not self.is_filling and self.sealed is None and self.refused is None

    def seal(self) -> Self:
        """The GPU of this epoch is dead for me: my content stays what it is. Raises ValueError when it may not."""
        if not self.may_seal:
            raise ValueError(f"{self.label} is no mirror of epoch {self.view.epoch}, or is being filled")
        return replace(self, sealed=self.view.epoch)

    @property
    def claim(self) -> Claim | None:
        return None if self.sealed is None else Claim(epoch=self.sealed, version=self.version)

    @property
    def is_writer(self) -> bool:
        return self.view.writer == self.label

    @property
    def may_acknowledge(self) -> bool:
        """Of a GPU: what its mirror took is durable (rule A1). A standby acknowledges through the pointer alone."""
        view = self.view
        return self.is_writer and view.mirror not in (None, self.label) and not view.is_draining

    def filling(self, *, is_on: bool) -> Self:
        """A snapshot is put in place from now on, or no longer: either way nothing whole stands here until it is."""
        return replace(self, is_filling=is_on, is_whole=False, fillings=self.fillings + is_on)

    def wrote(self, version: Version) -> Self:
        """Of the writer: what it holds is its own content, whole, and at least of this version."""
        return replace(self, version=max(version, self.version), is_whole=True, is_filling=False)

    def took(self, version: Version, *, is_whole: bool | None = None) -> Self:
        """The content after a commit of frames; versions only grow. Raises ValueError for an older one.

        Parts of a newer version on top of a whole one take nothing from it: until the newer one is whole, this stays
        the older one. Who writes in the next epoch always went on from what was here; after a restore it is two on.
        """
        if version < self.version:
            raise ValueError(f"{version} is older than {self.version}")
        if is_whole is False and self.is_whole and version.epoch <= self.version.epoch + 1:
            return self
        return replace(self, version=version, is_whole=self.is_whole if is_whole is None else is_whole)

"""Plan, apply, destroy. What is there is what Google says: nothing is remembered between two runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from infra.deploy.archive import Archive
from infra.deploy.resource import Failed, Found, Kind, Pending, Spec, Step, compare
from infra.deploy.wanted import Target, wanted

LOOKS, LOOK_S = 240, 5.0
"""A long operation is looked at so often: 20 minutes, several times what a slow build takes."""
GRACE_LOOKS = 12
"""What still reads differently a minute after its write is shown, and not waited for any longer."""
LATE = ("index", "field")
"""Nothing that is made after them needs them: their minutes pass while the functions are built."""

Report = Callable[[Step], None]
Wishes = Mapping[str, Spec]


@dataclass(frozen=True)
class Deployer:
    target: Callable[[Sequence[str]], Target]
    """The target, given the names of the secrets that Google has."""
    archive: Archive
    kinds: Sequence[Kind]
    """In the order in which they are made; the interfaces first."""
    pause: Callable[[float], None]

    def plan(self) -> list[Step]:
        """What an apply would do now, in its order; nothing is changed."""
        found = self.look()
        wishes = self._wishes(found["secret"])
        return [step for kind in self.kinds for step in compare(wishes[kind.sort.name], found[kind.sort.name], kind)]

    def look(self) -> dict[str, dict[str, Found]]:
        """What there is. Where an interface is not switched on, there is nothing behind it."""
        apis, *others = self.kinds
        enabled = apis.present()
        asked = [kind for kind in others if kind.sort.api is None or kind.sort.api in enabled]
        nothing: dict[str, dict[str, Found]] = {kind.sort.name: {} for kind in others}
        return {apis.sort.name: enabled, **nothing, **{kind.sort.name: kind.present() for kind in asked}}

    def apply(self, report: Report) -> int:
        """Bring everything to what is wanted; returns how many changes were made.

        Killed at any point it goes on where it was when it is run again. Raises `Failed`, `GoogleRefused` and
        `GoogleSilent`; what was done before stays done.
        """
        made, secrets = 0, dict[str, Found]()
        doomed: list[tuple[Kind, Step]] = []
        late: list[tuple[Kind, list[Pending], Wishes]] = []
        for kind in self.kinds:
            found = self._quiet(kind)
            wishes = self._wishes(found if kind.sort.name == "secret" else secrets)[kind.sort.name]
            steps = compare(wishes, found, kind)
            doomed += [(kind, step) for step in steps if step.act == "delete"]
            over = [_done(kind, step, report) for step in steps if step.act in ("create", "change")]
            made += len(over)
            if kind.sort.name in LATE:
                late.append((kind, over, wishes))
            elif over or any(step.act == "wait" for step in steps):
                found = self._settle(kind, over, wishes)
            secrets = found if kind.sort.name == "secret" else secrets
        for kind, step in reversed(doomed):
            self._over(kind, [_done(kind, step, report)])
        for kind, over, wishes in late:
            self._settle(kind, over, wishes)
        return made + len(doomed)

    def destroy(self, report: Report, *, with_data: bool) -> int:
        """Delete what is ours, last made first; data stays unless it is asked for. Returns how much was deleted.

        Killed at any point it goes on where it was when it is run again. Raises what `apply` raises.
        """
        found, deleted = self.look(), 0
        for kind in reversed(self.kinds):
            if kind.sort.goes_with is None and (with_data or not kind.sort.is_data):
                here = found[kind.sort.name]
                if not all(one.ready for one in here.values()):
                    here = self._quiet(kind)
                steps = [Step("delete", kind.sort.name, name, None, one) for name, one in here.items()]
                self._over(kind, [_done(kind, step, report) for step in steps])
                deleted += len(steps)
        return deleted

    def _wishes(self, secrets: Mapping[str, Found]) -> dict[str, Wishes]:
        """By kind, then by name."""
        versions = {name: str(found.handle) for name, found in secrets.items()}
        wishes: dict[str, dict[str, Spec]] = {kind.sort.name: {} for kind in self.kinds}
        for wish in wanted(self.target(sorted(secrets)), self.archive, versions):
            wishes[wish.kind][wish.name] = wish.spec
        return dict(wishes)

    def _quiet(self, kind: Kind) -> dict[str, Found]:
        """What there is, once nothing is under way that a run before this one began: Google refuses a second change."""
        for _ in range(LOOKS):
            found = kind.present()
            if kind.sort.name in LATE or all(here.ready for here in found.values()):
                return found
            self.pause(LOOK_S)
        raise Failed(f"{kind.sort.name}: still under way after {LOOKS * LOOK_S:.0f} s; run it again to go on waiting")

    def _settle(self, kind: Kind, over: list[Pending], wishes: Wishes) -> dict[str, Found]:
        """Wait until Google shows this kind as it is wanted, and nothing of it is under way."""
        self._over(kind, over)
        steps: list[Step] = []
        for look in range(LOOKS):
            found = kind.present()
            steps = compare(wishes, found, kind)
            for step in steps:
                if step.found and step.found.failure:
                    raise Failed(f"{kind.sort.name} {step.name}: {step.found.failure}")
            open_ = [step for step in steps if step.act in ("create", "change", "wait")]
            if not open_ or (look >= GRACE_LOOKS and all(step.act == "change" for step in open_)):
                return found
            self.pause(LOOK_S)
        names = ", ".join(step.name for step in steps if step.act != "keep")
        raise Failed(f"{kind.sort.name} {names}: not ready after {LOOKS * LOOK_S:.0f} s; apply again to go on waiting")

    def _over(self, kind: Kind, pendings: list[Pending]) -> None:
        """Wait until Google's long operations are over."""
        for _ in range(LOOKS):
            pendings = [is_over for is_over in pendings if not is_over()]
            if not pendings:
                return
            self.pause(LOOK_S)
        raise Failed(
            f"{kind.sort.name}: {len(pendings)} operations still run after {LOOKS * LOOK_S:.0f} s; apply again"
        )


def _done(kind: Kind, step: Step, report: Report) -> Pending:
    """Carry out one step; the answer asks whether it is over."""
    report(step)
    if step.act == "create":
        pending = kind.create(step.name, step.wanted or {})
    elif step.act == "change":
        assert step.found
        pending = kind.change(step.name, step.wanted or {}, step.found)
    else:
        assert step.found
        pending = kind.delete(step.name, step.found)
    return pending or (lambda: True)

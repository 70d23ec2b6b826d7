"""F: files of an older snapshot that a user wants back come to the writer's workspace, or it is said why not.

A wish that a user was promised is in the record until a machine that writes has just what was asked for, until its
engine failed so often that it is given up, or until the instance ends; its line of the story is in the commit that
takes it away. What it is to come from stands when it is asked for, and no prune takes it while it waits.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from common.domain.bring import BRING_TRIES, COPIED, NOT_COPIED
from common.domain.host import Order
from common.domain.instance import Copy
from common.ports import Data

if TYPE_CHECKING:
    from tests.simulation.hosts import Machine
    from tests.simulation.world import World


class Copies:
    def __init__(self, world: World) -> None:
        self._world = world
        self.counts: Counter[str] = Counter()
        self._promised: dict[str, str] = {}
        """Id of the operation that a user was told -> the instance's key."""
        self._asked: dict[str, Copy] = {}
        """By its name, whatever a record ever waited for."""
        self._laid: set[tuple[str, str]] = set()
        """(label of a machine, name of what it was brought)"""
        self._failed: Counter[str] = Counter()
        """Tries of bringing each that came to nothing."""

    def promised(self, key: str, operation_id: str) -> None:
        self._promised[operation_id] = key

    # --- what machines do

    def is_one(self, order: Order) -> bool:
        """Else it is about a conflict."""
        return _name_of(order) in self._asked

    def brought(self, machine: Machine, order: Order) -> None:
        """It lies in a folder of that machine's workspace from now on."""
        self.counts["copied"] += 1
        name, args = _name_of(order), order.args
        copy, told = self._asked[name], (args["manifest_key"], tuple(args.get("paths", ())), args["into"])
        if told != (copy.manifest_key, copy.paths, f"restored/{copy.snapshot}"):
            self._violate(f"{machine.label} was brought {told}, and {copy} was asked for")
        self._laid.add((machine.label, name))

    def failed(self, order: Order) -> None:
        self._failed[_name_of(order)] += 1

    # --- every commit

    def see_instance(self, key: str, before: Data | None, after: Data, lines: set[str]) -> None:
        """`lines` = the kinds of the story's lines in it."""
        were, are = ({each["id"]: each for each in record["copies"]} if record else {} for record in (before, after))
        for id in are.keys() - were.keys():
            self._comes(key, Copy.model_validate(are[id]))
        for id in were.keys() - are.keys():
            self._goes(key, Copy.model_validate(were[id]), before or {}, after, lines)

    def _comes(self, key: str, copy: Copy) -> None:
        self.counts["copies_asked"] += 1
        self._asked[copy.name] = copy
        snapshot = self._world.store.docs["snapshots"].get(f"{key}.{copy.snapshot}")
        if snapshot is None or snapshot.data["given_up_at"] is not None:
            self._violate(f"{key} is to have files of {copy.snapshot}, which was given up")

    def _goes(self, key: str, copy: Copy, before: Data, after: Data, lines: set[str]) -> None:
        why = next((line for line in (COPIED, NOT_COPIED) if line in lines), "")
        if why == COPIED and (before["writer"], copy.name) not in self._laid:
            self._violate(f"{key} has {copy.what}, says its record; {before['writer']} was never brought it")
        if why == NOT_COPIED and after["phase"] != "ended" and self._failed[copy.name] < BRING_TRIES:
            self._violate(f"{key} gives {copy.what} up after {self._failed[copy.name]} tries")
        if not why:
            self._violate(f"{key} forgets {copy.what} without a word")

    # --- the bucket

    def deleting(self, key: str, record: Data, doomed: set[str]) -> None:
        for copy in record["copies"]:
            if copy["manifest_key"] in doomed:
                self._violate(f"{copy['manifest_key']} of {key} was deleted, and files of it are waited for")

    # --- at rest

    def unrest(self, record: Data) -> list[str]:
        """A GPU that serves has been brought what it could be."""
        waiting = [copy["snapshot"] for copy in record["copies"]]
        return [f"{record['id']} waits for files of {waiting}"] if waiting and record["phase"] == "up" else []

    def judge_the_end(self) -> None:
        asked = {copy.id for copy in self._asked.values()}
        for id, key in self._promised.items():
            if id not in asked:
                self._violate(f"{key} was promised the copy {id}, which no record ever waited for")

    def _violate(self, what: str) -> None:
        self._world.oracle.violate("F", what)


def _name_of(order: Order) -> str:
    """`Copy.name`; each try has another number."""
    return order.id.removeprefix("bring-").rpartition("-")[0]


__all__ = ["Copies"]

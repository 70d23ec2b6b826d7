"""What marketplaces' answers look like is noted: so the doctor can say where a vendor differs from its simulator."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from common.domain.shape import AnswerShape, Shape, joined, shape_of
from common.errors import StoreError
from common.ports import Store, every
from common.records import dump


class Noted:
    """Of one process: a shape that it has seen before costs nothing."""

    def __init__(self, store: Store, market: str) -> None:
        self._store, self._market = store, market
        self._seen: dict[str, Shape] = {}
        self._asked: set[str] = set()

    def note(self, call: str, answer: Any, now: datetime) -> None:
        """Write down what is new. That it cannot be written is no reason for the call to fail: the next one tries.

        The first answer to a mere question is left to the second: a process that has just begun is waited for.
        """
        if call.startswith("GET ") and call not in self._asked:
            self._asked.add(call)
            return
        before = self._seen.get(call, {})
        after = joined([before, shape_of(answer)])
        if after == before:
            return
        try:
            self._write(call, after, now)
        except StoreError:
            return
        self._seen[call] = after

    def _write(self, call: str, shape: Shape, now: datetime) -> None:
        id = f"{self._market}.{call.replace(' /', '.').replace('/', '.').replace('*', 'x')}"
        doc = self._store.get("answers", id)
        known = AnswerShape.model_validate(doc.data).shape if doc else {}
        whole = joined([known, shape])
        if whole == known:
            return
        data = dump(AnswerShape(market=self._market, call=call, paths=AnswerShape.lines(whole), at=now))
        if doc:
            self._store.cas(doc, data)
        else:
            self._store.create("answers", id, data)


def noted(store: Store) -> list[AnswerShape]:
    """By market and call."""
    return [AnswerShape.model_validate(doc.data) for doc in every(store, "answers")]

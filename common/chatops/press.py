"""A button's value: what pressing it asks for, and the operation id that lets it act once, however often it arrives."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any, Self

from pydantic import ConfigDict, Field

from common.chatops.grammar import Ask, Verb
from common.domain.model import Model

OP_LENGTH = 20


class Press(Model):
    """Who presses is not in it: that is whom Slack names, and what that user may do is judged then."""

    model_config = ConfigDict(extra="forbid")

    op: str = Field(pattern=rf"^[a-f0-9]{{{OP_LENGTH}}}$")
    ask: Ask
    until: datetime | None = None
    """An offer of ours that holds no longer than this."""

    @classmethod
    def of(cls, seed: str, verb: Verb, *, until: datetime | None = None, **fields: Any) -> Self:
        """`seed` = the message that shows it: the same message written twice has the same buttons.

        A plan that is written again may show another price, and is the same plan all the same.
        """
        ask = Ask(verb=verb, **fields)
        acts = ask.model_copy(update={"spec": {}})
        op = hashlib.sha256(f"{seed}:{acts.model_dump_json()}".encode()).hexdigest()[:OP_LENGTH]
        return cls(op=op, ask=ask, until=until)

    @property
    def action_id(self) -> str:
        return f"{self.ask.verb}.{self.op}"

    @property
    def value(self) -> str:
        return self.model_dump_json(exclude_defaults=True)

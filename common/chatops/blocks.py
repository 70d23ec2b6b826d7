"""Block Kit, always within its published limits: what is too long is cut, what is too much is counted.

Source of the limits: Slack's reference of blocks, block elements and composition objects.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

Block = dict[str, Any]

BLOCKS_MAX = 50
TEXT_MAX = 3000
"""Of a section, and of each text in a context."""
FIELD_MAX = 2000
FIELDS_MAX = 10
HEADER_MAX = 150
BUTTONS_MAX = 5
"""Of ours in one row; Slack takes 25, nobody reads them."""
BUTTON_TEXT_MAX = 75
VALUE_MAX = 2000
ACTION_ID_MAX = 255
CONFIRM_TITLE_MAX, CONFIRM_TEXT_MAX, CONFIRM_BUTTON_MAX = 100, 300, 30
FALLBACK_MAX = 3000
"""Of the text beside the blocks, which notifications show."""


def escaped(text: str) -> str:
    """Somebody's text as it is: no mention, no link, no markup of it comes alive (Slack's three control characters)."""
    plain = "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code(text: str) -> str:
    return f"`{escaped(text).replace('`', 'ˋ')}`"


def message(text: str, blocks: Sequence[Block]) -> dict[str, Any]:
    """`text` is what notifications and screen readers show."""
    shown = list(blocks)
    if len(shown) > BLOCKS_MAX:
        shown = [*shown[: BLOCKS_MAX - 1], context(f"… and {len(blocks) - BLOCKS_MAX + 1} more")]
    return {"text": cut(text, FALLBACK_MAX), "blocks": shown}


def header(text: str) -> Block:
    return {"type": "header", "text": _plain(text, HEADER_MAX)}


def section(text: str, fields: Sequence[str] = ()) -> Block:
    block: Block = {"type": "section", "text": _mrkdwn(text, TEXT_MAX)}
    if fields:
        block["fields"] = [_mrkdwn(field, FIELD_MAX) for field in fields[:FIELDS_MAX]]
    return block


def context(text: str) -> Block:
    return {"type": "context", "elements": [_mrkdwn(text, TEXT_MAX)]}


def actions(buttons: Sequence[Block]) -> Block:
    return {"type": "actions", "elements": list(buttons[:BUTTONS_MAX])}


def button(text: str, *, action_id: str, value: str, style: str = "", confirm: Block | None = None) -> Block:
    """Raises ValueError for an id or a value that Slack would refuse: those cannot be cut."""
    if not 0 < len(action_id) <= ACTION_ID_MAX or len(value) > VALUE_MAX:
        raise ValueError(f"a button's action_id or value is too long: {len(action_id)}, {len(value)}")
    element: Block = {
        "type": "button",
        "text": _plain(text, BUTTON_TEXT_MAX),
        "action_id": action_id,
        "value": value,
    }
    return element | ({"style": style} if style else {}) | ({"confirm": confirm} if confirm else {})


def confirmation(title: str, text: str, *, yes: str, no: str = "Keep it", style: str = "danger") -> Block:
    return {
        "title": _plain(title, CONFIRM_TITLE_MAX),
        "text": _mrkdwn(text, CONFIRM_TEXT_MAX),
        "confirm": _plain(yes, CONFIRM_BUTTON_MAX),
        "deny": _plain(no, CONFIRM_BUTTON_MAX),
        "style": style,
    }


def cut(text: str, length: int) -> str:
    """At most `length` characters, never in the middle of an escape, never empty."""
    if len(text) <= length:
        return text or " "
    return re.sub(r"&[a-z]{0,3}$", "", text[: length - 1]) + "…"


def _plain(text: str, length: int) -> Block:
    return {"type": "plain_text", "text": cut(text, length), "emoji": True}


def _mrkdwn(text: str, length: int) -> Block:
    return {"type": "mrkdwn", "text": cut(text, length)}

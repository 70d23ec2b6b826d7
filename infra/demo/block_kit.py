"""What Slack refuses of a message: Block Kit's published limits, for the blocks and elements of a message.

Source: Slack's reference of blocks, block elements and composition objects (docs.slack.dev/reference/block-kit).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

BLOCKS_MAX = 50
BLOCK_ID_MAX = 255
HEADER_MAX = 150
TEXT_MAX = 3000
FIELDS_MAX, FIELD_MAX = 10, 2000
CONTEXT_ELEMENTS_MAX = 10
ACTIONS_ELEMENTS_MAX = 25
"""In an `actions` block; a `context_actions` block takes 5."""
CONTEXT_ACTIONS_ELEMENTS_MAX = 5
ACTION_ID_MAX, BUTTON_TEXT_MAX, VALUE_MAX, URL_MAX = 255, 75, 2000, 3000
STYLES = ("primary", "danger")
CONFIRM_MAX = {"title": 100, "text": 300, "confirm": 30, "deny": 30}
MESSAGE_TEXT_MAX = 40_000


def faults(message: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with a message's text and blocks; empty = Slack takes it."""
    return list(_message(message))


def _message(message: Mapping[str, Any]) -> Iterator[str]:
    text, blocks = message.get("text", ""), message.get("blocks")
    if not isinstance(text, str) or len(text) > MESSAGE_TEXT_MAX:
        yield "msg_too_long"
    if blocks is None:
        if not text:
            yield "no_text"
        return
    if not isinstance(blocks, list) or not blocks or len(blocks) > BLOCKS_MAX:
        yield f"a message has 1 to {BLOCKS_MAX} blocks"
        return
    ids = [block["block_id"] for block in blocks if isinstance(block, dict) and "block_id" in block]
    if len(ids) != len(set(ids)):
        yield "two blocks have one block_id"
    for place, block in enumerate(blocks):
        known = BLOCKS.get(block.get("type", "")) if isinstance(block, dict) else None
        if known is None:
            yield f"blocks/{place}: unsupported block"
            continue
        if len(str(block.get("block_id", ""))) > BLOCK_ID_MAX:
            yield f"blocks/{place}: block_id is too long"
        yield from (f"blocks/{place}: {fault}" for fault in known(block))


def _section(block: Mapping[str, Any]) -> Iterator[str]:
    fields = block.get("fields")
    if "text" not in block and not fields:
        yield "a section needs a text or fields"
    if "text" in block:
        yield from _text(block["text"], TEXT_MAX, "text")
    if fields is not None:
        if not 1 <= len(fields) <= FIELDS_MAX:
            yield f"a section has 1 to {FIELDS_MAX} fields"
        for field in fields:
            yield from _text(field, FIELD_MAX, "field")
    if "accessory" in block:
        yield from _button(block["accessory"])


def _header(block: Mapping[str, Any]) -> Iterator[str]:
    yield from _text(block.get("text"), HEADER_MAX, "text", plain=True)


def _context(block: Mapping[str, Any]) -> Iterator[str]:
    elements = block.get("elements", [])
    if not 1 <= len(elements) <= CONTEXT_ELEMENTS_MAX:
        yield f"a context has 1 to {CONTEXT_ELEMENTS_MAX} elements"
    for element in elements:
        yield from _text(element, TEXT_MAX, "element")


def _actions(block: Mapping[str, Any]) -> Iterator[str]:
    elements = block.get("elements", [])
    limit = ACTIONS_ELEMENTS_MAX if block["type"] == "actions" else CONTEXT_ACTIONS_ELEMENTS_MAX
    if not 1 <= len(elements) <= limit:
        yield f"actions have 1 to {limit} elements"
    ids = [element.get("action_id") for element in elements if isinstance(element, dict)]
    if len(ids) != len(set(ids)):
        yield "two elements have one action_id"
    for element in elements:
        yield from _button(element)


def _divider(_block: Mapping[str, Any]) -> Iterator[str]:
    return iter(())


BLOCKS = {
    "section": _section,
    "header": _header,
    "context": _context,
    "actions": _actions,
    "context_actions": _actions,
    "divider": _divider,
}


def _button(element: Any) -> Iterator[str]:
    if not isinstance(element, dict) or element.get("type") != "button":
        yield "unsupported element"
        return
    yield from _text(element.get("text"), BUTTON_TEXT_MAX, "button's text", plain=True)
    for name, limit in (("action_id", ACTION_ID_MAX), ("value", VALUE_MAX), ("url", URL_MAX)):
        if len(str(element.get(name, ""))) > limit:
            yield f"a button's {name} has at most {limit} characters"
    if element.get("style", "primary") not in STYLES:
        yield f"a button's style is one of {', '.join(STYLES)}"
    if "confirm" in element:
        yield from _confirm(element["confirm"])


def _confirm(dialog: Mapping[str, Any]) -> Iterator[str]:
    for name, limit in CONFIRM_MAX.items():
        yield from _text(dialog.get(name), limit, f"dialog's {name}", plain=name != "text")
    if dialog.get("style", "primary") not in STYLES:
        yield "a dialog's style is not known"


def _text(text: Any, limit: int, name: str, *, plain: bool = False) -> Iterator[str]:
    if not isinstance(text, dict) or text.get("type") not in ("plain_text", "mrkdwn"):
        yield f"a {name} is a text object"
        return
    if plain and text["type"] != "plain_text":
        yield f"a {name} is plain_text"
    if not isinstance(text.get("text"), str) or not 1 <= len(text["text"]) <= limit:
        yield f"a {name} has 1 to {limit} characters"

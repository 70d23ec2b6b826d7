"""The XML in which stores answer: elements and texts. Whatever else XML has is refused, for no store sends it.

By our own hand, for expat cannot run in every host: Debian 12 makes it for glibc 2.36, and most images that people rent
a GPU with have 2.35 (Ubuntu 22.04).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

_NAME = r"[A-Za-z_][\w.:-]*"
_ATTRIBUTES = rf"""(?:\s+{_NAME}\s*=\s*(?:"[^"<&]*"|'[^'<&]*'))*"""
_PART = re.compile(
    rf"</(?P<end>{_NAME})\s*>|<(?P<start>{_NAME}){_ATTRIBUTES}\s*(?P<is_empty>/?)>|(?P<text>[^<]+)", re.ASCII
)
_ENCODING = r"""(?:\s+encoding=(?:"(?:utf|UTF)-8"|'(?:utf|UTF)-8'))?"""
_PROLOG = re.compile(rf"""\ufeff?(?:<\?xml\s+version=(?:"1\.0"|'1\.0'){_ENCODING}\s*\?>)?""")
_REFERENCE = re.compile(r"&(?:#x(?P<hex>[0-9A-Fa-f]{1,6})|#(?P<number>[0-9]{1,7})|(?P<name>[a-z]+));")
_NAMED = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}
_NO_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")


def texts(content: bytes, group: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Of one whole document: the first text of each element by its name, without a namespace; and the same of each
    element called `group`, whose elements are not among the others.

    Raises ValueError when it is not whole, is not well-formed, or declares anything.
    """
    alone: dict[str, str] = {}
    groups: list[dict[str, str]] = []
    found, last = alone, ""
    for kind, what in _events(content.decode()):
        if kind == "text":
            last = what
            continue
        if kind == "start" and what == group:
            groups.append({})
            found = groups[-1]
        elif kind == "end" and what == group:
            found = alone
        elif kind == "end":
            found.setdefault(what, last)
        last = ""
    return alone, groups


def _events(document: str) -> Iterator[tuple[Literal["start", "end", "text"], str]]:
    """Checked as they come: after the last one the document is whole."""
    if _NO_TEXT.search(document):
        raise ValueError("a character that no text has")
    prolog = _PROLOG.match(document)
    at, is_over, inside = prolog.end() if prolog else 0, False, list[str]()
    for part in _PART.finditer(document, at):
        kind = part.lastgroup
        if part.start() != at or (is_over and kind != "text"):
            break
        at = part.end()
        if kind == "text":
            if not inside and not part["text"].isspace():
                raise ValueError("text outside of every element")
            yield "text", _plain(part["text"])
            continue
        name = part["end"] or part["start"]
        local = name.rpartition(":")[2]
        if kind != "end":
            inside.append(name)
            yield "start", local
        if kind == "end" or part["is_empty"]:
            if not inside or inside.pop() != name:
                raise ValueError(f"an end of {name!r}, which is not open")
            yield "end", local
            is_over = not inside
    if at != len(document) or not is_over:
        raise ValueError(f"neither whole nor well-formed at {at}: {document[at : at + 40]!r}")


def _plain(text: str) -> str:
    if "&" not in text:
        return text
    if text.count("&") != len(_REFERENCE.findall(text)):
        raise ValueError(f"a reference to nothing in {text[:40]!r}")
    return _REFERENCE.sub(_meant, text)


def _meant(reference: re.Match[str]) -> str:
    if name := reference["name"]:
        if name not in _NAMED:
            raise ValueError(f"a reference to {name!r}, which is declared nowhere")
        return _NAMED[name]
    char = chr(int(reference["hex"], 16) if reference["hex"] else int(reference["number"]))
    if _NO_TEXT.match(char):
        raise ValueError("a reference to a character that no text has")
    return char

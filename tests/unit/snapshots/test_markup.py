"""A store's XML, beside expat: what we understand, it understands likewise."""

from __future__ import annotations

from xml.etree import ElementTree
from xml.parsers import expat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.snapshots.markup import texts

LIST = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    b"<Name>b</Name><Prefix/><IsTruncated>false</IsTruncated><Contents><Key>a/&amp;b&#x20AC;</Key><ETag>&quot;0f&quot;"
    b"</ETag><Size>12</Size><Owner><ID>me</ID></Owner></Contents><Contents><Key>c &lt; d</Key></Contents>"
    b"</ListBucketResult>\n"
)
NAMES = st.sampled_from(["Contents", "Key", "Size", "ns:Key", "IsTruncated", "E-Tag.2"])
VALUES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8)


def of_expat(content: bytes) -> list[tuple[str, str]]:
    """(name, text after its last tag) of each element in the order of their ends; raises `ExpatError`, ValueError."""
    ended: list[tuple[str, str]] = []
    text = [""]
    parser = expat.ParserCreate()
    parser.StartElementHandler = lambda name, attributes: text.__setitem__(0, "")
    parser.CharacterDataHandler = lambda more: text.__setitem__(0, text[0] + more)

    def end(name: str) -> None:
        ended.append((name.rpartition(":")[2], text[0]))
        text[0] = ""

    parser.EndElementHandler = end
    parser.Parse(content, True)
    return ended


def flat(alone: dict[str, str], groups: list[dict[str, str]]) -> set[tuple[str, str]]:
    return {pair for found in (alone, *groups) for pair in found.items()}


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    root = ElementTree.Element("ListBucketResult", draw(st.dictionaries(st.just("xmlns:ns"), st.just("u"), max_size=1)))
    root.set("xmlns:ns", "u")
    for name in draw(st.lists(NAMES, max_size=6)):
        child = ElementTree.SubElement(root, name)
        child.text = draw(VALUES)
        for inner in draw(st.lists(NAMES, max_size=3)):
            ElementTree.SubElement(child, inner).text = draw(VALUES)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=draw(st.booleans()))


def test_a_list_is_its_texts_by_name_and_its_objects_apart() -> None:
    alone, groups = texts(LIST, "Contents")

    assert alone == {"Name": "b", "Prefix": "", "IsTruncated": "false", "ListBucketResult": ""}
    assert groups[0] == {"Key": "a/&b€", "ETag": '"0f"', "Size": "12", "ID": "me", "Owner": ""}
    assert groups[1] == {"Key": "c < d"}


@given(documents())
def test_what_is_written_properly_is_understood_as_expat_does(content: bytes) -> None:
    ended = [pair for pair in of_expat(content) if pair[0] != "Contents"]

    found = flat(*texts(content, "Contents"))

    assert {name for name, _ in found} == {name for name, _ in ended}
    assert found <= set(ended)


@given(st.data())
def test_what_is_broken_is_refused_or_is_as_expat_has_it(data: st.DataObject) -> None:
    """Nothing is read into a document that is none: it is refused at least where expat refuses it."""
    content = bytearray(data.draw(st.one_of(documents(), st.just(LIST))))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        length = data.draw(st.integers(0, 4))
        content[at : at + length] = data.draw(
            st.sampled_from([b"", b"<", b">", b"&", b"/", b"'", b"x", b"<a/>", b"\x00"])
        )
    try:
        alone, groups = texts(bytes(content), "Contents")
    except ValueError:
        return
    ended = of_expat(bytes(content))

    assert flat(alone, groups) <= set(ended)


@pytest.mark.parametrize("whole", [LIST])
def test_half_a_document_is_none(whole: bytes) -> None:
    for end in range(len(whole.rstrip())):
        with pytest.raises(ValueError):
            texts(whole[:end], "Contents")


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE a><a/>",
        b"<a><!-- ? --></a>",
        b"<a><![CDATA[x]]></a>",
        b"<a>&nbsp;</a>",
        b"<a>&#0;</a>",
        b"<a>&#xD800;</a>",
        b"<a>&#x110000;</a>",
        b"<a>\xff</a>",
        b"<a/><a/>",
        b"text",
        b"",
    ],
)
def test_what_no_store_sends_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):
        texts(content, "Contents")

"""The fuzzer starts from what the parsers read, and would see a parser that falls over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.bench import fuzz_snapshots, snapshot_parsers

PARSERS = snapshot_parsers.parsers()


@pytest.mark.parametrize("name", PARSERS)
def test_a_search_begins_with_what_the_parser_reads(name: str) -> None:
    for honest in PARSERS[name].honest:
        PARSERS[name].parse(honest)


def test_another_error_than_the_refusal_is_found_and_shown() -> None:
    def trusting(hostile: bytes) -> object:
        last = hostile[int.from_bytes(hostile[:2], "little")]
        return last, PARSERS["frame_lz4"].parse(hostile)

    found: list[str] = []
    planted = replace(PARSERS["frame_lz4"], parse=trusting)
    tried = fuzz_snapshots.by_hypothesis(planted, 30.0, 1, found)
    assert tried > 0
    assert len(found) == 1 and "IndexError" in found[0]

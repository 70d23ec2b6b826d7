"""Hostile bytes against every parser of a snapshot: manifests of both formats, packs, and the frames of each codec.

Run: python -m tests.bench.fuzz_snapshots [MINUTES=10] [SEED=1] [CORPUS=directory] [ONLY=hypothesis|atheris]. Every
parser gets the same share of the time: Hypothesis edits what an honest engine wrote and shrinks what it finds; then,
where it is installed, Atheris searches by coverage from the same beginnings. A parser may refuse with its own error and
nothing else, and has MEMORY_BYTES for it. The last line is JSON; the exit code is 1 when anything else came out.
"""

from __future__ import annotations

import importlib.util
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from tests.bench.snapshot_parsers import Parser

MEMORY_BYTES = 3 << 30
"""Of address space, the interpreter and its libraries included: a parser that believes a size it is told needs more."""
ATHERIS_MEMORY_MB = 2048
ATHERIS_ENDS_WITHIN_S = 120
EXAMPLES = 500
EDITS_MAX = 6
INSTRUMENTED = ["common.snapshots", "common.domain.snapshot"]
RUNS = re.compile(r"stat::number_of_executed_units:\s*(\d+)|Done (\d+) runs")


def main(words: Sequence[str]) -> int:
    told = dict(word.split("=", 1) for word in words if not word.startswith("-"))
    if name := told.get("ATHERIS"):
        _search(name, [word for word in words if word.startswith("-")] + [told["CORPUS"]])
        return 0
    minutes, first_seed = float(told.get("MINUTES", "10")), int(told.get("SEED", "1"))
    only, names = told.get("ONLY"), sorted(_parsers())
    has_atheris = importlib.util.find_spec("atheris") is not None and only != "hypothesis"
    has_hypothesis = only != "atheris"
    share_s = minutes * 60 / len(names) / (has_atheris + has_hypothesis)
    tried: dict[str, int] = {}
    found: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(told.get("CORPUS", scratch))
        for name in names:
            tried[name] = by_hypothesis(_parsers()[name], share_s, first_seed, found) if has_hypothesis else 0
            if has_atheris:
                tried[name] += _by_atheris(name, share_s, first_seed, corpus, found)
            say(f"{name}: {tried[name]} inputs, {len(found)} bad so far")
    print(json.dumps({"minutes": minutes, "atheris": has_atheris, "inputs": tried, "bad": found}))
    return 1 if found else 0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parsers() -> dict[str, Parser]:
    """Imported late: Atheris instruments what is imported while it looks."""
    from tests.bench import snapshot_parsers

    return snapshot_parsers.parsers()


# --- Hypothesis


@st.composite
def edited(draw: st.DrawFn, honest: tuple[bytes, ...]) -> bytes:
    """A few edits: bytes replaced, inserted, removed and doubled, numbers set to what parsers stumble over."""
    content = bytearray(draw(st.sampled_from(honest)))
    for _ in range(draw(st.integers(1, EDITS_MAX))):
        at = draw(st.integers(0, len(content)))
        EDITS[draw(st.integers(0, len(EDITS) - 1))](draw, content, at)
    return bytes(content)


def _replace(draw: st.DrawFn, content: bytearray, at: int) -> None:
    content[at : at + 1] = draw(st.binary(min_size=1, max_size=1))


def _insert(draw: st.DrawFn, content: bytearray, at: int) -> None:
    content[at:at] = draw(st.binary(max_size=16))


def _remove(draw: st.DrawFn, content: bytearray, at: int) -> None:
    del content[at : at + draw(st.integers(1, 64))]


def _double(draw: st.DrawFn, content: bytearray, at: int) -> None:
    content[at:at] = content[at : at + draw(st.integers(1, 64))]


def _number(draw: st.DrawFn, content: bytearray, at: int) -> None:
    size = draw(st.sampled_from((1, 2, 4, 8)))
    most = (1 << 8 * size) - 1
    content[at : at + size] = draw(st.sampled_from((0, 1, most, most // 2, most // 2 + 1))).to_bytes(size, "little")


def _cut(_draw: st.DrawFn, content: bytearray, at: int) -> None:
    del content[at:]


EDITS: tuple[Callable[[st.DrawFn, bytearray, int], None], ...] = (_replace, _insert, _remove, _double, _number, _cut)


def by_hypothesis(parser: Parser, seconds: float, first_seed: int, found: list[str]) -> int:
    """How many inputs were tried; what a parser should not have raised goes to `found`, shrunk."""
    tried, until, number = 0, time.monotonic() + seconds, first_seed

    def judge(hostile: bytes) -> None:
        nonlocal tried
        tried += 1
        parser.judge(hostile)

    hostile = st.one_of(edited(parser.honest), edited(parser.honest), st.binary(max_size=400))
    patient = settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, limits[1]))
    try:
        while time.monotonic() < until:
            number += 1
            patient(seed(number)(given(hostile)(judge)))()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
        found.append(f"{error!r} {' '.join(getattr(error, '__notes__', []))}"[:2000])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    return tried


# --- Atheris


def _by_atheris(name: str, seconds: float, first_seed: int, corpus: Path, found: list[str]) -> int:
    """In a process of its own, with the parsers' code instrumented; what it finds it leaves in the corpus."""
    place = corpus / name
    place.mkdir(parents=True, exist_ok=True)
    for number, honest in enumerate(_parsers()[name].honest):
        (place / f"honest{number}").write_bytes(honest)
    words = [f"-max_total_time={max(1, round(seconds))}", f"-seed={first_seed}", f"-rss_limit_mb={ATHERIS_MEMORY_MB}"]
    words += ["-print_final_stats=1", "-verbosity=1", f"-artifact_prefix={corpus}/{name}-"]
    command = [sys.executable, "-m", "tests.bench.fuzz_snapshots", f"ATHERIS={name}", f"CORPUS={place}", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + ATHERIS_ENDS_WITHIN_S)
    if done.returncode:
        found.append(f"{name} (Atheris): {done.stderr[-2000:]}")
    runs = [int(a or b) for a, b in RUNS.findall(done.stderr)]
    return max(runs, default=0)


def _search(name: str, words: Sequence[str]) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        parser = _parsers()[name]
    atheris.Setup([sys.argv[0], *words], parser.judge)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The agent starts at once: what is heavy is loaded by whoever first needs it."""

from __future__ import annotations

import resource
import subprocess
import sys

HEAVY = ("httpx", "boto3", "lz4", "blosc", "zstandard", "cryptography", "pyfastcdc", "blake3", "pathspec", "pynvml")
TIMES_PYDANTIC = 3.0
"""Measured: 2.4 (0.10 s of CPU beside 0.044 s), and 3.4 when httpx was loaded with it."""
RUNS = 11


def cpu_s(*codes: str) -> list[float]:
    """Of each the least CPU time of some runs of a fresh interpreter, turn by turn: what others do on this machine
    meanwhile slows all of them."""

    def once(code: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    rounds = [[once(code) for code in codes] for _ in range(RUNS)]
    return [min(times) for times in zip(*rounds, strict=True)]


def loaded(imports: str, names: tuple[str, ...]) -> list[str]:
    """Which of these modules are there after those imports."""
    code = f"import sys\n{imports}\nprint(*(name for name in {names!r} if name in sys.modules))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_the_agent_loads_nothing_heavy() -> None:
    assert loaded("import common.host.serve", HEAVY) == []


def test_the_child_that_does_an_order_loads_nothing_of_the_agent() -> None:
    child = "import common.host.main, common.host.task\nfrom common.snapshots import engine"

    assert loaded(child, ("pydantic", "httpx", "asyncio", "unittest", "common.host.agent")) == []


def test_the_codecs_and_the_cutter_bring_no_tests_and_no_words_for_type_checkers() -> None:
    codecs = "from common.snapshots import chunk, codec\ncodec.load()\nchunk._cutter(chunk.COARSE)"

    assert loaded(codecs, ("unittest", "typing_extensions", "blosc")) == []


def test_its_import_costs_a_few_times_that_of_its_models_library() -> None:
    bare, with_pydantic, with_agent = cpu_s("pass", "import pydantic, pydantic.main", "import common.host.serve")
    ruler, agent = with_pydantic - bare, with_agent - bare

    assert agent <= TIMES_PYDANTIC * ruler, f"{agent:.3f} s beside {ruler:.3f} s"

"""Every call to a marketplace takes its turn: nothing in the product reaches one around `workflows/pacing.py`."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
AROUND = re.compile(r"app\.markets(\[|\.(get|values|items)\b)|\.seller\(")


def test_only_pacing_reaches_a_market() -> None:
    files = [path for folder in ("common", "functions", "jobs") for path in (ROOT / folder).rglob("*.py")]

    found = {str(path.relative_to(ROOT)) for path in files if AROUND.search(path.read_text())}

    assert found == {"common/workflows/pacing.py"}

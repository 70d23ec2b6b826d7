"""Each import contract catches a planted violation of itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLANTS = {
    "layers": ("common/domain/planted.py", "import common.ports\n"),
    "exhaustive": ("common/planted.py", "X = 1\n"),
    "infra": ("common/workflows/planted.py", "import infra.local\n"),
    "adapters": ("common/workflows/planted.py", "import common.adapters.sqlite\n"),
    "technologies": ("common/adapters/planted.py", "import common.adapters.sqlite\n"),
    "pure": ("common/domain/planted.py", "import httpx\n"),
    "workflows": ("common/workflows/settle.py", "import common.workflows.sweep\n"),
    "money": ("common/workflows/rentals.py", "import common.workflows.deploy\n"),
}


def _contracts_hold(tree: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    env = {"PYTHONPATH": str(tree), "PATH": "/usr/bin:/bin", "HOME": str(tree)}
    return subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("common", "infra"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_hold(tree: Path) -> None:
    assert _contracts_hold(tree).returncode == 0


@pytest.mark.parametrize("contract", PLANTS)
def test_a_planted_violation_is_caught(tree: Path, contract: str) -> None:
    name, text = PLANTS[contract]
    path = tree / name
    path.write_text((path.read_text() if path.exists() else "") + text)

    result = _contracts_hold(tree)

    assert result.returncode != 0, result.stdout
    assert "planted" in result.stdout or Path(name).stem in result.stdout

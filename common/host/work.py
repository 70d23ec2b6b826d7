"""One order's engine work, as the agent sees it: a child process with a folder of its own (`task` is its side).

The engine is loaded in the child alone: the agent's start does not wait for it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.domain.host import Order, OrderResult
from common.errors import DiskFull, is_full
from common.host.atomic import write_atomically

DETAIL_CHARS_MAX = 500


@dataclass
class Work:
    """A running engine child. Its files lie in `folder`; the child dies with the agent."""

    order: Order
    epoch: int
    folder: Path
    child: subprocess.Popen[bytes]

    def finished(self) -> bool:
        return self.child.poll() is not None

    def progress(self) -> dict[str, Any]:
        return _read(self.folder / "progress.json")

    def result(self) -> dict[str, Any]:
        """What the child wrote last; a child that died without a word failed."""
        died = {"ok": False, "error": "engine_died", "detail": f"the engine ended with {self.child.returncode}"}
        return _read(self.folder / "result.json") or died

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()


def start_work(task: dict[str, Any], home: Path) -> Work:
    """Start `agent --task <folder>` (or this interpreter's own module, when not in a bundle). Raises OSError."""
    folder = home / "work"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_atomically(folder / "task.json", json.dumps({**task, "agent_pid": os.getpid()}).encode())
    frozen = getattr(sys, "frozen", False)
    program = [sys.executable] if frozen else [sys.executable, "-m", "common.host.main"]
    child = subprocess.Popen([*program, "--task", str(folder)], start_new_session=False)
    return Work(Order.model_validate(task["order"]), int(task["epoch"]), folder, child)


def end_of(order: Order, result: dict[str, Any]) -> OrderResult:
    """What is reported of an order whose child said this last."""
    return OrderResult(
        id=order.id,
        ok=bool(result.get("ok")),
        error=result.get("error"),
        detail=str(result.get("detail", ""))[:DETAIL_CHARS_MAX],
        chunk=result.get("chunk"),
    )


def not_done(order: Order, error: OSError) -> OrderResult:
    """What is reported of an order that could not be begun, or written down."""
    code = DiskFull.code if is_full(error) else "os_error"
    return OrderResult(id=order.id, ok=False, error=code, detail=str(error)[:DETAIL_CHARS_MAX])


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}

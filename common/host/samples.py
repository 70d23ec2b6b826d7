"""What the host shows of itself: GPU, CPU, disk. A signal that cannot be read is None, never zero."""

from __future__ import annotations

import os
import shutil
import threading  # noqa: TID251 - a driver that hangs must hold up nobody
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.domain.host import Signal
from common.domain.idle import SAMPLE_EVERY_S

ANSWER_S = 2.0
"""A driver that takes longer tells nothing at this look."""


@dataclass
class Looks:
    """One look at the signals. `gpu_file` holds the utilisation in percent where a machine has no GPU of its own."""

    gpu_file: Path | None = None
    has_gpu: bool = True
    """False: of a standby, whose GPU is quiet for ever, and not one that cannot be read."""
    every_s: float = SAMPLE_EVERY_S
    _nvml: Any = field(default=None, init=False, repr=False)
    _asking: threading.Thread | None = field(default=None, init=False, repr=False)
    _answer: float | None = field(default=None, init=False, repr=False)

    def look(self) -> dict[str, float | None]:
        return {"gpu_percent": self._gpu_percent(), "load_1m": _load_1m()}

    def disk(self, path: Path) -> dict[str, int]:
        """Bytes of the file system that holds the workspace."""
        try:
            usage = shutil.disk_usage(path)
        except OSError:
            return {}
        return {"total_bytes": usage.total, "used_bytes": usage.used, "free_bytes": usage.free}

    def _gpu_percent(self) -> float | None:
        """The busiest GPU in percent."""
        if not self.has_gpu:
            return 0.0
        if self.gpu_file is not None:
            try:
                return float(self.gpu_file.read_text())
            except (OSError, ValueError):
                return None
        return self._nvml_percent()

    def _nvml_percent(self) -> float | None:
        """Asked in a thread of its own, one at a time: a GPU that fails may leave it without an answer for ever."""
        if self._asking is None or not self._asking.is_alive():
            self._answer = None
            self._asking = threading.Thread(target=self._ask, daemon=True, name="gpu")
            self._asking.start()
        self._asking.join(ANSWER_S)
        return None if self._asking.is_alive() else self._answer

    def _ask(self) -> None:
        try:
            import pynvml
        except ImportError:
            return
        try:
            if self._nvml is None:
                pynvml.nvmlInit()
                self._nvml = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
            each = (float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu) for gpu in self._nvml)
            self._answer = max(each, default=None)
        except pynvml.NVMLError:
            self._nvml = None


def _load_1m() -> float | None:
    try:
        return os.getloadavg()[0]
    except OSError:  # a container's /proc may come from a program that has ended
        return None


def summary(values: list[float | None]) -> Signal:
    """Of what was seen of one signal since the last report."""
    seen = [value for value in values if value is not None]
    if not seen:
        return Signal(n=0, missing=len(values))
    few = {"min": min(seen), "max": max(seen), "mean": sum(seen) / len(seen)}
    return Signal(**few, n=len(seen), missing=len(values) - len(seen))

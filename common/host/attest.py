"""What the machine has, measured once before it is used: GPUs by NVML, the disk, the line by a short bounded probe."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from common.domain.host import Attest

if TYPE_CHECKING:
    import httpx

PROBE_S = 2.5
"""Per direction: five seconds in all."""
PROBE_DOWNLOAD_BYTES = 32 << 20
PROBE_PIECE_BYTES = 64 << 10
CONNECT_TIMEOUT_S = 2.0

Seconds = Callable[[], float]
"""A monotonic clock."""


def hardware(machine_file: Path | None, workspace: Path) -> Attest:
    """Everything but the line. `machine_file` says it where a machine has no GPU of its own (then it may say all)."""
    if machine_file is not None:
        try:
            return Attest.model_validate_json(machine_file.read_bytes())
        except (OSError, ValidationError):
            return Attest()
    return Attest(**_gpus(), disk_bytes=_disk_bytes(workspace), cpu_cores=os.cpu_count())


def line(
    seen: Attest, http: httpx.Client, *, download_url: str | None, upload_url: str | None, clock: Seconds
) -> Attest:
    """The same with the speed of the line, where it is not known yet and the object store answers."""
    began = clock()
    down = seen.download_mbit_s or (download_mbit_s(http, download_url, clock) if download_url else None)
    up = seen.upload_mbit_s or (upload_mbit_s(http, upload_url, clock) if upload_url else None)
    return seen.model_copy(update={"download_mbit_s": down, "upload_mbit_s": up, "probe_s": clock() - began})


def download_mbit_s(http: httpx.Client, url: str, clock: Seconds) -> float | None:
    """From the first byte on, PROBE_DOWNLOAD_BYTES or PROBE_S at most; None = no answer to measure."""
    import httpx

    try:
        with http.stream("GET", url, timeout=httpx.Timeout(PROBE_S, connect=CONNECT_TIMEOUT_S)) as answer:
            if not answer.is_success:
                return None
            began, size = clock(), 0
            for piece in answer.iter_bytes(PROBE_PIECE_BYTES):
                size += len(piece)
                if size >= PROBE_DOWNLOAD_BYTES or clock() - began > PROBE_S:
                    break
            return _mbit_s(size, clock() - began)
    except httpx.HTTPError:
        return None


class _TimeIsUp(Exception):
    """The probe has sent what it could."""


def upload_mbit_s(http: httpx.Client, url: str, clock: Seconds) -> float | None:
    """The URL is signed for exactly Attest.PROBE_UPLOAD_BYTES. Until the store confirms, or PROBE_S at most."""
    import httpx

    began, sent = clock(), 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        piece = os.urandom(PROBE_PIECE_BYTES)
        while sent < Attest.PROBE_UPLOAD_BYTES:
            if clock() - began > PROBE_S:
                raise _TimeIsUp
            yield piece
            sent += len(piece)

    headers = {"Content-Length": str(Attest.PROBE_UPLOAD_BYTES)}
    try:
        timeout = httpx.Timeout(PROBE_S, connect=CONNECT_TIMEOUT_S)
        answer = http.put(url, content=body(), headers=headers, timeout=timeout)
    except _TimeIsUp:
        return _mbit_s(sent, clock() - began)
    except httpx.HTTPError:
        return None
    return _mbit_s(sent, clock() - began) if answer.is_success else None


def _mbit_s(size: int, seconds: float) -> float:
    return round(size * 8 / 1e6 / max(seconds, 1e-3), 2)


def _gpus() -> dict[str, Any]:
    """By NVML. Without its library nothing is known; with it, no GPU is a fact."""
    try:
        import pynvml
    except ImportError:
        return {}
    try:
        pynvml.nvmlInit()
        gpus = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        cuda = int(pynvml.nvmlSystemGetCudaDriverVersion())
        return {
            "gpu_models": [_text(pynvml.nvmlDeviceGetName(gpu)) for gpu in gpus],
            "gpu_count": len(gpus),
            "gpu_ram_mb": min((int(pynvml.nvmlDeviceGetMemoryInfo(gpu).total) >> 20 for gpu in gpus), default=None),
            "driver": _text(pynvml.nvmlSystemGetDriverVersion()),
            "cuda": cuda // 1000 + cuda % 1000 / 100,
        }
    except pynvml.NVMLError:
        return {}


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _disk_bytes(workspace: Path) -> int | None:
    try:
        return shutil.disk_usage(workspace).total
    except OSError:
        return None

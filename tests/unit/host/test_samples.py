"""What a look at a machine tells when the machine does not answer as it should."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest

from common.host import samples
from common.host.samples import Looks


class NVMLError(Exception):
    """The driver's refusal."""


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Installs one whose GPUs answer by these functions."""
    monkeypatch.setattr(samples, "ANSWER_S", 0.2)

    def install(*gpus: Callable[[], float]) -> None:
        module = ModuleType("pynvml")
        module.__dict__.update(
            NVMLError=NVMLError,
            nvmlInit=lambda: None,
            nvmlDeviceGetCount=lambda: len(gpus),
            nvmlDeviceGetHandleByIndex=lambda index: gpus[index],
            nvmlDeviceGetUtilizationRates=lambda gpu: SimpleNamespace(gpu=gpu()),
        )
        monkeypatch.setitem(sys.modules, "pynvml", module)

    return install


def test_the_busiest_of_several_gpus_counts(driver: Callable[..., None]) -> None:
    driver(lambda: 3, lambda: 91, lambda: 0)

    assert Looks().look()["gpu_percent"] == 91.0


def test_one_gpu_that_refuses_leaves_all_unknown(driver: Callable[..., None]) -> None:
    def refuse() -> float:
        raise NVMLError

    driver(lambda: 3, refuse)

    assert Looks().look()["gpu_percent"] is None


def test_a_driver_that_hangs_holds_up_no_look_and_is_asked_again_once_it_answers(driver: Callable[..., None]) -> None:
    answers = threading.Event()
    driver(lambda: float(answers.wait(20)))
    looks = Looks()

    assert looks.look()["gpu_percent"] is None
    assert looks.look()["gpu_percent"] is None

    answers.set()
    threads = [thread for thread in threading.enumerate() if thread.name == "gpu"]
    assert len(threads) == 1
    threads[0].join()
    assert looks.look()["gpu_percent"] == 1.0


def test_a_load_that_the_kernel_does_not_tell_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> tuple[float, float, float]:
        raise OSError("Load averages are unobtainable")

    monkeypatch.setattr(os, "getloadavg", nobody)

    assert Looks(has_gpu=False).look() == {"gpu_percent": 0.0, "load_1m": None}

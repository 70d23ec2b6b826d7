"""What is a lie, what is a tolerance, and what is merely unknown."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from common.domain.attestation import UNATTESTED_S, judge, same_model, verdict
from common.domain.host import Attest, HostPhase, HostRecord
from tests.unit.domain.test_strategy import offer

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
OFFER = offer(mbit_s=1000, upload_mbit_s=800, cuda_max=12.8, driver_version="560.35.03")
HONEST = {
    "gpu_models": ["NVIDIA GeForce RTX 4090"],
    "gpu_count": 1,
    "gpu_ram_mb": 24564,
    "driver": "560.35.03",
    "cuda": 12.8,
    "disk_bytes": 32 * 10**9,
    "download_mbit_s": 400.0,
    "upload_mbit_s": 300.0,
}


def judged(**changes: object):
    return judge(OFFER, 32, Attest.model_validate(HONEST | changes))


def test_a_machine_that_is_as_offered_is_no_liar_and_nothing_is_unknown() -> None:
    assert (judged().lies, judged().unknown) == ((), ())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpu_models": ["NVIDIA GeForce RTX 3090"]}, "RTX 3090"),
        ({"gpu_models": ["NVIDIA GeForce RTX 4090 Laptop GPU"]}, "Laptop"),
        ({"gpu_models": [], "gpu_count": 0, "gpu_ram_mb": None}, "offered 1 GPUs, has 0"),
        ({"gpu_ram_mb": 16376}, "MB of GPU memory"),
        ({"driver": "535.183.01"}, "driver"),
        ({"cuda": 12.4}, "CUDA"),
        ({"disk_bytes": 20 * 10**9}, "bytes of disk"),
        ({"download_mbit_s": 8.0}, "download"),
        ({"upload_mbit_s": 3.0}, "upload"),
    ],
)
def test_a_measurement_that_contradicts_the_offer_is_a_lie_and_says_which(changes: dict, words: str) -> None:
    judgement = judged(**changes)

    assert judgement.is_liar
    assert words in judgement.lies[0]
    assert len(judgement.lies) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"gpu_ram_mb": 24000},
        {"gpu_count": 2, "gpu_models": ["NVIDIA GeForce RTX 4090"] * 2},
        {"driver": "560.28.03"},
        {"driver": "580.10"},
        {"cuda": 13.0},
        {"disk_bytes": 30 * 10**9},
        {"download_mbit_s": 60.0},
    ],
)
def test_what_is_within_a_tolerance_or_better_is_no_lie(changes: dict) -> None:
    assert not judged(**changes).is_liar


def test_a_slow_advertised_line_may_be_slow() -> None:
    assert not judge(offer(mbit_s=20), 32, Attest(download_mbit_s=4.0)).is_liar


def test_what_was_not_measured_is_unknown_and_never_a_lie() -> None:
    judgement = judge(OFFER, 32, Attest())

    assert judgement.lies == ()
    assert set(judgement.unknown) == {"gpu", "gpu_count", "gpu_memory", "driver", "cuda", "disk", "download", "upload"}


def host(**changes: object) -> HostRecord:
    facts = {"label": "l", "account": "a", "instance_id": None, "instance_key": None, "phase": HostPhase.READY}
    return HostRecord.model_validate(facts | {"first_seen_at": NOW, "last_seen_at": NOW} | changes)


def test_a_host_that_has_not_measured_is_waited_for_and_then_taken_as_unknown() -> None:
    late = NOW + timedelta(seconds=UNATTESTED_S)

    assert verdict(OFFER, 32, host(), NOW) is None
    unknown = verdict(OFFER, 32, host(), late)
    assert unknown
    assert not unknown.is_liar
    assert unknown.unknown
    assert verdict(OFFER, 32, host(attest=Attest(gpu_models=["NVIDIA T4"])), NOW).is_liar  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("offered", "seen"),
    [
        ("RTX 4090", "NVIDIA GeForce RTX 4090"),
        ("H100 SXM", "NVIDIA H100 80GB HBM3"),
        ("H100 PCIE", "NVIDIA H100 PCIe"),
        ("H100 NVL", "NVIDIA H100 NVL"),
        ("A100 SXM4", "NVIDIA A100-SXM4-80GB"),
        ("A100 PCIE", "NVIDIA A100-PCIE-40GB"),
        ("A100 PCIE", "NVIDIA A100 80GB PCIe"),
        ("L40S", "NVIDIA L40S"),
        ("RTX A6000", "NVIDIA RTX A6000"),
        ("RTX 6000Ada", "NVIDIA RTX 6000 Ada Generation"),
        ("RTX 4070S", "NVIDIA GeForce RTX 4070 SUPER"),
        ("RTX 4070S Ti", "NVIDIA GeForce RTX 4070 Ti SUPER"),
        ("RTX 3090 Ti", "NVIDIA GeForce RTX 3090 Ti"),
        ("Tesla T4", "Tesla T4"),
        ("Q RTX 8000", "Quadro RTX 8000"),
        ("B200", "NVIDIA B200"),
        ("RTX 4090", "geforcertx4090-pcie-24gb"),
        ("H100 SXM", "h100-sxm5-80gb"),
        ("GTX 1080 Ti", "NVIDIA GeForce GTX 1080 Ti"),
    ],
)
def test_a_model_is_known_by_the_drivers_name_for_it(offered: str, seen: str) -> None:
    assert same_model(offered, seen)


@pytest.mark.parametrize(
    ("offered", "seen"),
    [
        ("RTX 4090", "NVIDIA GeForce RTX 4090 D"),
        ("RTX 4090", "NVIDIA GeForce RTX 3090"),
        ("RTX 3090 Ti", "NVIDIA GeForce RTX 3090"),
        ("RTX 4080S", "NVIDIA GeForce RTX 4080"),
        ("L40S", "NVIDIA L40"),
        ("A100 SXM4", "NVIDIA A100-PCIE-40GB"),
        ("H100 SXM", "NVIDIA H200"),
        ("RTX 6000Ada", "Quadro RTX 6000"),
        ("A10", "NVIDIA A100-PCIE-40GB"),
    ],
)
def test_another_model_is_told_apart(offered: str, seen: str) -> None:
    assert not same_model(offered, seen)

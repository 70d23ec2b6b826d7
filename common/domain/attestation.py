"""Is the machine what its offer said? Measured at ready, judged against the offer with named tolerances. Pure.

Only a measurement that contradicts the offer is a lie. What could not be measured is unknown: the machine is taken, and
the instance's story says what was not checked. A host can lie in its answer too: this catches the careless, no more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime

from common.domain.host import Attest, HostRecord
from common.domain.model import Model
from common.domain.offer import Offer

MEMORY_SHARE = 0.90
"""Of the offered memory of each GPU: error correction takes a sixteenth, and drivers keep some for themselves."""
DISK_SHARE = 0.90
"""Of the disk that was asked for: file systems keep some for themselves."""
CUDA_SLACK = 0.05
LINE_SHARE = 0.10
"""Of the advertised speed. The probe is one stream to our object store, perhaps over an ocean: far below is honest."""
LINE_ENOUGH_MBIT_S = 50.0
"""A line this fast restores a workspace in time, whatever was advertised."""
UNATTESTED_S = 60.0
"""A host that is ready but reports no measurement at all for so long is taken as unknown."""


class Judgement(Model):
    lies: tuple[str, ...] = ()
    """Sentences: what is not as offered."""
    unknown: tuple[str, ...] = ()
    """Names of what could not be measured."""

    @property
    def is_liar(self) -> bool:
        return bool(self.lies)


NOTHING_MEASURED = Attest()


def verdict(offer: Offer, disk_gb: int, host: HostRecord, now: datetime) -> Judgement | None:
    """The judgement on a host's measurement; None = it has not measured yet: not ready, and not a liar."""
    if host.attest is not None:
        return judge(offer, disk_gb, host.attest)
    known_for_s = (now - (host.first_seen_at or host.last_seen_at)).total_seconds()
    return judge(offer, disk_gb, NOTHING_MEASURED) if known_for_s >= UNATTESTED_S else None


def judge(offer: Offer, disk_gb: int, seen: Attest) -> Judgement:
    """Every promise against its measurement."""
    checks = [
        ("gpu", *_gpu(offer, seen)),
        ("gpu_count", *_at_least("GPUs", offer.num_gpus, seen.gpu_count, 1.0)),
        ("gpu_memory", *_at_least("MB of GPU memory", offer.gpu_ram_mb, seen.gpu_ram_mb, MEMORY_SHARE)),
        ("driver", *_driver(offer.driver_version, seen.driver)),
        ("cuda", *_cuda(offer.cuda_max, seen.cuda)),
        ("disk", *_at_least("bytes of disk", disk_gb * 10**9, seen.disk_bytes, DISK_SHARE)),
        ("download", *_line("download", offer.download_mbit_s, seen.download_mbit_s)),
        ("upload", *_line("upload", offer.upload_mbit_s, seen.upload_mbit_s)),
    ]
    return Judgement(
        lies=tuple(lie for _, known, lie in checks if known and lie),
        unknown=tuple(name for name, known, _ in checks if not known),
    )


_Check = tuple[bool, str | None]
"""(was it measured, what is wrong)"""


def _gpu(offer: Offer, seen: Attest) -> _Check:
    if not seen.gpu_models:
        return seen.gpu_count == 0, None  # no GPU at all is the count's lie
    wrong = sorted({model for model in seen.gpu_models if not same_model(offer.gpu, model)})
    return True, f"offered {offer.gpu}, has {', '.join(wrong)}" if wrong else None


def _at_least(what: str, offered: int, seen: int | None, share: float) -> _Check:
    if seen is None or not offered:
        return False, None
    return True, f"offered {offered} {what}, has {seen}" if seen < offered * share else None


def _driver(offered: str | None, seen: str | None) -> _Check:
    """An older major version than offered; minor ones are updated and rolled back in daily work."""
    if not (offered and seen and offered.split(".")[0].isdigit() and seen.split(".")[0].isdigit()):
        return False, None
    older = int(seen.split(".")[0]) < int(offered.split(".")[0])
    return True, f"offered driver {offered}, has {seen}" if older else None


def _cuda(offered: float | None, seen: float | None) -> _Check:
    if offered is None or seen is None:
        return False, None
    return True, f"offered CUDA {offered}, has {seen}" if seen < offered - CUDA_SLACK else None


def _line(what: str, offered_mbit_s: float, seen_mbit_s: float | None) -> _Check:
    if seen_mbit_s is None or not offered_mbit_s:
        return False, None
    slow = seen_mbit_s < min(offered_mbit_s * LINE_SHARE, LINE_ENOUGH_MBIT_S)
    return True, f"offered {what} of {offered_mbit_s:.0f} Mb/s, has {seen_mbit_s:.1f}" if slow else None


# --- names of GPUs -----------------------------------------------------------------------------------------------

_NOISE = re.compile(r"nvidia|geforce|tesla|quadro|[rg]tx|\b\d+ ?gi?b\b|hbm\d\w*")
_WORD = re.compile(r"[a-z]*\d+|[a-z]+")
_SUFFIXES = {"ti": "ti", "super": "super", "s": "super", "ada": "ada", "d": "d", "laptop": "laptop", "mobile": "laptop"}
_PLUGS = ("sxm", "pcie", "nvl")


def same_model(offered: str, seen: str) -> bool:
    """`H100 SXM` is `NVIDIA H100 80GB HBM3`, `RTX 4090` is not `NVIDIA GeForce RTX 4090 Laptop GPU`.

    The model's number and what follows it (Ti, Super, Ada, D, Laptop) must agree; the plug only where both name one.
    """
    number_a, plug_a = _model(offered)
    number_b, plug_b = _model(seen)
    return number_a == number_b and (plug_a == plug_b or not (plug_a and plug_b))


def _model(name: str) -> tuple[frozenset[str], str | None]:
    text = _NOISE.sub(" ", name.lower().replace("_", " ").replace("-", " "))
    words = list(_words(text))
    plug = next((plug for plug in _PLUGS for word in words if word.startswith(plug)), None)
    numbers = {word for word in words if word[-1].isdigit() and not word.startswith(_PLUGS)}
    return frozenset(numbers | {_SUFFIXES[word] for word in words if word in _SUFFIXES}), plug


def _words(text: str) -> Iterator[str]:
    for word in text.split():
        yield from _WORD.findall(word)

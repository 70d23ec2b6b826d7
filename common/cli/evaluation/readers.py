"""Recorded series, told by their columns and keys: prices, availability, utilisation. Any name, any order of rows.

What a row says that cannot be so (a price of 0, a negative one, NaN, words) is dropped and counted.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.cli.evaluation.files import File, Skipped, below, parent
from common.domain.policy import Load
from common.domain.series import is_price
from common.domain.survival import Place

PRICE_COLUMNS = frozenset({"date", "provider", "gpu_model", "gpu_count", "region", "rental_type"})
PRICE_VALUES = frozenset({"price_min_usd", "price_median_usd"})
LOAD_COLUMNS = frozenset({"value", "timestamp_anon", "container_ip"})
REGION = re.compile(r"[a-z]{2,}(?:-[a-z]+)+-?\d+")
"""us-west-2, europe-west4: what the places of one region have in common in their names."""
YEARS = range(2000, 2101)
UNAVAILABLE_IS_1 = "1=unavailable"
INVERTED_PATH = "frontiercs"
"""Files below such a path record 1 = unavailable."""
MAX_TICKS = 2_000_000
"""Of one place: a year every 16 seconds."""
BROKEN_LINES = 20
"""JSON lines whose first sound line comes later are not looked for."""
MAX_DEPTH = 64
"""Of folders."""
UNKNOWN = "no columns or keys of a price, availability or utilisation series"


@dataclass(frozen=True)
class PriceKey:
    """Whose price it is."""

    folder: str
    market: str
    """The provider; empty for lists over several."""
    rental_type: str
    gpu: str
    gpu_count: str
    region: str


@dataclass
class Quotes:
    """Points of one price series: (seconds since 1970, USD per hour)."""

    lowest: list[tuple[float, float]] = field(default_factory=list)
    median: list[tuple[float, float]] = field(default_factory=list)


@dataclass
class Recorded:
    """Everything found below one folder."""

    prices: dict[PriceKey, Quotes] = field(default_factory=lambda: defaultdict(Quotes))
    places: dict[str, list[Place]] = field(default_factory=dict)
    """By folder (and the distance of looks, where a folder holds several)."""
    loads: dict[str, list[Load]] = field(default_factory=dict)
    files: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(kind, folder) -> files read."""
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(kind, folder) -> rows that could not be so."""
    skipped: list[Skipped] = field(default_factory=list)

    def files_of(self, kind: str, folder: str) -> int:
        """Files of the kind that count in a folder, in it or below it."""
        return sum(n for (of, at), n in self.files.items() if of == kind and _holds(folder, at))

    def dropped_of(self, kind: str, folder: str) -> int:
        """Rows of the kind that were dropped, in a folder or below it."""
        return sum(n for (of, at), n in self.dropped.items() if of == kind and _holds(folder, at))


def read(root: Path) -> Recorded:
    """Reads everything; a file that cannot be read is in `skipped` with the reason, and costs nothing else."""
    found = Recorded()
    traces: list[_Trace] = []
    samples: dict[tuple[str, str], dict[float, float]] = defaultdict(dict)
    inverted: dict[str, bool] = {}
    for file in below(root):
        if isinstance(file, Skipped):
            found.skipped.append(file)
            continue
        try:
            kind = _read(file, found, traces, samples, inverted)
        except (ValueError, KeyError, TypeError, csv.Error, RecursionError) as error:
            found.skipped.append(Skipped(file.path, f"{type(error).__name__}: {error}"))
            continue
        if kind is None:
            found.skipped.append(Skipped(file.path, UNKNOWN))
        elif kind:
            found.files[kind, file.folder] += 1
    found.places = _places(traces, inverted, found)
    homes = _homes(samples.keys())
    for (folder, name), values in sorted(samples.items()):
        times = tuple(sorted(values))
        found.loads.setdefault(homes[folder], []).append(Load(name, times, tuple(values[at] for at in times)))
    return found


def _holds(folder: str, at: str) -> bool:
    home = folder.partition(" (every ")[0]
    return home == "." or at == home or at.startswith(f"{home}/")


def _read(
    file: File,
    found: Recorded,
    traces: list[_Trace],
    samples: dict[tuple[str, str], dict[float, float]],
    inverted: dict[str, bool],
) -> str | None:
    """The kind of the file; empty for one that only describes others, None for an unknown one."""
    start = file.text.lstrip()[:1]
    if start == "{":
        first = _first_object(file.text)
        if "polarity" in first:
            inverted[parent(file.path)] = first["polarity"] == UNAVAILABLE_IS_1
            return ""
        if "data" in first and "gap_seconds" in (first.get("metadata") or {}):
            traces.append(_trace(file, first, found))
            return "availability"
        if {"timestamp", "gpu_type", "price_stats"} <= first.keys():
            _json_prices(file, found)
            return "prices"
        return None
    columns = frozenset(name.strip() for name in next(csv.reader([file.text.partition("\n")[0]]), []))
    if columns >= PRICE_COLUMNS and columns & PRICE_VALUES:
        _csv_prices(file, found)
        return "prices"
    if columns >= LOAD_COLUMNS:
        _csv_loads(file, found, samples)
        return "utilisation"
    return None


def _first_object(text: str) -> dict[str, Any]:
    """The first JSON object of the text: the whole of a document, the first sound one of JSON lines."""
    for start in (text.lstrip(), *text.splitlines()[1:BROKEN_LINES]):
        try:
            value, _ = json.JSONDecoder().raw_decode(start)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    raise ValueError("no JSON object at its beginning")


def _csv_prices(file: File, found: Recorded) -> None:
    for row in _rows(file.text):
        at = _seconds(row.get("date"))
        prices = {column: _price(row.get(column)) for column in PRICE_VALUES}
        if at is None or not any(prices.values()):
            found.dropped["prices", file.folder] += 1
            continue
        names = (row.get(column) or "" for column in ("provider", "rental_type", "gpu_model", "gpu_count", "region"))
        quotes = found.prices[PriceKey(file.folder, *names)]
        _quote(quotes, at, prices["price_min_usd"], prices["price_median_usd"])


def _json_prices(file: File, found: Recorded) -> None:
    for line in file.text.splitlines():
        if not line.strip():
            continue
        at, low, median, gpu = None, None, None, ""
        try:
            row = json.loads(line)
            at, stats = _seconds(row["timestamp"]), row["price_stats"]
            low, median = _price(stats.get("min")), _price(stats.get("median"))
            gpu = " ".join(str(row[name]) for name in ("gpu_type", "socket_type") if row.get(name))
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        if at is None or not (low or median):
            found.dropped["prices", file.folder] += 1
            continue
        _quote(found.prices[PriceKey(file.folder, "", "list", gpu, "1", "")], at, low, median)


def _quote(quotes: Quotes, at: float, low: float | None, median: float | None) -> None:
    """A price that is missing is replaced by the other one of its row."""
    quotes.lowest.append((at, low or median or 0.0))
    quotes.median.append((at, median or low or 0.0))


def _csv_loads(file: File, found: Recorded, samples: dict[tuple[str, str], dict[float, float]]) -> None:
    """Several samples of one moment are several GPUs: the busiest decides."""
    for row in _rows(file.text):
        at, percent = _number(row.get("timestamp_anon")), _number(row.get("value"))
        if at is None or percent is None or not 0 <= percent <= 100 or not row.get("container_ip"):
            found.dropped["utilisation", file.folder] += 1
            continue
        of = samples[file.folder, row["container_ip"]]
        of[at] = max(percent, of.get(at, 0.0))


@dataclass(frozen=True)
class _Trace:
    """One availability file as it stands: 1 and 0 mean what its folder says."""

    file: File
    place: str
    region: str
    step_s: float
    first: int
    looks: tuple[int | None, ...]


def _trace(file: File, document: Mapping[str, Any], found: Recorded) -> _Trace:
    """A window cut out of a longer trace says so; its windows are put together again, not counted many times."""
    metadata = document["metadata"]
    step_s = float(metadata["gap_seconds"])
    looks = document["data"]
    if not (math.isfinite(step_s) and step_s > 0 and isinstance(looks, list)):
        raise ValueError("gap_seconds is not a positive number, or data is not a list")
    known = tuple(int(look) if look in (0, 1) else None for look in looks)
    found.dropped["availability", file.folder] += known.count(None)
    start, original = metadata.get("start_time"), document.get("original_trace")
    is_window = isinstance(start, int) and isinstance(original, str) and 0 <= start < MAX_TICKS
    name = original if is_window else file.path
    stem = str(name).rpartition("/")[2].removesuffix(".gz").removesuffix(".json")
    region = REGION.search(stem) or REGION.search(file.path)
    first = start if is_window else _clock_tick(start, step_s)
    place = stem if is_window else file.path
    return _Trace(file, place, region[0] if region else "", step_s, first, known)


def _clock_tick(start: Any, step_s: float) -> int:
    """The tick of a trace that says when it began; 0 for all that do not."""
    at = _seconds(start) if isinstance(start, str) else _number(start)
    return round(at / step_s) if at is not None and at >= datetime(YEARS[0], 1, 1, tzinfo=UTC).timestamp() else 0


def _homes(named: Iterable[tuple[str, str]]) -> dict[str, str]:
    """(folder, name) -> the folder where each counts: one that holds a single series counts with its neighbours."""
    names: dict[str, set[str]] = defaultdict(set)
    for folder, name in named:
        names[folder].add(name)
    homes = {folder: folder for folder in names}
    for _ in range(MAX_DEPTH):
        held: dict[str, set[str]] = defaultdict(set)
        for folder, home in homes.items():
            held[home] |= names[folder]
        lonely = [folder for folder, home in homes.items() if len(held[home]) == 1 and home != "."]
        if not lonely:
            break
        homes |= {folder: parent(homes[folder]) for folder in lonely}
    return homes


def _places(traces: Iterable[_Trace], inverted: Mapping[str, bool], found: Recorded) -> dict[str, list[Place]]:
    """Windows of the same place are joined; where two of them disagree, nobody knows."""
    traces = list(traces)
    homes = _homes((trace.file.folder, trace.place) for trace in traces)
    parts: dict[tuple[str, float, str], list[_Trace]] = defaultdict(list)
    for trace in traces:
        parts[homes[trace.file.folder], trace.step_s, trace.place].append(trace)
    groups: dict[tuple[str, float], list[Place]] = defaultdict(list)
    for (folder, step_s, name), windows in sorted(parts.items()):
        try:
            groups[folder, step_s].append(_joined(name, windows, inverted))
        except ValueError as error:
            found.skipped.append(Skipped(windows[0].file.path, str(error)))
    steps = Counter(folder for folder, _ in groups)
    return {
        folder if steps[folder] == 1 else f"{folder} (every {step_s:g} s)": _on_one_clock(places, found)
        for (folder, step_s), places in groups.items()
    }


def _on_one_clock(places: list[Place], found: Recorded) -> list[Place]:
    """Those that begin within MAX_TICKS of the middle one: traces with and without a clock share no time."""
    middle = sorted(place.first for place in places)[(len(places) - 1) // 2]
    near = [place for place in places if abs(place.first - middle) <= MAX_TICKS]
    found.skipped += [
        Skipped(place.name, "begins at another time than the other traces of its folder")
        for place in places
        if place not in near
    ]
    return near


def _joined(name: str, windows: list[_Trace], inverted: Mapping[str, bool]) -> Place:
    first = min(window.first for window in windows)
    ticks = max(window.first + len(window.looks) for window in windows) - first
    if not 0 < ticks <= MAX_TICKS:
        raise ValueError(f"{ticks} looks; 1 to {MAX_TICKS} are read")
    up: list[bool | None] = [None] * ticks
    torn: set[int] = set()
    for window in windows:
        down_is = 1 if _is_inverted(window.file, inverted) else 0
        for at, look in enumerate(window.looks, window.first - first):
            said = None if look is None else look != down_is
            if said is not None and up[at] is not None and up[at] != said:
                torn.add(at)
            up[at] = up[at] if said is None else said
    for at in torn:
        up[at] = None
    return Place(name, windows[0].region, windows[0].step_s, first, tuple(up))


def _is_inverted(file: File, inverted: Mapping[str, bool]) -> bool:
    """polarity.json beside the file, or beside its archive, decides; else the path does."""
    for beside in (parent(file.path), parent(file.archive or file.path)):
        if beside in inverted:
            return inverted[beside]
    return INVERTED_PATH in file.full_path.lower()


def _rows(text: str) -> Iterator[dict[str, str]]:
    return csv.DictReader(text.splitlines(), skipinitialspace=True)


def _price(value: Any) -> float | None:
    usd = _number(value)
    return usd if usd is not None and is_price(usd) else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _seconds(value: Any) -> float | None:
    """Of an ISO date or time; one without a zone is UTC."""
    try:
        at = datetime.fromisoformat(str(value).strip())
    except ValueError:
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() if at.year in YEARS else None

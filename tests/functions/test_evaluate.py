"""`dumont evaluate` on folders that nobody has seen: any name, any packing, broken files among them."""

from __future__ import annotations

import gzip
import io
import json
import math
import random
import tarfile
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from common.cli import session
from common.cli.evaluate import app
from common.cli.evaluation.readers import read
from common.domain.survival import FEATURES, Coefficients

run = CliRunner()
HEADER = "date,provider,gpu_model,gpu_count,region,rental_type,price_min_usd,price_median_usd"


def evaluated(what: str, data: Path, *more: str) -> tuple[int, dict[str, Any]]:
    result = run.invoke(app, [what, "--data", str(data), "--json", *more])
    assert result.exit_code in (session.OK, session.FAILED), result.output
    return result.exit_code, json.loads(result.stdout)


def price_rows(days: int = 45, series: int = 8, provider: str = "vast.ai", seed: int = 1) -> list[str]:
    """Each day's price is drawn anew around the series' own level: what is listed that day decides."""
    draw = random.Random(seed)
    rows = []
    for gpu in range(series):
        level, spread = math.exp(draw.gauss(0, 0.5)), 0.05 + 0.05 * gpu
        for day in range(days):
            usd = level * math.exp(draw.gauss(0, spread))
            at = date(2026, 1, 1) + timedelta(days=day)
            rows.append(f"{at},{provider},GPU_{gpu},1,US,spot,{usd:.4f},{usd * 1.1:.4f}")
    return rows


def csv_of(rows: list[str], header: str = HEADER) -> bytes:
    return "\n".join([header, *rows, ""]).encode()


def looks(n: int, loses_of_1000: int, seed: int) -> list[int]:
    draw, up = random.Random(seed), list[int]()
    while len(up) < n:
        up += [1] if draw.randrange(1_000) >= loses_of_1000 else [0] * 12
    return up[:n]


def trace(data: list[Any], gap_s: float = 600, **more: Any) -> bytes:
    return json.dumps({"metadata": {"gap_seconds": gap_s}, "data": data, **more}).encode()


def load_rows(pods: int = 6, hours: int = 12, seed: int = 1) -> list[str]:
    draw = random.Random(seed)
    rows = []
    for pod in range(pods):
        busy = True
        for minute in range(hours * 60):
            busy = busy != (draw.randrange(12) == 0)
            rows.append(f"{40.0 if busy else 0.0},{1_000_000 + 60 * minute}.0,pod{pod}")
    return rows


LOAD_HEADER = "value,timestamp_anon,container_ip"


def tar_gz(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def broken_files(folder: Path) -> list[str]:
    """Files that cannot be read, each in its own way; and one that is passed over without a word."""
    whole = gzip.compress(csv_of(price_rows()))
    contents = {
        "cut.csv.gz": whole[: len(whole) // 2],
        "not_really.tar.gz": b"\x1f\x8bnothing of the kind",
        "picture.png": b"\x89PNG\0\0\0\0",
        "latin.csv": "préço".encode("latin-1"),
        "half.json": b'{"metadata": {"gap_seconds": 60}, "data": [1, 0',
        "no_gap.json": b'{"metadata": {"gap_seconds": -5}, "data": [1, 0]}',
        "no_list.json": b'{"metadata": {"gap_seconds": 5}, "data": "1010"}',
        "other.csv": b"a,b\n1,2\n",
        "array.json": b"[1, 2, 3]",
        "deep.json": b'{"a":' + b"[" * 100_000,
        "empty.csv": b"",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "._ghost.json").write_bytes(b"\0\5\x16\7")
    return sorted(contents)


def test_prices_are_evaluated_with_n_span_and_intervals(tmp_path: Path) -> None:
    (tmp_path / "anything.txt").write_bytes(csv_of(price_rows()))

    _, found = evaluated("prices", tmp_path)

    assert found["what"] == "prices"
    assert found["data"] == [
        {
            "folder": ".",
            "files": 1,
            "series": 8,
            "scored_series": 8,
            "n": 360,
            "dropped_rows": 0,
            "first": "2026-01-01T00:00+00:00",
            "last": "2026-02-14T00:00+00:00",
            "span_days": 44.0,
        }
    ]
    bounds = {bound["name"]: bound for bound in found["bounds"]}
    assert [name.rpartition(": ")[2] for name in bounds][:3] == [
        "rMAE",
        "pinball / last value with its own empirical bands",
        "80 % coverage",
    ]
    assert all(bound["low95"] <= bound["measured"] <= bound["high95"] and bound["n"] for bound in bounds.values())
    assert {row["horizon"] for row in found["results"]["rows"]} == {"1 d", "3 d", "7 d"}


def test_a_bound_that_does_not_hold_is_exit_code_1(tmp_path: Path) -> None:
    dear_wait = [f"{date(2026, 1, 1) + timedelta(days=d)},vast.ai,G,1,US,spot,{1 + 0.01 * d},1" for d in range(200)]
    (tmp_path / "rising.csv").write_bytes(csv_of(dear_wait))
    (tmp_path / "falling.csv").write_bytes(csv_of(price_rows(series=1, days=20)))

    code, found = evaluated("waiting", tmp_path)

    assert code == session.FAILED
    assert not all(bound["ok"] for bound in found["bounds"])


def test_every_packing_gives_the_same_numbers(tmp_path: Path) -> None:
    rows = price_rows()
    content, (first, second) = csv_of(rows), (csv_of(rows[:200]), csv_of(rows[200:]))
    shuffled = random.Random(5).sample(rows, len(rows))
    folders: dict[str, dict[str, bytes]] = {
        "plain": {"x.csv": content},
        "gz": {"x": gzip.compress(content)},
        "tgz": {"x.tgz": tar_gz({"in/a.csv": first, "in/._a.csv": b"\0\1", "b.csv": second})},
        "tar": {"x.tar": gzip.decompress(tar_gz({"a": content}))},
        "split": {"one.csv": second, "two.csv": first},
        "shuffled": {"x.csv": csv_of(shuffled)},
        "twice": {"x.csv": content, "y.csv": content},
        "other_columns": {"x.csv": csv_of([f"{row},9,z" for row in rows], f"{HEADER},price_max_usd,url")},
    }
    answers = {}
    for name, files in folders.items():
        folder = tmp_path / name
        folder.mkdir()
        for file, packed in files.items():
            (folder / file).write_bytes(packed)
        _, found = evaluated("prices", folder)
        assert found["skipped"] == [], name
        answers[name] = [bound["measured"] for bound in found["bounds"]]

    assert answers["plain"]
    assert all(answer == answers["plain"] for answer in answers.values()), answers


def test_absurd_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    absurd = [
        f"2026-01-{day:02},vast.ai,GPU_0,1,US,spot,{usd},{usd}"
        for day, usd in enumerate(["0", "-1", "nan", "inf", "cheap", "", "1e300"], start=1)
    ]
    absurd += ["yesterday,vast.ai,GPU_0,1,US,spot,1,1", "9999-01-01,vast.ai,GPU_0,1,US,spot,1,1", "2026-01-01,vast.ai"]
    (tmp_path / "sound").mkdir()
    (tmp_path / "mixed").mkdir()
    (tmp_path / "sound" / "x.csv").write_bytes(csv_of(price_rows()))
    (tmp_path / "mixed" / "x.csv").write_bytes(csv_of(absurd + price_rows()))

    sound, mixed = (evaluated("prices", tmp_path / name)[1] for name in ("sound", "mixed"))

    assert mixed["data"][0]["dropped_rows"] == len(absurd)
    assert mixed["results"] == sound["results"]


def test_broken_files_cost_nothing_but_themselves(tmp_path: Path) -> None:
    broken = broken_files(tmp_path)
    (tmp_path / "sound.csv").write_bytes(csv_of(price_rows()))

    _, found = evaluated("prices", tmp_path)

    assert found["data"][0]["n"] == 360
    assert [skipped["path"] for skipped in found["skipped"]] == broken
    assert all(skipped["reason"] for skipped in found["skipped"])


def test_a_broken_line_among_json_lines_is_dropped(tmp_path: Path) -> None:
    def line(hour: int, usd: float) -> str:
        at = f"2026-01-{1 + hour // 24:02}T{hour % 24:02}:10:00+00:00"
        return json.dumps({"timestamp": at, "gpu_type": "H100", "price_stats": {"min": usd, "median": usd + 1}})

    lines = [line(hour, 2 + hour % 3) for hour in range(200)]
    lines = ["{broken", *lines[:90], '{"timestamp": 5}', "", *lines[90:]]
    (tmp_path / "list.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))

    _, found = evaluated("prices", tmp_path)

    assert (found["data"][0]["n"], found["data"][0]["dropped_rows"]) == (200, 2)
    assert {row["horizon"] for row in found["results"]["rows"]} == {"1 h", "6 h", "24 h"}


@pytest.mark.parametrize(
    "rows",
    [
        price_rows(days=3),
        price_rows(days=1, series=1),
        [f"{date(2026, 1, 1) + timedelta(days=d)},vast.ai,G,1,US,spot,2.5,2.5" for d in range(60)],
        [f"{date(2026, 1, 1) + timedelta(days=9 * d)},vast.ai,G,1,US,spot,{d + 1},{d + 1}" for d in range(60)],
    ],
    ids=["few points", "one point", "constant", "gaps only"],
)
def test_thin_series_are_no_trouble_and_fail_no_bound(tmp_path: Path, rows: list[str]) -> None:
    (tmp_path / "x.csv").write_bytes(csv_of(rows))

    for what in ("prices", "waiting"):
        code, found = evaluated(what, tmp_path)
        assert (code, found["data"][0]["files"]) == (session.OK, 1), found["bounds"]


def test_survival_beats_what_is_random_only_where_places_differ(tmp_path: Path) -> None:
    for n, loses in enumerate((2, 8, 30, 80)):
        (tmp_path / f"us-east-1{'abcd'[n]}_v100_1.json").write_bytes(trace(looks(4_000, loses, n)))

    code, found = evaluated("survival", tmp_path)

    row = next(row for row in found["results"]["rows"] if row["horizon"] == "1 h")
    assert code == (session.OK if all(bound["ok"] for bound in found["bounds"]) else session.FAILED)
    assert row["auc_model"]["value"] > 0.75
    assert row["auc_gain"]["low95"] is not None
    assert len(row["calibration"]) == 5
    assert all(abs(fifth["given"] - fifth["survived"]) < 0.1 for fifth in row["calibration"])


def test_polarity_is_read_beside_the_files_or_from_their_path(tmp_path: Path) -> None:
    up, inverted = looks(300, 20, 1), [1 - look for look in looks(300, 20, 1)]
    layout = {
        "said/x.json": trace(inverted),
        "said/polarity.json": b'{"polarity": "1=unavailable"}',
        "FrontierCS/x.json": trace(inverted),
        "overruled_frontiercs/x.json": trace(up),
        "overruled_frontiercs/polarity.json": b'{"polarity": "1=available"}',
        "plain/x.json": trace(up),
        "packed/x.tar.gz": tar_gz({"deep/x.json": trace(inverted), "deep/._x.json": b"\0"}),
        "packed/polarity.json": b'{"polarity": "1=unavailable"}',
    }
    for path, content in layout.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)

    places = [place for many in read(tmp_path).places.values() for place in many]

    assert len(places) == 5
    assert {place.up for place in places} == {tuple(look == 1 for look in up)}


def test_windows_of_one_trace_are_put_together_and_not_counted_twice(tmp_path: Path) -> None:
    whole = looks(500, 30, 3)
    for n, (start, end) in enumerate([(0, 300), (100, 400), (250, 500)]):
        window = json.loads(trace(whole[start:end], original_trace="data/us-west-2a_k80_1.json"))
        window["metadata"] |= {"start_time": start, "end_time": end}
        (tmp_path / f"{n}").mkdir()
        (tmp_path / f"{n}" / "w.json").write_text(json.dumps(window))

    (places,) = read(tmp_path).places.values()

    assert [(place.name, place.region, place.up) for place in places] == [
        ("us-west-2a_k80_1", "us-west-2", tuple(look == 1 for look in whole))
    ]


def test_a_trace_with_another_clock_is_skipped_and_takes_no_memory(tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / f"{n}.json").write_bytes(trace(looks(300, 20, n), gap_s=1))
    (tmp_path / "clocked.json").write_text(
        json.dumps({"metadata": {"gap_seconds": 1, "start_time": "2026-01-01T00:00:00Z"}, "data": looks(300, 20, 9)})
    )

    _, found = evaluated("survival", tmp_path)

    assert (found["data"][0]["series"], found["data"][0]["files"]) == (3, 4)
    assert [skipped["path"] for skipped in found["skipped"]] == ["clocked.json"]


def test_traces_that_say_when_they_began_are_laid_on_one_clock(tmp_path: Path) -> None:
    for n, start in enumerate(("2026-01-01T00:00:00Z", 1_767_225_600 + 6_000)):
        document = json.loads(trace(looks(300, 20, n)))
        document["metadata"]["start_time"] = start
        (tmp_path / f"{n}.json").write_text(json.dumps(document))

    first, second = read(tmp_path).places["."]

    assert second.first - first.first == 10


def test_what_is_neither_0_nor_1_is_a_gap(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(trace([1, 0, None, 2, "1", True, [1]]))

    recorded = read(tmp_path)

    assert recorded.places["."][0].up == (True, False, None, None, None, True, None)
    assert recorded.dropped_of("availability", ".") == 4


def test_a_job_over_several_places_is_held_against_the_best_single_one(tmp_path: Path) -> None:
    for n in range(4):
        turns = [1 if (look // 36) % 4 == n else 0 for look in range(2_000)]
        (tmp_path / f"zone{n}.json").write_bytes(trace(turns))

    code, found = evaluated("jobs", tmp_path)

    assert code == session.OK
    assert [bound["ok"] for bound in found["bounds"]] == [True, True]
    assert found["bounds"][0]["measured"] < 0.5


def test_idle_policies_are_compared_and_the_customers_default_stands_beside_them(tmp_path: Path) -> None:
    (tmp_path / "pods").write_bytes(gzip.compress(csv_of(load_rows(), LOAD_HEADER)))

    _, found = evaluated("idle", tmp_path)

    rows = {row["policy"]: row for row in found["results"]["rows"]}
    default, shadow = rows["default (below 5 % for 3 minutes)"], rows["shadow (never hibernates)"]
    assert shadow["wasted_share"]["value"] == pytest.approx(shadow["idle_share"], abs=1e-3)
    assert default["hibernations_per_day"]["value"] > rows["adaptive (10 minutes)"]["hibernations_per_day"]["value"]
    assert len(found["bounds"]) == 3


def test_one_pod_or_place_per_folder_counts_with_its_neighbours(tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / f"pod{n}").mkdir()
        rows = [row for row in load_rows() if row.endswith(f"pod{n}")]
        (tmp_path / f"pod{n}" / "x.csv").write_bytes(csv_of(rows, LOAD_HEADER))
        (tmp_path / f"pod{n}" / "x.json").write_bytes(trace(looks(300, 20, n)))

    recorded = read(tmp_path)

    assert {folder: len(loads) for folder, loads in recorded.loads.items()} == {".": 3}
    assert {folder: len(places) for folder, places in recorded.places.items()} == {".": 3}


def test_coefficients_are_fitted_and_written_whole(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out.json"
    data.mkdir()
    for n, loses in enumerate((5, 40)):
        (data / f"{n}.json").write_bytes(trace(looks(1_500, loses, n)))

    evaluated("survival", data, "--fit", str(out))

    fitted = Coefficients.model_validate_json(out.read_text())
    assert fitted.features == tuple(FEATURES)
    assert fitted.fitted_on == "availability traces of 2 places, 21 place-days, one look every 600 s"
    assert [model.horizon_h for model in fitted.models] == [1, 4, 6]
    assert not list(tmp_path.glob("*.new"))


def test_nothing_to_fit_on_is_a_sentence_and_keeps_the_old_file(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    out.write_text("old")
    (tmp_path / "data").mkdir()

    result = run.invoke(app, ["survival", "--data", str(tmp_path / "data"), "--fit", str(out)])

    assert (result.exit_code, out.read_text()) == (session.FAILED, "old")
    assert "no availability trace" in result.stderr


@pytest.mark.parametrize("what", ["prices", "survival", "waiting", "idle", "jobs"])
def test_a_folder_that_says_nothing_is_exit_code_1_with_a_sentence(tmp_path: Path, what: str) -> None:
    result = run.invoke(app, [what, "--data", str(tmp_path), "--json"])

    assert result.exit_code == session.FAILED
    assert json.loads(result.stdout)["bounds"] == []
    assert f"says anything about {what}" in result.stderr


def test_a_folder_that_does_not_exist_is_wrong_use(tmp_path: Path) -> None:
    result = run.invoke(app, ["prices", "--data", str(tmp_path / "nowhere")])

    assert result.exit_code == session.USAGE
    assert "is not a folder" in result.stderr


def test_without_json_there_is_a_table(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(csv_of(price_rows()))
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")

    result = run.invoke(app, ["prices", "--data", str(tmp_path)])

    assert "8 series" in result.stdout
    assert "at most 1.0" in result.stdout
    assert "skipped other.csv" in result.stdout


def test_the_same_seed_gives_the_same_intervals(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(csv_of(price_rows()))

    one, again, other = (evaluated("prices", tmp_path, "--seed", seed)[1] for seed in ("1", "1", "2"))

    assert one == again
    assert one["results"] != other["results"]

"""`dumont evaluate`: how good the forecasts and policies are, on any folder of recorded series."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from common.cli import session
from common.cli.evaluation import idle, jobs, prices, survival, waiting
from common.cli.evaluation.readers import Recorded, read
from common.cli.evaluation.report import Bound, Evaluation
from common.domain.scores import Draw

app = typer.Typer(add_completion=False, no_args_is_help=True)
Data = Annotated[Path, typer.Option("--data", help="Folder of recorded series, in any depth, plain or packed.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Seed = Annotated[int, typer.Option(help="Of the resamples behind the intervals.")]
MAX_SKIPPED_SHOWN = 20


@app.command("prices")
def prices_(data: Data, json_: Json = False, seed: Seed = 1) -> None:
    """Price forecasts: error against the last value, bands, coverage."""
    _evaluated(prices.evaluate, _recorded(data), seed, json_)


@app.command("survival")
def survival_(
    data: Data,
    json_: Json = False,
    seed: Seed = 1,
    fit: Annotated[Path | None, typer.Option(help="Also fit on everything, and write the coefficients here.")] = None,
) -> None:
    """Whether a machine is still there in an hour: AUC and Brier score against simple baselines."""
    recorded = _recorded(data)
    if fit is not None:
        _write_fit(recorded, fit)
    _evaluated(survival.evaluate, recorded, seed, json_)


@app.command("waiting")
def waiting_(data: Data, json_: Json = False, seed: Seed = 1) -> None:
    """Waiting for a better price: what the rule saves of what hindsight would."""
    _evaluated(waiting.evaluate, _recorded(data), seed, json_)


@app.command("idle")
def idle_(data: Data, json_: Json = False, seed: Seed = 1) -> None:
    """Idle policies: what each wastes, and how often it is wrong."""
    _evaluated(idle.evaluate, _recorded(data), seed, json_)


@app.command("jobs")
def jobs_(data: Data, json_: Json = False, seed: Seed = 1) -> None:
    """A 48 h job over several places against the best single one."""
    _evaluated(jobs.evaluate, _recorded(data), seed, json_)


def _recorded(data: Path) -> Recorded:
    if not data.is_dir():
        session.fail(f"{data} is not a folder; --data names the folder that holds the series", session.USAGE)
    return read(data)


def _write_fit(recorded: Recorded, out: Path) -> None:
    """Whole or not at all."""
    try:
        fitted = survival.coefficients(recorded, datetime.now(UTC))
        new = out.with_name(f"{out.name}.new")
        new.write_text(fitted.model_dump_json(indent=1) + "\n")
        new.replace(out)
    except ValueError as error:
        session.fail(str(error), session.FAILED)
    except OSError as error:
        session.fail(f"{out} cannot be written: {error}", session.USAGE)


def _evaluated(
    evaluate: Callable[[Recorded, Draw], Evaluation], recorded: Recorded, seed: int, json_: bool
) -> None:  # fmt: skip
    """Exit code 0 = every bound that applies holds; 1 = one does not, or there was nothing of this kind to read."""
    found = evaluate(recorded, random.Random(seed).randrange)
    if json_:
        session.out(_document(found, recorded, seed))
    else:
        _show(found, recorded)
    if not found.data:
        session.fail(f"nothing that could be read here says anything about {found.what}", session.FAILED)
    if not all(bound.ok for bound in found.bounds):
        raise typer.Exit(session.FAILED)


def _document(found: Evaluation, recorded: Recorded, seed: int) -> dict[str, Any]:
    return {
        "what": found.what,
        "seed": seed,
        "data": found.data,
        "results": {"rows": found.results},
        "bounds": [bound.shown() for bound in found.bounds],
        "skipped": [{"path": skipped.path, "reason": skipped.reason} for skipped in recorded.skipped],
    }


def _show(found: Evaluation, recorded: Recorded) -> None:
    console = Console(soft_wrap=True)
    for folder in found.data:
        console.print(
            f"{folder['folder']}: {folder['files']} files, {folder['series']} series, n = {folder['n']}, "
            f"{folder['span_days']} days"
        )
    if found.bounds:
        console.print(_table(found.bounds))
    elif found.data:
        console.print("too little of it for any bound to apply; --json has what was measured")
    for skipped in recorded.skipped[:MAX_SKIPPED_SHOWN]:
        console.print(f"skipped {skipped.path}: {skipped.reason}", markup=False)
    if len(recorded.skipped) > MAX_SKIPPED_SHOWN:
        console.print(f"and {len(recorded.skipped) - MAX_SKIPPED_SHOWN} more")


def _table(bounds: list[Bound]) -> Table:
    table = Table("", "bound", "", "measured", "95 %", "n")
    for bound in bounds:
        row = bound.shown()
        interval = "" if row["low95"] is None else f"{row['low95']} .. {row['high95']}"
        demand = f"{row['sense']} {row['bound']}"
        table.add_row("ok" if bound.ok else "NO", row["name"], demand, str(row["measured"]), interval, str(row["n"]))
    return table

"""What every verb needs: who is signed in, how answers are shown, what the exit code says."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import httpx
import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from common.client import ApiProblem, Client
from common.errors import DumontError

OK, FAILED, USAGE, NOT_FOUND, NOT_ALLOWED, MARKET, CONFLICT, SERVER = range(8)
EXIT_CODES = {
    OK: "done",
    FAILED: "the operation failed",
    USAGE: "wrong use or wrong input",
    NOT_FOUND: "no such thing",
    NOT_ALLOWED: "not signed in, or not allowed",
    MARKET: "the market refuses (no offer, no credit, unknown GPU)",
    CONFLICT: "not possible in the present state",
    SERVER: "the server failed or cannot be reached",
}
MARKET_CODES = frozenset({"no_offer", "no_credit", "unknown_gpu", "offer_gone", "throttled", "quota_exceeded"})
BY_STATUS = {400: USAGE, 402: CONFLICT, 422: USAGE, 401: NOT_ALLOWED, 403: NOT_ALLOWED, 404: NOT_FOUND, 409: CONFLICT}
DEFAULT_URL = "http://127.0.0.1:8766"
WIDE_CHARS = 400
"""Of a line that no terminal breaks."""

transport: httpx.BaseTransport | None = None
"""Another way to the API than the network: what a test mounts."""
sleep: Callable[[float], None] = time.sleep
"""Another clock, likewise."""


@dataclass(frozen=True)
class Signed:
    url: str
    token: str | None


def path() -> Path:
    config = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(config) / "dumont" / "credentials.json"


def signed() -> Signed:
    """The environment first, then what `dumont login` kept."""
    kept = _kept()
    url = os.environ.get("DUMONT_API_URL") or kept.get("url") or DEFAULT_URL
    return Signed(url, os.environ.get("DUMONT_API_KEY") or kept.get("token"))


def _kept() -> dict[str, str]:
    """Nothing where there is no home and no such file; one that cannot be read is said, for it names an account."""
    try:
        kept = json.loads(path().read_text())
        return {name: str(kept[name]) for name in ("url", "token")}
    except (FileNotFoundError, RuntimeError):
        return {}
    except (OSError, ValueError, LookupError, TypeError) as error:
        fail(f"{path()} cannot be read ({error})", NOT_ALLOWED)


def keep(url: str, token: str) -> None:
    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        new = path().with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(json.dumps({"url": url, "token": token}))
        new.replace(path())
    except (OSError, RuntimeError) as error:
        fail(f"the token cannot be kept ({error}); DUMONT_API_URL and DUMONT_API_KEY do without", FAILED)


@contextmanager
def client(who: Signed | None = None) -> Iterator[Client]:
    """The API for one verb, as whoever is signed in; a problem ends it with one sentence and its exit code."""
    who = who or signed()
    with problems_said(), closing(Client(who.url, who.token, transport, wait=_wait_for_a_turn)) as made:
        yield made


def _wait_for_a_turn(wait_s: float) -> None:
    print(f"dumont: the marketplace takes few calls; this one is made again in {wait_s:.0f} s", file=sys.stderr)
    sleep(wait_s)


@contextmanager
def problems_said() -> Iterator[None]:
    try:
        yield
    except ApiProblem as problem:
        fail(str(problem), exit_code(problem))
    except DumontError as error:
        fail(str(error), MARKET if error.code in MARKET_CODES else BY_STATUS.get(error.status, SERVER))


def exit_code(problem: ApiProblem) -> int:
    if problem.code in MARKET_CODES:
        return MARKET
    return BY_STATUS.get(problem.status, SERVER)


def fail(sentence: str, code: int) -> NoReturn:
    hint = "; sign in with: dumont login" if code == NOT_ALLOWED else ""
    print(f"dumont: {sentence}{hint}", file=sys.stderr)
    raise typer.Exit(code)


def out(answer: Any) -> None:
    """Exactly one JSON document on stdout."""
    print(json.dumps(answer))


def table(rows: list[dict[str, Any]], *columns: str) -> None:
    """For people; what is null stays empty."""
    print_table(columns, ([row[column] for column in columns] for row in rows))


def print_table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Cells are words and never markup, and none is cut: too long ones go on below, or, in a pipe, to the right."""
    shown = Table(*(Column(column, overflow="fold") for column in columns))
    for row in rows:
        shown.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else WIDE_CHARS).print(shown)


@contextmanager
def waiting(what: str) -> Iterator[Callable[[str], None]]:
    """Shown while something goes on; what is given says how far it is, in words that are never markup."""
    with Console(stderr=True).status(Text(what)) as status:
        yield lambda now: status.update(Text(now))

"""What people type after `/gpu`: text in, a request or a suggestion out. Forgiving, and never acting on a guess."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any

from pydantic import ConfigDict, Field

from common.domain.model import Model
from common.domain.strategy import Strategy

COMMAND = "/gpu"
TEXT_LENGTH_MAX = 1000
WORDS_MAX = 60
SHOWN_MAX = 40
"""Characters of a wrong word that an answer repeats."""
SUGGESTED_MAX = 3
CLOSE = 0.5
"""Of 1: so much alike is worth a suggestion."""
SNOOZE_MINUTES = 60
SNOOZE_MINUTES_MAX = 24 * 60
KEEP_ALIVE_MINUTES_MAX = 7 * 24 * 60
LEASE_ENDS = ("off", "end", "stop", "over")
"""After `keep-alive`, instead of a span of time."""
SAVINGS_DAYS = 7
SAVINGS_DAYS_MAX = 90
DEFAULT_GPU = "RTX 4090"
GPUS = ("RTX 3090", "RTX 4090", "RTX 5090", "L40S", "A100 PCIE", "A100 SXM4", "H100 SXM", "H100 PCIE", "H200", "B200")
"""Names that people shorten; any other is taken as it is typed, and the market is asked."""


class Verb(StrEnum):
    DEPLOY = "deploy"
    LIST = "list"
    SHOW = "show"
    WAKE = "wake"
    HIBERNATE = "hibernate"
    SNOOZE = "snooze"
    KEEP_ALIVE = "keep-alive"
    WHY = "why"
    FAILOVER = "failover"
    BACK = "back"
    DESTROY = "destroy"
    MARKET = "market"
    SAVINGS = "savings"
    LINK = "link"
    HELP = "help"


ALIASES: Mapping[str, Verb] = {
    **{verb.value: verb for verb in Verb},
    "stop": Verb.HIBERNATE,
    "sleep": Verb.HIBERNATE,
    "pause": Verb.HIBERNATE,
    "terminate": Verb.DESTROY,
    "delete": Verb.DESTROY,
    "rm": Verb.DESTROY,
    "start": Verb.WAKE,
    "resume": Verb.WAKE,
    "create": Verb.DEPLOY,
    "rent": Verb.DEPLOY,
    "run": Verb.DEPLOY,
    "ls": Verb.LIST,
    "status": Verb.LIST,
    "describe": Verb.SHOW,
    "keep": Verb.SNOOZE,
    "extend": Verb.SNOOZE,
    "keepalive": Verb.KEEP_ALIVE,
    "keep_alive": Verb.KEEP_ALIVE,
    "explain": Verb.WHY,
    "standby": Verb.FAILOVER,
    "hand-back": Verb.BACK,
    "handback": Verb.BACK,
    "offers": Verb.MARKET,
    "gpus": Verb.MARKET,
    "prices": Verb.MARKET,
    "cost": Verb.SAVINGS,
    "costs": Verb.SAVINGS,
    "spent": Verb.SAVINGS,
    "login": Verb.LINK,
    "connect": Verb.LINK,
    "?": Verb.HELP,
    "--help": Verb.HELP,
    "-h": Verb.HELP,
}


class Ask(Model):
    """One request, understood."""

    model_config = ConfigDict(extra="forbid")

    verb: Verb
    instance: str = Field(default="", max_length=64)
    """Its id or its name; empty where it may be left out."""
    minutes: int = Field(default=SNOOZE_MINUTES, ge=0, le=KEEP_ALIVE_MINUTES_MAX)
    """Of a lease; 0 ends it."""
    days: int = Field(default=SAVINGS_DAYS, ge=1, le=SAVINGS_DAYS_MAX)
    spec: dict[str, Any] = {}
    """Of a deploy: fields of `POST /instances/provision`."""


class Confused(Model):
    """What was not understood, and what may have been meant. Nothing is done."""

    sentence: str
    suggestions: tuple[str, ...] = ()
    """Whole commands to type."""


def parse(text: str) -> Ask | Confused:
    """The text of a slash command, without the command itself."""
    if len(text) > TEXT_LENGTH_MAX:
        return Confused(sentence=f"that is longer than {TEXT_LENGTH_MAX} characters", suggestions=(f"{COMMAND} help",))
    words = _words(text)
    if words and words[0].lower() in (COMMAND, COMMAND.strip("/")):
        words = words[1:]
    if not words:
        return Ask(verb=Verb.HELP)
    verb = ALIASES.get(words[0].lower())
    if verb is None:
        return _unknown_verb(words[0])
    return _PARSERS[verb](verb, words[1:])


def _words(text: str) -> list[str]:
    """Split at blanks; quotes hold words together, also typographic ones, and one that is never closed is dropped."""
    plain = text.translate(str.maketrans("“”„‘’`\u00a0–—", "\"\"\"''' --"))
    found = re.findall(r"\"([^\"]*)\"|'([^']*)'|([^\s\"']+)", plain)
    return [next(filter(None, groups), "") for groups in found][:WORDS_MAX]


def _unknown_verb(word: str) -> Confused:
    close = difflib.get_close_matches(word.lower()[:SHOWN_MAX], [*ALIASES], n=SUGGESTED_MAX, cutoff=0.6)
    verbs = dict.fromkeys(ALIASES[name].value for name in close)
    return Confused(
        sentence=f"there is no verb “{word[:SHOWN_MAX]}”",
        suggestions=tuple(f"{COMMAND} {verb}" for verb in verbs) or (f"{COMMAND} help",),
    )


# --- one parser per shape of request


def _bare(verb: Verb, words: list[str]) -> Ask | Confused:
    if words and verb is not Verb.HELP:
        return Confused(sentence=f"`{verb}` takes nothing after it", suggestions=(f"{COMMAND} {verb}",))
    return Ask(verb=verb)


def _about_one(verb: Verb, words: list[str]) -> Ask | Confused:
    """An instance, which may be left out when there is only one; a destroy always names it."""
    if len(words) > 1:
        return Confused(
            sentence=f"`{verb}` takes one instance; quote a name that has blanks",
            suggestions=(f'{COMMAND} {verb} "{" ".join(words)[:SHOWN_MAX]}"',),
        )
    if not words and verb is Verb.DESTROY:
        return Confused(sentence="say which instance", suggestions=(f"{COMMAND} list", f"{COMMAND} {verb} ID"))
    return _ask(verb, instance=words[0] if words else "")


def _lease(verb: Verb, words: list[str]) -> Ask | Confused:
    """`[instance] [for] [how long]`, in either order; `keep-alive` takes days, and `off` for the end of a lease."""
    least, most, example = LEASES[verb]
    words = _spans_joined(words)
    spans = {word: minutes for word in words if (minutes := _lease_minutes(verb, word)) is not None}
    names = [word for word in words if word not in spans and word.lower() != "for"]
    if len(names) > 1 or len(spans) > 1:
        return Confused(
            sentence="one instance and one span of time, please",
            suggestions=(f"{COMMAND} {verb} {names[0][:SHOWN_MAX] if names else 'ID'} 2h",),
        )
    minutes = next(iter(spans.values()), SNOOZE_MINUTES)
    if not least <= minutes <= most:
        return Confused(
            sentence=f"`{verb}` keeps an instance awake for 1 minute to {most // 60} hours",
            suggestions=(f"{COMMAND} {verb} {names[0][:SHOWN_MAX] if names else 'ID'} {example}",),
        )
    return _ask(verb, instance=names[0] if names else "", minutes=minutes)


LEASES: Mapping[Verb, tuple[int, int, str]] = {
    Verb.SNOOZE: (1, SNOOZE_MINUTES_MAX, "8h"),
    Verb.KEEP_ALIVE: (0, KEEP_ALIVE_MINUTES_MAX, "2d"),
}
"""The least and the most minutes, and an example."""


def _lease_minutes(verb: Verb, word: str) -> int | None:
    if verb is Verb.KEEP_ALIVE and word.lower() in LEASE_ENDS:
        return 0
    days = re.fullmatch(r"([0-9]{1,3})d(?:ays?)?", word.lower()) if verb is Verb.KEEP_ALIVE else None
    return int(days[1]) * 24 * 60 if days else minutes_of(word)


def _spans_joined(words: list[str]) -> list[str]:
    """`2 hours`, `10 min`, `3 days` become one word each, as `2hours` is."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1].isdecimal() and word.lower() in UNITS:
            joined[-1] += word
        else:
            joined.append(word)
    return joined


UNITS = frozenset(["m", "min", "mins", "minute", "minutes", "h", "hr", "hrs", "hour", "hours", "d", "day", "days"])
"""Of time, as people write them apart from their number."""


def minutes_of(word: str) -> int | None:
    """`90`, `45m`, `2h`, `1h30m`, `45min`; None = not a span of time. At most 4 digits each."""
    match = re.fullmatch(r"(?:(\d{1,4})h(?:ours?|rs?)?)?(?:(\d{1,4})(?:m(?:in(?:s|utes?)?)?)?)?", word.lower())
    if not match or not word.isascii() or not any(match.groups()):
        return None
    return int(match[1] or 0) * 60 + int(match[2] or 0)


def _savings(verb: Verb, words: list[str]) -> Ask | Confused:
    named = {"": SAVINGS_DAYS, "today": 1, "day": 1, "week": 7, "month": 30}
    word = " ".join(words).lower().removeprefix("last ").removeprefix("this ")
    match = re.fullmatch(r"([0-9]{1,3})\s*(?:d|days?)?", word)
    days = named.get(word, int(match[1]) if match else 0)
    if not 1 <= days <= SAVINGS_DAYS_MAX:
        sentence = f"savings takes a number of days, 1 to {SAVINGS_DAYS_MAX}"
        return Confused(sentence=sentence, suggestions=(f"{COMMAND} {verb} 7d", f"{COMMAND} {verb} month"))
    return Ask(verb=verb, days=days)


def _wish(verb: Verb, words: list[str]) -> Ask | Confused:
    """`deploy` and `market`: a GPU in plain words, and what it may cost, where and how it is rented."""
    spec: dict[str, Any] = {}
    left: list[str] = []
    options: list[str] = []
    words = _spans_joined([part for word in words for part in _option(word)])
    while words:
        word = words.pop(0)
        option = OPTIONS.get(word.lower().lstrip("-").replace("-", "_"))
        if option is None:
            left.append(word)
            continue
        field, read = option
        options += [word, *words[:1]]
        value = read(words.pop(0)) if words else None
        if value is None:
            example = EXAMPLES[field]
            return Confused(
                sentence=f"what comes after “{word[:SHOWN_MAX]}” is not a {field.replace('_', ' ')}",
                suggestions=(f"{COMMAND} {verb} RTX 4090 {example}",),
            )
        spec[field] = value
    gpu = _gpu(verb, left, options, spec)
    if isinstance(gpu, Confused):
        return gpu
    if not gpu and verb is Verb.DEPLOY:
        sentence = "say which GPU"
        return Confused(sentence=sentence, suggestions=(f"{COMMAND} market", f"{COMMAND} deploy RTX 4090 max 0.50"))
    return _ask(verb, spec={"gpu": gpu or DEFAULT_GPU, **spec})


def _option(word: str) -> list[str]:
    """`max=0.5` and `--max=0.5` are two words."""
    name, equals, value = word.partition("=")
    return [name, value] if equals and name and value else [word]


def _gpu(verb: Verb, words: list[str], options: list[str], spec: dict[str, Any]) -> str | Confused:
    """The name as the market has it; `2x` before or after it is a number of GPUs. What may have been meant is suggested
    with everything else that was said: a cap is not lost by a choice of GPU."""
    counts = [match for word in words if (match := re.fullmatch(r"([0-9]{1,2})[x×]|[x×]([0-9]{1,2})", word.lower()))]
    names = [word for word in words if not re.fullmatch(r"[0-9]{1,2}[x×]|[x×][0-9]{1,2}|[x×]|on|an?|me", word.lower())]
    if counts:
        spec["num_gpus"] = int(counts[0][1] or counts[0][2])
    typed = " ".join(names).strip()
    if not typed:
        return ""
    exact = [name for name in GPUS if _squeezed(name) == _squeezed(typed)]
    found = exact or [name for name in GPUS if _squeezed(typed) in _squeezed(name)]
    if len(found) > 1:
        count = [f"{spec['num_gpus']}x"] if counts else []
        suggestions = tuple(" ".join([COMMAND, verb, *count, name, *options]) for name in found)
        return Confused(
            sentence=f"“{typed[:SHOWN_MAX]}” could be several GPUs", suggestions=suggestions[:SUGGESTED_MAX]
        )
    return found[0] if found else typed.upper()


def close_gpus(name: str) -> list[str]:
    """What may have been meant by a GPU that no market knows: by the whole name or by one word of it."""
    typed = name.upper()[:SHOWN_MAX]

    def likeness(gpu: str) -> float:
        return max(difflib.SequenceMatcher(None, typed, word).ratio() for word in (gpu, *gpu.split()))

    close = [gpu for gpu in GPUS if likeness(gpu) >= CLOSE]
    return sorted(close, key=likeness, reverse=True)[:SUGGESTED_MAX]


def _squeezed(name: str) -> str:
    return re.sub(r"[^A-Z0-9]", "", name.upper()).removeprefix("NVIDIA").removeprefix("GEFORCE")


def _usd(word: str) -> str | None:
    try:
        usd = Decimal(re.sub(r"(?:usd)?/?h?(?:our|r)?$", "", word.lower().strip("$€")))
    except InvalidOperation:
        return None
    return str(usd) if usd.is_finite() and 0 < usd < 10_000 else None


def _whole(word: str) -> int | None:
    digits = word.lower().removesuffix("gb").removesuffix("g")
    return int(digits) if re.fullmatch(r"[0-9]{1,6}", digits) else None


def _countries(word: str) -> list[str] | None:
    codes = [code.upper() for code in word.split(",") if code]
    return codes if codes and all(re.fullmatch(r"[A-Z]{2}", code) for code in codes) else None


def _strategy(word: str) -> str | None:
    return word.lower() if word.lower() in {strategy.value for strategy in Strategy} else None


def _name(word: str) -> str | None:
    return word if len(word) <= 64 else None


def _idle_s(word: str) -> int | None:
    minutes = minutes_of(word)
    return minutes * 60 if minutes and minutes <= SNOOZE_MINUTES_MAX else None


Reader = Callable[[str], Any]
OPTIONS: Mapping[str, tuple[str, Reader]] = {
    "max": ("max_usd_per_hour", _usd),
    "under": ("max_usd_per_hour", _usd),
    "below": ("max_usd_per_hour", _usd),
    "max_usd_per_hour": ("max_usd_per_hour", _usd),
    "disk": ("disk_gb", _whole),
    "disk_gb": ("disk_gb", _whole),
    "gpus": ("num_gpus", _whole),
    "num_gpus": ("num_gpus", _whole),
    "in": ("regions", _countries),
    "region": ("regions", _countries),
    "regions": ("regions", _countries),
    "strategy": ("strategy", _strategy),
    "by": ("strategy", _strategy),
    "name": ("name", _name),
    "as": ("name", _name),
    "idle": ("idle_for_s", _idle_s),
}
"""Word -> (field of the wish, how its value is read)."""
EXAMPLES = {
    "max_usd_per_hour": "max 0.50",
    "disk_gb": "disk 100",
    "num_gpus": "gpus 2",
    "regions": "in US,DE",
    "strategy": "by race",
    "name": "as trainer",
    "idle_for_s": "idle 10m",
}


def _ask(verb: Verb, **fields: Any) -> Ask | Confused:
    name = str(fields.get("instance", ""))
    if len(name) > 64:
        return Confused(sentence="no instance has a name that long", suggestions=(f"{COMMAND} list",))
    return Ask(verb=verb, **fields)


_PARSERS: Mapping[Verb, Callable[[Verb, list[str]], Ask | Confused]] = {
    Verb.DEPLOY: _wish,
    Verb.MARKET: _wish,
    Verb.LIST: _bare,
    Verb.SHOW: _about_one,
    Verb.WAKE: _about_one,
    Verb.HIBERNATE: _about_one,
    Verb.SNOOZE: _lease,
    Verb.KEEP_ALIVE: _lease,
    Verb.WHY: _about_one,
    Verb.FAILOVER: _about_one,
    Verb.BACK: _about_one,
    Verb.DESTROY: _about_one,
    Verb.SAVINGS: _savings,
    Verb.LINK: _bare,
    Verb.HELP: _bare,
}

"""Answers of the API as Block Kit. What comes in are the API's own answers as JSON; names and texts are escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from common.chatops.blocks import Block, actions, button, code, confirmation, context, escaped, header, message, section
from common.chatops.grammar import COMMAND, SNOOZE_MINUTES, Ask, Confused, Verb, close_gpus
from common.chatops.press import Press

Json = Mapping[str, Any]
Answer = dict[str, Any]

INSTANCES_SHOWN = 20
OFFERS_SHOWN = 10
REGIONS_SHOWN = 5
SPANS_SHOWN = 8
PROGRESS_CELLS = 10
STORY_SHOWN = 8
WHY_TIMES = (
    ("Idle since", "idle_since"),
    ("Kept awake until", "awake_until"),
    ("Warned at", "warned_at"),
    ("Warns at", "warns_at"),
    ("Hibernates at", "hibernates_at"),
)
HELP: tuple[tuple[str, str], ...] = (
    (
        "deploy RTX 4090 [max 0.50] [in US,DE] [by race] [disk 100] [as NAME]",
        "a plan with its price, then your approval",
    ),
    ("list", "your instances"),
    ("show [NAME]", "one instance: state, address, cost"),
    ("wake [NAME]", "bring it back on any machine"),
    ("hibernate [NAME]", "snapshot, verify, stop paying; `stop` is the same"),
    ("snooze [NAME] [2h]", "do not hibernate it for a while, however idle it is"),
    ("keep-alive [NAME] [2d]", "the same for up to a week; `off` ends it"),
    ("why [NAME]", "why it runs on, or what is about to happen to it, and what led here"),
    ("failover [NAME]", "move to its standby now; `back [NAME]` agrees to go back to a GPU"),
    ("destroy NAME", "end it after a last snapshot; asks first"),
    ("market [RTX 4090]", "what can be rented now"),
    ("savings [7d]", "what was spent, and the hours that were not billed"),
    ("link", "connect your Slack user to your Dumont user"),
)
TITLES: Mapping[str, str] = {
    "instance.running": "Ready",
    "instance.idle": "Idle",
    "instance.hibernated": "Hibernated",
    "instance.lost": "Interrupted",
    "instance.on_standby": "On the standby",
    "instance.handing_back": "Going back to a GPU",
    "instance.back": "Back on a GPU",
    "instance.unprotected": "Unprotected",
    "instance.failed": "Failed",
    "instance.conflict": "Two versions of some files",
    "instance.copy": "Files of an older snapshot",
    "instance.restored_older": "Restored from an older snapshot",
    "instance.snapshot_damaged": "A snapshot is damaged",
    "budget.warning": "Budget warning",
    "budget.exceeded": "Budget used up",
    "credit.low": "Marketplace credit is low",
}
BUTTONS_OF: Mapping[str, tuple[Verb, ...]] = {
    "instance.idle": (Verb.SNOOZE, Verb.HIBERNATE),
    "instance.hibernated": (Verb.WAKE, Verb.DESTROY),
    "instance.failed": (Verb.WAKE,),
    "instance.running": (Verb.HIBERNATE,),
    "instance.on_standby": (Verb.BACK, Verb.HIBERNATE),
}
"""Of notifications."""
BUTTONS_IN: Mapping[str, tuple[Verb, ...]] = {
    "running": (Verb.SNOOZE, Verb.HIBERNATE, Verb.DESTROY),
    "hibernated": (Verb.WAKE, Verb.DESTROY),
    "failed": (Verb.WAKE, Verb.DESTROY),
    "on_standby": (Verb.BACK, Verb.HIBERNATE, Verb.DESTROY),
    "provisioning": (Verb.HIBERNATE,),
    "restoring": (Verb.HIBERNATE,),
    "freezing": (Verb.WAKE,),
}
"""Of an instance in each state; the others have none."""
LABELS = {
    Verb.WAKE: "Wake",
    Verb.HIBERNATE: "Hibernate",
    Verb.SNOOZE: f"Snooze {SNOOZE_MINUTES} min",
    Verb.DESTROY: "Destroy",
    Verb.BACK: "Back to a GPU",
}
UNDER_WAY = {
    Verb.DEPLOY: "Looking at the market",
    Verb.MARKET: "Looking at the market",
    Verb.WAKE: "Waking it",
    Verb.HIBERNATE: "Hibernating it",
    Verb.FAILOVER: "Moving to its standby",
    Verb.BACK: "Going back to a GPU",
    Verb.DESTROY: "Looking it up",
    Verb.SAVINGS: "Adding it up",
    Verb.WHY: "Looking it up",
}


# --- answers that need nothing but the words


def under_way(ask: Ask) -> Answer:
    """What the HTTP answer says; the real one follows."""
    return _line(f"{UNDER_WAY.get(ask.verb, 'Looking')} …")


def help_() -> Answer:
    rows = "\n".join(f"• `{COMMAND} {usage}` {what}" for usage, what in HELP)
    return message(f"What {COMMAND} does", [header("Dumont Cloud"), section(rows)])


def confused(found: Confused) -> Answer:
    sentence = f":thinking_face: {_upper(escaped(found.sentence))}."
    wanted = " or ".join(code(command) for command in found.suggestions)
    return _line(f"{sentence} Did you mean {wanted}?" if wanted else sentence)


def unlinked() -> Answer:
    return _line(
        f":link: I do not know who you are in Dumont yet. Type `{COMMAND} link`, then give the code it shows to "
        "`dumont slack link CODE` where you are signed in."
    )


def link_code(text: str, minutes: int) -> Answer:
    how = f"Where you are signed in to Dumont, run\n`dumont slack link {text}`"
    return message(
        "Your code",
        [
            section(how),
            context(f"Works once, within {minutes} minutes. Show it to nobody: whoever links it acts as you."),
        ],
    )


def not_here() -> Answer:
    return _line(":no_entry: Dumont is not used in this channel; ask your admin for the right one.")


def problem(sentence: str, *, gpu: str = "") -> Answer:
    """An error of the API, in its own words; `gpu` = the name that no market knows."""
    close = [code(f"{COMMAND} deploy {name}") for name in close_gpus(gpu)] if gpu else []
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return _line(f":warning: {_upper(escaped(sentence))}.{hint}")


def done_before() -> Answer:
    return _line("That was taken already; its answer is on the way or stands above.")


# --- answers of the API


def instances(items: Sequence[Json], seed: str) -> Answer:
    alive = [item for item in items if item["state"] != "terminated"]
    if not alive:
        return _line(f"You have no instances. `{COMMAND} deploy RTX 4090` gets you one.")
    blocks: list[Block] = []
    for item in alive[:INSTANCES_SHOWN]:
        blocks.append(section(_headline(item)))
        blocks += _buttons(BUTTONS_IN.get(item["state"], ()), item["id"], seed)
    if len(alive) > INSTANCES_SHOWN:
        blocks.append(context(f"… and {len(alive) - INSTANCES_SHOWN} more: `{COMMAND} show NAME`"))
    return message(f"{len(alive)} instances", blocks)


def instance(item: Json, seed: str) -> Answer:
    fields = [f"*{name}*\n{text}" for name, text in _details(item)]
    blocks = [section(_headline(item), fields), *_buttons(BUTTONS_IN.get(item["state"], ()), item["id"], seed)]
    return message(f"{_name(item)}: {item['state']}", blocks)


def plan(found: Json, ask: Ask, *, cap_usd_per_hour: str, until: datetime, seed: str) -> Answer:
    """A deploy that waits for its approval; the button carries the wish, capped at what is shown here."""
    best = found["offers"][0]
    spec = ask.spec | {"max_usd_per_hour": cap_usd_per_hour}
    approve = Press.of(seed, Verb.DEPLOY, spec=spec, until=until)
    price = _usd(found["usd_per_hour"])
    text = f"*{best['num_gpus']} × {escaped(best['gpu'])}* for *{price}/h* (GPU + disk)"
    machines = found["rentals"] + found["hedges"]
    fields = [
        f"*All in*\n{_usd(found['all_in_usd_per_hour'])}/h",
        f"*First hour at most*\n{_usd(found['first_hour_usd'])}",
        f"*Ready in about*\n{found['ready_s']:.0f} s",
        f"*Machines*\nup to {machines}" if machines > 1 else "*Machine*\n1",
    ]
    blocks = [
        section(text, fields),
        context(
            f"Never above {_usd(cap_usd_per_hour)}/h. The offer holds until {until:%H:%M} UTC; nothing is spent yet."
        ),
        actions([button("Approve", action_id=approve.action_id, value=approve.value, style="primary")]),
    ]
    return message(f"{escaped(best['gpu'])} for {price}/h: approve?", blocks)


def confirm_destroy(item: Json, seed: str) -> Answer:
    blocks = [section(f"End {_headline(item)}"), *_buttons((Verb.DESTROY,), item["id"], seed)]
    return message(f"Destroy {_name(item)}?", blocks)


def progress(operation: Json, item: Json, seed: str) -> Answer:
    """Long work, edited in place until it is settled."""
    kind, name = operation["kind"], _named(item)
    if operation["status"] == "failed":
        detail = operation["detail"] or "failed"
        return message(f"{kind} failed", [section(f":x: {kind} {name} failed: {escaped(detail)}"), *_retry(item, seed)])
    if operation["status"] == "succeeded":
        return instance(item, seed)
    filled = round(operation["progress"] * PROGRESS_CELLS)
    bar = "▓" * filled + "░" * (PROGRESS_CELLS - filled)
    return _line(f":hourglass_flowing_sand: {kind} {name}  {bar}  {item['state'].replace('_', ' ')}")


def too_long(operation: Json, item: Json) -> Answer:
    show = code(f"{COMMAND} show {item['id']}")
    return _line(f":hourglass: {operation['kind']} {_named(item)} goes on ({item['state']}); look again with {show}")


def why(found: Json, item: Json, seed: str) -> Answer:
    """The decision of now with its reason and its times, then the newest lines of the story, the last one last."""
    idle = found["idleness"]
    heard = _time(found["heard_at"]) if found["heard_at"] else "never"
    state = found["state"].replace("_", " ")
    text = f"{_named(item)} is *{state}* ({escaped(found['reason'])}): {escaped(idle['because'])}."
    cost = f"; a wake takes {idle['wake_cost_s']:.0f} s" if idle["wake_cost_s"] is not None else ""
    rows = [
        ("Policy", f"{escaped(idle['policy'])}, after {idle['window_s']:.0f} s of quiet{cost}"),
        ("Last heard", heard),
        *((name, _time(idle[field])) for name, field in WHY_TIMES if idle[field]),
    ]
    story = [f"{_time(line['at'])}  {escaped(line['text'])}" for line in found["items"][-STORY_SHOWN:]]
    now = section(text, [f"*{name}*\n{what}" for name, what in rows])
    led_here = [section("\n".join(story))] if story else []
    return message(text, [now, *led_here, *_retry(item, seed)])


def snoozed(item: Json) -> Answer:
    if not item["awake_until"]:
        return _line(f":sunrise: {_named(item)} has no lease: it is hibernated when it is idle.")
    return _line(f":zzz: {_named(item)} is not hibernated for idleness before {_time(item['awake_until'])}.")


def offers(items: Sequence[Json], gpu: str, *, outlook: Sequence[Json] = ()) -> Answer:
    """What can be rented now, and what the record says of the regions; `outlook` = rows of the spot market."""
    rows = [
        f"`{_usd(o['usd_per_hour']):>9}/h`  all in {_usd(o['all_in_usd_per_hour'])}/h  ready {o['ready_s']:.0f} s  "
        f"{o['num_gpus']} × {escaped(o['gpu'])}  {escaped(_where(o))}  {o['provider']}"
        for o in items[:OFFERS_SHOWN]
    ]
    more = f"{len(items)} offers; prices are GPU + disk; {code(f'{COMMAND} deploy {gpu}')} shows a plan"
    ahead = [section("\n".join(_region(row) for row in outlook[:REGIONS_SHOWN]))] if outlook else []
    return message(f"{len(items)} offers of {escaped(gpu)}", [section("\n".join(rows)), *ahead, context(more)])


def _where(offer: Json) -> str:
    """As the marketplace says, else where its address is registered."""
    by_ip = f"{offer['place_country']} by its IP" if offer["place_told_by"] == "ip" else "somewhere"
    return offer["geolocation"] or by_ip


def _region(row: Json) -> str:
    """`US at vast: 0.2500 USD/h, in 24 h 0.2310 to 0.2890; alive in 1 h 96 %, ...`; what is not known is left out."""
    day = next((f for f in row["forecasts"] if f["horizon_s"] == 86_400), None)
    bid, wait, alive = row["bid"], row["wait"], row["survival"]
    parts = [f"*{row['region']}* at {row['provider']}: {_usd(row['now']['usd_per_hour'])}/h"]
    if day:
        error = f", error {day['served_rmae']:.2f} of the last value's" if day["served_rmae"] is not None else ""
        parts.append(f"in 24 h {day['p10']:.4f} to {day['p90']:.4f}{error}")
        parts += [f"trend {day['trend']}"] if day["trend"] else []
    parts += [f"bids {row['discount']:.0%} below"] if row["discount"] is not None else []
    parts += [f"alive in {span} {chance:.0%}" for span, chance in alive.items()]
    if bid and bid["outbid_within_24h"] is not None:
        parts.append(f"bid {bid['usd_per_hour']:.4f}, outbid within a day {bid['outbid_within_24h']:.0%}")
    if wait and wait["wait"] and wait["saved_share"] is not None:
        parts.append(f"who can wait waits for {wait['cheap_usd_per_hour']:.4f} (saved {wait['saved_share']:.0%})")
    return "; ".join(parts)


def savings(found: Json) -> Answer:
    """What was spent, and for how long no GPU was billed because none was rented."""
    days = found["days"]
    hours = f"*{found['hibernated_hours']:.1f} h* of GPU not billed, because hibernated"
    head = f"*{_usd(found['spent_usd'])}* spent in {days} days; {hours}"
    blocks = [section(head)]
    for item in found["items"][:INSTANCES_SHOWN]:
        spans = [f"{_time(span['start'])} – {_time(span['end'])}" for span in item["hibernated"]]
        shown = spans[-SPANS_SHOWN:]
        more = [f"… and {len(spans) - len(shown)} earlier"] if len(spans) > len(shown) else []
        text = f"{_named(item)}: {_usd(item['spent_usd'])}, {item['hibernated_hours']:.1f} h hibernated"
        blocks.append(section("\n".join([text, *more, *(f"• {span}" for span in shown)])))
    return message(f"{_usd(found['spent_usd'])} spent", blocks)


# --- what happens by itself


def notification(kind: str, body: Json, seed: str) -> Answer:
    """`body` = of the outbox's message: {instance_id?, name?, text}."""
    title = TITLES.get(kind, kind)
    if kind == "instance.running" and body.get("is_back"):
        title = "Back"
    id = str(body.get("instance_id") or "")
    name = f" {_named({'id': id, 'name': body.get('name') or ''})}" if id else ""
    text = f"*{title}*{name}: {escaped(str(body.get('text') or ''))}"
    return message(text, [section(text), *(_buttons(BUTTONS_OF.get(kind, ()), id, seed) if id else [])])


# --- parts


def _line(text: str) -> Answer:
    return message(text, [section(text)])


def _buttons(verbs: Sequence[Verb], id: str, seed: str) -> list[Block]:
    return [actions([_button(verb, id, seed) for verb in verbs])] if verbs else []


def _button(verb: Verb, id: str, seed: str) -> Block:
    press = Press.of(seed, verb, instance=id)
    confirm = None
    if verb is Verb.DESTROY:
        text = f"{id} ends after a last verified snapshot. It can be restored for some days."
        confirm = confirmation("Destroy this instance?", text, yes="Destroy")
    style = {Verb.DESTROY: "danger", Verb.WAKE: "primary"}.get(verb, "")
    return button(LABELS[verb], action_id=press.action_id, value=press.value, style=style, confirm=confirm)


def _retry(item: Json, seed: str) -> list[Block]:
    return _buttons(BUTTONS_IN.get(item["state"], ()), item["id"], seed)


def _headline(item: Json) -> str:
    spec = item["spec"]
    gpu = f"{spec['num_gpus']} × {escaped(spec['gpu'])}"
    now = f"{_usd(item['cost']['usd_per_hour'])}/h now, {_usd(item['cost']['metered_usd'])} so far"
    return f"{_named(item)}  *{item['state'].replace('_', ' ')}*  {gpu}  {now}"


def _details(item: Json) -> list[tuple[str, str]]:
    address, snapshot, failure = item["address"], item["snapshot"], item["failure"]
    ssh = f"ssh -p {address['port']} {address['user']}@{address['host']}" if address else ""
    rows = [
        ("Address", code(ssh) if ssh else ""),
        ("Snapshot", _time(snapshot["at"]) if snapshot else "none yet"),
        ("Protection", item["protection"]),
        ("Since", _time(item["since"])),
        ("Why", escaped(item["reason"])),
        ("Kept awake until", _time(item["awake_until"]) if item["awake_until"] else ""),
        ("Failed", escaped(failure["detail"]) if failure else ""),
    ]
    return [(name, text) for name, text in rows if text]


def _name(item: Json) -> str:
    return escaped(item["name"] or item["id"])


def _named(item: Json) -> str:
    return f"{code(item['id'])} {escaped(item['name'])}".strip()


def _usd(amount: str) -> str:
    """`0.4321 USD`, from the API's decimal text."""
    return f"{float(amount):.4f} USD"


def _time(at: str) -> str:
    return f"{datetime.fromisoformat(at):%Y-%m-%d %H:%M} UTC"


def _upper(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]

"""THE table of what may go wrong: each row of the failure catalogue is a knob, or a reason why it is none.

Letters and numbers in `rows` are the catalogue's (A provisioning and money, B functions and store, C data, D failover).
A rate or a duration is not a kind: both are drawn anew for every seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Where = Literal[
    "call", "store", "market", "objects", "mail", "chat", "answer", "web", "schedule", "host", "account", "user"
]
"""`call` and the ports' names: decided by the number of the call; `answer`: by the port's own world, as it answers."""

LONGEST_PAUSE_S = 600.0
LONGEST_LATE_S = 5_400.0
LONGEST_CUT_S = 7_200.0
LONGEST_LAG_S = 400.0


@dataclass(frozen=True)
class Knob:
    name: str
    rows: str
    """Of the catalogue, separated by spaces."""
    where: Where
    most: float
    """The highest rate that a seed may draw: per call, per machine, or per look of the nemesis."""
    story: str
    longest_s: float = 0.0
    """Of the fault, where it has a length: drawn with a fat tail."""


KNOBS: tuple[Knob, ...] = (
    # the control plane's processes: asked at every call of a port
    Knob("kill_before", "A1 B1 D5", "call", 0.02, "the invocation is killed before the call"),
    Knob("kill_after", "A1 B1 D5", "call", 0.02, "the invocation is killed after the call, before it hears of it"),
    Knob("vanish_before", "B1", "call", 0.02, "SIGKILL before the call: no `finally` runs"),
    Knob("vanish_after", "A1 B1", "call", 0.02, "SIGKILL after the call: no `finally` runs"),
    Knob("pause", "B1", "call", 0.01, "the invocation stands still, as when its CPU is taken", LONGEST_PAUSE_S),
    # the store
    Knob("store_aborts", "B3", "store", 0.08, "a write is refused for contention; nothing is written"),
    Knob("store_unreachable", "B3", "store", 0.05, "a read or write is not answered; nothing is written"),
    Knob("store_commit_unknown", "B4", "store", 0.06, "a write is done and its answer lost"),
    Knob("store_late", "A3 B4", "store", 0.03, "a write is done after the caller gave up", LONGEST_LATE_S),
    Knob("store_retried", "B4", "store", 0.04, "a client library repeats a write that was done: it meets itself"),
    Knob("store_hot", "B5", "answer", 0.3, "two writes of one document within a second: the second is refused"),
    # the market's calls
    Knob("market_unreachable", "A23", "market", 0.1, "no answer; nothing was done"),
    Knob("market_lost_reply", "A2", "market", 0.1, "done, and the answer lost"),
    Knob("market_late", "A3", "market", 0.08, "done after the caller gave up", LONGEST_LATE_S),
    Knob("market_retried", "A2", "market", 0.08, "a proxy delivers the request twice"),
    Knob("market_throttled", "A23 A23b", "market", 0.15, "429 in plain text"),
    Knob("body_html_502", "A23", "answer", 0.05, "502 and a page of HTML"),
    Knob("body_html_200", "A23", "answer", 0.05, "200 and a page of HTML"),
    Knob("body_empty", "A23", "answer", 0.05, "200 and nothing"),
    Knob("body_truncated", "A23", "answer", 0.05, "200 and half of the JSON"),
    Knob("body_list", "A23", "answer", 0.05, "200 and a JSON list"),
    Knob("body_success_false", "A23", "answer", 0.05, "200 and success false, nothing done"),
    Knob("body_null_rows", "A23", "answer", 0.05, "200 and null where the rows belong"),
    Knob("body_missing_field", "A23", "answer", 0.05, "200 and an object without what was asked for"),
    Knob("body_500", "A23", "answer", 0.05, "500, nothing done"),
    Knob("body_500_done", "A2", "answer", 0.05, "500 after the work was done"),
    Knob("body_401", "A23", "answer", 0.03, "401 for a good key"),
    Knob("body_404", "A23", "answer", 0.05, "404 of a gateway: the endpoint, not the machine, is missing"),
    Knob("search_quota", "A23b", "answer", 0.05, "the daily search quota is used up"),
    Knob("charges_lag", "A21", "answer", 0.3, "the bill lacks what ended within the last minute and a half"),
    Knob("listing_omits", "A23", "answer", 0.2, "a listing lacks rows and does not say so"),
    Knob("listing_miscounts", "A23", "answer", 0.1, "a listing whose total disagrees with its rows"),
    # what the market does to machines
    Knob("listing_lags", "A23", "account", 0.5, "a new machine is not listed for a while", LONGEST_LAG_S),
    Knob("listing_ghosts", "A23", "account", 0.5, "a dead machine is still listed for a while", LONGEST_LAG_S),
    Knob("offer_gone", "A9", "account", 0.4, "the offer was taken"),
    Knob("refused_but_rented", "A4", "account", 0.2, "an error that names a contract, which is stopped and bills"),
    Knob("boot_stuck", "A11", "account", 0.3, "loading for ever"),
    Knob("boot_slow", "A11", "account", 0.3, "loading for long", 1500.0),
    Knob("boot_dies", "A11 A12", "account", 0.3, "the container dies at its start"),
    Knob("boot_refuses", "A12", "account", 0.3, "the start-up script reports that it cannot"),
    Knob("mute", "A13", "account", 0.2, "running, and nobody ever calls"),
    Knob("wrong_gpu", "A14", "account", 0.3, "another GPU than the offer named"),
    Knob("attest_missing", "A14", "account", 0.3, "nothing of the machine can be measured"),
    Knob("slow_line", "A15", "account", 0.3, "a fraction of the advertised bandwidth"),
    Knob("small_disk", "A16 C8", "account", 0.2, "the disk is smaller than it was asked for"),
    Knob("price_moves", "A21 A22", "account", 0.3, "the contract costs another price than the offer showed"),
    Knob("destroy_fails", "A7", "account", 0.3, "every destroy of this machine fails for a while", 1800.0),
    Knob(
        "destroy_throttled", "A7 A23b", "account", 0.3, "every destroy of this machine is throttled for a while", 1200.0
    ),
    Knob("destroy_deferred", "A8", "account", 0.3, "destroy says success, and the machine goes on for a while", 1500.0),
    Knob("outbid", "A18 C12 D5", "host", 0.01, "somebody else took the GPU: stopped, the disk bills on"),
    Knob("lost", "A20 C12 D5", "host", 0.01, "the machine is gone without a word"),
    Knob("offline", "D4", "host", 0.01, "the machine's host is offline for a while", LONGEST_CUT_S),
    Knob("expires", "A19", "host", 0.004, "the contract ends: stopped, later deleted", 1800.0),
    Knob("credit_gone", "A19", "account", 0.003, "the account has no credit: every machine stops", 1800.0),
    Knob("region_down", "A24", "account", 0.003, "every machine of a region is gone at once"),
    Knob("no_offers", "A9 A24", "account", 0.006, "the market has nothing to offer for a while", 900.0),
    Knob("price_fuzz", "A22", "account", 0.01, "rows with prices of 0, -1, 1e9, text and null among the offers", 900.0),
    Knob("budget_spent", "A21", "account", 0.02, "the day's budget of an account is used up", 1800.0),
    Knob("foreign_machine", "A6", "account", 0.004, "a stranger's machine appears on the account"),
    Knob("forged_label", "A5 A6", "account", 0.004, "a machine with a label like ours, of another deployment or tag"),
    # hosts
    Knob("crash", "A20 D5", "host", 0.01, "every process of the container dies; the contract runs on"),
    Knob("freeze", "D4", "host", 0.01, "every process stands still for a while", LONGEST_PAUSE_S),
    Knob("agent_restarts", "B1", "host", 0.02, "the agent dies and starts again: memory lost, disk kept"),
    Knob("engine_dies", "C3", "host", 0.05, "the engine's process dies in the middle of an order"),
    Knob("cut_control", "D2 D4", "host", 0.01, "the host does not reach the control plane", LONGEST_CUT_S),
    Knob("cut_replies", "D2", "host", 0.01, "the control plane hears the host, the host hears nothing", 1800.0),
    Knob("cut_objects", "D2 C12", "host", 0.01, "the host does not reach the object store", 3600.0),
    Knob("clock_jumps", "B8", "host", 0.01, "the host's clock jumps by up to ten minutes", 600.0),
    Knob("disk_fills", "A16", "host", 0.02, "no room to stage a snapshot", 900.0),
    Knob("gpu_missing", "A25", "host", 0.02, "the GPU cannot be read", 900.0),
    Knob("gpu_stale", "A25", "host", 0.02, "no samples are taken", 600.0),
    Knob("gpu_nan", "A25", "host", 0.02, "the GPU's utilisation is not a number", 600.0),
    Knob("gpu_spikes", "A25", "host", 0.05, "short bursts of work in an idle time"),
    # the network of the control plane
    Knob("cut_market", "D2 A23", "account", 0.004, "the control plane does not reach the market", 1800.0),
    Knob("cut_bucket", "D2 C5", "account", 0.004, "the control plane does not reach the object store", 1800.0),
    Knob("cut_store", "B3 B5", "account", 0.003, "the control plane does not reach the store", 600.0),
    # the object store
    Knob("objects_throttled", "C5", "objects", 0.15, "503 SlowDown"),
    Knob("objects_lost_reply", "C5", "objects", 0.08, "done, and the answer lost"),
    Knob("objects_late", "C5", "objects", 0.05, "done after the caller gave up", LONGEST_LATE_S),
    Knob("objects_twice", "C5", "objects", 0.05, "the request is delivered twice"),
    Knob("objects_stale_list", "C6", "answer", 0.1, "a listing lacks the newest objects"),
    Knob("objects_no_md5", "C4", "answer", 0.3, "the store gives no MD5: content must be read back"),
    Knob("upload_partial", "C3", "host", 0.08, "the uploader says success, and a pack is not there"),
    Knob("upload_truncated", "C6", "host", 0.08, "a pack arrives short"),
    Knob("upload_garbled", "C6", "host", 0.08, "a pack arrives with another content of the same size"),
    Knob("upload_dies", "C3", "host", 0.08, "the upload breaks off after some packs"),
    Knob("upload_quota", "C5", "host", 0.08, "403: the bucket's cap is reached"),
    Knob("manifest_garbled", "C6", "host", 0.05, "the manifest arrives damaged"),
    Knob("bit_rot", "C6", "account", 0.004, "a stored pack's content changes"),
    Knob("keeps_less", "C7", "account", 0.01, "a user asks that only the newest snapshot be kept"),
    Knob("object_vanishes", "C6 C7", "account", 0.003, "a stored pack is gone"),
    # the receivers of what people are told
    Knob("mail_unreachable", "B7", "mail", 0.3, "a webhook's receiver does not answer; it heard nothing"),
    Knob("mail_lost_reply", "B7", "mail", 0.2, "a webhook's receiver has the message, and its answer is lost"),
    Knob("mail_late", "B7", "mail", 0.1, "the message arrives after the caller gave up", LONGEST_LATE_S),
    Knob("mail_twice", "B7", "mail", 0.2, "a proxy delivers the message twice"),
    # calls over the web
    Knob("beat_lost", "B7 D4", "web", 0.2, "a host's call does not arrive"),
    Knob("beat_reply_lost", "B7 D4", "web", 0.2, "a host's call is served and the answer lost"),
    Knob("beat_late", "B7", "web", 0.15, "a host's call arrives after it gave up", LONGEST_LATE_S),
    Knob("beat_twice", "B7", "web", 0.1, "a host's call is delivered twice"),
    Knob("process_ends", "B1 D4", "web", 0.5, "a process of the heartbeat function ends, and what it had not written"),
    Knob("nudge_lost", "B7", "web", 0.5, "the hint that makes another invocation follow is lost"),
    Knob("boot_twice", "B7", "web", 0.3, "a machine's first call is delivered twice"),
    Knob("notice", "B7", "web", 1.0, "a dying host says so"),
    Knob("notice_replayed", "B7", "web", 0.5, "that word arrives again, much later", 86_400.0),
    Knob("webhook_lost", "B7", "web", 0.5, "a marketplace's event does not arrive"),
    Knob("webhook_late", "B7", "web", 0.4, "a marketplace's event arrives out of order, up to a day late", 86_400.0),
    Knob("webhook_twice", "B7", "web", 0.5, "a marketplace's event arrives again, up to a day later", 86_400.0),
    Knob("webhook_forged", "B7", "web", 0.5, "an event that the marketplace did not sign"),
    Knob("verb_retried", "A10 B7", "user", 0.3, "a user's request is sent again with the same Idempotency-Key"),
    Knob("verb_twice", "B7", "user", 0.2, "a user clicks twice"),
    Knob("flip", "D5", "user", 0.3, "the user wants the opposite, minutes later", 300.0),
    Knob("stranger_asks", "A5", "user", 0.2, "another account's user asks for the instance"),
    # Cloud Scheduler
    Knob("schedule_double", "B2", "schedule", 0.3, "a job is started twice"),
    Knob("schedule_skipped", "B2", "schedule", 0.4, "a job is not started"),
    Knob("schedule_late", "B2", "schedule", 0.2, "a job starts late", 600.0),
    # Slack: its deliveries to us
    Knob("slack_lost", "B7", "web", 0.3, "a command or press does not arrive; Slack signs it anew and tries again"),
    Knob("slack_late", "B7 B8", "web", 0.3, "one arrives more than five minutes after it was signed", 3_600.0),
    Knob("slack_overtaken", "B7", "web", 0.3, "one is held up: its copy and what came after it overtake it", 280.0),
    Knob("slack_reply_lost", "B7", "web", 0.3, "one is taken and the answer lost: Slack signs it anew and tries again"),
    Knob("slack_twice", "B7", "web", 0.3, "the same request again, with the same signature", 280.0),
    Knob("slack_signed_anew", "B7 A10", "web", 0.4, "the same command or press again, signed anew", 3_600.0),
    Knob("slack_forged", "B7", "web", 0.3, "a command or press that Slack did not sign"),
    # our bot's calls to Slack
    Knob("chat_unreachable", "A23", "chat", 0.2, "Slack does not answer; it showed nothing"),
    Knob("chat_lost_reply", "A2 A23", "chat", 0.2, "Slack shows the message, and its answer is lost"),
    Knob("chat_late", "A3", "chat", 0.1, "Slack shows the message after the caller gave up", LONGEST_LATE_S),
    Knob("chat_twice", "A2", "chat", 0.2, "a proxy delivers the message twice"),
    Knob("chat_throttled", "A23b", "answer", 0.3, "429 with Retry-After"),
    Knob("chat_500", "A23", "answer", 0.2, "500 or 503 and a page, or an error of Slack's own; nothing is shown"),
    Knob("chat_url_dead", "B7", "answer", 0.3, "a response_url has expired or is used up before its time"),
    Knob("chat_cut", "D2 A23", "account", 0.004, "the control plane does not reach Slack", 1800.0),
    # the people in Slack
    Knob("slack_pressed_twice", "A10 B7", "user", 0.3, "somebody types twice, presses twice, presses every copy"),
    Knob("slack_stale_button", "A10", "user", 0.3, "somebody presses what has expired, or is gone", 1800.0),
    Knob("slack_unlinked", "A5", "user", 0.2, "somebody is unlinked with a request under way, for a while", 900.0),
    Knob("slack_stranger", "A5", "user", 0.2, "somebody of no account or of another one types and presses"),
    # Google's machines and addresses
    Knob("google_stockout", "D1", "account", 0.006, "no machine begins in some zones, which operations tell", 3600.0),
    Knob("google_quota", "D1", "account", 0.004, "no further machine, and now and then no address either", 1800.0),
    Knob("google_slow", "D1", "account", 0.004, "every operation takes minutes", 900.0),
    Knob("google_fails_later", "D1", "answer", 0.1, "a call is answered with success, and its operation fails"),
    Knob("google_500_done", "A2 D1", "answer", 0.2, "500 after the machine was made"),
    Knob("google_delete_fails", "A7", "answer", 0.2, "500, and the machine runs on"),
    Knob("google_omits", "A23", "answer", 0.1, "a listing lacks machines and does not say so"),
    Knob("google_unreachable", "A23", "answer", 0.1, "a listing that says which zones it could not reach"),
    Knob("standby_mute", "A13", "account", 0.2, "a standby runs, and never calls"),
    Knob("standby_preempted", "D1", "host", 0.01, "Google stops a standby; its disk is kept"),
    Knob("standby_lost", "D1 D5", "host", 0.006, "a standby and its disk are gone without a word"),
    # between the two machines of a pair
    Knob("cut_pair", "D2 C1", "host", 0.01, "GPU and standby do not reach each other", LONGEST_CUT_S),
    Knob("frames_slow", "D3 C1", "host", 0.2, "what the GPU sends is long on its way", 300.0),
    Knob("false_alarm", "D2 D4", "host", 0.01, "the standby takes a GPU for dead that lives"),
    Knob("gpu_dies_unheard", "D2 D5", "host", 0.008, "a GPU dies while its standby is cut off from us", 3600.0),
    Knob("second_death", "D5", "host", 0.05, "another machine dies while a standby writes"),
    Knob("claim_lost", "B7", "web", 0.6, "a standby's webhook does not arrive; its reports say the same"),
    Knob("claim_late", "B7 D2", "web", 0.4, "it arrives late, after what came later", LONGEST_LATE_S),
    Knob("claim_twice", "B7", "web", 0.4, "it arrives again", LONGEST_LATE_S),
    Knob("claim_forged", "D2", "host", 0.01, "a GPU claims what only its standby may"),
    Knob("asks_failover", "D5", "user", 0.4, "the user wants to move to the standby"),
    Knob("asks_hand_back", "D5", "user", 0.5, "the user wants to go back to a GPU"),
    Knob("flips_standby", "D5", "user", 0.3, "the user wants no standby, or wants one again"),
)

BY_NAME = {knob.name: knob for knob in KNOBS}
OF_CREATES = frozenset(
    {"wrong_gpu", "attest_missing", "boot_stuck", "boot_slow", "boot_dies", "boot_refuses", "mute", "slow_line"}
    | {"small_disk", "price_moves", "destroy_fails", "destroy_throttled", "destroy_deferred", "listing_lags"}
    | {"offer_gone", "refused_but_rented", "search_quota"}
)
"""They strike when a machine is sought and created: while an instance boots, or at any time for the pool."""
OF_SNAPSHOTS = frozenset({"engine_dies", *(name for name in BY_NAME if name.startswith(("upload_", "manifest_")))})
"""They strike while a machine works on an order: also one that was cut off, and does not know that all is over."""
OF_SLACK = frozenset(name for name in BY_NAME if name.startswith(("slack_", "chat_")))
"""They need somebody in Slack."""

OF_PAIRS = frozenset(knob.name for knob in KNOBS[[knob.name for knob in KNOBS].index("google_stockout") :])
"""They need somebody with a standby."""

NOT_HERE: dict[str, str] = {
    "A17": "a stopped machine is never started again: hibernation destroys, and a wake rents anew (R5)",
    "B6": "the product has no read-write transactions; a commit carries no remote call, and the import rules see to it",
    "B9": "the store's contract suite runs over the emulator, SQLite and the simulation's store alike",
    "C2": "files that change while they are read: the engine's own tests write during a snapshot",
    "C9": "the tree zoo: the engine's round-trip tests",
    "C10": "hostile manifests: the engine's own tests",
    "C11": "bombs: the engine's own tests",
}
"""Rows of the catalogue without a knob, each with its reason."""

ROWS = (
    *(f"A{n}" for n in range(1, 24)),
    "A23b",
    "A24",
    "A25",
    *(f"B{n}" for n in range(1, 10)),
    *(f"C{n}" for n in range(1, 13)),
    *(f"D{n}" for n in range(1, 6)),
)

"""Planted bugs: each replaces one product function by what a hurried hand might have written. All must be caught.

The names are the product's own, by import path; a test fails when one no longer exists. No product code knows of them.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from common.workflows import lifecycle
from tests.simulation import planted, planted_money, planted_pair, planted_slack
from tests.simulation.planted import Replacement


@dataclass(frozen=True)
class Mutant:
    name: str
    target: str
    """`module.function` or `module.Class.method`."""
    broken: Replacement
    why: str
    """The rule that it breaks."""
    stirred: frozenset[str] = frozenset()
    """Knobs that are on in each of its seeds: without them the rule is needed too rarely for a short run."""
    is_long: bool = False
    """Its seeds need longer lives (`plan.LONG`)."""

    def place(self) -> tuple[Any, str]:
        """The object that holds the function, and its name there; raises AttributeError when it is gone."""
        path, _, attribute = self.target.rpartition(".")
        try:
            holder: Any = importlib.import_module(path)
        except ModuleNotFoundError:
            module, _, holder_name = path.rpartition(".")
            holder = getattr(importlib.import_module(module), holder_name)
        getattr(holder, attribute)
        return holder, attribute

    def plant(self) -> None:
        """In this process, for good; the lifecycle's table holds functions, so there too."""
        holder, attribute = self.place()
        original = getattr(holder, attribute)
        broken = self.broken(original)
        setattr(holder, attribute, broken)
        steps = {
            phase: tuple(broken if step is original else step for step in row) for phase, row in lifecycle.STEPS.items()
        }
        setattr(lifecycle, "STEPS", steps)  # noqa: B010 - a constant to everyone but a mutant


MUTANTS: tuple[Mutant, ...] = (
    Mutant("create before the record", "common.workflows.rentals._create", planted.create_unannounced, "E1"),
    Mutant(
        "create blindly repeated",
        "common.workflows.rentals._create",
        planted.create_again,
        "E1",
        frozenset({"market_lost_reply"}),
    ),
    Mutant("read, then list", "common.workflows.sweep.run", planted.read_then_list, "E2"),
    Mutant("orphan = not the writer", "common.workflows.sweep._destroy_orphans", planted.orphan_by_writer, "E2"),
    Mutant("no orphan sweep", "common.workflows.sweep._destroy_orphans", planted.constant(None), "E2"),
    Mutant("gives up destroying", "common.workflows.rentals.destroy", planted.destroy_once, "R8"),
    Mutant("lost after one listing", "common.workflows.sweep._absent", planted.lost_at_once, "E3"),
    Mutant("lost by silence", "common.workflows.sweep._judged", planted.lost_by_silence, "E3"),
    Mutant("unknown read as absent", "common.workflows.sweep.run", planted.unknown_is_absent, "E4"),
    Mutant(
        "gone without a GET",
        "common.workflows.sweep._still_there",
        planted_money.gone_without_proof,
        "E3",
        frozenset({"listing_omits", "cut_control"}),
    ),
    Mutant(
        "note of a listing unguarded", "common.workflows.sweep._note", planted.unguarded, "R7", frozenset({"pause"})
    ),
    Mutant(
        "winner chosen unguarded",
        "common.workflows.deploy.choose_winner",
        planted.unguarded,
        "C1",
        frozenset({"pause", "schedule_double"}),
    ),
    Mutant("losers not retired", "common.workflows.deploy.retire", planted.losers_kept, "C1"),
    Mutant(
        "race in two commits",
        "common.workflows.deploy.choose_winner",
        planted.race_in_two_commits,
        "C1",
        frozenset({"vanish_after", "kill_after", "vanish_before"}),
    ),
    Mutant(
        "left-overs kept",
        "common.workflows.failover.release_left_over",
        planted.constant(False),
        "H1",
        frozenset({"freeze", "cut_control", "flip", "slow_line", "verb_twice"}),
    ),
    Mutant("destroy before verify", "common.workflows.hibernate.freeze", planted.freeze_releases, "R5"),
    Mutant("pointer before proof", "common.snapshots.engine.verify", planted.without_proof, "P1"),
    Mutant(
        "content never proven",
        "common.snapshots.engine.verify",
        planted.everything_was_proven,
        "P1",
        frozenset({"objects_no_md5", "upload_garbled"}),
    ),
    Mutant(
        "pointer moved unguarded",
        "common.workflows.hibernate._move_pointer",
        planted.unguarded,
        "R7",
        frozenset({"beat_twice", "pause", "schedule_double", "store_late"}),
    ),
    Mutant("freeze without its nonce", "common.workflows.hibernate.is_final", planted.final_without_nonce, "P4"),
    Mutant("freeze by the clock", "common.workflows.hibernate.give_up_freezing", planted.freeze_by_the_clock, "P4"),
    Mutant("writers not frozen", "common.host.agent.Agent._freeze", planted.keeps_writing, "P4"),
    Mutant("failed snapshot forgotten", "common.workflows.hibernate.retry_failed", planted.constant(False), "L"),
    Mutant(
        "falls back for anything",
        "common.workflows.restore._manifest_is_bad",
        planted.falls_back_for_anything,
        "R5",
        frozenset({"cut_objects", "engine_dies", "flip", "outbid"}),
    ),
    Mutant(
        "always discards",
        "common.workflows.terminate.request",
        lambda original: lambda app, world, **more: original(app, world, **{**more, "discard": True}),
        "R5",
    ),
    Mutant("pruned without a grace", "common.snapshots.engine.prune", planted.prune_at_once, "I16"),
    Mutant("in flight is not looked for", "common.workflows.prune._keep_of", planted.prune_by_records_alone, "I16"),
    Mutant("pruned without the pointer", "common.workflows.prune.outdated", planted.prune_the_newest, "I16"),
    Mutant("pruned although it is waited for", "common.workflows.prune._in_use", planted.nothing_is_waited_for, "F"),
    Mutant("fenced at once", "common.workflows.failover.fence_silent", planted.fence_at_once, "R4"),
    Mutant(
        "silence by the host's own document alone",
        "common.records.newest_of",
        planted.constant({}),
        "R4",
    ),
    Mutant("lease trusted", "common.workflows.lifecycle._advanced", planted.leased, "R7"),
    Mutant(
        "wish written unguarded",
        "common.workflows.hibernate.request",
        planted.unguarded,
        "R7",
        frozenset({"pause", "flip", "verb_twice", "store_late", "beat_twice"}),
    ),
    Mutant(
        "start forgotten at a restart",
        "common.host.agent.write_atomically",
        planted.constant(None),
        "A4",
        frozenset({"agent_restarts"}),
    ),
    Mutant(
        "missing signal is idle",
        "common.host.seen.idle_since",
        planted.missing_is_quiet,
        "I15",
        frozenset({"gpu_missing"}),
    ),
    Mutant(
        "idle without a report",
        "common.workflows.hibernate.wants_hibernation",
        planted.idle_without_a_report,
        "I15",
        frozenset({"freeze"}),
    ),
    Mutant("bill closed at once", "common.workflows.settle._settle", planted_money.settle_at_once, "I8"),
    Mutant(
        "bill of known ids alone",
        "common.workflows.settle.entries_of",
        planted_money.bill_of_ids_alone,
        "I8",
        frozenset({"market_lost_reply", "body_500_done", "lost", "listing_lags"}),
    ),
    Mutant("a charge counted twice", "common.workflows.settle.entries_of", planted_money.bill_counted_twice, "I8"),
    Mutant(
        "a closed bill stays closed",
        "common.workflows.rentals.destroy",
        planted_money.bill_stays_closed,
        "I8",
        frozenset({"market_late", "body_500_done"}),
        is_long=True,
    ),
    Mutant(
        "any price is a price",
        "common.adapters.vast.exact_price",
        planted_money.any_price,
        "A22",
        frozenset({"price_fuzz"}),
    ),
    Mutant(
        "what was found is not metered",
        "common.workflows.rentals.began",
        lambda _original: lambda rental: rental,
        "I8",
        frozenset({"refused_but_rented", "destroy_throttled"}),
    ),
    Mutant(
        "what runs unheard is not metered",
        "common.workflows.rentals.looked_at",
        planted_money.metered_when_heard,
        "I8",
        frozenset({"mute"}),
    ),
    Mutant(
        "any event is the market's",
        "common.adapters.vast.Vast.event",
        planted.unsigned_event,
        "I9",
        frozenset({"webhook_forged", "outbid"}),
    ),
    Mutant(
        "budget not enforced",
        "common.workflows.budgets.enforce",
        planted.constant(()),
        "I10",
        frozenset({"budget_spent"}),
    ),
    Mutant("told without an answer", "common.domain.outbox.Message.failed", planted.told_without_an_answer, "M"),
    Mutant("given up at once", "common.domain.outbox.Message.failed", planted.given_up_at_once, "M"),
    Mutant("told in other words", "common.domain.outbox.Message.payload", planted.told_in_other_words, "M"),
    Mutant("nobody is told", "common.workflows.outbox.tell", planted.constant([]), "M"),
    Mutant(
        "tenants not told apart",
        "common.web.instances.load",
        planted.ended_by_anybody,
        "I9",
        frozenset({"stranger_asks"}),
    ),
    Mutant(
        "any request is Slack's",
        "common.auth.check_slack",
        planted.constant(None),
        "S4",
        frozenset({"slack_forged"}),
    ),
    Mutant(
        "the same request as often as it comes",
        "common.workflows.slack.see",
        planted.constant(None),
        "S4",
        frozenset({"slack_twice"}),
    ),
    Mutant(
        "each delivery is another request",
        "common.workflows.slack.errand_id",
        planted_slack.each_delivery_is_another,
        "S1",
        frozenset({"slack_signed_anew", "slack_pressed_twice"}),
    ),
    Mutant(
        "an errand acts at every attempt",
        "common.web.slack_outbox.Work.call",
        planted_slack.acts_at_every_attempt,
        "S1",
        frozenset({"chat_lost_reply", "chat_unreachable"}),
    ),
    Mutant(
        "confirmation skipped",
        "common.web.slack_outbox._done",
        planted_slack.ends_unasked,
        "S2",
        frozenset({"slack_signed_anew"}),
    ),
    Mutant(
        "an offer holds for ever",
        "common.web.slack_outbox._done",
        planted_slack.as_if(until=planted_slack.FAR),
        "S2",
        frozenset({"slack_stale_button"}),
    ),
    Mutant(
        "linked once is linked",
        "common.workflows.slack.who",
        planted_slack.linked_for_ever,
        "S3",
        frozenset({"slack_unlinked"}),
    ),
    Mutant(
        "suggested from all accounts",
        "common.web.slack_outbox._one",
        planted_slack.looks_everywhere,
        "S5",
        frozenset({"slack_stranger"}),
    ),
    Mutant(
        "shown whatever comes",
        "common.web.slack_outbox._deliver",
        planted_slack.told_whatever_comes,
        "S6",
        frozenset({"chat_unreachable"}),
    ),
    Mutant(
        "a snapshot of any epoch",
        "common.workflows.hibernate._may_count",
        planted_pair.counts_in_any_epoch,
        "P2",
        frozenset({"false_alarm", "beat_late", "asks_failover", "asks_hand_back"}),
    ),
    Mutant(
        "the pointer does not count",
        "common.domain.standby.is_behind",
        planted.constant(False),
        "W2",
        frozenset({"cut_control", "cut_pair", "asks_failover"}),
    ),
    Mutant(
        "a winner begins with what it has",
        "common.domain.instance.Instance.taken_by",
        planted_pair.begins_with_what_it_has,
        "W1",
        frozenset({"lost"}),
    ),
    Mutant(
        "guarded by a mirror that is lost",
        "common.records.World.is_guarded",
        planted_pair.guarded_by_the_dead,
        "W5",
        frozenset({"lost", "standby_lost", "region_down"}),
    ),
    Mutant(
        "a claim of any epoch",
        "common.domain.standby.may_take_over",
        planted_pair.claim_of_any_epoch,
        "W2",
        frozenset({"claim_late", "claim_twice", "false_alarm", "beat_late", "asks_hand_back"}),
    ),
    Mutant(
        "appointed without a claim",
        "common.workflows.mirror.take_over",
        planted_pair.appointed_by_control,
        "W2",
        frozenset({"gpu_dies_unheard", "lost", "cut_control"}),
    ),
    Mutant(
        "claims more than it has",
        "common.domain.role.Role.claim",
        planted_pair.claims_too_much,
        "W2",
        frozenset({"cut_pair", "frames_slow"}),
    ),
    Mutant(
        "frames after the seal",
        "common.domain.role.Role.may_take",
        planted_pair.takes_after_the_seal,
        "W2",
        frozenset({"false_alarm", "claim_lost", "beat_lost"}),
    ),
    Mutant(
        "frames from anybody",
        "common.domain.role.Role.may_take",
        planted_pair.takes_from_anybody,
        "A1",
        frozenset({"false_alarm", "cut_control", "flip", "flips_standby", "asks_failover", "asks_hand_back"}),
    ),
    Mutant(
        "a role of older words",
        "common.domain.role.Role.heard",
        planted_pair.hears_older_words,
        "A3",
        frozenset({"false_alarm", "asks_hand_back"}),
    ),
    Mutant(
        "restored while a mirror lives",
        "common.records.World.is_guarded",
        planted.constant(False),
        "W2",
        frozenset({"gpu_dies_unheard", "lost"}),
    ),
    Mutant(
        "the old GPU retired at once",
        "common.workflows.mirror.take_over",
        planted_pair.old_gpu_retired,
        "H1",
        frozenset({"false_alarm", "asks_failover"}),
    ),
    Mutant(
        "the held GPU retired uncovered",
        "common.workflows.failover.drop_lost_held",
        planted_pair.held_let_go_uncovered,
        "H1",
        frozenset({"false_alarm", "asks_failover"}),
    ),
    Mutant(
        "retired by no move of the pair",
        "common.workflows.mirror.retire",
        planted.constant([]),
        "H1",
        frozenset({"false_alarm", "asks_hand_back", "second_death"}),
    ),
    Mutant(
        "covered by any snapshot",
        "common.domain.instance.Instance.is_covered",
        planted_pair.says(lambda instance: instance.pointer is not None),
        "P3",
        frozenset({"false_alarm", "second_death", "flips_standby", "asks_hand_back"}),
    ),
    Mutant(
        "no way back to the old GPU",
        "common.workflows.mirror.give_back",
        planted.constant(False),
        "W3",
        frozenset({"false_alarm", "second_death", "cut_objects", "upload_partial", "upload_quota"})
        | {"upload_dies", "upload_garbled", "manifest_garbled", "engine_dies"},
    ),
    Mutant(
        "a candidate kept half full",
        "common.workflows.mirror.restart_from_pointer",
        planted_pair.candidate_kept,
        "W3",
        frozenset({"false_alarm", "second_death", "standby_lost", "slow_line", "cut_pair"}),
    ),
    Mutant(
        "handed back unfrozen",
        "common.domain.standby.is_equal",
        planted_pair.equal_without_a_freeze,
        "W4",
        frozenset({"false_alarm", "asks_hand_back", "frames_slow"}),
    ),
    Mutant(
        "handed back unequal",
        "common.domain.standby.is_equal",
        planted_pair.equal_by_the_freeze,
        "W4",
        frozenset({"false_alarm", "asks_hand_back", "frames_slow", "cut_pair"}),
    ),
    Mutant(
        "handed back with writes on their way",
        "common.domain.standby.is_equal",
        planted_pair.equal_with_a_backlog,
        "W4",
        frozenset({"false_alarm", "asks_hand_back", "frames_slow"}),
    ),
    Mutant(
        "frames under a copy",
        "common.domain.role.Role.filling",
        lambda _original: lambda role, **_more: role,
        "W4",
        frozenset({"false_alarm", "asks_hand_back", "slow_line"}),
    ),
    Mutant(
        "acknowledged by nobody else",
        "common.domain.role.Role.may_acknowledge",
        planted_pair.says(lambda role: role.is_writer),
        "A2",
        frozenset({"false_alarm", "standby_lost", "lost", "second_death"}),
    ),
    Mutant(
        "acknowledged while it drains",
        "common.domain.role.Role.may_acknowledge",
        planted_pair.says(lambda role: role.is_writer and role.view.mirror not in (None, role.label)),
        "A1",
        frozenset({"flips_standby", "standby_lost"}),
    ),
    Mutant(
        "drained at once",
        "common.workflows.mirror.drain",
        planted_pair.drained_at_once,
        "D1",
        frozenset({"flips_standby", "standby_lost"}),
    ),
    Mutant(
        "drained in the same epoch",
        "common.workflows.mirror.drain",
        planted_pair.drained_in_the_same_epoch,
        "D1",
        frozenset({"flips_standby", "standby_lost", "cut_replies"}),
    ),
    Mutant(
        "a mirror let go at once",
        "common.workflows.standby.let_go",
        planted_pair.let_go_at_once,
        "D1",
        frozenset({"flips_standby"}),
    ),
    Mutant(
        "attached unequal",
        "common.domain.standby.may_attach",
        planted_pair.attached_unequal,
        "D2",
        frozenset({"frames_slow", "lost", "false_alarm", "asks_failover", "standby_lost"}),
    ),
    Mutant(
        "sealed by who is no mirror",
        "common.domain.role.Role.may_seal",
        planted_pair.says(
            lambda role: role.view.writer not in (None, role.label) and not role.is_filling and role.sealed is None
        ),
        "D2",
        frozenset({"asks_failover", "false_alarm", "frames_slow", "standby_lost"}),
    ),
    Mutant(
        "a second standby",
        "common.workflows.standby.plan",
        planted_pair.another_standby,
        "E1",
        frozenset({"google_slow"}),
    ),
    Mutant(
        "the address is kept",
        "common.workflows.standby.release_address",
        planted.constant(False),
        "L",
        frozenset({"flips_standby"}),
    ),
    Mutant(
        "a held machine is not waited for",
        "common.domain.conflict.is_awaited",
        planted.constant(False),
        "C",
        frozenset({"false_alarm", "asks_failover", "cut_pair"}),
    ),
    Mutant(
        "kept apart unverified",
        "common.workflows.conflicts._verified",
        planted_pair.believed,
        "C",
        frozenset({"false_alarm", "cut_pair", "upload_garbled", "upload_truncated", "upload_partial"}),
    ),
    Mutant(
        "pruned although it is kept apart",
        "common.workflows.prune._apart",
        planted.constant((set(), set())),
        "C",
        frozenset({"false_alarm", "cut_pair", "asks_failover"}),
    ),
    Mutant(
        "brought and forgotten",
        "common.domain.conflict.not_in",
        planted.constant(()),
        "C",
        frozenset({"false_alarm", "cut_pair", "asks_hand_back"}),
    ),
    Mutant(
        "brought once and for all",
        "common.domain.instance.Instance.conflicts_anew",
        planted_pair.says(lambda instance: instance.conflicts),
        "C",
        frozenset({"false_alarm", "cut_pair", "asks_failover", "asks_hand_back", "frames_slow", "second_death"}),
        is_long=True,
    ),
    Mutant(
        "frames over a refused branch",
        "common.domain.role.Role.may_take",
        planted_pair.takes_over_its_branch,
        "C",
        frozenset({"gpu_dies_unheard"}),
        is_long=True,
    ),
)

NOT_REACHED = {
    "prune._give_up unguarded": "a fall-back in the same second: tests/functions/test_prune.py plays it",
    "hosts._newest taking any report": "a late report could only pass for idleness, and whoever is idle is soon down",
    "liveness.Heard.durable_at of what is only remembered": "three reports of a host would have to be lost with "
    "three processes; tests/functions/test_liveness.py loses them all",
    "sweep._is_fresh believing any age": "only delays a fence, by the quarter of an hour after which nobody remembers; "
    "tests/functions/test_liveness.py waits for it",
    "hibernate._may_count without its version": "reports come numbered (hosts._newest), so an older one is never read",
}
"""Rules that nothing in this world can break yet: other rules stand before them."""

"""What must hold of the simulation itself; the runs are `make simulate`'s."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common import auth
from common.config import Timing
from common.workflows import hibernate, lifecycle
from tests.simulation import sweep
from tests.simulation.coverage import RARE, TOGETHER, Coverage, cells, directed
from tests.simulation.knobs import BY_NAME, KNOBS, NOT_HERE, OF_SLACK, ROWS
from tests.simulation.known import Known, known_first
from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.plan import PRUNE_GRACE_S, STORIES
from tests.simulation.runs import Run, do_alone

ROOT = Path(__file__).resolve().parents[2]
IN_SLACK = 14
"""A seed whose first instance is asked for there."""


def test_there_are_people_in_slack_where_a_fault_needs_them() -> None:
    assert Run(IN_SLACK).plan().owned[0].deploys_in_slack
    assert not Run(1).plan().in_slack
    assert not Run(1).faults().on & OF_SLACK
    for run in (Run(1, stirred=frozenset({"chat_500"})), Run(1, directed=(("slack_lost", "up"),))):
        assert run.plan().in_slack


def test_every_row_of_the_catalogue_is_a_knob_or_has_its_reason() -> None:
    covered = {row for knob in KNOBS for row in knob.rows.split()}

    assert covered | NOT_HERE.keys() == set(ROWS)
    assert not covered & NOT_HERE.keys()
    assert len(BY_NAME) == len(KNOBS) >= 60


def test_the_longest_fault_lasts_twice_as_long_as_the_longest_timeout() -> None:
    # the worlds prune that early, and nothing in them waits for a drill
    timing = Timing(prune_every_s=PRUNE_GRACE_S, prune_grace_s=PRUNE_GRACE_S, drill_every_s=PRUNE_GRACE_S)
    timeouts_s = [*timing.model_dump().values(), hibernate.SNAPSHOT_RETRY_MAX_S, lifecycle.BUDGET_S]
    timeouts_s += [auth.BOOTSTRAP_FOR.total_seconds(), (auth.HOST_TOKEN_FOR + auth.HOST_TOKEN_GRACE).total_seconds()]

    assert max(knob.longest_s for knob in KNOBS if knob.name != "notice_replayed") >= 2 * max(timeouts_s)


def test_at_most_a_fifth_of_the_cells_is_excluded_each_with_a_reason() -> None:
    assert set(RARE) <= set(cells())
    assert len(RARE) <= len(cells()) / 5
    assert all(RARE.values())


def test_a_cell_that_no_run_reached_is_wanting_and_empty() -> None:
    coverage = Coverage()

    assert set(coverage.empty()) == set(cells()) - RARE.keys() == set(coverage.wanting())


def test_directed_runs_aim_at_every_wanting_cell_once_a_few_of_one_phase_together() -> None:
    groups = directed(cells())

    assert sorted(cell for group in groups for cell in group.cells) == sorted(cells())
    assert all(len({phase for _, phase in group.cells}) == 1 <= len(group.cells) <= TOGETHER for group in groups)


def test_a_directed_run_ends_when_all_its_cells_are_hit() -> None:
    aimed = (("beat_lost", "up"), ("beat_twice", "up"))
    run = Run(1, directed=aimed)

    outcome = do_alone(run)

    assert outcome.violations == []
    assert set(aimed) <= outcome.cells.keys()
    assert outcome.virtual_s < run.plan().faults_for_s


def test_a_known_seed_is_tried_first_and_none_is_left_out() -> None:
    assert list(known_first({7, 3, 99}, range(1, 9))) == [3, 7, 1, 2, 4, 5, 6, 8]


def test_what_is_known_is_of_mutants_and_cells_that_exist() -> None:
    known = Known.read()

    assert known.caught.keys() <= {mutant.name for mutant in MUTANTS}
    assert known.reached.keys() <= {",".join(cell) for cell in cells()}
    assert known.seeds_of([("no_such_knob", "up")]) == set()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_names_a_function_of_the_product(mutant: Mutant) -> None:
    holder, attribute = mutant.place()

    found = getattr(holder, attribute)
    assert callable(found) or isinstance(found, property)
    assert mutant.stirred <= BY_NAME.keys()


def test_there_are_at_least_25_mutants_of_different_names() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 25


@pytest.mark.parametrize("seed", [11, IN_SLACK])
def test_the_same_seed_is_the_same_story_in_two_processes(seed: int) -> None:
    first, second = (_digest(seed, hash_seed=hash_seed) for hash_seed in ("0", "1"))

    assert first == second


def _digest(seed: int, hash_seed: str) -> str:
    code = f"from tests.simulation.runs import Run, do_alone; print(do_alone(Run({seed})).digest)"
    env = os.environ | {"PYTHONHASHSEED": hash_seed}
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return answer.stdout.strip()


@pytest.mark.parametrize("seed", [12, IN_SLACK])
def test_its_own_list_of_faults_replays_a_run_exactly(seed: int) -> None:
    run = do_alone(Run(seed))

    replayed = do_alone(Run(seed, script=frozenset(run.hits)))

    assert (replayed.digest, sorted(replayed.hits)) == (run.digest, sorted(run.hits))


@pytest.mark.parametrize("seed", range(1, 9))
def test_nothing_breaks_in_a_seed(seed: int) -> None:
    run = Run(seed, long=True)

    outcome = do_alone(run)

    assert outcome.violations == [], run.reproduced_by()
    assert outcome.events > 500


@pytest.mark.parametrize("story", STORIES)
def test_a_story_without_faults_ends_as_its_user_wants(story: str) -> None:
    outcome = do_alone(Run(7, script=frozenset(), story=story))

    assert outcome.violations == []
    assert outcome.ending == {"instance 0": ("up", 1)}


def test_the_pair_of_its_story_takes_over_and_hands_back() -> None:
    pairs = do_alone(Run(7, script=frozenset(), story="standby")).pairs

    assert (pairs["take_overs"], pairs["hand_backs"]) == (1, 1)
    assert pairs["attached"] >= 1


def test_the_sweep_reaches_hundreds_of_effects_and_what_it_would_run_holds() -> None:
    """Every sixtieth of its runs; `make simulate` makes them all."""
    runs = list(sweep.runs())

    assert len(runs) > 1000
    assert [violation for run in runs[::60] for violation in do_alone(run).violations] == []


def test_a_planted_bug_is_caught_and_shrunk_to_few_faults() -> None:
    """In a process of its own: a mutant stays planted."""
    code = (
        "from tests.simulation.mutants import MUTANTS\n"
        "from tests.simulation.runs import Run, do_alone\n"
        "from tests.simulation.shrink import shrink\n"
        "next(m for m in MUTANTS if m.name == 'lost after one listing').plant()\n"
        "run = next(Run(s) for s in range(10, 20) if do_alone(Run(s)).violations)\n"
        "small, found = shrink(run, do_alone(run))\n"
        "print(len(found.hits), found.violations[0][:2], small.reproduced_by())\n"
    )

    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    hits, invariant, *command = answer.stdout.split()

    assert int(hits) <= 5
    assert invariant == "K1"
    assert command[:2] == ["make", "simulate"]

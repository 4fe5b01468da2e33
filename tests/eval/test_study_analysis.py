"""Means and intervals against textbook formulas, and who stands for an arm."""

import math

import numpy as np
import pytest
from scipy import stats
from tests.eval.studies import finished, trial

from sma_eval.analysis import best_trial, mean_interval, result_of, summarize
from sma_eval.records import TrialRecord
from sma_eval.study import Objective

ACCURACY = Objective(metric="accuracy", mode="max")
LOSS = Objective(metric="loss", mode="min")


@pytest.mark.parametrize("values", [[0.1, 0.4], [0.71, 0.75, 0.69], [1.0, -2.0, 3.5, 8.0, 0.25]])
def test_the_interval_is_students(values: list[float]) -> None:
    estimate = mean_interval(values)
    low, high = stats.t.interval(
        0.95, len(values) - 1, loc=sum(values) / len(values), scale=stats.sem(values)
    )
    assert (estimate.low, estimate.high) == pytest.approx((low, high), rel=1e-12)
    # By hand, for three: t(0.975, 2) = 4.302653.
    if len(values) == 3:
        mean = sum(values) / 3
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
        assert estimate.high == pytest.approx(mean + 4.302653 * deviation / math.sqrt(3), rel=1e-6)


def test_one_value_has_no_interval_and_equal_ones_have_none_to_speak_of() -> None:
    assert mean_interval([0.5]) == mean_interval([0.5])
    assert (mean_interval([0.5]).mean, mean_interval([0.5]).low) == (0.5, None)
    assert (mean_interval([0.5, 0.5]).low, mean_interval([0.5, 0.5]).high) == (0.5, 0.5)


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    normal = np.random.default_rng(0).standard_normal((4000, 3))
    estimates = [mean_interval(row) for row in normal.tolist()]
    covered = sum(
        e.low < 0.0 < e.high for e in estimates if e.low is not None and e.high is not None
    )
    assert covered / 4000 == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 4000))


def test_differences_are_paired_by_seed() -> None:
    # The seeds differ much, the arms by nearly the same in each seed.
    first, second = {0: 0.2, 1: 0.5, 2: 0.9}, {0: 0.31, 1: 0.60, 2: 0.99}
    records = [finished(trial("a", seed), value) for seed, value in first.items()]
    records += [finished(trial("b", seed), value) for seed, value in second.items()]
    a, b = summarize(records, ACCURACY)
    assert a.difference is None
    assert b.difference == mean_interval([second[s] - first[s] for s in (0, 1, 2)])
    assert b.difference is not None
    assert b.difference.low is not None
    assert b.difference.low > 0.0
    assert b.objective is not None
    assert a.objective is not None
    assert b.objective.low is not None
    assert b.objective.low < a.objective.mean


def test_a_seed_that_one_arm_lacks_is_left_out_of_the_difference() -> None:
    records = [finished(trial("a", seed), 0.5) for seed in (0, 1)]
    records += [finished(trial("b", seed), 0.7) for seed in (1, 2)]
    assert summarize(records, ACCURACY)[1].difference == mean_interval([0.7 - 0.5])
    apart = [finished(trial("a", 0)), finished(trial("b", 1))]
    assert summarize(apart, ACCURACY)[1].difference is None


@pytest.mark.parametrize(("objective", "winner"), [(ACCURACY, 0.1), (LOSS, 0.001)])
def test_the_nuisance_value_is_chosen_on_validation_and_shown_on_test(
    objective: Objective, winner: float
) -> None:
    metric = objective.metric
    records = []
    for rate, validation, test in ((0.1, 0.9, 0.3), (0.001, 0.2, 0.8)):
        for seed in (0, 1):
            split = {"accuracy": 0.0, "loss": 0.0, "activation_rate": 0.5}
            records.append(
                finished(
                    trial("a", seed, {"learning_rate": rate}),
                    validation={**split, metric: validation},
                    test={**split, metric: test},
                )
            )
    (row,) = summarize(records, objective)
    assert row.nuisance == f"learning_rate={winner}"
    assert row.seeds == 2
    assert row.objective is not None
    assert row.objective.mean == (0.3 if winner == 0.1 else 0.8)
    best = best_trial(records, objective)
    assert best is not None
    assert best.trial.nuisance == {"learning_rate": winner}


def test_a_lucky_seed_alone_does_not_choose_the_nuisance_value() -> None:
    lucky = [finished(trial("a", 0, {"learning_rate": 0.1}), 0.99)]
    whole = [finished(trial("a", seed, {"learning_rate": 0.01}), 0.6) for seed in (0, 1)]
    assert summarize(lucky + whole, ACCURACY)[0].nuisance == "learning_rate=0.01"


def test_failed_and_unfinished_trials_are_counted_and_do_not_count() -> None:
    records = [
        finished(trial("a", 0), 0.5),
        TrialRecord(trial=trial("a", 1), status="failed", reason="boom"),
        TrialRecord(trial=trial("a", 2), status="running", step=3),
        TrialRecord(trial=trial("b", 0)),
    ]
    a, b = summarize(records, ACCURACY)
    assert (a.seeds, a.failed, a.unfinished) == (1, 1, 1)
    assert (b.seeds, b.failed, b.unfinished) == (0, 0, 1)
    assert b.objective is None
    assert b.difference is None
    assert b.dense_share is None
    assert a.dense_share == 0.5


def test_without_a_finished_trial_there_is_no_best() -> None:
    record = TrialRecord(trial=trial())
    assert best_trial([record], ACCURACY) is None
    with pytest.raises(ValueError, match="is pending and has no result"):
        result_of(record)

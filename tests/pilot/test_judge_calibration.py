"""Calibration by hand, and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss
from tests.pilot.judge_cases import make_plan, make_slice
from tests.pilot.test_judge_quality import ALARM_TASK, DAY, VALIDATION, labelled, two_arms
from tests.tolerances import TOLERANCES

from sma_pilot.judge.calibration import Reliability
from sma_pilot.judge.means import MeanOfRows
from sma_pilot.judge.metrics import BRIER
from sma_pilot.judge.quality import measure_quality

CLOSE = TOLERANCES["float64"].relative


def test_reliability_by_hand():
    probability = np.array([0.05, 0.05, 0.05, 0.05, 0.95, 0.95, 1.0], np.float32)
    happened = np.array([0, 0, 0, 1, 1, 1, 0], bool)
    diagram = Reliability.of(probability, happened)
    assert diagram.rows.tolist() == [4, 3]
    assert diagram.frequency == pytest.approx([1 / 4, 2 / 3], rel=CLOSE)
    gaps = np.abs(diagram.probability - diagram.frequency)
    assert gaps == pytest.approx([0.2, 2.9 / 3 - 2 / 3], rel=TOLERANCES["float32"].relative)
    error = (4 * gaps[0] + 3 * gaps[1]) / 7
    assert diagram.expected_calibration_error == pytest.approx(error, rel=CLOSE)
    squares = (4 * gaps[0] ** 2 + 3 * gaps[1] ** 2) / 7
    assert diagram.reliability == pytest.approx(squares, rel=CLOSE)


def test_honest_chances_are_reliable_and_boasting_is_not():
    rng = np.random.default_rng(0)
    chance = rng.random(200_000).astype(np.float32)
    happened = rng.random(200_000) < chance
    assert Reliability.of(chance, happened).expected_calibration_error < 0.01
    boast = np.clip(1.4 * chance - 0.2, 0, 1).astype(np.float32)
    assert Reliability.of(boast, happened).expected_calibration_error > 0.05


def test_an_alarm_has_a_brier_score_and_a_forecast_has_none():
    rng = np.random.default_rng(1)
    scores = two_arms(rng.random(DAY), rng.random(DAY))
    judged = make_slice(labelled((500, 520), (1000, 1010)), scores)
    plan = make_plan(task=ALARM_TASK, quality={"headline": BRIER})
    quality = measure_quality(VALIDATION, judged, plan)
    rows = np.r_[0:500, 520:1000, 1010:1380]
    positive = np.isin(rows, np.r_[440:500, 940:1000])
    values = [quality.arms[arm].values[BRIER] for arm in ("incumbent", "candidate")]
    for arm, value in zip(("incumbent", "candidate"), values, strict=True):
        expected = brier_score_loss(positive, judged.scores[arm][rows].astype(float))
        assert value == pytest.approx(expected, rel=CLOSE)
    # Lower is better: the loss is what the candidate has more of it.
    assert quality.candidate.losses[BRIER].value == pytest.approx(values[1] - values[0], rel=CLOSE)
    forecast = measure_quality(VALIDATION, judged, make_plan())
    assert BRIER not in forecast.arms["incumbent"].values
    assert forecast.arms["incumbent"].reliability is None


@pytest.mark.parametrize("root", [False, True])
def test_a_mean_of_rows_under_weights_is_that_of_repeated_rows(root):
    rng = np.random.default_rng(2)
    value, bins = rng.random(60), np.arange(60) // 7
    weights = rng.integers(0, 3, 9).astype(float)
    repeated = np.repeat(value, weights[bins].astype(int)).mean()
    mean = MeanOfRows(value, bins, root=root)
    assert mean(weights) == pytest.approx(repeated**0.5 if root else repeated, rel=CLOSE)
    assert np.isnan(mean(np.zeros(9)))
    assert mean.contributions(9).sum() == pytest.approx(0, abs=CLOSE)

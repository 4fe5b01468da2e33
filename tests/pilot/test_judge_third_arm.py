"""The third arm: recommended where the data allow it, whatever its kind, and never by silence."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.pilot.judge_cases import fleet_scores, latency_sample, make_measurements, make_plan

from sma_pilot.judge.measurements import Leg
from sma_pilot.judge.result import Result
from sma_pilot.judge.verdict import judge

PCA = {"kind": "pca"}
FOREST = {"kind": "sklearn", "estimator": "sklearn.ensemble.IsolationForest"}
REPLACE = "quality/baseline_for_incumbent_loss_event_recall"
BESIDE = "quality/baseline_loss_event_recall"


def judged(
    arm: dict[str, Any] = PCA,
    *,
    baseline: float = 1.0,
    candidate: float = 1.0,
    milliseconds: float = 0.05,
    weight_bytes: int | None = 100,
    noise: float = 1.0,
    unscored: int = 0,
    rows_per_second: float = 9e4,
) -> Result:
    """Judge a third arm that catches a share of the events, at a cost."""
    chance = np.random.default_rng(4).permutation(120) / 120
    scores = fleet_scores(
        {
            "incumbent": np.ones(120, bool),
            "candidate": chance < candidate,
            "baseline": chance < baseline,
        }
    )
    measurements = make_measurements(scores)
    measurements.scores["judged"]["baseline"].score[:unscored] = np.nan
    latency = {**measurements.latency, "baseline": latency_sample(milliseconds, seed=9)}
    latency["incumbent_again"] = latency_sample(noise, seed=7)
    leg = Leg(rows_per_second=rows_per_second, weight_bytes=weight_bytes, state_bytes_per_entity=8)
    legs = {**measurements.legs, "baseline/offline": leg}
    plan = make_plan(arms={"baseline": arm}, quality={"resamples": 200})
    return judge(replace(measurements, latency=latency, legs=legs), plan)


def remark(result: Result, kpi: str = REPLACE) -> str:
    return next((item.text for item in result.reasons if item.kpi == kpi), "")


@pytest.mark.parametrize(
    ("arm", "name", "candidate"),
    [
        (PCA, "The simple baseline (PCA reconstruction error)", 1.0),
        (PCA, "The simple baseline (PCA reconstruction error)", 0.6),
        ({"kind": "kmeans"}, "The simple baseline (k-means)", 0.6),
        (FOREST, "The simple baseline (scikit-learn: IsolationForest)", 1.0),
        ({"kind": "gru", "simple": True}, "The simple baseline (GRU)", 0.6),
        ({"kind": "recorded", "score": "s", "simple": True}, "(recorded scores)", 1.0),
    ],
)
def test_a_simple_method_that_meets_every_limit_may_replace_the_incumbent(arm, name, candidate):
    """Also where the candidate is no go: then it is the only change that the data allow."""
    result = judged(arm, candidate=candidate)
    assert result.verdict == ("go" if candidate == 1.0 else "no-go")
    text = remark(result)
    assert name in text
    assert "meets every limit of the plan in the incumbent's place" in text
    assert f"replace the incumbent by it ({name.split('(', 1)[1]} is a conclusion" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"baseline": 0.8},
        {"milliseconds": 3.0},
        {"weight_bytes": 10_000_000},
        {"weight_bytes": None},
        {"noise": 1.5},
        {"unscored": 3},
        {"arm": {"kind": "gru"}},
        {"arm": {**FOREST, "simple": False}},
    ],
)
def test_one_limit_that_is_not_shown_to_be_kept_is_enough_to_say_nothing(changes):
    assert not remark(judged(**changes, candidate=0.6))


def test_a_candidate_that_meets_them_for_less_is_the_better_change():
    """Slower than the candidate in both ways, and well within the incumbent's time."""
    costs: dict[str, Any] = {"milliseconds": 0.8, "rows_per_second": 10.0}
    result = judged(**costs)
    assert result.verdict == "go"
    assert not remark(result)
    assert remark(judged(**costs, candidate=0.6))


def test_a_third_arm_that_is_not_simple_is_called_what_it_is():
    result = judged({"kind": "gru"})
    assert remark(result, BESIDE).startswith("The third arm (GRU) does as well as the candidate")


def test_the_loss_against_the_incumbent_is_told_for_information():
    kpi = judged(baseline=0.8).kpi(REPLACE)
    assert (kpi.status, kpi.arm) == ("info", None)
    assert kpi.value == pytest.approx(0.2)

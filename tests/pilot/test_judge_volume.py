"""VUS-PR against the authors' own code, and what must not change it."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from tests.pilot.judge_cases import make_measurements, make_plan, make_slice
from tests.tolerances import TOLERANCES

from sma_pilot.judge.metrics import AVERAGE_PRECISION, VUS_PR
from sma_pilot.judge.scene import Scene
from sma_pilot.judge.verdict import judge
from sma_pilot.judge.volume import THRESHOLDS, RangeLabels, RangeVolume

CLOSE = TOLERANCES["float64"].relative
CASES = json.loads((Path(__file__).parent / "data" / "vus_pr.json").read_text())["cases"]


def volume(label, score, width: int, bins=None) -> RangeVolume:
    """VUS-PR of one regular series."""
    label = np.asarray(label) > 0
    bins = np.zeros(label.size, np.int64) if bins is None else bins
    event = np.cumsum(np.diff(label.astype(int), prepend=0) == 1) - 1
    labels = RangeLabels.of(np.arange(label.size), label, event, bins, width)
    return RangeVolume(np.asarray(score, np.float32), labels, bins)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_it_equals_the_authors_code(case):
    label = np.array(list(case["label"]), int)
    measured = volume(label, case["score"], case["width"])(np.ones(1))
    assert measured == pytest.approx(case["vus_pr"], rel=CLOSE)


@st.composite
def series(draw):
    size = draw(st.integers(2, 60))
    label = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    label[draw(st.integers(0, size - 1))] = True
    score = np.array(draw(st.lists(st.integers(0, 8), min_size=size, max_size=size)), float)
    return label, score, draw(st.integers(0, 30))


@given(series())
@settings(max_examples=40, deadline=None)
def test_without_a_buffer_it_is_average_precision_times_events_found(case):
    label, score, _ = case
    starts = np.flatnonzero(np.diff(label.astype(int), prepend=0) == 1)
    stops = [start + np.argmin(np.append(label[start:], False)) for start in starts]
    peaks = np.array([score[a:b].max() for a, b in zip(starts, stops, strict=True)])
    expected = before = 0.0
    for level in np.unique(score)[::-1]:
        over = score >= level
        recall = (over & label).sum() / label.sum() * (peaks >= level).mean()
        expected += (recall - before) * (over & label).sum() / over.sum()
        before = recall
    assert volume(label, score, 0)(np.ones(1)) == pytest.approx(expected, rel=CLOSE)


@given(series())
@settings(max_examples=40, deadline=None)
def test_only_the_order_of_scores_counts_and_it_is_a_share(case):
    label, score, width = case
    plain = volume(label, score, width)(np.ones(1))
    assert volume(label, np.exp(score / 3) - 7, width)(np.ones(1)) == pytest.approx(
        plain, rel=CLOSE
    )
    assert 0 <= plain <= 1 + CLOSE


@given(series(), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_equal_weights_of_any_size_change_nothing(case, weight):
    label, score, width = case
    bins = np.arange(label.size) // 3
    measured = volume(label, score, width, bins)
    once = measured(np.ones(bins[-1] + 1))
    assert measured(np.full(bins[-1] + 1, float(weight))) == pytest.approx(once, rel=CLOSE)


def test_a_bin_drawn_twice_counts_as_two_of_it():
    rng = np.random.default_rng(3)
    # Two stretches without a common buffer; the second drawn twice is the log with it repeated.
    label = np.zeros(200, int)
    label[[30, 31, 32, 130, 131, 132, 133]] = 1
    score = rng.integers(0, 9, 200) + 3 * label
    bins = np.repeat([0, 1], 100)
    drawn = volume(label, score, 20, bins)(np.array([1.0, 2.0]))
    longer = np.r_[0:200, 100:200]
    assert drawn == pytest.approx(volume(label[longer], score[longer], 20)(np.ones(1)), rel=CLOSE)


def test_no_event_left_in_a_resample_is_no_value():
    label = np.r_[np.ones(5, int), np.zeros(20, int)]
    bins = np.repeat(np.arange(5), 5)
    weights = np.array([0.0, 2.0, 1.0, 1.0, 1.0])
    assert np.isnan(volume(label, np.arange(25), 4, bins)(weights))


def test_contributions_lie_where_events_are_and_add_up_about():
    rng = np.random.default_rng(5)
    label = np.zeros(3000, int)
    for start in range(100, 3000, 250):
        label[start : start + 30] = 1
    bins = np.arange(3000) // 10
    measured = volume(label, rng.random(3000) + label, 0, bins)
    added = measured.contributions(300)
    assert set(np.flatnonzero(added)) == set(measured.carriers)
    assert added.sum() == pytest.approx(measured(np.ones(300)), rel=0.1)


def test_machines_do_not_reach_into_each_other_nor_over_a_silence():
    minutes = np.r_[0:50, 100:150]
    label = np.zeros(100, int)
    label[45:50] = 1  # ends as the silence begins
    score = np.zeros(100)
    score[50:60] = 1.0  # at once after it, fifty minutes later
    fields = {"time": 60 * 10**9 * np.r_[minutes, minutes], "entity": np.repeat([0, 1], 100)}
    double = {"incumbent": np.r_[score, score[::-1]], "candidate": np.r_[score, score]}
    judged = make_slice(np.r_[label, 0 * label], double, **fields)
    plan = make_plan(quality={"vus_window": "20m"})
    near = Scene.of(judged, plan).judged.labels
    assert near.near.max() < 50
    assert near.near.min() == 35


def test_vus_pr_as_headline_gates_and_is_resampled():
    quality = {"headline": VUS_PR, "vus_window": "10m", "resamples": 200}
    result = judge(make_measurements(candidate_misses=40), make_plan(quality=quality))
    gate = next(kpi for kpi in result.kpis if kpi.name == "quality/loss_vus_pr")
    values = {kpi.name: kpi.value for kpi in result.kpis}
    incumbent, candidate = (values[f"quality/{arm}_vus_pr"] for arm in ("incumbent", "candidate"))
    assert incumbent is not None
    assert candidate is not None
    difference = incumbent - candidate
    assert gate.status == "fail"
    assert gate.value == pytest.approx(difference, rel=CLOSE)
    assert gate.interval is not None
    assert gate.interval[0] < difference < gate.interval[1]
    assert "VUS-PR: incumbent" in result.reasons[0].text


def test_without_a_declared_window_it_is_the_authors_hundred_rows():
    rng = np.random.default_rng(7)
    label = np.zeros(900, int)
    label[300:330] = label[700:705] = 1
    score = (rng.random(900) + 0.5 * label).astype(np.float32)
    scene = Scene.of(make_slice(label, {"incumbent": score, "candidate": score}), make_plan())
    values = scene.score("incumbent", None).values
    assert values[VUS_PR] == volume(label, score, 100)(np.ones(1))
    assert values[AVERAGE_PRECISION] == pytest.approx(
        average_precision_score(label, score), rel=CLOSE
    )
    assert THRESHOLDS < 900

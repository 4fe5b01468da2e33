"""Affiliation precision and recall against the authors' own code, and by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pilot.judge_cases import make_plan, make_slice
from tests.pilot.test_judge_quality import VALIDATION, forecast_case, labelled, peaks
from tests.tolerances import TOLERANCES

from sma_pilot.judge.affiliation import Affiliation, affiliate, zones_of
from sma_pilot.judge.metrics import AFFILIATION_F1
from sma_pilot.judge.quality import measure_quality

CLOSE = TOLERANCES["float64"].relative
CASES = json.loads((Path(__file__).parent / "data" / "affiliation.json").read_text())["cases"]


def runs(rows) -> tuple[np.ndarray, np.ndarray]:
    edges = np.diff(np.concatenate([[0], np.asarray(rows, int), [0]]))
    return np.flatnonzero(edges == 1).astype(float), np.flatnonzero(edges == -1).astype(float)


def of_series(alarm, label) -> tuple[np.ndarray, np.ndarray]:
    events = runs(label)
    whole = (np.array([0.0]), np.array([float(len(label))]))
    zones = zones_of(events, whole, np.zeros(events[0].size, int))
    return affiliate(runs(alarm), events, zones)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_it_equals_the_authors_code(case):
    precision, recall = of_series(*([int(c) for c in case[key]] for key in ("alarm", "label")))
    expected = np.array(case["precision_of_event"], float)
    assert precision == pytest.approx(expected, rel=CLOSE, nan_ok=True)
    assert recall == pytest.approx(np.array(case["recall_of_event"]), rel=CLOSE)
    f1 = Affiliation(precision=precision, recall=recall, bin_of_event=np.zeros(len(recall), int))
    if case["precision"] is None:
        assert f1(np.ones(1)) == 0.0
    else:
        p, r = case["precision"], case["recall"]
        assert f1(np.ones(1)) == pytest.approx(2 * p * r / (p + r), rel=CLOSE)


def test_one_alarm_by_hand():
    # Zone [0, 100), event [40, 60), alarm [60, 61). Of its points, d is 0 to 1; nearer than d lie
    # the event and d on each side: precision is 1 - (20 + 2 d) / 100, on average 0.79.
    label, alarm = np.zeros(100, int), np.zeros(100, int)
    label[40:60], alarm[60] = 1, 1
    precision, recall = of_series(alarm, label)
    assert precision[0] == pytest.approx(0.79, rel=CLOSE)
    # A point of the event lies d = 0 to 20 before the alarm, with d on each side: 1 - 2 d / 100.
    assert recall[0] == pytest.approx(0.8, rel=CLOSE)


@given(
    st.lists(st.booleans(), min_size=30, max_size=30),
    st.lists(st.booleans(), min_size=30, max_size=30),
)
@settings(max_examples=50, deadline=None)
def test_it_is_a_share_and_neither_direction_of_time_is_better(alarm, label):
    if not any(label):
        return
    precision, recall = of_series(alarm, label)
    known = precision[~np.isnan(precision)]
    assert ((known >= -CLOSE) & (known <= 1 + CLOSE)).all()
    assert ((recall >= -CLOSE) & (recall <= 1 + CLOSE)).all()
    back_precision, back_recall = of_series(alarm[::-1], label[::-1])
    assert back_precision[::-1] == pytest.approx(precision, rel=CLOSE, abs=CLOSE, nan_ok=True)
    assert back_recall[::-1] == pytest.approx(recall, rel=CLOSE, abs=CLOSE)


def test_a_judged_log_is_cut_at_its_machines():
    one = forecast_case()
    score = np.concatenate([one.scores["incumbent"], peaks(1440, r700=20.0)])
    label = np.concatenate([one.label, labelled((700, 710))])
    time = np.concatenate([one.time, one.time])
    entity = np.repeat([0, 1], 1440)
    both = make_slice(label, {"incumbent": score, "candidate": score}, entity=entity, time=time)
    measured = measure_quality(VALIDATION, both, make_plan()).arms["incumbent"]
    alarm = (one.scores["incumbent"] > 7).astype(int)
    first = of_series(alarm, one.label)
    second = of_series(peaks(1440, r700=1.0).astype(int), labelled((700, 710)))
    precision = np.concatenate([first[0], second[0]])
    recall = np.concatenate([first[1], second[1]])
    p, r = np.nanmean(precision), recall.mean()
    assert measured.values[AFFILIATION_F1] == pytest.approx(2 * p * r / (p + r), rel=CLOSE)

"""Thresholds: exact against trying every score, and sane on hostile scores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sma_pilot.judge.alarms import LARGEST_ALARM_SHARE, Threshold, choose_threshold, episode_starts
from sma_pilot.judge.events import DAY_NS

HOUR = DAY_NS // 24


def find(score, *, per_day, merge_hours=1.0, entity=None, time=None, exposure=None):
    score = np.asarray(score, np.float32)
    size = score.size
    return choose_threshold(
        score,
        np.zeros(size, np.int32) if entity is None else np.asarray(entity, np.int32),
        HOUR * np.arange(size) if time is None else np.asarray(time, np.int64),
        np.full(size, HOUR) if exposure is None else np.asarray(exposure, np.int64),
        merge_ns=int(merge_hours * HOUR),
        per_day=per_day,
    )


def choose(score, **given) -> Threshold:
    found = find(score, **given)
    assert found is not None
    return found


def count_alarms(score, entity, time, value, merge_ns):
    """The definition, row by row."""
    alarms, last = 0, {}
    for row in range(score.size):
        if score[row] > value:
            before = last.get(entity[row])
            alarms += before is None or time[row] - before >= merge_ns
            last[entity[row]] = time[row]
    return alarms


@st.composite
def logs(draw):
    size = draw(st.integers(1, 40))
    entity = sorted(draw(st.lists(st.integers(0, 2), min_size=size, max_size=size)))
    gaps = draw(st.lists(st.integers(1, 9), min_size=size, max_size=size))
    score = draw(
        st.lists(
            st.one_of(st.integers(0, 6).map(float), st.floats(-5, 5, width=32)),
            min_size=size,
            max_size=size,
        )
    )
    return (
        np.array(score, np.float32),
        np.array(entity, np.int32),
        np.cumsum(gaps).astype(np.int64),
        np.array(draw(st.lists(st.integers(1, 9), min_size=size, max_size=size)), np.int64),
    )


@given(log=logs(), merge=st.integers(1, 20), alarms=st.integers(0, 6))
@settings(max_examples=300, deadline=None)
def test_threshold_is_the_one_found_by_trying_every_score(log, merge, alarms):
    score, entity, time, exposure = log
    found = choose_threshold(
        score, entity, time, exposure, merge_ns=merge, per_day=alarms * DAY_NS / exposure.sum()
    )
    expected = None
    for value in np.unique(score)[::-1]:
        over = score > value
        made = count_alarms(score, entity, time, value, merge)
        if made > alarms or exposure[over].sum() > LARGEST_ALARM_SHARE * exposure.sum():
            break
        expected = (value, made)
    assert found is not None
    assert (found.value, found.false_alarms) == expected


def test_three_alarms_a_day_let_the_third_peak_through_and_not_the_fourth():
    score = np.zeros(48)
    score[[3, 13, 23, 33, 43]] = [9, 8, 7, 6, 5]
    found = choose(score, per_day=1.5)
    assert (found.value, found.false_alarms, found.entity_days) == (6.0, 3, 2.0)


def test_neighbouring_rows_over_the_threshold_are_one_alarm():
    score = np.zeros(96)
    score[[10, 11, 12]] = [9, 8, 7]
    score[50] = 6
    assert choose(score, per_day=0.25, merge_hours=1.5).value == 6.0
    assert choose(score, per_day=0.25, merge_hours=1.0).value == 8.0


def test_rows_exactly_the_merge_time_apart_are_two_alarms():
    entity, time = np.zeros(3, np.int32), np.array([0, 10, 19])
    assert episode_starts(entity, time, 10).tolist() == [True, True, False]


def test_entities_never_share_an_alarm():
    assert episode_starts(np.array([0, 1]), np.array([5, 6]), 10).tolist() == [True, True]


def test_equal_scores_raise_no_alarm():
    found = choose(np.full(50, 3.5), per_day=100)
    assert (found.value, found.false_alarms) == (3.5, 0)


def test_tied_scores_alarm_together_or_not_at_all():
    score = np.zeros(240)
    score[[10, 110, 210]] = 5
    assert choose(score, per_day=0.2).value == 5.0  # two a slice: the tie of three is too many
    assert choose(score, per_day=0.3).value == 0.0


def test_a_score_that_drifts_does_not_end_in_one_endless_alarm():
    # One merged alarm a slice is allowed, and the lowest scores would give just that.
    found = choose(np.linspace(0, 1, 200), per_day=1, merge_hours=1.5)
    assert found.capped
    assert np.mean(np.linspace(0, 1, 200) > found.value) <= LARGEST_ALARM_SHARE


def test_a_rate_over_many_days_is_not_rounded_down_by_floating_point():
    score = np.zeros(240)
    score[np.arange(23) * 10] = 1  # 23 alarms in 10 days, and 2.3 x 10 < 23 in binary
    assert choose(score, per_day=2.3).value == 0.0


@pytest.mark.parametrize("score", [[], [np.nan] * 5])
def test_no_scored_row_is_no_threshold(score):
    assert find(score, per_day=2) is None


def test_infinite_scores_are_scores():
    score = np.zeros(100)
    score[:3] = np.inf
    score[50] = -np.inf
    assert choose(score, per_day=0.2, merge_hours=1).value == np.inf
    assert choose(score, per_day=1.0, merge_hours=1).value == 0.0


def test_rows_without_a_score_take_no_time():
    score = np.array([1.0, np.nan, 0.0, np.nan])
    assert choose(score, per_day=1).entity_days == pytest.approx(2 / 24)

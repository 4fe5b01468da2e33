"""Events, their windows and what rows count as, by hand."""

from datetime import timedelta

import numpy as np
import pytest
from tests.pilot.judge_cases import MINUTE, START, make_slice

from sma_pilot.judge.events import (
    DAY_NS,
    EXCLUDED,
    NORMAL,
    POSITIVE,
    exposure_ns,
    find_events,
    nanoseconds,
    row_kinds,
)
from sma_pilot.plan import Task

FORECAST = Task(kind="forecast_anomaly")
ALARM = Task.model_validate({"kind": "alarm", "horizon": "3m"})


def slice_of(label, **columns):
    return make_slice(label, {"incumbent": np.zeros(len(label))}, **columns)


def test_events_are_runs_of_an_entity():
    rows = slice_of([0, 1, 2, 0, 1, 1, 1, 0], entity=[0, 0, 0, 0, 0, 0, 1, 1])
    events = find_events(rows, FORECAST)
    assert list(zip(events.start, events.stop, strict=True)) == [(1, 3), (4, 6), (6, 7)]
    assert list(events.window_start) == [1, 4, 6]
    assert list(events.start_time) == [START + MINUTE * row for row in (1, 4, 6)]


def test_a_row_of_unknown_label_ends_an_event():
    events = find_events(slice_of([1, -1, 1]), FORECAST)
    assert list(events.start) == [0, 2]


@pytest.mark.parametrize("label", [[], [0, 0], [-1, -1]])
def test_no_event(label):
    for task in (FORECAST, ALARM):
        assert find_events(slice_of(label), task).count == 0


def test_alarm_window_is_the_horizon_before_the_event_and_not_the_event():
    events = find_events(slice_of([0, 0, 0, 0, 0, 1, 1]), ALARM)
    assert (events.window_start[0], events.window_stop[0]) == (2, 5)


def test_alarm_window_leaves_out_other_events_and_other_entities():
    rows = slice_of([0, 1, 0, 1, 0, 1], entity=[0, 0, 0, 0, 1, 1])
    events = find_events(rows, ALARM)
    assert list(zip(events.window_start, events.window_stop, strict=True)) == [
        (0, 1),
        (2, 3),
        (4, 5),
    ]


def test_alarm_window_goes_by_time_and_not_by_rows():
    time = START + MINUTE * np.array([0, 10, 11, 12])
    events = find_events(slice_of([0, 0, 0, 1], time=time), ALARM)
    assert events.window_start[0] == 1


def test_kinds_of_a_forecast_are_the_labels():
    rows = slice_of([0, -1, 1, 0])
    events = find_events(rows, FORECAST)
    judged = row_kinds(rows, events, FORECAST, unlabelled_is_normal=False)
    assert judged.tolist() == [NORMAL, EXCLUDED, POSITIVE, NORMAL]
    validation = row_kinds(rows, events, FORECAST, unlabelled_is_normal=True)
    assert validation.tolist() == [NORMAL, NORMAL, POSITIVE, NORMAL]


def test_kinds_of_an_alarm_leave_out_events_and_the_unknown_end_of_each_entity():
    rows = slice_of([0, 0, 0, 0, 1, *[0] * 8], entity=[0] * 9 + [1] * 4)
    kinds = row_kinds(rows, find_events(rows, ALARM), ALARM, unlabelled_is_normal=False)
    first = [NORMAL, POSITIVE, POSITIVE, POSITIVE, EXCLUDED, NORMAL, *[EXCLUDED] * 3]
    second = [NORMAL, *[EXCLUDED] * 3]
    assert kinds.tolist() == first + second


def test_exposure_is_the_time_to_the_next_row_and_a_period_before_a_gap():
    time = START + MINUTE * np.array([0, 1, 4, 200, 0])
    rows = slice_of([0] * 5, time=time, entity=[0, 0, 0, 0, 1])
    stands_for = exposure_ns(rows, timedelta(minutes=1), timedelta(hours=1))
    assert (stands_for / MINUTE).tolist() == [1, 3, 1, 1, 1]


def test_nanoseconds_are_exact():
    assert nanoseconds(timedelta(days=1)) == DAY_NS
    assert nanoseconds(timedelta(milliseconds=1)) == 10**6

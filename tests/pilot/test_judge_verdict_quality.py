"""The gate on quality: losses, few events, missing scores, and alarms that are said alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tests.pilot.judge_cases import (
    BOTH,
    GATES,
    HEADLINE,
    fleet_scores,
    make_measurements,
    make_plan,
    only_open_gate,
    reason,
    rescored,
    statuses,
)
from tests.tolerances import TOLERANCES

from sma_pilot.errors import RunError
from sma_pilot.judge.measurements import Measurements
from sma_pilot.judge.verdict import judge

CLOSE = TOLERANCES["float64"].relative


def test_a_proven_loss_is_a_no_go():
    result = judge(make_measurements(candidate_misses=40), make_plan())
    assert result.verdict == "no-go"
    assert statuses(result)[HEADLINE] == "fail"
    assert "a loss of 0.333; the true loss is at least" in reason(result, HEADLINE)


def test_an_open_loss_says_how_much_more_data_it_takes():
    result = judge(make_measurements(candidate_misses=8), make_plan())
    only_open_gate(result, HEADLINE)
    assert result.more_data is not None
    assert result.more_data.discordance == pytest.approx(8 / 120, rel=CLOSE)
    assert result.more_data.events is not None
    assert result.more_data.events > 120


def test_a_loss_over_the_limit_that_is_not_proven_says_that_no_data_would_do():
    result = judge(make_measurements(candidate_misses=13), make_plan())
    only_open_gate(result, HEADLINE)
    assert result.more_data is not None
    assert result.more_data.events is None
    assert result.more_data.text.startswith("No amount")


def test_the_headline_can_be_average_precision():
    plan = make_plan(quality={"headline": "average_precision"})
    result = judge(make_measurements(), plan)
    assert result.verdict == "go"
    assert statuses(result)["quality/loss_average_precision"] == "pass"
    assert result.kpi(HEADLINE).status == "info"
    assert judge(make_measurements(candidate_misses=40), plan).verdict == "no-go"
    open_one = judge(make_measurements(candidate_misses=8), plan)
    assert open_one.verdict == "inconclusive"
    assert open_one.more_data is not None
    assert open_one.more_data.discordance is None


def test_too_few_events_settle_nothing_whatever_the_scores():
    for misses in (0, 15):
        result = judge(
            make_measurements(events=30, candidate_misses=misses),
            make_plan(quality={"minimum_events": 31}),
        )
        only_open_gate(result, HEADLINE)
        assert "30 of the 31" in reason(result, HEADLINE)


def test_too_little_time_settles_nothing():
    result = judge(make_measurements(), make_plan(quality={"block": "1d"}))
    only_open_gate(result, HEADLINE)
    assert "6 independent stretches, and 10 are needed" in reason(result, HEADLINE)
    assert result.more_data is not None
    assert result.more_data.days == pytest.approx(10.0, rel=0.02)  # rounded up to whole events


def without_events(measurements: Measurements, label: int) -> Measurements:
    scores = {
        name: {
            arm: replace(table, label=np.full(table.rows, label, np.int32))
            for arm, table in arms.items()
        }
        for name, arms in measurements.scores.items()
    }
    return replace(measurements, scores=scores)


@pytest.mark.parametrize("label", [0, -1])
def test_no_event_settles_nothing(label):
    result = judge(without_events(make_measurements(), label), make_plan())
    only_open_gate(result, HEADLINE)
    assert result.kpi(HEADLINE).value is None
    assert "no labelled event" in reason(result, HEADLINE)
    assert result.more_data is not None


def test_one_event_settles_nothing():
    result = judge(
        make_measurements(fleet_scores(dict.fromkeys(("incumbent", "candidate"), np.ones(1)))),
        make_plan(quality={"minimum_events": 1}),
    )
    only_open_gate(result, HEADLINE)
    low, high = result.kpi(HEADLINE).interval or (0, 0)
    assert (low, high) == pytest.approx((-0.95, 0.95), rel=CLOSE)


def test_every_event_in_one_stretch_of_time_proves_nothing():
    measurements = make_measurements(candidate_misses=8)
    for name, arms in measurements.scores.items():
        for table in arms.values():
            late = table.time > np.quantile(table.time, 0.1)
            table.label[late & (name == "judged")] = 0
    plan = make_plan(quality={"loss_limit": 0.5, "minimum_events": 1})
    result = judge(measurements, plan)
    assert statuses(result)[HEADLINE] != "pass"


def test_every_event_on_one_entity_is_judged_as_any():
    events, one_machine = 60, {"entities": 1, "spacing": 60}
    caught = np.ones(events, bool)
    arms = dict.fromkeys(("incumbent", "incumbent_again", "candidate"), caught)
    assert judge(make_measurements(fleet_scores(arms, **one_machine)), make_plan()).verdict == "go"
    arms["candidate"] = np.random.default_rng(0).random(events) < 0.5
    lost = judge(make_measurements(fleet_scores(arms, **one_machine)), make_plan())
    assert lost.verdict == "no-go"


def test_a_tie_with_the_threshold_is_no_alarm():
    measurements = make_measurements()
    for arms in measurements.scores.values():
        for table in arms.values():
            table.score[:] = np.where(table.label > 0, 1.0, np.round(table.score))
    result = judge(measurements, make_plan())
    assert result.kpi("quality/candidate_event_recall").value == 0
    assert result.kpi("quality/discordance").value == 0
    # Two arms that catch nothing agree: that is shown by 120 events, and the recall says the rest.
    assert result.kpi(HEADLINE).value == 0


def test_a_candidate_that_scores_nothing_gets_no_pass():
    result = judge(rescored(make_measurements(), ("candidate",), BOTH, np.nan), make_plan())
    assert statuses(result)[HEADLINE] == "inconclusive"
    assert statuses(result)["quality/unscored_by_candidate"] == "inconclusive"
    assert "no normal validation row has a score of: candidate" in reason(result, HEADLINE)


def test_a_candidate_that_is_silent_on_judged_rows_is_a_no_go():
    result = judge(rescored(make_measurements(), ("candidate",), ("judged",), np.nan), make_plan())
    assert result.verdict == "no-go"


def test_nothing_scored_at_all_settles_nothing():
    arms = ("incumbent", "incumbent_again", "candidate")
    result = judge(rescored(make_measurements(), arms, BOTH, np.nan), make_plan())
    only_open_gate(result, HEADLINE)
    assert "120 events without a scored row" in reason(result, HEADLINE)


@pytest.mark.parametrize("value", [0.0, np.inf, -np.inf])
def test_a_constant_score_catches_nothing(value):
    result = judge(rescored(make_measurements(), ("candidate",), BOTH, value), make_plan())
    assert result.verdict == "no-go"
    assert result.kpi("quality/candidate_event_recall").value == 0
    assert result.kpi("quality/candidate_false_alarms_per_day").value == 0


def test_infinite_scores_on_events_are_alarms():
    measurements = make_measurements()
    for arms in measurements.scores.values():
        for table in arms.values():
            table.score[table.label > 0] = np.inf
    assert judge(measurements, make_plan()).verdict == "go"


@pytest.mark.parametrize("empty", BOTH)
def test_an_empty_slice_settles_nothing(empty):
    measurements = make_measurements()
    scores = dict(measurements.scores)
    scores[empty] = {
        arm: replace(
            table,
            **{name: own[:0] for name, own in vars(table).items() if own is not None},
        )
        for arm, table in scores[empty].items()
    }
    result = judge(replace(measurements, scores=scores), make_plan())
    only_open_gate(result, HEADLINE)
    json.dumps(result.to_dict(), allow_nan=False)


def test_a_candidate_that_leaves_rows_unscored_gets_no_pass():
    measurements = make_measurements()
    table = measurements.scores["judged"]["candidate"]
    table.score[np.flatnonzero(table.label == 0)[7]] = np.nan
    result = judge(measurements, make_plan())
    only_open_gate(result, "quality/unscored_by_candidate")
    assert "no score on 1 judged rows" in reason(result, "quality/unscored_by_candidate")


def test_an_arm_that_is_missing_is_an_error():
    measurements = make_measurements()
    scores = {name: {"incumbent": arms["incumbent"]} for name, arms in measurements.scores.items()}
    with pytest.raises(RunError, match="no scores of arm 'candidate' on 'validation'"):
        replace(measurements, scores=scores)


def noisier(measurements: Measurements, arm: str, every: int) -> Measurements:
    """Raise single rows of an arm's judged scores over its threshold, far apart."""
    table = measurements.scores["judged"][arm]
    normal = np.flatnonzero(table.label == 0)
    table.score[normal[::every]] = 1.5
    return measurements


def test_more_false_alarms_are_said_and_decide_nothing():
    result = judge(noisier(make_measurements(), "candidate", every=60), make_plan())
    assert result.verdict == "go"
    assert "more false alarms than the incumbent" in reason(
        result, "quality/false_alarm_difference"
    )
    assert "has drifted" in reason(result, "quality/candidate_false_alarms_per_day")


def test_an_alarm_that_stands_is_said_though_it_counts_as_one():
    measurements = make_measurements()
    table = measurements.scores["judged"]["candidate"]
    table.score[: table.rows // 4] = 1.5  # the first of four machines, all the time
    result = judge(measurements, make_plan())
    name = "quality/candidate_alarm_time_share"
    assert result.kpi(name).value == pytest.approx(0.25, rel=0.05)  # events are no normal time
    assert "stands in alarm for" in reason(result, name)


def test_a_few_false_alarms_more_are_chance():
    result = judge(noisier(make_measurements(), "candidate", every=20_000), make_plan())
    difference = result.kpi("quality/false_alarm_difference")
    assert difference.value is not None
    assert difference.value > 0
    assert {item.kpi for item in result.reasons} == set(GATES)

"""The verdict as a whole: what a go needs, what a result is, and the rule itself."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tests.pilot.judge_cases import (
    GATES,
    make_measurements,
    make_plan,
    statuses,
)

from sma_pilot.judge.findings import combine
from sma_pilot.judge.measurements import ArmScores
from sma_pilot.judge.result import Result
from sma_pilot.judge.verdict import judge


def test_go_needs_every_gate():
    result = judge(make_measurements(), make_plan())
    assert result.verdict == "go"
    assert statuses(result) == dict.fromkeys(GATES, "pass")
    assert result.more_data is None
    assert [item.kpi for item in result.reasons[: len(GATES)]] == list(GATES)


def test_a_result_is_json_with_unique_names_and_the_plans_fingerprint():
    plan = make_plan()
    result = judge(make_measurements(), plan)
    document = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert Result.from_dict(document).to_dict() == document
    names = [kpi.name for kpi in result.kpis]
    assert len(set(names)) == len(names)
    assert document["plan"] == {"name": "case", "digest": plan.digest}
    assert document["dataset"] == {"name": "case"}


def test_the_same_input_gives_the_same_result_and_row_order_does_not_count():
    measurements, plan = make_measurements(candidate_misses=6), make_plan()
    order = np.random.default_rng(5)

    def shuffled(table: ArmScores) -> ArmScores:
        rows = order.permutation(table.rows)
        columns = {n: column[rows] for n, column in vars(table).items() if column is not None}
        return ArmScores(**columns)

    mixed = {
        name: {arm: shuffled(table) for arm, table in arms.items()}
        for name, arms in measurements.scores.items()
    }
    first = judge(measurements, plan).to_dict()
    assert judge(measurements, plan).to_dict() == first
    assert judge(replace(measurements, scores=mixed), plan).to_dict() == first


@pytest.mark.parametrize(
    ("statuses", "verdict"),
    [
        (["pass", "pass"], "go"),
        (["pass", "inconclusive"], "inconclusive"),
        (["pass", "fail"], "no-go"),
        (["inconclusive", "fail"], "no-go"),
        ([], "inconclusive"),
    ],
)
def test_the_verdict_of_the_gates(statuses, verdict):
    assert combine(statuses) == verdict


def test_an_alarm_task_goes_the_whole_way():
    measurements = make_measurements()
    for arms in measurements.scores.values():
        for table in arms.values():
            events = np.flatnonzero(np.diff(table.label, prepend=0) == 1)
            for start in events:
                table.score[start - 5 : start] = 2.0
    plan = make_plan(task={"kind": "alarm", "horizon": "30m"})
    result = judge(measurements, plan)
    assert result.verdict == "go"
    assert result.kpi("quality/candidate_median_lead_time_s").value == 300

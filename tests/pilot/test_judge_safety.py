"""Safety gates of a stage: each stops it alone, none is a proof, none is there without a stage."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.pilot.judge_cases import fleet_scores, make_measurements, make_plan

from sma_pilot.guard import REASONS
from sma_pilot.judge.guard_record import GuardRecord, GuardTally
from sma_pilot.judge.measurements import Leg, Measurements
from sma_pilot.judge.verdict import judge
from sma_pilot.plan import Plan
from sma_pilot.stages.look import levels


def reading(kind: str = "offline", **fields: Any) -> Plan:
    """What the first of a stage's looks reads from a plan with that stage."""
    document = make_plan().model_dump(mode="json")
    if "fallback_limit" in fields:
        document["guard"] = {}
    plan = Plan.model_validate({**document, "stages": [{"kind": kind, **fields}]})
    (stage,) = plan.stages
    return plan.reading(stage, levels(stage, plan)[0])


def gates(measurements: Measurements, plan: Plan) -> dict[str, str]:
    result = judge(measurements, plan)
    return {
        kpi.name.removeprefix("safety/"): kpi.status
        for kpi in result.kpis
        if kpi.name.startswith("safety/")
    }


def test_a_pilot_of_one_stage_has_no_safety_gate() -> None:
    assert gates(make_measurements(), make_plan()) == {}
    assert gates(make_measurements(), reading()) == {
        "loss_evidence": "pass",
        "unscored_share": "pass",
    }


def test_evidence_of_losses_stops_whatever_the_looks_level() -> None:
    plan = reading(looks=5)
    assert plan.quality.alpha < 1e-4  # at the first look hardly anything is proven
    bad = make_measurements(candidate_misses=60)
    result = judge(bad, plan)
    assert result.verdict == "no-go"
    evidence = result.kpi("safety/loss_evidence")
    assert evidence.status == "fail"
    assert evidence.value is not None
    assert evidence.threshold == pytest.approx(20)
    assert evidence.value >= 20
    assert any("the stage is stopped" in reason.text for reason in result.reasons)
    assert gates(make_measurements(candidate_misses=6), plan)["loss_evidence"] == "pass"


def test_another_headline_is_not_watched_by_events() -> None:
    document = reading().model_dump(mode="json")
    document["quality"]["headline"] = "average_precision"
    assert "loss_evidence" not in gates(make_measurements(), Plan.model_validate(document))


def test_rows_without_a_score_are_counted() -> None:
    caught = np.ones(40, bool)
    scores = fleet_scores({"incumbent": caught, "candidate": caught})
    silent = scores["judged"]["candidate"].score.copy()
    silent[::50] = np.nan  # 2 %
    scores["judged"]["candidate"] = replace(scores["judged"]["candidate"], score=silent)
    measured = make_measurements(scores)
    assert gates(measured, reading())["unscored_share"] == "fail"
    assert gates(measured, reading(unscored_limit=0.03))["unscored_share"] == "pass"


@pytest.mark.parametrize(
    ("late", "status"), [(0.02, "fail"), (0.01, "pass"), (None, "inconclusive")]
)
def test_late_answers_of_a_shadow(late: float | None, status: str) -> None:
    legs = dict(make_measurements().legs)
    legs["candidate/paced"] = Leg(late_share=late, response_p95_ms=3.0, served_p95_ms=1.0)
    measured = make_measurements(legs=legs)
    plan = reading("shadow", deadline="100ms", speed=10.0)
    assert gates(measured, plan)["late_share"] == status
    assert "late_share" not in gates(measured, reading("shadow"))
    result = judge(measured, plan)
    assert result.kpi("shadow/candidate_response_p95_ms").value == 3.0
    assert (result.verdict == "go") == (status == "pass")


@pytest.mark.parametrize(("rows", "status"), [(30, "fail"), (20, "pass"), (None, "inconclusive")])
def test_rows_on_the_fallback(rows: int | None, status: str) -> None:
    tally = GuardTally(
        rows=100,
        fallbacks=dict.fromkeys(REASONS, 0),
        fallback_rows={**dict.fromkeys(REASONS, 0), "drift": rows or 0},
        looks=0,
        priming_seconds=0.0,
    )
    guard = GuardRecord(
        validation=tally, judged=tally, stream=tally, seconds_per_event=None, examples=()
    )
    measured = make_measurements(guard=None if rows is None else guard)
    assert gates(measured, reading("full", fallback_limit=0.2))["fallback_share"] == status

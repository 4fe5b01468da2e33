"""The gates on time and memory, and what is told of cost, routing and a simple baseline."""

from dataclasses import replace

import numpy as np
import pytest
from tests.pilot.judge_cases import (
    BOTH,
    fleet_scores,
    latency_sample,
    make_measurements,
    make_plan,
    only_open_gate,
    reason,
    rescored,
    statuses,
)
from tests.tolerances import TOLERANCES

from sma_pilot.judge.measurements import Leg, Measurements
from sma_pilot.judge.result import Result
from sma_pilot.judge.roi import serving_cost
from sma_pilot.judge.verdict import judge
from sma_pilot.plan import Money

CLOSE = TOLERANCES["float64"].relative


def timed(**arms) -> Measurements:
    measurements = make_measurements()
    latency = {**measurements.latency, **arms}
    return make_measurements(latency={arm: own for arm, own in latency.items() if own is not None})


LATENCY = "latency/ratio_p95"


def test_a_slower_candidate_is_a_no_go():
    result = judge(timed(candidate=latency_sample(1.5, seed=3)), make_plan())
    assert result.verdict == "no-go"
    assert statuses(result)[LATENCY] == "fail"


def test_a_candidate_as_fast_as_the_incumbent_is_open():
    result = judge(timed(candidate=latency_sample(1.0, seed=4)), make_plan())
    only_open_gate(result, LATENCY)
    assert "does not settle" in reason(result, LATENCY)


def test_a_noisy_machine_proves_nothing_even_of_a_slow_candidate():
    noisy = latency_sample(1.3, seed=2)
    for factor in (0.6, 1.5):
        candidate = latency_sample(factor, seed=3)
        result = judge(timed(incumbent_again=noisy, candidate=candidate), make_plan())
        only_open_gate(result, LATENCY)
        assert "too noisy" in reason(result, LATENCY)


def test_an_incumbent_timed_once_proves_nothing():
    result = judge(timed(incumbent_again=None), make_plan())
    only_open_gate(result, LATENCY)
    assert "not timed a second time" in reason(result, LATENCY)
    assert result.noise["latency_ratio_p95"] is None


def test_a_percentile_with_too_few_queries_proves_nothing():
    plan = make_plan(efficiency={"latency_percentile": 99.9})
    result = judge(make_measurements(), plan)
    assert result.verdict == "inconclusive"
    assert "1200 queries, and LoadGen's early-stopping rule asks for 6636" in reason(
        result, "latency/ratio_p99.9"
    )
    assert result.kpi("latency/candidate_p99.9_ms").status == "not_measured"


def test_no_latency_at_all_proves_nothing():
    only_open_gate(judge(make_measurements(latency={}), make_plan()), LATENCY)


def test_the_median_can_be_the_percentile():
    result = judge(make_measurements(), make_plan(efficiency={"latency_percentile": 50}))
    assert result.verdict == "go"
    assert [kpi.name for kpi in result.kpis].count("latency/ratio_p50") == 1


# Memory, throughput, cost, routing.


def with_legs(**changes) -> Measurements:
    """`candidate_offline={...}` changes single figures of that leg."""
    measurements = make_measurements()
    legs = dict(measurements.legs)
    for name, figures in changes.items():
        key = "/".join(name.split("_", 1))
        legs[key] = replace(legs.get(key, Leg()), **figures)
    return replace(measurements, legs=legs)


def test_more_memory_is_a_no_go_and_as_much_is_not():
    more = judge(with_legs(candidate_offline={"weight_bytes": 4501}), make_plan())
    assert (more.verdict, statuses(more)["memory/ratio"]) == ("no-go", "fail")
    same = judge(with_legs(candidate_offline={"weight_bytes": 4500}), make_plan())
    assert (same.verdict, same.kpi("memory/ratio").value) == ("go", 1.0)


def test_memory_counts_one_entity_and_tells_of_the_fleet():
    result = judge(make_measurements(), make_plan())
    assert result.kpi("memory/ratio").value == pytest.approx(3500 / 5000, rel=CLOSE)
    assert result.kpi("memory/fleet_ratio").value == pytest.approx(5000 / 8000, rel=CLOSE)


def test_memory_that_was_not_measured_proves_nothing():
    only_open_gate(
        judge(with_legs(candidate_offline={"weight_bytes": None}), make_plan()), "memory/ratio"
    )


def test_cost_without_prices_is_not_measured():
    result = judge(make_measurements(), make_plan())
    costs = [kpi for kpi in result.kpis if kpi.name.startswith("cost/")]
    assert costs
    assert {kpi.status for kpi in costs} == {"not_measured"}
    assert {kpi.value for kpi in costs} == {None}


MONEY = {
    "currency": "EUR",
    "price_per_hour": 3.6,
    "price_source": "price list",
    "events_per_year": 2e9,
}


def test_cost_is_machine_time_by_its_price():
    cost = serving_cost(0.001, Money.model_validate(MONEY))
    assert cost.per_million_events == pytest.approx(1.0, rel=CLOSE)
    assert cost.per_year == pytest.approx(2000.0, rel=CLOSE)
    result = judge(make_measurements(), make_plan(money=MONEY))
    assert result.kpi("cost/incumbent_offline_per_million_events").value == pytest.approx(1.0)
    assert result.kpi("cost/candidate_offline_per_year").value == pytest.approx(800.0)
    saving = result.kpi("cost/offline_saving_per_year")
    assert (saving.value, saving.unit) == (pytest.approx(1200.0), "EUR/year")
    stream = result.kpi("cost/incumbent_single_stream_per_million_events").value
    assert stream == pytest.approx(result.kpi("latency/incumbent_mean_ms").value)
    assert "price list" in saving.note


@pytest.mark.parametrize(("rate", "which"), [(0.0, "never"), (1.0, "always")])
def test_a_router_that_does_not_route_is_said(rate, which):
    figures = {"activation_rate": 0.5, "submodule_rates": {"layer 0 swiglu": rate, "b": 0.5}}
    result = judge(with_legs(candidate_offline=figures), make_plan())
    assert result.verdict == "go"
    assert f"{which} runs layer 0 swiglu" in reason(result, "routing/activation_rate")
    assert result.kpi("routing/rate/layer 0 swiglu").value == rate
    whole = judge(with_legs(candidate_offline={"activation_rate": rate}), make_plan())
    assert f"{which} runs every sub-module" in reason(whole, "routing/activation_rate")


@pytest.mark.parametrize("difference", [0.1, float("nan")])
def test_scores_that_depend_on_the_scenario_are_said(difference):
    legs = {"candidate_single_stream": {"score_difference": difference}}
    result = judge(with_legs(**legs), make_plan())
    assert "two different functions" in reason(result, "noise/candidate_score_difference")


def test_an_incumbent_that_does_not_repeat_itself_is_said():
    measurements = make_measurements()
    measurements.scores["judged"]["incumbent_again"].score[:3] += 0.5
    result = judge(measurements, make_plan())
    assert "scored 3 of" in reason(result, "noise/score_rows_different")
    assert result.noise["score_rows_different"] == 3


# The simple baseline.


def with_baseline(share: float, rows_per_second: float, milliseconds: float) -> Result:
    caught = np.ones(120, bool)
    scores = fleet_scores(
        {
            "incumbent": caught,
            "candidate": caught,
            "baseline": np.arange(120) % 10 < 10 * share,
        }
    )
    measurements = make_measurements(scores)
    latency = {**measurements.latency, "baseline": latency_sample(milliseconds, seed=9)}
    legs = {**measurements.legs, "baseline/offline": Leg(rows_per_second=rows_per_second)}
    return judge(
        replace(measurements, latency=latency, legs=legs),
        make_plan(arms={"baseline": {"kind": "pca"}}),
    )


REMARK = "quality/baseline_loss_event_recall"


def test_a_baseline_that_does_as_well_and_is_faster_is_recommended_and_decides_nothing():
    result = with_baseline(1.0, 50_000.0, 0.05)
    assert result.verdict == "go"
    assert "PCA reconstruction error) does as well" in reason(result, REMARK)
    assert "consider it" in reason(result, REMARK)


@pytest.mark.parametrize(
    ("share", "rows_per_second", "milliseconds"), [(0.8, 50_000.0, 0.05), (1.0, 10.0, 5.0)]
)
def test_a_baseline_that_is_worse_or_slower_is_not(share, rows_per_second, milliseconds):
    result = with_baseline(share, rows_per_second, milliseconds)
    assert result.verdict == "go"
    assert REMARK not in {item.kpi for item in result.reasons}
    assert result.kpi(REMARK).value == pytest.approx(1 - share)


def test_a_baseline_without_scores_does_not_disturb():
    plan = make_plan(arms={"baseline": {"kind": "pca"}})
    measurements = make_measurements()
    empty = rescored(
        replace(
            measurements,
            scores={
                name: {**arms, "baseline": arms["candidate"]}
                for name, arms in measurements.scores.items()
            },
        ),
        ("baseline",),
        BOTH,
        np.nan,
    )
    result = judge(empty, plan)
    assert result.verdict == "go"
    assert result.kpi(REMARK).status == "not_measured"

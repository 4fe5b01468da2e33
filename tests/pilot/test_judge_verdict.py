"""Every way to a verdict, and inputs that must not break the judge or get a pass from it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tests.pilot.judge_cases import fleet_scores, latency_sample, make_measurements, make_plan
from tests.tolerances import TOLERANCES

from sma_pilot.errors import RunError
from sma_pilot.judge.findings import combine
from sma_pilot.judge.measurements import ArmScores, Leg, Measurements
from sma_pilot.judge.result import Result
from sma_pilot.judge.roi import serving_cost
from sma_pilot.judge.verdict import judge
from sma_pilot.plan import Money

CLOSE = TOLERANCES["float64"].relative
HEADLINE = "quality/loss_event_recall"
GATES = (HEADLINE, "quality/unscored_by_candidate", "latency/ratio_p95", "memory/ratio")


def statuses(result: Result) -> dict[str, str]:
    return {kpi.name: kpi.status for kpi in result.kpis if kpi.is_gate}


def reason(result: Result, kpi: str) -> str:
    return next(item.text for item in result.reasons if item.kpi == kpi)


def only_open_gate(result: Result, gate: str) -> None:
    """All gates pass but one, which is inconclusive, and so is the verdict."""
    assert statuses(result) == {**dict.fromkeys(GATES, "pass"), gate: "inconclusive"}
    assert result.verdict == "inconclusive"


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


# Quality.


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


def rescored(measurements: Measurements, arms: tuple[str, ...], slices, value) -> Measurements:
    scores = {
        name: {
            arm: replace(table, score=np.full(table.rows, value, np.float32))
            if arm in arms and name in slices
            else table
            for arm, table in tables.items()
        }
        for name, tables in measurements.scores.items()
    }
    return replace(measurements, scores=scores)


BOTH = ("validation", "judged")


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


# Latency.


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


# The rule itself.


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

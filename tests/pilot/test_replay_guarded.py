"""The guarded leg: every row passes the guard, fallbacks have a name and a time, and a price."""

from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
from tests.pilot.replay_cases import (
    MINUTE,
    START,
    FakeArm,
    FakeClock,
    PlainScorer,
    SumScorer,
    make_dataset,
    make_plan,
    quiet,
)

from sma_core.dataset import PreparedDataset
from sma_pilot.judge.result import Result
from sma_pilot.judge.verdict import judge
from sma_pilot.plan import Plan
from sma_pilot.replay.card import ReplayCard
from sma_pilot.replay.measurements_io import load_measurements
from sma_pilot.replay.runner import replay

HOLD = 4
MONEY = {
    "currency": "EUR",
    "price_per_hour": 3600.0,  # a euro a second
    "price_source": "invented",
    "events_per_year": 1000.0,
    "fallback": {"amount": 50.0, "per": "look", "source": "invented"},
}


class Moody(SumScorer):
    """Raises at every event of machine 3, which has no validation row, and of one minute.

    It knows them by x, which the data set gives no two rows alike.
    """

    bad: frozenset[float] = frozenset()

    def score(self, inputs, state):
        assert inputs.numeric is not None
        if self.bad & set(inputs.numeric[..., 0].flatten().tolist()):
            raise RuntimeError("a mood </script>")
        return super().score(inputs, state)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> PreparedDataset:
    return make_dataset(tmp_path_factory.mktemp("data") / "dataset", missing=False)


def guarded_plan(**guard) -> Plan:
    plan = make_plan(incumbent={"kind": "pca"}, passes=1).model_dump(mode="json")
    plan["quality"]["resamples"] = 200
    return Plan.model_validate(
        {**plan, "guard": {"hold_rows": HOLD, "window_rows": 8, **guard}, "money": MONEY}
    )


def value_of(result: Result, name: str) -> float:
    value = result.kpi(name).value
    assert value is not None
    return value


def go(tmp_path, dataset, plan: Plan, candidate: Callable[..., Any] = SumScorer) -> ReplayCard:
    clock = FakeClock()
    arms = {
        "incumbent": FakeArm("incumbent", lambda: PlainScorer(clock)),
        "candidate": FakeArm("candidate", lambda: candidate(clock)),
    }
    for role, arm in arms.items():
        arm.fit(dataset, tmp_path / "models" / role, quiet)
    folder = tmp_path / "replay"
    return replay(plan, dataset, tmp_path / "models", folder, quiet, arms=arms, clock=clock)


def test_nothing_wrong_is_nothing_fallen_back(tmp_path, dataset):
    plan = guarded_plan()
    card = go(tmp_path, dataset, plan)
    assert card.order[-1] == "candidate/guarded"
    leg = card.legs["candidate/guarded"]
    assert leg["tally"]["validation"]["rows"] == dataset.split("validation").rows
    assert leg["tally"]["judged"]["rows"] == dataset.split("judged").rows
    assert leg["tally"]["stream"]["rows"] == plan.replay.single_stream_events
    assert leg["examples"] == []
    assert not (tmp_path / "replay" / "guard").exists()
    result = judge(load_measurements(tmp_path / "replay"), plan)
    assert result.kpi("guard/fallback_row_share").value == 0.0
    assert result.kpi("guard/fallback_cost_per_year").value == 0.0
    assert result.kpi("guard/own_time_ms").value == 0.0  # the clock moves in models alone


def test_late_scores_are_met_in_the_stream_and_priced(tmp_path, dataset):
    # The k-th event takes 1000 + 7 k ns and the budget is 1200: late from the 29th on.
    plan = guarded_plan(latency_budget_ms=0.0012)
    go(tmp_path, dataset, plan)
    events = pl.read_parquet(tmp_path / "replay" / "guard" / "part-candidate-00000.parquet")
    assert set(events["reason"]) == {"latency"}
    assert set(events["part"]) == {"stream"}
    assert (events["value"] > 0.0012).all()
    assert events["time"].is_between(START, START + 1000 * MINUTE).all()
    result = judge(load_measurements(tmp_path / "replay"), plan)
    assert result.kpi("guard/latency_fallbacks").value == events.height
    assert result.kpi("guard/fallback_row_share").value == 0.0
    cost = value_of(result, "guard/fallback_cost_per_year")
    record = load_measurements(tmp_path / "replay").guard
    assert record is not None
    share = record.stream.fallback_rows["latency"] / record.stream.rows
    mean = value_of(result, "latency/incumbent_mean_ms") / 1e3
    assert cost == pytest.approx(share * mean * 1000)  # nobody was asked to look
    assert cost > 0
    assert result.kpi("cost/fallback_per_year").value == 0.0
    unpriced = {name: value for name, value in MONEY.items() if name != "fallback"}
    plan = Plan.model_validate({**plan.model_dump(mode="json"), "money": unpriced})
    result = judge(load_measurements(tmp_path / "replay"), plan)
    assert result.kpi("guard/fallback_cost_per_year").value is None
    assert "`money.fallback`" in result.kpi("guard/fallback_cost_per_year").note


def test_what_lies_in_the_rows_is_met_named_and_told(tmp_path, dataset):
    judged = dataset.split("judged")
    ref = next(ref for ref in judged.sequences if ref.entity == 0)
    row = judged.read(ref.start + 7, ref.start + 8)
    bad = type("Bad", (Moody,), {"bad": frozenset(row.numeric[:, 0].tolist())})
    plan = guarded_plan(fallback="person")
    with pytest.raises(RuntimeError, match="mood"):
        go(tmp_path / "bare", dataset, make_plan(incumbent={"kind": "pca"}, passes=1), bad)
    # Under guard alone it can be replayed: the bare legs use a candidate that does not mind.
    calls = iter(range(100))

    def candidate(clock):
        # rehearsal, offline, single stream, then the guarded leg
        return bad(clock) if next(calls) == 3 else SumScorer(clock)

    card = go(tmp_path, dataset, plan, candidate)
    leg = card.legs["candidate/guarded"]
    tally = leg["tally"]["judged"]
    assert tally["fallbacks"]["exception"] >= 1
    assert leg["tally"]["validation"]["fallbacks"]["exception"] == 0
    first = leg["examples"][0]
    assert (first["entity"], first["time"]) == ("machine 0", int(row.time))
    assert tally["looks"] == sum(tally["fallbacks"].values())
    measurements = load_measurements(tmp_path / "replay")
    result = judge(measurements, plan)
    said = next(r for r in result.reasons if r.kpi == "guard/fallback_row_share")
    assert "entity 'machine 0' at 2023-" in said.text
    assert "the model raised RuntimeError: a mood </script>" in said.text
    cost = value_of(result, "guard/fallback_cost_per_year")
    looks = tally["looks"] / tally["rows"] * 50.0 * 1000
    assert value_of(result, "cost/fallback_per_year") == pytest.approx(looks)
    assert cost == pytest.approx(looks + tally["priming_ns"] / 1e9 / tally["rows"] * 1000)


def test_limits_that_do_not_fit_the_plant_are_told(tmp_path, dataset):
    plan = guarded_plan(drift_limit=0.001)
    go(tmp_path, dataset, plan)
    result = judge(load_measurements(tmp_path / "replay"), plan)
    texts = [reason.text for reason in result.reasons]
    assert any("its limits do not fit this plant" in text for text in texts)
    assert value_of(result, "guard/drift_fallbacks") > 0
    assert 0.05 < value_of(result, "guard/validation_fallback_row_share") <= 1.0


def test_a_replay_without_a_guarded_leg_measures_nothing_of_it(tmp_path, dataset):
    go(tmp_path, dataset, make_plan(incumbent={"kind": "pca"}, passes=1))
    result = judge(load_measurements(tmp_path / "replay"), guarded_plan())
    assert result.kpi("guard/fallback_row_share").status == "not_measured"
    assert result.kpi("guard/fallback_cost_per_year").value is None

"""Batches of many entities and the open loop: what is due when, and what a late answer costs."""

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pilot.judge_cases import make_measurements
from tests.pilot.judge_cases import make_plan as make_judged_plan
from tests.pilot.replay_cases import FakeArm, FakeClock, PlainScorer, make_dataset, make_plan, quiet

from sma_core.dataset import PreparedDataset
from sma_core.model import Inputs
from sma_pilot.errors import PlanError, RunError
from sma_pilot.judge.findings import Findings
from sma_pilot.judge.latency import minimum_queries
from sma_pilot.judge.load import inform_load, keeps_bound, percentile_ms
from sma_pilot.judge.load_sample import LoadSample, kept_schedule
from sma_pilot.judge.verdict import judge
from sma_pilot.plan import Plan, ServerPlan
from sma_pilot.replay.energy import EnergyMeter
from sma_pilot.replay.further import LegContext, further_legs
from sma_pilot.replay.measurements_io import load_measurements
from sma_pilot.replay.multi_stream import run_multi_stream
from sma_pilot.replay.runner import replay
from sma_pilot.replay.server import Bench, arrivals_of, run_server
from sma_pilot.replay.single_stream import events_of, harness_ns, states_before
from sma_pilot.replay.stream import choose_stream
from sma_pilot.replay.timeline import Timeline

SECOND = 10**9
MILLISECOND = 10**6


class Steady(PlainScorer):
    """Serves every event, or batch, in just as long."""

    takes_ns = 2 * MILLISECOND

    def score(self, inputs: Inputs, state):
        before = self._clock.now
        scores = super().score(inputs, state)
        self._clock.now = before + (self.takes_ns if inputs.steps == 1 else 0)
        return scores

    def step(self, inputs: Inputs, state):
        return self.score(inputs, state).score.item(), ()

    @staticmethod
    def _decisions(inputs: Inputs):
        return ()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> PreparedDataset:
    return make_dataset(tmp_path_factory.mktemp("data") / "dataset", missing=False)


def jump(clock, time_ns: int) -> None:
    """Wait by moving the clock."""
    clock.now = max(clock.now, time_ns)


def context(tmp_path, dataset, plan: Plan, scorer=Steady, wait=jump) -> LegContext:
    clock = FakeClock()
    return LegContext(
        plan=plan,
        arm="candidate",
        scorer=scorer(clock),
        open_scorer=lambda role: scorer(clock),
        timeline=Timeline(dataset, 3600 * SECOND),
        folder=tmp_path,
        clock=clock,
        on_progress=quiet,
        sample_memory=lambda: None,
        wait=wait,
    )


def server_plan(**server) -> Plan:
    return make_plan(scenarios=["server"], server={"events": 100, **server}, warmup_events=3)


def times_of(folder) -> pl.DataFrame:
    return pl.read_parquet(folder / "server" / "part-candidate-00000.parquet")


# The open loop.


def test_with_room_between_events_a_response_is_a_service(tmp_path, dataset):
    run_server(context(tmp_path, dataset, server_plan(speed=60.0)))  # an event a second or so
    times = times_of(tmp_path)
    # Entities that report in the same minute queue for each other; the first of each does not.
    assert times["service_ns"].to_list() == [2 * MILLISECOND] * 100
    assert times["response_ns"].min() == 2 * MILLISECOND
    assert set(times["response_ns"].to_list()) <= {k * 2 * MILLISECOND for k in (1, 2, 3, 4)}
    assert times["slip_ns"].max() == 0


def test_what_a_slow_answer_held_up_is_charged_to_it(tmp_path, dataset):
    """Twice as many events as can be served: the k-th waits for k halves of a service time."""
    rows = np.arange(10) * MILLISECOND
    leg = context(tmp_path, dataset, server_plan(arrivals="poisson", rate=1000.0))
    bench = Bench(leg, *bench_parts(leg, 10))
    run = bench.run(rows / 1e9)
    assert run.service.tolist() == [2 * MILLISECOND] * 10
    assert run.response.tolist() == [(2 + k) * MILLISECOND for k in range(10)]
    assert not run.slip.any()


def bench_parts(leg: LegContext, events: int):
    stream = choose_stream(leg.timeline, events, "0")
    with torch.inference_mode():
        states = states_before(leg.scorer, leg.timeline, stream, 32)
    return events_of(leg.timeline, stream), states, stream.lane.tolist()


def test_a_harness_that_falls_behind_makes_the_run_invalid(tmp_path, dataset):
    def tardy(clock, time_ns: int) -> None:
        clock.now = max(clock.now, time_ns) + MILLISECOND

    run_server(context(tmp_path, dataset, server_plan(speed=60.0), wait=tardy))
    times = times_of(tmp_path)
    assert times["slip_ns"].to_list() == [MILLISECOND] * 100
    sample = LoadSample(
        events_per_query=1,
        service_ns=times["service_ns"].to_numpy(),
        response_ns=times["response_ns"].to_numpy(),
        slip_ns=times["slip_ns"].to_numpy(),
    )
    assert not sample.is_valid
    plan = make_judged_plan(replay={"scenarios": ["server"], "server": {}})
    measurements = make_measurements()
    object.__setattr__(measurements, "load", {"candidate/server": sample})
    findings = Findings()
    inform_load(measurements, plan, findings)
    kpi = next(k for k in findings.kpis if k.name == "latency/candidate_server_response_p95_ms")
    assert kpi.value is None
    assert kpi.note.startswith("Invalid")
    assert "open loop of the candidate is invalid" in findings.remarks[0].text


def test_a_few_slips_are_forgiven():
    service = np.full(100, 1000)
    slip = np.zeros(100, np.int64)
    slip[:5] = 101
    assert kept_schedule(service, slip)
    slip[5] = 101
    assert not kept_schedule(service, slip)


def test_the_highest_rate_is_found_by_halving(tmp_path, dataset):
    plan = server_plan(speed=60.0, bound_ms=2.5, events=130)
    leg = context(tmp_path, dataset, plan)
    figures = run_server(leg)
    # Up to four entities report at once, which the bound does not forgive at any rate.
    assert figures["sustainable_rate"] is None
    assert "no rate tried kept p95" in figures["search_note"]
    forgiving = server_plan(speed=60.0, bound_ms=9.0, events=130)
    figures = run_server(context(tmp_path / "again", dataset, forgiving))
    assert 0 < figures["sustainable_rate"] < 500
    assert "not kept at" in figures["search_note"] or "highest rate tried" in figures["search_note"]


def test_a_schedule_that_would_last_for_days_is_refused_before_it_starts(tmp_path, dataset):
    with pytest.raises(RunError, match=r"replay\.server\.speed: 100 events at .* raise the speed"):
        run_server(context(tmp_path, dataset, server_plan()))
    assert not (tmp_path / "server").exists()


def test_arrivals_of_the_log_keep_their_pattern():
    time = np.array([0, 10, 10, 40]) * SECOND
    arrivals, rate = arrivals_of(time, ServerPlan(speed=3.0), "s")
    assert rate == pytest.approx(3 * 3 / 40)
    np.testing.assert_allclose(arrivals / 0.225, time / SECOND / 3)


def test_poisson_arrivals_are_seeded_and_have_their_rate():
    time = np.zeros(20_001, np.int64)
    plan = ServerPlan(arrivals="poisson", rate=50.0)
    arrivals, rate = arrivals_of(time, plan, "s")
    assert rate == 50.0
    np.testing.assert_array_equal(arrivals, arrivals_of(time, plan, "s")[0])
    assert (arrivals != arrivals_of(time, plan, "t")[0]).any()
    gaps = np.diff(arrivals)
    assert gaps.mean() == pytest.approx(1.0, abs=0.05)  # seven standard errors
    assert gaps.std() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("time", [[], [5], [5, 5, 5]])
def test_without_a_pace_there_is_no_rate(time):
    assert arrivals_of(np.array(time, np.int64), ServerPlan(), "s")[1] is None


# Batches.


def test_a_batch_is_the_next_row_of_each_entity(tmp_path, dataset):
    plan = make_plan(scenarios=["multi_stream"], multi_stream_entities=3, multi_stream_batches=20)
    seen = []

    class Watched(Steady):
        def score(self, inputs, state):
            scores = super().score(inputs, state)
            if inputs.batch == 3 and inputs.steps == 1:
                seen.append(scores.score[:, 0].tolist())
            return scores

    figures = run_multi_stream(context(tmp_path, dataset, plan, Watched))
    assert figures["events_per_query"] == 3
    # Five warm-up events are two batches of three.
    assert len(seen) == 22
    times = pl.read_parquet(tmp_path / "multi_stream" / "part-candidate-00000.parquet")
    assert times["service_ns"].to_list() == [2 * MILLISECOND] * 20
    # Running sums since the stretch began, validation rows of machine 0 included.
    judged = dataset.split("judged")
    before = dataset.split("validation").read(0, 60).numeric[:, 0].double().sum()
    own = judged.read(0, 22).numeric[:, 0].double().cumsum(0) + before
    np.testing.assert_allclose([scores[0] for scores in seen], own.float().numpy())


def test_one_entity_makes_no_batch(tmp_path):
    pieces = (("train", 0, 0, 20), ("validation", 0, 20, 10), ("judged", 0, 30, 10))
    alone = make_dataset(tmp_path / "dataset", pieces)
    plan = make_plan(scenarios=["multi_stream"])
    assert run_multi_stream(context(tmp_path, alone, plan))["rows"] == 0


# What times prove.


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 700), st.integers(0, 40))
def test_a_bound_is_kept_when_loadgens_rule_says_so(queries, over):
    over = min(over, queries)
    times = np.full(queries, MILLISECOND)
    times[:over] = 3 * MILLISECOND
    enough = queries >= minimum_queries(95.0, over)
    assert keeps_bound(times, 2.0, 95.0) == enough


def test_a_percentile_needs_its_queries():
    times = np.arange(1, 131) * MILLISECOND
    assert percentile_ms(times, 95.0) == 124.0  # the nearest rank: 123.5, rounded up
    assert percentile_ms(times[:129], 95.0) is None


def test_the_harness_is_measured_by_a_model_that_does_nothing():
    class Ticking(FakeClock):
        def __call__(self) -> int:
            self.now += 50
            return self.now

    # Two readings an event, and one at the end.
    assert harness_ns(Ticking(), 100) == pytest.approx((2 * 100 + 1) * 50 / 100)


def test_without_a_counter_energy_is_not_measured():
    with EnergyMeter(device="cpu", clock=FakeClock()) as meter:
        pass
    assert meter.joules is None


class Counter:
    """NVML of two boards, the second of which has a counter in millijoules."""

    class NVMLError(Exception):
        pass

    def __init__(self, *readings: int | None) -> None:
        self.readings = list(readings)

    def nvmlDeviceGetHandleByUUID(self, name: str) -> int:
        return ["GPU-hidden", "GPU-ours"].index(name)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        assert handle == 1
        reading = self.readings.pop(0)
        if reading is None:
            raise self.NVMLError
        return reading


@pytest.mark.parametrize(
    ("readings", "seconds", "joules"),
    [
        ((1000, 8500), 3, 7.5),
        ((1000, 8500), 1, None),  # too short a window
        ((None, 8500), 3, None),
        ((1000, None), 3, None),
        ((1000, 1000), 3, None),  # a counter that stands still counts nothing
    ],
)
def test_energy_is_the_rise_of_the_counter(monkeypatch, readings, seconds, joules):
    """Of the board that computes: the first of the machine may be another."""
    monkeypatch.setattr("sma_pilot.replay.energy._open_nvml", lambda: Counter(*readings))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    board = SimpleNamespace(uuid="ours")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: board)
    clock = FakeClock()
    with EnergyMeter(device="cuda", clock=clock) as meter:
        clock.now += seconds * SECOND
    assert meter.joules == joules


# The plan.


@pytest.mark.parametrize(
    ("replay", "message"),
    [
        ({"scenarios": ["server"]}, "go together"),
        ({"server": {}}, "go together"),
        ({"scenarios": ["offline"]}, "scenarios"),
        ({"scenarios": ["multi_stream", "multi_stream"]}, "names one twice"),
        ({"scenarios": ["server"], "server": {"arrivals": "poisson"}}, "`rate` is needed"),
        ({"scenarios": ["server"], "server": {"rate": 5.0}}, "unknown to 'log'"),
        (
            {"scenarios": ["server"], "server": {"arrivals": "poisson", "rate": 5, "speed": 2}},
            "belongs to arrivals 'log'",
        ),
    ],
)
def test_a_wrong_scenario_is_refused(replay, message):
    with pytest.raises((PlanError, ValueError), match=message):
        make_plan(**replay)


def test_every_arm_takes_its_turn_in_every_scenario():
    plan = make_plan(scenarios=["server", "multi_stream"], server={}, baseline={"kind": "pca"})
    legs = further_legs(plan)
    assert [scenario for _, scenario in legs] == ["server"] * 3 + ["multi_stream"] * 3
    assert {arm for arm, _ in legs[:3]} == {"incumbent", "candidate", "baseline"}
    assert legs == further_legs(plan)


def test_a_whole_replay_brings_the_figures_to_the_judge(tmp_path, dataset):
    plan = make_plan(
        incumbent={"kind": "pca"},
        passes=1,
        scenarios=["multi_stream", "server"],
        multi_stream_entities=2,
        server={"speed": 1e6, "events": 100},
    )
    clock = FakeClock()
    arms = {role: FakeArm(role, lambda: Steady(clock)) for role in ("incumbent", "candidate")}
    for role, arm in arms.items():
        arm.fit(dataset, tmp_path / "models" / role, quiet)
    monotone = TickingClock(clock)
    replay(plan, dataset, tmp_path / "models", tmp_path / "r", quiet, arms=arms, clock=monotone)
    measurements = load_measurements(tmp_path / "r")
    assert set(measurements.load) == {
        f"{arm}/{scenario}"
        for arm in ("incumbent", "candidate")
        for scenario in ("multi_stream", "server")
    }
    result = judge(
        measurements,
        plan.model_copy(update={"quality": plan.quality.model_copy(update={"resamples": 200})}),
    )
    assert result.kpi("latency/candidate_server_service_p95_ms").status == "not_measured"
    assert "LoadGen" in result.kpi("latency/candidate_server_service_p95_ms").note
    assert result.kpi("throughput/candidate_multi_stream_rows_per_second").value == pytest.approx(
        2 / 2.1e-3, rel=0.01
    )
    assert result.kpi("throughput/candidate_sustainable_events_per_second").value is None
    assert result.kpi("noise/candidate_harness_share").value is not None
    assert result.kpi("energy/candidate_joules_per_million_events").status == "not_measured"


class TickingClock:
    """A fake clock that moves a little when it is read, so that whoever waits by it gets on."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock

    def __call__(self) -> int:
        self._clock.now += MILLISECOND // 10
        return self._clock.now

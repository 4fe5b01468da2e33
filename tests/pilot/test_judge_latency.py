"""The early-stopping rule, percentiles by hand, and ratios whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from tests.pilot.judge_cases import latency_sample

from sma_pilot.errors import RunError
from sma_pilot.judge.latency import measure_latency, minimum_queries
from sma_pilot.judge.measurements import LatencySample

SETTINGS = {"resamples": 400, "alpha": 0.05, "seed": 0}


@pytest.mark.parametrize(
    ("percentile", "over", "queries"),
    [
        (90, 1, 64),
        (95, 0, 90),
        (95, 1, 130),
        (95, 10, 398),
        (99, 0, 459),
        (99, 1, 662),
        (99, 10, 2010),
        (99.9, 0, 4603),
        (99.9, 1, 6636),
        (99.9, 10, 20140),
    ],
)
def test_minimum_queries_are_loadgens(percentile, over, queries):
    assert minimum_queries(percentile, over) == queries


@pytest.mark.parametrize("percentile", [50.0, 77.7, 99.5])
def test_minimum_queries_are_the_fewest_that_the_binomial_tail_allows(percentile):
    fewest = minimum_queries(percentile)
    share = 1 - percentile / 100
    assert stats.binom.cdf(1, fewest, share) <= 0.01 < stats.binom.cdf(1, fewest - 1, share)


def sample(milliseconds, passes=1) -> LatencySample:
    times = np.asarray(milliseconds, float)
    return LatencySample(
        service_ns=np.round(times * 1e6).astype(np.int64),
        pass_index=np.repeat(np.arange(passes, dtype=np.int32), times.size // passes),
        query=np.tile(np.arange(times.size // passes), passes),
        active_share=np.full(times.size, np.nan, np.float32),
    )


def test_percentiles_are_times_that_were_served():
    times = np.random.default_rng(0).permutation(np.arange(1, 201))
    arms = {"incumbent": sample(2 * times), "candidate": sample(times)}
    measured = measure_latency(arms, (50.0, 95.0), **SETTINGS)["candidate"]
    assert measured.percentiles[50.0].value == 100.0
    assert measured.percentiles[95.0].value == 190.0
    assert measured.mean_ms == 100.5
    assert measured.queries == 200


def test_a_ratio_that_is_the_same_for_every_query_has_no_noise():
    times = np.random.default_rng(0).lognormal(0, 1, 600)
    arms = {"incumbent": sample(2 * times, passes=3), "candidate": sample(times, passes=3)}
    ratio = measure_latency(arms, (95.0,), **SETTINGS)["candidate"].ratios[95.0]
    # Blocks and passes are drawn alike for both arms; what is left is rounding to nanoseconds.
    assert ratio.interval == pytest.approx((0.5, 0.5), abs=1e-6)


def test_the_true_ratio_is_within_the_interval():
    inside = 0
    for seed in range(40):
        arms = {
            "incumbent": latency_sample(1.0, queries=150, seed=2 * seed),
            "candidate": latency_sample(0.8, queries=150, seed=2 * seed + 1),
        }
        settings = {**SETTINGS, "resamples": 200}
        low, high = measure_latency(arms, (50.0,), **settings)["candidate"].ratios[50.0].interval
        inside += low <= 0.8 <= high
    # 90 % of 40 are 36; fewer than 29 come with a chance under 1 in 1,000.
    assert inside >= 29


def test_a_disturbed_pass_widens_the_interval():
    calm = {"incumbent": latency_sample(seed=1), "candidate": latency_sample(seed=2)}
    slowed = calm["candidate"].service_ns.copy()
    slowed[calm["candidate"].pass_index == 1] *= 3
    disturbed = {**calm, "candidate": replace(calm["candidate"], service_ns=slowed)}
    widths = []
    for arms in (calm, disturbed):
        low, high = measure_latency(arms, (50.0,), **SETTINGS)["candidate"].ratios[50.0].interval
        widths.append(high - low)
    assert widths[1] > 5 * widths[0]


def test_bursts_widen_the_interval():
    # A fifth of the queries is slow: one by one, or all in a row.
    spread = np.where(np.arange(1000) % 5 == 0, 10.0, 1.0)
    spread += np.random.default_rng(0).random(1000) / 100
    order = np.argsort(spread > 5, kind="stable")
    widths = []
    for times in (spread, spread[order]):
        arms = {"incumbent": sample(np.full(1000, 1.0)), "candidate": sample(times)}
        low, high = measure_latency(arms, (79.0,), **SETTINGS)["candidate"].ratios[79.0].interval
        widths.append(high - low)
    assert widths[1] > 2 * widths[0]


def test_too_few_queries_give_no_percentile():
    arms = {"incumbent": latency_sample(queries=43), "candidate": latency_sample(queries=43)}
    measured = measure_latency(arms, (50.0, 95.0), **SETTINGS)["candidate"]
    assert measured.queries == 129
    assert set(measured.ratios) == {50.0}


def test_only_queries_that_all_arms_served_are_compared():
    slow_extra = sample([*np.full(200, 1.0), *np.full(50, 99.0)])
    arms = {"incumbent": sample(np.full(200, 2.0)), "candidate": slow_extra}
    measured = measure_latency(arms, (95.0,), **SETTINGS)
    assert measured["candidate"].queries == 200
    assert measured["candidate"].ratios[95.0].value == 0.5


def test_queries_are_paired_by_pass_and_position_in_any_order():
    times = np.random.default_rng(0).lognormal(0, 1, 600)
    incumbent, candidate = sample(2 * times, passes=3), sample(times, passes=3)
    order = np.random.default_rng(1).permutation(600)
    shuffled = LatencySample(**{name: column[order] for name, column in vars(candidate).items()})
    plain = measure_latency({"incumbent": incumbent, "candidate": candidate}, (95.0,), **SETTINGS)
    other = measure_latency({"incumbent": incumbent, "candidate": shuffled}, (95.0,), **SETTINGS)
    assert plain == other


def test_a_baseline_takes_no_query_away():
    arms = {"incumbent": latency_sample(), "candidate": latency_sample()}
    short = {**arms, "baseline": latency_sample(queries=10)}
    measured = measure_latency(short, (95.0,), **SETTINGS)
    assert measured == measure_latency(arms, (95.0,), **SETTINGS)


@pytest.mark.parametrize("arms", [{}, {"incumbent": sample([])}])
def test_nothing_served_is_nothing_measured(arms):
    assert measure_latency(arms, (95.0,), **SETTINGS) == {}


def test_a_service_time_of_zero_and_a_query_served_twice_are_refused():
    good = sample([1.0, 1.0])
    with pytest.raises(RunError, match="took 0 ns"):
        replace(good, service_ns=np.array([5, 0]))
    with pytest.raises(RunError, match="twice in one pass"):
        replace(good, query=np.array([3, 3]))
    with pytest.raises(RunError, match="columns differ in length"):
        replace(good, query=np.array([3]))
    with pytest.raises(RunError, match="need a 1-d int64 column"):
        replace(good, service_ns=np.array([1.5, 2.5]))
